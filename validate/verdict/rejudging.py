"""Judges results on disk again, by another policy, without running anything."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from validate.exceptions import JobError, UsageError
from validate.results import Candidate, CandidateAccuracy, Results, SampleTable, samples_of
from validate.stats import drop_interval
from validate.tasks import Metric, Records, metric_of
from validate.verdict.decision import decide
from validate.verdict.evidence import Champion, Engine, Evidence
from validate.verdict.policy import Policy

__all__ = ["champion_at", "judge_again", "metric_of_samples"]


def judge_again(
    results: Results, folder: Path, policy: Policy, engine: Path | None = None, champion: Champion | None = None
) -> Results:
    """Return the results with the verdict of a policy on their selected candidate.

    Args:
        results: of a run.
        folder: that they are in, with samples.parquet where there is one.
        policy: to judge by. Intervals are computed again where its confidence is not that of the run.
        engine: built from the candidate, where one is to be judged.
        champion: what is live, where the candidate is to be compared with it.

    Raises:
        UsageError: no candidate was selected, there is no such engine, or the intervals for another confidence cannot
            be computed.
        JobError: a file is damaged, or is of other results.
    """
    candidate = results.selected_candidate
    if candidate is None:
        raise UsageError("the results are about no candidate, so that there is nothing to judge")
    if engine is not None and not engine.is_file():
        raise UsageError(f"there is no engine {engine}")
    samples, no_samples = samples_of(results, folder)
    metric = metric_of_samples(results, samples)
    evidence = Evidence(
        reference=results.reference.accuracy,
        candidate=_at_confidence(policy, results, candidate, samples, metric),
        metric=metric,
        model_sha256=results.model.sha256,
        overlap=results.overlap,
        samples=samples,
        no_samples=no_samples,
        champion=champion,
        engine=None if engine is None else Engine.at(engine),
    )
    return results.model_copy(update={"verdict": decide(policy, evidence)})


def champion_at(label: str, folder: Path) -> Champion:
    """Return the selected candidate of a run whose files are in a folder; an older version may have written them."""
    try:
        results = Results.read(folder)
        return Champion.of(label, results, *samples_of(results, folder))
    except (UsageError, JobError) as error:
        return Champion(label, problem=f"of its run, {str(error).replace(f'{folder}/', '')}")


def metric_of_samples(results: Results, samples: SampleTable | None) -> Metric | None:
    """Return the metric that results are judged by; None where only a task of the user's own defines it."""
    accuracy = results.reference.accuracy
    if samples is not None and samples.reference.ndim == 1:
        return Metric(accuracy.metric, accuracy.higher_is_better, accuracy.is_rate, is_agreement=accuracy.is_agreement)
    return metric_of(results.config["task"], labelled=not accuracy.is_agreement) if "task" in results.config else None


def _at_confidence(
    policy: Policy, results: Results, candidate: Candidate, samples: SampleTable | None, metric: Metric | None
) -> Candidate:
    """Return the candidate with the interval for the policy's confidence, of which each look has had its share."""
    planned = float(results.config["policy"]["confidence"]) if "policy" in results.config else None
    if planned is None or math.isclose(planned, policy.confidence):
        return candidate
    share = (1 - candidate.accuracy.confidence) / (1 - planned)
    confidence = 1 - (1 - policy.confidence) * share
    kernels, name = candidate.integer_kernels, candidate.name
    scored = samples is not None and name in samples.candidates and (kernels is None or name in samples.kernels)
    if samples is None or not scored or metric is None:
        raise UsageError(
            f"policy.confidence is {policy.confidence:g} and the run's was {planned:g}; other intervals can be "
            "computed only with the samples.parquet of the run and the candidate's scores in it, and not of a task of "
            "your own whose metric is no mean: "
            f"run again with policy.confidence={policy.confidence:g}"
        )

    def again(accuracy: CandidateAccuracy, scores: Records) -> CandidateAccuracy:
        found = drop_interval(metric, samples.reference, scores, confidence)
        return accuracy.model_copy(
            update={"ci_low": found.low, "ci_high": found.high, "confidence": confidence, "method": found.method}
        )

    update: dict[str, Any] = {"accuracy": again(candidate.accuracy, samples.candidates[name])}
    if kernels is not None:
        accuracy = again(kernels.accuracy, samples.kernels[name])
        update["integer_kernels"] = kernels.model_copy(update={"accuracy": accuracy})
    return candidate.model_copy(update=update)
