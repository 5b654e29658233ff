"""The gate's work: results that are on disk, and a policy, to a verdict. Nothing is run again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from validate.aggregate import drop_interval
from validate.evidence import Champion, Engine, Evidence
from validate.exceptions import JobError, UsageError
from validate.gate import decide
from validate.policy import Policy
from validate.results import Candidate, CandidateAccuracy, Results
from validate.samples import SAMPLES_FILE, SampleTable
from validate.tasks.base import Metric, Records
from validate.tasks.spec import metric_of

__all__ = ["champion_at", "judge_again"]


def judge_again(
    results: Results, folder: Path, policy: Policy, engine: Path | None = None, champion: Champion | None = None
) -> Results:
    """Return the results with the verdict that a policy makes of their selected candidate.

    Args:
        results: of a run.
        folder: that they are in, with samples.parquet where there is one.
        policy: to judge by. Intervals are computed again where its confidence is not that of the run.
        engine: built from the candidate, where one is to be judged.
        champion: what is live, where the candidate is to be compared with it.

    Raises:
        UsageError: no candidate was selected, there is no such engine, or the intervals for another confidence
            cannot be computed.
        JobError: a file is damaged, or is of other results.
    """
    candidate = results.selected_candidate
    if candidate is None:
        raise UsageError("the results are about no candidate, so that there is nothing to judge")
    if engine is not None and not engine.is_file():
        raise UsageError(f"there is no engine {engine}")
    samples, metric = _samples(results, folder), _metric(results)
    evidence = Evidence(
        reference=results.reference.accuracy, candidate=_at_confidence(policy, results, candidate, samples, metric),
        metric=metric, model_sha256=results.model.sha256, overlap=results.overlap, samples=samples, champion=champion,
        engine=None if engine is None else Engine.at(engine),
    )  # fmt: skip
    return results.model_copy(update={"verdict": decide(policy, evidence)})


def champion_at(label: str, folder: Path) -> Champion:
    """Return the selected candidate of a run whose files are in a folder. Raises JobError where they do not fit."""
    results = Results.read(folder)
    return Champion.of(label, results, _samples(results, folder))


def _samples(results: Results, folder: Path) -> SampleTable | None:
    """Return the samples of the results; None where there is no file of them."""
    path = folder / SAMPLES_FILE
    if not path.is_file():
        return None
    samples, expected = SampleTable.read(path), results.reference.accuracy
    mean = float(samples.reference.mean()) if samples.reference.ndim == 1 and len(samples) else expected.value
    if len(samples) != expected.n or not np.isclose(mean, expected.value, rtol=1e-9, atol=1e-12, equal_nan=True):
        raise JobError(f"{path} is not of these results: its {len(samples)} samples score otherwise; copy both again")
    return samples


def _metric(results: Results) -> Metric | None:
    """Return how the metric is made of the samples' scores; None where only a task of the user's own can tell."""
    accuracy = results.reference.accuracy
    found = metric_of(results.config["task"], labelled=not accuracy.is_agreement) if "task" in results.config else None
    return found if found is not None and found.name == accuracy.metric else None


def _at_confidence(
    policy: Policy, results: Results, candidate: Candidate, samples: SampleTable | None, metric: Metric | None
) -> Candidate:
    """Return the candidate with the interval for the policy's confidence, of which each look has had its share."""
    planned = float(results.config["policy"]["confidence"]) if "policy" in results.config else None
    if planned is None or math.isclose(planned, policy.confidence):
        return candidate
    share = (1 - candidate.accuracy.confidence) / (1 - planned)
    confidence = 1 - (1 - policy.confidence) * share
    kernels = candidate.integer_kernels
    lacks_kernels = kernels is not None and (samples is None or candidate.name not in samples.kernels)
    if samples is None or metric is None or lacks_kernels:
        raise UsageError(
            f"policy.confidence is {policy.confidence:g} and the run's was {planned:g}; other intervals can be "
            "computed only with the run's samples.parquet, and not of a task of your own: "
            f"run again with policy.confidence={policy.confidence:g}"
        )

    def again(accuracy: CandidateAccuracy, scores: Records) -> CandidateAccuracy:
        found = drop_interval(metric, samples.reference, scores, confidence)
        return accuracy.model_copy(
            update={"ci_low": found.low, "ci_high": found.high, "confidence": confidence, "method": found.method}
        )

    update: dict[str, Any] = {"accuracy": again(candidate.accuracy, samples.candidates[candidate.name])}
    if kernels is not None:
        accuracy = again(kernels.accuracy, samples.kernels[candidate.name])
        update["integer_kernels"] = kernels.model_copy(update={"accuracy": accuracy})
    return candidate.model_copy(update=update)
