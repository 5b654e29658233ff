"""Measures plans: error against the float model, accuracy, layer errors, latency, TensorRT build."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrate.cost import Pricing, TargetConfig
from calibrate.graph import SWITCHES, Layer, apply, check, count_nodes, layer_precisions, switchable
from calibrate.journal import Journal
from calibrate.loading import Inputs, Seen
from calibrate.measurement.evaluation_cache import Evaluated, Evaluations
from calibrate.observation import clipped_share
from calibrate.plan import Precision, QuantizationPlan
from validate.accuracy import (
    OutputStore,
    batch_scores,
    candidate_accuracy,
    evaluate,
    reference_errors,
    stored_scores,
)
from validate.backends import OnnxRuntimeBackend, OnnxRuntimeModel, detach, write_onnx
from validate.backends.tensorrt import build
from validate.data import Batch
from validate.exceptions import JobError
from validate.layerwise import LayerDifference, TensorDifference, compare, subjects_of
from validate.results import Candidate, CandidateAccuracy, Cost, IntegerKernels, LayerError
from validate.stats import Statistics
from validate.tasks import Agreement, Outputs

__all__ = ["Bench", "Stop"]

Stop = Callable[[NDArray[np.float64], NDArray[np.float64]], bool]
"""Tells from the scores, or records, of the reference and of a plan whether no more samples are needed."""


class _Switched:
    """One session for every plan that has some of a plan's layers in int8; it is made when it first runs."""

    def __init__(self, inputs: Inputs, plan: QuantizationPlan) -> None:
        model, self._layers = inputs.model, [layer.node for layer in inputs.model.placement.layers]
        self._session = cache(lambda: OnnxRuntimeModel(detach(switchable(model.prepared, model.placement, plan))))

    def run(self, batch: Batch, int8: frozenset[str]) -> Outputs:
        on = np.array([name in int8 for name in self._layers])
        return self._session().run({**batch.inputs, SWITCHES: on})


@dataclass(frozen=True)
class Bench:
    """Everything that candidates are measured against.

    Attributes:
        scores: the reference's per-sample scores on the validation set.
        outputs: the prepared float model's outputs on the calibration samples.
        calibration, validation: what the first pass saw; every later one must see the same.
        evaluations: what was evaluated before, also by a run that was killed.
        pricing: says what plans cost.
        statistics: of every tensor that a plan may quantize, over the calibration samples.
        folder: where candidate files go until one is selected.
        candidate_scores: the scores of every candidate so far on the validation set, by its name.
        kernel_scores: the same with integer kernels, where they are judged.
    """

    target: TargetConfig
    compare_samples: int
    inputs: Inputs
    journal: Journal
    scores: NDArray[np.float64]
    outputs: OutputStore
    calibration: Seen
    validation: Seen
    evaluations: Evaluations
    pricing: Pricing
    statistics: Mapping[str, Statistics]
    folder: Path
    candidate_scores: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    kernel_scores: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    _kept: dict[int, Batch] = field(default_factory=dict)
    _sessions: dict[str, _Switched] = field(default_factory=dict)

    @cached_property
    def calibration_scores(self) -> NDArray[np.float64] | None:
        """The reference's per-sample scores on the calibration set; None where its samples have no labels."""
        task, stream = self.inputs.task, self.inputs.calibration
        if not isinstance(task, Agreement) and next(iter(stream.limited(1).batches())).labels[0] is None:
            return None
        return stored_scores(task, self.calibration.again(stream.batches()), self.outputs)

    def judging(self, ranking: Sequence[int]) -> NDArray[np.int64]:
        """Return the indices of the calibration samples that judge: all that do not rank."""
        return np.setdiff1d(np.arange(len(self.calibration.order)), ranking)

    def errors_alone(
        self, plan: QuantizationPlan, samples: Sequence[int], advance: Callable[[int], None]
    ) -> Callable[[str], Evaluated]:
        """Return what gives the task's errors with one layer alone in int8, by layer, in the order of `samples`.

        Args:
            plan: with the layers in int8.
            samples: indices of calibration samples.
            advance: called with 1 for each layer that is done.
        """
        task, switched = self.inputs.task, self._switched(plan)

        @cache
        def references() -> list[tuple[Batch, Outputs]]:
            chosen = self.singles(samples)
            self.journal.forwarded("rank", len(chosen))
            return [(batch, switched.run(batch, frozenset())) for batch in chosen]

        def of_layer(layer: str) -> NDArray[np.float64]:
            known = references()
            self.journal.forwarded("rank", len(known))
            alone = frozenset({layer})
            return np.concatenate([task.errors(switched.run(batch, alone), expected) for batch, expected in known])

        def stored(layer: str) -> Evaluated:
            key = {"plan": plan.hash, "layer": layer, "samples": list(samples)}
            errors = self.evaluations.get("alone", partial(of_layer, layer), **key)
            advance(1)
            return errors

        return stored

    def screen(self, plan: QuantizationPlan, back: frozenset[str], samples: NDArray[np.int64]) -> Evaluated:
        """Return the scores, or records, of a plan on some calibration samples; `back` are in float32.

        One session serves all plans, so that this is quick where `judge` is exact.
        """

        def compute() -> NDArray[np.float64]:
            switched, task = self._switched(plan), self.inputs.task
            chosen = self.singles(samples.tolist())
            self.journal.forwarded("screen", len(chosen))
            on = plan.int8_layers - back
            return np.concatenate([batch_scores(task, b, switched.run(b, on), is_reference=False) for b in chosen])

        key = {"plan": plan.hash, "back": sorted(back), "samples": samples.tolist()}
        return self.evaluations.get("screen", compute, **key)

    def singles(self, samples: Sequence[int]) -> list[Batch]:
        """Return some calibration samples, each a batch of its own; they are kept until `forget`."""
        if missing := set(samples) - self._kept.keys():
            stream = replace(self.inputs.calibration.limited(max(missing) + 1), batch_size=1)
            self._kept.update({b.first: b for b in self.calibration.again(stream.batches()) if b.first in missing})
        return [self._kept[index] for index in samples]

    def forget(self) -> None:
        """Let go of the samples and the session that ranking and screening hold."""
        self._kept.clear()
        self._sessions.clear()

    def _switched(self, plan: QuantizationPlan) -> _Switched:
        if plan.hash not in self._sessions:
            self._sessions.clear()  # one is as large as two models
            self._sessions[plan.hash] = _Switched(self.inputs, plan)
        return self._sessions[plan.hash]

    def judge(
        self,
        plan: QuantizationPlan,
        judging: NDArray[np.int64],
        stop: Stop,
        looks: Sequence[int],
        advance: Callable[[int], None],
        rule: Mapping[str, Any],
    ) -> Evaluated:
        """Return the scores of a plan on calibration samples that have labels, or on the first until it is to stop.

        Args:
            plan: to judge.
            judging: indices of the samples, in order.
            stop: tells from the scores, or records, of the reference and of the plan on the first samples.
            looks: numbers of samples after which it is asked.
            advance: called with numbers of samples that were run.
            rule: all that `stop` depends on, as JSON values: another one may stop elsewhere.
        """
        task, reference = self.inputs.task, self.calibration_scores
        assert reference is not None

        def compute() -> NDArray[np.float64]:
            model, due = OnnxRuntimeModel(detach(self._simulated(plan))), deque(looks)
            scores = reference[:0]
            batches = self.calibration.again(self.inputs.calibration.batches())
            for batch in self.journal.forward("trials", batches):
                wanted = np.isin(np.arange(batch.first, batch.first + len(batch)), judging)
                scores = np.concatenate([scores, evaluate(model, task, [batch], advance)[wanted]])
                if due and len(scores) >= due[0]:
                    due.popleft()
                    if stop(reference[judging[: len(scores)]], scores):
                        break
            return scores

        key = {"plan": plan.hash, "samples": judging.tolist(), "looks": list(looks), "rule": dict(rule)}
        return self.evaluations.get("trial", compute, **key)

    def cost(self, plan: QuantizationPlan) -> Cost:
        """Return what a plan costs."""
        return self.pricing.plans.cost(layer_precisions(self.inputs.model.prepared, plan))

    def candidate(
        self, plan: QuantizationPlan, float_layers: list[str], confidence: float, select: bool = True
    ) -> Candidate:
        """Measure all there is to know of a plan.

        Args:
            float_layers: those that fallback put back, worst first.
            confidence: of the interval of its drop.
            select: measure its error on the calibration samples, by which one of several plans is selected.
        """
        inputs, journal = self.inputs, self.journal
        path = self.folder / plan.name / "model.int8.onnx"
        path.parent.mkdir()
        deployed = apply(plan, inputs.model.prepared, inputs.model.placement)
        if violations := check(deployed, inputs.model.placement.excluded):
            raise JobError(f"plan {plan.name} breaks TensorRT's rules, which is a bug of ours: {violations[0]}")
        write_onnx(deployed, path)
        samples = len(self.scores) * (2 if self.target.device == "cpu" else 1)
        simulated = self._simulated(plan)
        with journal.bar(plan.name, (len(self.calibration.order) if select else 0) + samples + 2) as advance:
            with journal.timed("evaluate"):
                model = cache(lambda: OnnxRuntimeModel(detach(simulated)))
                error = float(self._errors(plan, model, advance).mean()) if select else None
                accuracy = self._accuracy(plan, model, confidence, "evaluate", advance)
                kernels = self._integer_kernels(plan, path, accuracy, confidence, advance)
            with journal.timed("compare"):
                layers = self._layers(plan, simulated)
                advance(1)
            with journal.timed("tensorrt_build"):
                profile = self.validation.profile(inputs.reference.fixed_batch)
                tensorrt_build = build(path, profile, self.target.compute_capability)
                advance(1)
        cost = self.cost(plan)
        return Candidate(
            name=plan.name,
            strategy=plan.strategy,
            plan=f"plans/{plan.name}.json",
            plan_hash=plan.hash,
            float_layers=float_layers,
            selection_error=error,
            accuracy=accuracy,
            integer_kernels=kernels,
            latency=None,
            latency_reason="not timed yet",
            cost=cost,
            int8_mac_share=self.pricing.int8_share(plan),
            speedups=self.pricing.speedups(cost),
            nodes=count_nodes(plan, inputs.model.prepared),
            size_bytes=sum(file.stat().st_size for file in path.parent.iterdir()),
            tensorrt_build=tensorrt_build,
            layers=layers,
        )

    def _simulated(self, plan: QuantizationPlan) -> ir.Model:
        return apply(plan, self.inputs.model.prepared, self.inputs.model.placement, simulate=True)

    def _errors(
        self, plan: QuantizationPlan, model: Callable[[], OnnxRuntimeModel], advance: Callable[[int], None]
    ) -> NDArray[np.float64]:
        def compute() -> NDArray[np.float64]:
            batches = self.journal.forward("select", self.calibration.again(self.inputs.calibration.batches()))
            return reference_errors(model(), self.inputs.task, batches, self.outputs, advance)

        return self.evaluations.get("select", compute, plan=plan.hash).values

    def _accuracy(
        self,
        plan: QuantizationPlan,
        model: Callable[[], OnnxRuntimeModel],
        confidence: float,
        stage: str,
        advance: Callable[[int], None],
    ) -> CandidateAccuracy:
        task = self.inputs.task

        def compute() -> NDArray[np.float64]:
            batches = self.journal.forward(stage, self.validation.again(self.inputs.validation.batches()))
            return evaluate(model(), task, batches, advance)

        scores = self.evaluations.get(stage, compute, plan=plan.hash).values
        (self.candidate_scores if stage == "evaluate" else self.kernel_scores)[plan.name] = scores
        return candidate_accuracy(task.metric, self.scores, scores, confidence)

    def _integer_kernels(
        self,
        plan: QuantizationPlan,
        path: Path,
        simulated: CandidateAccuracy,
        confidence: float,
        advance: Callable[[int], None],
    ) -> IntegerKernels | None:
        if self.target.device != "cpu":
            return None
        model = OnnxRuntimeModel(path, "integer")
        accuracy = self._accuracy(plan, lambda: model, confidence, "integer_kernels", advance)
        return IntegerKernels(
            runtime=f"{model.runtime} on {model.device}",
            accuracy=accuracy,
            difference=accuracy.value - simulated.value,
        )

    def _layers(self, plan: QuantizationPlan, simulated: ir.Model) -> list[LayerError]:
        prepared, placement = self.inputs.model.prepared, self.inputs.model.placement
        outputs = [layer.output for layer in placement.layers]
        subjects = subjects_of(OnnxRuntimeBackend(prepared), OnnxRuntimeBackend(simulated), {x: x for x in outputs})
        batches = self.inputs.calibration.limited(self.compare_samples).batches()
        found = compare(subjects, self.journal.forward("compare", batches, models=3), lambda samples: None).layers
        by_tensor = {layer.tensor: layer for layer in found}
        precisions = layer_precisions(prepared, plan)
        return [self._layer(layer, precisions[layer.node], plan, by_tensor[layer.output]) for layer in placement.layers]

    def _layer(self, layer: Layer, precision: Precision, plan: QuantizationPlan, found: LayerDifference) -> LayerError:
        scales = {name: plan.scales[name] for name in layer.activations} if precision == "int8" else {}
        clipped = {name: clipped_share(self.statistics[name], scale) for name, scale in scales.items()}
        worst = max(clipped, key=lambda name: clipped[name], default=None)
        return LayerError(
            node=layer.node,
            op_type=layer.op_type,
            tensor=layer.output,
            precision=precision,
            depth=found.depth,
            sqnr_db=_sqnr(found.accumulated),
            isolated_sqnr_db=_sqnr(found.isolated),
            clipped_share=clipped[worst] if worst else 0.0,
            scale=scales[worst] if worst else None,
            latency_ms=self.pricing.plans.layer_ms(layer.node, precision),
        )


def _sqnr(difference: TensorDifference | None) -> float:
    assert difference is not None  # ONNX Runtime can show each layer by itself
    return difference.sqnr_db
