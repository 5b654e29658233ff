"""The gate's work: results that are on disk, and a policy, to a verdict. Nothing is run again."""

from __future__ import annotations

import math
from pathlib import Path

from validate.evidence import Champion, Engine, Evidence
from validate.exceptions import JobError, UsageError
from validate.gate import decide
from validate.groups import largest_difference, worsening
from validate.policy import Policy
from validate.results import Accuracy, Candidate, CandidateAccuracy, Results
from validate.samples import SampleTable, samples_of
from validate.significance import paired_interval

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
    samples, no_samples = samples_of(results, folder)
    evidence = Evidence(
        reference=results.reference.accuracy, candidate=_at_confidence(policy, results, candidate, samples),
        overlap=results.overlap, samples=samples, no_samples=no_samples, champion=champion,
        engine=None if engine is None else Engine.at(engine),
    )  # fmt: skip
    return results.model_copy(update={"verdict": decide(policy, evidence)})


def champion_at(label: str, folder: Path) -> Champion:
    """Return the selected candidate of a run whose files are in a folder; they may be of an older version of us."""
    try:
        results = Results.read(folder)
        return Champion.of(label, results, *samples_of(results, folder))
    except (UsageError, JobError) as error:
        return Champion(label, problem=f"of its run, {str(error).replace(f'{folder}/', '')}")


def _at_confidence(policy: Policy, results: Results, candidate: Candidate, samples: SampleTable | None) -> Candidate:
    """Return the candidate with the interval for the policy's confidence, of which each look has had its share."""
    planned = float(results.config["policy"]["confidence"]) if "policy" in results.config else None
    if planned is None or math.isclose(planned, policy.confidence):
        return candidate
    share = (1 - candidate.accuracy.confidence) / (1 - planned)
    wanted = 1 - (1 - policy.confidence) * share
    scored = samples is not None and candidate.name in samples.candidates
    if samples is None or not scored or samples.reference.ndim != 1 or candidate.integer_kernels is not None:
        raise UsageError(
            f"policy.confidence is {policy.confidence:g} and the run's was {planned:g}; other intervals can be "
            "computed only with the samples.parquet of the run and the candidate's scores in it, of a metric that is a "
            "mean of scores, and not of integer kernels: "
            f"run again with policy.confidence={policy.confidence:g}"
        )
    return candidate.model_copy(update={"accuracy": _interval(results.reference.accuracy, candidate, samples, wanted)})


def _interval(reference: Accuracy, candidate: Candidate, samples: SampleTable, confidence: float) -> CandidateAccuracy:
    worse = worsening(reference, samples.reference, samples.candidates[candidate.name])
    interval = paired_interval(worse, confidence, largest_difference(reference))
    return candidate.accuracy.model_copy(
        update={
            "ci_low": interval.low, "ci_high": interval.high, "confidence": confidence, "method": interval.method,
        }
    )  # fmt: skip
