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

import onnxruntime

from calibrate.config import Config
from calibrate.cost import price
from calibrate.graph import Placement
from calibrate.journal import Journal
from calibrate.loading import Inputs, Seen, load_inputs, task_hash
from calibrate.measurement import Bench, Evaluations, illustrate, time_models
from calibrate.observation import (
    Observation,
    OnDoubling,
    StoredStatistics,
    measure_clipping,
    nodes_beyond_fp16,
    observable,
    observe,
    workers,
    write_statistics,
)
from calibrate.plan import Origin, QuantizationPlan
from calibrate.search import fallback_can_help, search_plans
from calibrate.strategies import QuantizationConfig, ScaleHistory, make_plan, scale_changes, unquantizable
from reports.pages import write_run_page
from validate.accuracy import OutputStore, accuracy, evaluate, sanity_warnings
from validate.backends import cpu_name
from validate.data import Batch, SampleStream
from validate.environment import environment
from validate.exceptions import JobError
from validate.layerwise import TensorErrors
from validate.results import (
    ILLUSTRATIONS,
    SAMPLES_FILE,
    Candidate,
    Decision,
    Reference,
    Results,
    SampleTable,
    Verdict,
    pareto_points,
)
from validate.tasks import Outputs
from validate.verdict import Evidence, decide

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
            inputs = load_inputs(config, config.quantization, folder)

        # 1. The float model sets the mark: every later number is paired with its, sample by sample.
        seen_validation, seen_calibration = Seen(), Seen()
        with journal.stage("reference", "evaluate the float model") as advance:
            batches = journal.forward("reference", seen_validation.watch(inputs.validation.batches()))
            scores = evaluate(inputs.reference, inputs.task, batches, advance, is_reference=True)
        if warning := config.data.repeats("validation", seen_validation.order):
            journal.warn(warning)
        for warning in sanity_warnings(inputs.task, scores, config.model.expected_metric, inputs.validation):
            journal.warn(warning)

        # 2. One pass over the calibration set gives the statistics that every strategy is a function of.
        watch = seen_calibration.watch
        if not config.data.allow_overlap:
            watch = partial(seen_calibration.apart_from, seen_validation)
        history = ScaleHistory(config.quantization.strategies, inputs.model.placement.tensors())
        observation, outputs = observe_calibration_set(inputs, watch, journal, history.note)
        if warning := config.data.repeats("calibration", seen_calibration.order):
            journal.warn(warning)
        overlap = sum(content in seen_calibration.contents for content in seen_validation.order)
        if overlap:
            journal.warn(
                f"{overlap} samples are in both sets, as data.allow_overlap permits; the verdict is too favourable"
            )
        origin = make_origin(inputs, seen_calibration)
        with journal.stage("plan", "find scales"):
            plans = make_plans(config.quantization, observation, inputs.model.placement, origin, journal)
        # Also where the rest is not FP16: layers may go back to it, and the FP16 model that INT8 has to beat is.
        wide = nodes_beyond_fp16(inputs, observation.statistics, journal)
        plans = [plan.model_copy(update={"wide_nodes": wide}) for plan in plans]

        # 3. Every candidate is measured; samples that the verdict does not use pick the one that it is about.
        evaluations = Evaluations(
            output / "evaluations", evaluation_context(config, origin, seen_validation, seen_calibration)
        )
        pricing = price(
            config.target, config.latency.batch_size, config.fallback.precision, inputs, plans[0], folder, journal
        )
        bench = Bench(
            config.target,
            config.compare_samples,
            inputs,
            journal,
            scores,
            outputs,
            seen_calibration,
            seen_validation,
            evaluations,
            pricing,
            observation.statistics,
            folder,
        )
        looks = verdict_confidences(config)
        candidates = [bench.candidate(plan, [], looks[0]) for plan in plans]
        reference = Reference(accuracy=accuracy(inputs.task.metric, scores), latency=None)
        selected = min(candidates, key=lambda candidate: candidate.selection_error or 0.0)
        verdict = _verdict(config, reference, selected)

        # 4. Where it misses the policy, layers go back to float: the fastest plan that other samples say meets it.
        search = None
        is_go = verdict.decision is Decision.GO
        if not is_go and looks[1:] and fallback_can_help(config.policy.max_drop, bench, selected, verdict, looks[1]):
            int8 = plans[candidates.index(selected)]
            found = search_plans(config.fallback, config.policy.max_drop, bench, int8, reference.accuracy, looks[1])
            search = found.search
            for plan, confidence in zip(found.plans, looks[1:], strict=False):
                back = [layer for layer in search.effects if plan.layers[layer] != "int8"]
                candidate = bench.candidate(plan, back, confidence, select=False)
                plans.append(plan)
                candidates.append(candidate)
                its_verdict = _verdict(config, reference, candidate)
                # Where none is a GO, the verdict is about the one that came closest.
                if _closeness(candidate, its_verdict) < _closeness(selected, verdict):
                    selected, verdict = candidate, its_verdict
                if verdict.decision is Decision.GO:
                    break

        # 5. How fast are they? In turns, so that whatever disturbs the machine disturbs all of them alike.
        with journal.stage("latency", f"time {len(plans) + 1} models"):
            times = time_models(config.latency, config.target, config.model.torch, inputs, plans, folder)
        latency, latency_reason = times.of_reference()
        reference = reference.model_copy(update={"latency": latency, "latency_reason": latency_reason})
        candidates = [times.add_to(candidate) for candidate in candidates]
        if config.policy.max_clipped_share is not None:
            clipping = measure_clipping(inputs, seen_validation, plans, journal)
            candidates = [c.model_copy(update={"clipping": x}) for c, x in zip(candidates, clipping, strict=True)]

        # 6. All that the policy asks about is known now, and the selected candidate is judged by all of it.
        samples = SampleTable(
            [content.hex() for content in seen_validation.order],
            seen_validation.classes,
            seen_validation.slices,
            scores,
            bench.candidate_scores,
            bench.kernel_scores,
        )
        selected = next(candidate for candidate in candidates if candidate.name == selected.name)
        evidence = Evidence(
            reference.accuracy, selected, inputs.task.metric, inputs.model.info.sha256, overlap, samples
        )
        verdict = decide(config.policy.of_a_run(), evidence)
        if search is None and config.fallback.evaluations:
            _warn_of_rules_beside_accuracy(verdict, journal)
        samples_sha256 = samples.write(output / SAMPLES_FILE)

        results = Results(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=command,
            model=inputs.model.info,
            task=inputs.task.name,
            data={
                "calibration": _describe(inputs.calibration, seen_calibration),
                "validation": _describe(inputs.validation, seen_validation),
            },
            overlap=overlap,
            reference=reference,
            candidates=candidates,
            selected=selected.name,
            search=search,
            samples_sha256=samples_sha256,
            pareto=pareto_points(reference, pricing.float32, candidates, inputs.model.path.stat().st_size),
            verdict=verdict,
            environment=environment(),
            timings={stage: round(seconds, 3) for stage, seconds in journal.timings.items()},
            forward_passes=journal.forward_passes,
            warnings=journal.warnings,
            config=config.model_dump(mode="json"),
        )
        write_statistics(StoredStatistics(observation, origin, len(seen_calibration.order)), output / "statistics.npz")
        illustrate(results, bench, plans, history).write(output / ILLUSTRATIONS)
        _write(results, plans, folder, output)
    return results


def observe_calibration_set(
    inputs: Inputs,
    watch: Callable[[Iterable[Batch]], Iterator[Batch]],
    journal: Journal,
    on_doubling: OnDoubling | None = None,
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
        observation = observe(source, batches, on_batch, side_by_side, on_doubling=on_doubling)
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


def verdict_confidences(config: Config) -> list[float]:
    """Return the confidence of each look at the validation samples, in order: weights of a Bonferroni correction.

    Half of the error goes to the candidate without fallback, a third to the plan that fallback found, a sixth to the
    safer one that is judged if that misses: a false GO is no likelier than the policy allows over all three.
    """
    alpha = 1 - config.policy.confidence
    shares = (1 / 2, 1 / 3, 1 / 6) if config.fallback.evaluations else (1.0,)
    return [1 - alpha * share for share in shares]


def evaluation_context(config: Config, origin: Origin, validation: Seen, calibration: Seen) -> dict[str, str]:
    """Return what evaluations depend on besides the plan, so that none is taken for one of another job."""
    return {
        **origin.model_dump(mode="json"),
        "validation_sha256": validation.digest(),
        "task": config.task.model_dump_json(),
        "labels_sha256": f"{validation.labels_digest()} {calibration.labels_digest()}",
        "task_sha256": task_hash(config.task),
        "runtime": f"{onnxruntime.__version__} on {cpu_name()}",
    }


def _closeness(candidate: Candidate, verdict: Verdict) -> tuple[int, float]:
    """Return what sorts candidates by how close they came to a GO, closest first."""
    order = [Decision.GO, Decision.INCONCLUSIVE, Decision.NO_GO]
    kernels = candidate.integer_kernels
    if not math.isfinite(candidate.accuracy.drop):
        return len(order), math.inf
    return order.index(verdict.decision), max(candidate.accuracy.drop, kernels.accuracy.drop if kernels else -math.inf)


def _verdict(config: Config, reference: Reference, candidate: Candidate) -> Verdict:
    """Judge a candidate by what is known of it before it is timed: its accuracy, and the builder's word."""
    return decide(config.policy.without_named_rules(), Evidence(reference.accuracy, candidate))


def _warn_of_rules_beside_accuracy(verdict: Verdict, journal: Journal) -> None:
    """Say that rules which the policy misses, while its accuracy holds, make nothing go back to float."""
    missed = {rule.name for rule in verdict.rules if rule.outcome in {"fail", "undecided"}}
    if missed and not missed & {"accuracy", "accuracy with integer kernels"}:
        journal.warn(
            "no layers were put back to float: the search is for the accuracy alone, which keeps to the policy, and "
            f"not for what misses it: {', '.join(sorted(missed))}"
        )


def _describe(stream: SampleStream, seen: Seen) -> dict[str, Any]:
    """Return what results say of a split."""
    source = stream.source.model_dump(exclude_none=True, exclude_defaults=True)
    return {
        "source": source,
        "samples": len(seen.order),
        "digest": seen.digest(),
        "preprocessing": stream.preparation.description,
    }


def _write(results: Results, plans: list[QuantizationPlan], candidates: Path, output: Path) -> None:
    """Write the output folder; results.json last, so that it is there only when all else is."""
    (output / "plans").mkdir(parents=True, exist_ok=True)
    for plan in plans:
        plan.write(output / "plans" / f"{plan.name}.json")
    selected = next(plan for plan in plans if plan.name == results.selected)
    selected.write(output / "plan.json")
    for file in (candidates / selected.name).iterdir():  # a large model's weights are beside it
        shutil.copyfile(file, output / file.name)
    write_run_page(results, output / "report.html")
    results.write(output / "results.json")
