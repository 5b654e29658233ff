"""The whole job, step after step. Read this file first.

config -> model + data -> float reference -> statistics -> plans -> candidates -> fallback -> verdict -> files
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.config import Config, QuantizationConfig
from calibrate.fallback import fallback_plans
from calibrate.graph.placement import Placement
from calibrate.journal import Journal
from calibrate.loading import Inputs, Seen, load_inputs
from calibrate.measuring import Bench
from calibrate.observe import Observation, observable, observe, workers
from calibrate.origin import Origin
from calibrate.plan import QuantizationPlan
from calibrate.planning import make_plan, scale_changes, unquantizable
from calibrate.sensitivity import rank_layers
from calibrate.store import StoredStatistics, write_statistics
from reports import html
from validate.data import Batch, SampleStream
from validate.environment import environment
from validate.errors import TensorErrors
from validate.evaluate import OutputStore, accuracy, evaluate
from validate.exceptions import JobError
from validate.gate import decide
from validate.results import Candidate, Decision, Reference, Results, Verdict
from validate.significance import paired_interval
from validate.tasks.base import Outputs

__all__ = ["make_origin", "make_plans", "observe_calibration_set", "run"]

_PREPARED_DB = 60.0
"""Float32 rounds differently in a folded graph, which leaves far more than this; a wrong conversion leaves less."""


def run(config: Config, output: Path, command: str, journal: Journal) -> Results:
    """Do the whole job and write its folder; return the results.

    Raises JobError where the job cannot be finished; `output` then holds no results.
    """
    with tempfile.TemporaryDirectory(prefix="calibrate-") as temporary:
        folder = Path(temporary)
        with journal.stage("load", "load and prepare the model"):
            inputs = load_inputs(config, folder)

        # 1. The float model sets the mark: every later number is paired with its, sample by sample.
        seen_validation, seen_calibration = Seen(), Seen()
        with journal.stage("reference", "evaluate the float model") as advance:
            batches = journal.forward("reference", seen_validation.watch(inputs.validation.batches()))
            scores = evaluate(inputs.reference, inputs.task, batches, advance)

        # 2. One pass over the calibration set gives the statistics that every strategy is a function of.
        watch = seen_calibration.watch
        if not config.data.allow_overlap:
            watch = partial(seen_calibration.apart_from, seen_validation)
        observation, outputs = observe_calibration_set(inputs, watch, journal)
        if overlap := len(seen_calibration.contents.keys() & seen_validation.contents.keys()):
            journal.warn(
                f"{overlap} samples are in both sets, as data.allow_overlap permits; the verdict is too favourable"
            )
        origin = make_origin(inputs, seen_calibration)
        with journal.stage("plan", "find scales"):
            plans = make_plans(config.quantization, observation, inputs.model.placement, origin, journal)

        # 3. Every candidate is measured; samples that the verdict does not use pick the one that it is about.
        bench = Bench(config, inputs, journal, scores, outputs, seen_calibration, seen_validation, folder)
        first_look, each_trial = _confidences(config)
        candidates = [bench.candidate(plan, [], first_look) for plan in plans]
        with journal.stage("latency", "time the float model"):
            latency, latency_reason = bench.latency(inputs.model.path)
        reference = Reference(
            accuracy=accuracy(inputs.task.metric, scores), latency=latency, latency_reason=latency_reason
        )
        selected = min(candidates, key=lambda candidate: candidate.selection_error)
        verdict = _verdict(config, reference, selected)

        # 4. Where it misses the policy, its worst layers go back to FP16 until it does not.
        if verdict.decision is not Decision.GO and _fallback_can_help(config, inputs, scores.size, verdict, journal):
            for plan, trial in _fallback(config, bench, plans[candidates.index(selected)], each_trial):
                plans.append(plan)
                candidates.append(trial)
                trial_verdict = _verdict(config, reference, trial)
                # Where none is a GO, the verdict is about the one that came closest.
                if _closeness(trial, trial_verdict) < _closeness(selected, verdict):
                    selected, verdict = trial, trial_verdict
                if verdict.decision is Decision.GO:
                    break

        results = Results(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=command,
            model=inputs.model.info,
            task=inputs.task.name,
            data={
                "calibration": _describe(inputs.calibration, seen_calibration),
                "validation": _describe(inputs.validation, seen_validation),
            },
            reference=reference,
            candidates=candidates,
            selected=selected.name,
            verdict=verdict,
            environment=environment(),
            timings={stage: round(seconds, 3) for stage, seconds in journal.timings.items()},
            forward_passes=journal.forward_passes,
            warnings=journal.warnings,
            config=config.model_dump(mode="json"),
        )
        write_statistics(StoredStatistics(observation, origin, len(seen_calibration.order)), output / "statistics.npz")
        _write(results, plans, folder, output)
    return results


def observe_calibration_set(
    inputs: Inputs, watch: Callable[[Iterable[Batch]], Iterator[Batch]], journal: Journal
) -> tuple[Observation, OutputStore]:
    """Return the statistics of every tensor that a plan may quantize, and the prepared float model's outputs.

    Raises JobError where the prepared model does not compute what the given one does.
    """
    tensors = inputs.model.placement.tensors()
    side_by_side, threads = workers()
    stored = OutputStore()
    with journal.stage("observe", f"observe {len(tensors)} tensors") as advance:
        expected = _reference_outputs(inputs)

        def on_batch(batch: Batch, outputs: Outputs) -> None:
            if batch.first == 0:
                _check_prepared(expected, outputs)
            stored.append(dict(outputs))
            advance(len(batch))

        source = observable(inputs.model.prepared, tensors, threads)
        batches = watch(journal.forward("observe", inputs.calibration.batches()))
        observation = observe(source, batches, on_batch, side_by_side)
    for tensor, reason in sorted(unquantizable(observation.statistics).items()):
        journal.warn(f"tensor {tensor} {reason}; what it feeds stays in float")
    return observation, stored


def make_origin(inputs: Inputs, calibration: Seen) -> Origin:
    """Return what plans are made from."""
    return Origin(
        model_sha256=inputs.model.info.sha256,
        data_sha256=calibration.digest(),
        preprocessing_sha256=inputs.preprocessing_sha256,
    )


def make_plans(
    config: QuantizationConfig, observation: Observation, placement: Placement, origin: Origin, journal: Journal
) -> list[QuantizationPlan]:
    """Return a plan for every strategy, and warn where its scales had not settled."""
    plans = []
    for strategy in config.strategies:
        plan = make_plan(strategy, observation.statistics, placement, origin, config)
        if not plan.int8_layers:
            raise JobError("every tensor that could be quantized was zero on all calibration samples; check the data")
        if not (settling := scale_changes(plan, strategy, observation)).settled:
            journal.warn(f"{plan.name}: {settling}; more calibration samples may help")
        plans.append(plan)
    return plans


def _reference_outputs(inputs: Inputs) -> Outputs:
    """Run the model as given on the first batch, and let go of it: a large model is not held twice."""
    stream = inputs.calibration
    first = next(iter(stream.limited(stream.batch_size).batches()))
    outputs = inputs.reference.run(first.inputs)
    inputs.reference.release()
    return outputs


def _check_prepared(expected: Outputs, outputs: Outputs) -> None:
    """Hold a batch of the prepared model against the model as given, so that no pass over the graph can break it."""
    for name, values in expected.items():
        error = TensorErrors()
        error.add(values, outputs[name])
        if error.sqnr_db < _PREPARED_DB:
            raise JobError(
                f"output {name} of the model changes when its graph is prepared for quantization (SQNR "
                f"{error.sqnr_db:.1f} dB); export the model again with opset 19 or newer, so that it need not be "
                "converted"
            )


def _confidences(config: Config) -> tuple[float, float]:
    """Return the confidence of the first look at the validation samples, and of each fallback trial.

    A Bonferroni split: half of the error goes to the selected candidate, half is shared by the trials, so that
    a false GO is no likelier than the policy allows however many trials there are.
    """
    alpha, trials = 1 - config.policy.confidence, config.fallback.max_trials
    return (1 - alpha / 2, 1 - alpha / 2 / trials) if trials else (1 - alpha, 1 - alpha)


def _fallback(
    config: Config, bench: Bench, plan: QuantizationPlan, confidence: float
) -> Iterator[tuple[QuantizationPlan, Candidate]]:
    """Rank the layers of a plan, then measure plans with more and more of them in FP16."""
    journal, samples = bench.journal, config.fallback.samples
    total = len(plan.int8_layers) * min(samples, len(bench.calibration.order))
    with journal.stage("rank", f"rank {len(plan.int8_layers)} layers", total) as advance:
        effects = rank_layers(plan, lambda p: bench.ranking_errors(p, samples, advance))
    for trial, layers in fallback_plans(plan, effects, "fp16", config.fallback.max_trials):
        yield trial, bench.candidate(trial, layers, confidence)


def _closeness(candidate: Candidate, verdict: Verdict) -> tuple[int, float]:
    """Return what sorts candidates by how close they came to a GO, closest first."""
    order = [Decision.GO, Decision.INCONCLUSIVE, Decision.NO_GO]
    kernels = candidate.integer_kernels
    return order.index(verdict.decision), max(candidate.accuracy.drop, kernels.accuracy.drop if kernels else -math.inf)


def _fallback_can_help(config: Config, inputs: Inputs, samples: int, verdict: Verdict, journal: Journal) -> bool:
    """Tell whether more layers in FP16 could turn the verdict into a GO.

    Not where something else than accuracy holds it up, and not where the samples are so few that even a candidate
    without a single changed score would stay undecided.
    """
    if config.fallback.max_trials == 0:
        return False
    if not any(rule.name.startswith("accuracy") and rule.outcome in {"fail", "undecided"} for rule in verdict.rules):
        return False
    if inputs.task.metric.is_rate:
        unchanged = paired_interval(np.zeros(samples), _confidences(config)[1])
        if unchanged.high >= config.policy.max_drop:
            journal.warn(
                f"no layers were put back to FP16: with {samples} validation samples even a candidate without a "
                f"single changed answer has an interval up to {unchanged.high:.4f}, beyond policy.max_drop "
                f"{config.policy.max_drop:g}; give more samples, or lower fallback.max_trials"
            )
            return False
    return True


def _verdict(config: Config, reference: Reference, candidate: Candidate) -> Verdict:
    return decide(
        config.policy, reference.accuracy, candidate.accuracy, candidate.tensorrt_build, candidate.integer_kernels
    )


def _describe(stream: SampleStream, seen: Seen) -> dict[str, Any]:
    """Return what results say of a split."""
    source = stream.source.model_dump(exclude_none=True, exclude_defaults=True)
    return {"source": source, "samples": len(seen.order), "digest": seen.digest()}


def _write(results: Results, plans: list[QuantizationPlan], candidates: Path, output: Path) -> None:
    """Write the output folder; results.json last, so that it is there only when all else is."""
    (output / "plans").mkdir(parents=True, exist_ok=True)
    for plan in plans:
        plan.write(output / "plans" / f"{plan.name}.json")
    selected = next(plan for plan in plans if plan.name == results.selected)
    selected.write(output / "plan.json")
    for file in (candidates / selected.name).iterdir():  # a large model's weights are beside it
        shutil.copyfile(file, output / file.name)
    html.write(results, output / "report.html")
    results.write(output / "results.json")
