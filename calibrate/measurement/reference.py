"""Evaluation of the float model on the validation set, with which every candidate is compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrate.journal import Journal
from calibrate.loading import Inputs, SplitFingerprint
from validate.accuracy import evaluate, sanity_warnings
from validate.job import Job

__all__ = ["ReferenceRun", "evaluate_reference"]


@dataclass(frozen=True)
class ReferenceRun:
    """Results of the float model on the validation set.

    Attributes:
        scores: of every sample, shape (n,), or its record, shape (n, k).
        fingerprint: identifies the samples; every later pass must see the same.
    """

    scores: NDArray[np.float64]
    fingerprint: SplitFingerprint


def evaluate_reference(job: Job, inputs: Inputs, journal: Journal) -> ReferenceRun:
    """Score the float model on the validation set, and warn where its scores fail a sanity check.

    Raises:
        JobError: the samples cannot be read or scored, or repeat each other although `data.allow_repeats` is false.
    """
    fingerprint = SplitFingerprint()
    with journal.stage("reference", "evaluate the float model") as advance:
        batches = journal.forward("reference", fingerprint.record(inputs.validation.batches()))
        scores = evaluate(inputs.reference, inputs.task, batches, advance, is_reference=True)
    if warning := job.data.repeats("validation", fingerprint.order):
        journal.warn(warning)
    for warning in sanity_warnings(inputs.task, scores, job.model.expected_metric, inputs.validation):
        journal.warn(warning)
    return ReferenceRun(scores, fingerprint)
