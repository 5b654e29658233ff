"""Verdicts on what was measured before: results of a run, or an evaluation. Nothing is run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from validate.exceptions import JobError, UsageError
from validate.results import (
    Accuracy,
    BuildResult,
    Candidate,
    CandidateAccuracy,
    EngineFile,
    Evaluation,
    ModelEvaluation,
    Results,
    SampleTable,
    Verdict,
    samples_of,
)
from validate.stats import Interval, drop_interval
from validate.tasks import Metric, Records, metric_of
from validate.verdict.decision import decide
from validate.verdict.evidence import Champion, Engine, Evidence
from validate.verdict.policy import Policy

__all__ = ["champion_at", "gate", "judge_again", "metric_of_samples"]


@dataclass(frozen=True)
class EvaluatedModel:
    """A model of an evaluation, as rules ask for it; see `Measured`. What an evaluation does not measure is None."""

    name: str
    plan_hash: str
    accuracy: CandidateAccuracy
    size_bytes: int | None
    tensorrt_build: BuildResult
    engine_file: EngineFile | None = None
    engine: None = None
    engine_reason: str = "the model that was evaluated is no engine"
    integer_kernels: None = None
    latency: None = None
    latency_reason: str = "an evaluation times nothing"
    speedups: tuple[()] = ()
    layers: tuple[()] = ()
    clipping: None = None


def gate(
    measured: Evaluation | Results | Path | str,
    policy: Policy,
    *,
    candidate: str | None = None,
    engine: Path | str | None = None,
) -> Verdict:
    """Judge by a policy what was measured before, without running anything.

    GO needs the whole interval of the drop within `Policy.max_drop`, a TensorRT that has built the file (or
    ``require_tensorrt_build=False``), an engine that was run (or ``optional=["engine"]``, which leaves it at a
    simulation), and every other rule of the policy. An evaluation measures accuracy, by class and
    by slice too, the build and the file's size; whatever else a policy asks for is not measured there, and so no GO:
    a run (``python -m calibrate run``) measures it.

    Args:
        measured: an evaluation, results of a run, or the folder that a run wrote (or its results.json).
        policy: what a release must keep to.
        candidate: name of the model to judge in an evaluation, by default the last. Of results it is the selected one.
        engine: TensorRT engine that is to be deployed, for the rules of `Policy.engine`; it must be the one that was
            run, where one was.

    Returns:
        the decision, with every rule's outcome and reason.

    Raises:
        UsageError: there is no such candidate, file or folder, or intervals for the policy's confidence cannot be
            computed from what is there.
        JobError: a file is damaged, or is of other results.

    Examples:
        >>> from validate import Classification, evaluate
        >>> class Even:  # any object that runs batches
        ...     runtime, device, input_names, output_names = "Python", "CPU", ("x",), ("y",)
        ...     def run(self, inputs):
        ...         return {"y": np.eye(2)[inputs["x"].astype(int) % 2]}
        >>> rows = [(np.float32(i), i % 2) for i in range(600)]
        >>> evaluation = evaluate([Even(), Even()], rows, Classification(), progress=False)
        >>> gate(evaluation, Policy(max_drop=0.01, require_tensorrt_build=False, optional=["engine"])).decision.value
        'GO'
    """
    file = None if engine is None else Path(engine)
    if isinstance(measured, Evaluation):
        return _judge_evaluation(measured, policy, candidate, file)
    folder = None
    if isinstance(measured, str | Path):
        path = Path(measured)
        measured, folder = Results.read(path), path if path.is_dir() else path.parent
    if candidate not in (None, measured.selected):
        raise UsageError(f"the results are about candidate {measured.selected}, so that {candidate} cannot be judged")
    return judge_again(measured, folder, policy, file).verdict


def judge_again(
    results: Results, folder: Path | None, policy: Policy, engine: Path | None = None, champion: Champion | None = None
) -> Results:
    """Return the results with the verdict of a policy on their selected candidate.

    Args:
        results: of a run.
        folder: that they are in, with samples.parquet where there is one; None where it is not known.
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
    samples, no_samples = None, "the folder of the results, which has samples.parquet, was not given"
    if folder is not None:
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
        engine=_engine(engine or _kept_engine(candidate, folder)),
        baselines=results.baselines,
        fp16=results.fp16,
    )
    return results.model_copy(update={"verdict": decide(policy, evidence)})


def _kept_engine(candidate: Candidate, folder: Path | None) -> Path | None:
    """Return the engine that the run left in its folder, where it is still there: nobody may have replaced it."""
    kept = candidate.engine_file.path if candidate.engine_file else None
    path = None if folder is None or kept is None else folder / kept
    return path if path is not None and path.is_file() else None


def _engine(path: Path | None) -> Engine | None:
    if path is not None and not path.is_file():
        raise UsageError(f"there is no engine {path}")
    return None if path is None else Engine.at(path)


def _judge_evaluation(evaluation: Evaluation, policy: Policy, name: str | None, engine: Path | None) -> Verdict:
    """Judge one model of an evaluation; the first is the reference."""
    reference, *candidates = evaluation.models
    known = [model.model for model in candidates]
    if not candidates:
        raise UsageError("the evaluation has one model only, so that there is nothing to hold against it")
    if name is not None and name not in known:
        raise UsageError(f"the evaluation has no candidate called {name}; there are {', '.join(known)}")
    model = candidates[-1] if name is None else evaluation.model(name)
    first, scores = np.array(reference.scores), np.array(model.scores)
    accuracy = reference.accuracy
    metric = _mean_metric(accuracy) if scores.ndim == 1 else None
    samples = SampleTable(
        evaluation.samples,
        evaluation.labels or [None] * len(evaluation.samples),
        evaluation.slices or [None] * len(evaluation.samples),
        first,
        {model.model: scores},
    )
    confidence = 1 - (1 - policy.confidence) / len(candidates)
    evidence = Evidence(
        reference=accuracy,
        candidate=EvaluatedModel(
            name=model.model,
            plan_hash=model.plan_hash or "",
            accuracy=_evaluated_accuracy(model, confidence, samples, metric),
            size_bytes=model.size_bytes,
            tensorrt_build=model.tensorrt_build
            or BuildResult(ok=None, backend=None, version=None, message="not checked: the evaluation built nothing"),
            engine_file=model.engine,
        ),
        metric=metric,
        samples=samples,
        engine=_engine(engine),
    )
    return decide(policy, evidence)


def _evaluated_accuracy(
    model: ModelEvaluation, confidence: float, samples: SampleTable, metric: Metric | None
) -> CandidateAccuracy:
    """Return a model's accuracy with the interval for a confidence, which is computed again where it is another."""
    accuracy = model.accuracy
    assert isinstance(accuracy, CandidateAccuracy)  # all but the first are
    if math.isclose(accuracy.confidence, confidence):
        return accuracy
    if metric is None:
        raise UsageError(
            f"the policy asks for intervals of {confidence:g} confidence, the evaluation has {accuracy.confidence:g}, "
            "and others cannot be computed of a metric that is no mean; evaluate again with the policy's confidence"
        )
    found = drop_interval(metric, samples.reference, samples.candidates[model.model], confidence)
    return _with_interval(accuracy, found, confidence)


def _with_interval(accuracy: CandidateAccuracy, found: Interval, confidence: float) -> CandidateAccuracy:
    return accuracy.model_copy(
        update={"ci_low": found.low, "ci_high": found.high, "confidence": confidence, "method": found.method}
    )


def champion_at(label: str, folder: Path) -> Champion:
    """Return the selected candidate of a run whose files are in a folder; an older version may have written them."""
    try:
        results = Results.read(folder)
        return Champion.of(label, results, *samples_of(results, folder))
    except (UsageError, JobError) as error:
        return Champion(label, problem=f"of its run, {str(error).replace(f'{folder}/', '')}")


def _mean_metric(accuracy: Accuracy) -> Metric:
    """Return the metric that is the mean of one score per sample."""
    return Metric(accuracy.metric, accuracy.higher_is_better, accuracy.is_rate, is_agreement=accuracy.is_agreement)


def metric_of_samples(results: Results, samples: SampleTable | None) -> Metric | None:
    """Return the metric that results are judged by; None where only a task of the user's own defines it."""
    accuracy = results.reference.accuracy
    if samples is not None and samples.reference.ndim == 1:
        return _mean_metric(accuracy)
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
        return _with_interval(accuracy, drop_interval(metric, samples.reference, scores, confidence), confidence)

    update: dict[str, Any] = {"accuracy": again(candidate.accuracy, samples.candidates[name])}
    if kernels is not None:
        accuracy = again(kernels.accuracy, samples.kernels[name])
        update["integer_kernels"] = kernels.model_copy(update={"accuracy": accuracy})
    return candidate.model_copy(update=update)
