"""Measures a candidate: its error against the float model, accuracy, layer errors, cost, and TensorRT build."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrate.cost import Pricing, TargetConfig
from calibrate.graph import Layer, apply, check, count_nodes, layer_precisions, scales_in_file
from calibrate.journal import Journal
from calibrate.loading import Inputs
from calibrate.measurement.engines import EngineBench
from calibrate.measurement.evaluation_cache import EvaluationCache
from calibrate.measurement.reference import ReferenceRun
from calibrate.observation import CalibrationRun, clipped_share
from calibrate.plan import QuantizationPlan
from validate.accuracy import accuracy, candidate_accuracy, evaluate, reference_errors
from validate.backends import OnnxRuntimeBackend, OnnxRuntimeModel, detach, write_onnx
from validate.backends.tensorrt import TensorRTBackend, build
from validate.exceptions import JobError
from validate.layerwise import LayerDifference, TensorDifference, compare, subjects_of
from validate.number_formats import Precision
from validate.results import Accuracy, Basis, BuildResult, Candidate, CandidateAccuracy, IntegerKernels, LayerError

__all__ = ["CandidateBench", "MeasuredCandidate"]

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class MeasuredCandidate:
    """A plan and its measurements.

    Attributes:
        plan: that was measured.
        record: the measurements, as the results have them.
        scores: of every validation sample, shape (n,), or records, shape (n, k): of the engine where one was run.
        kernel_scores: the same with the CPU's integer kernels; None where the CPU is not the target.
    """

    plan: QuantizationPlan
    record: Candidate
    scores: Scores
    kernel_scores: Scores | None = None


@dataclass(frozen=True)
class CandidateBench:
    """Measures candidates.

    Attributes:
        inputs: the model, its data and its task.
        reference: scores of the float model on the validation set.
        calibration: statistics, and the float model's outputs, on the calibration set.
        evaluations: cache of evaluations, also those of an interrupted run.
        pricing: costs of plans.
        target: device that the model will run on.
        compare_samples: number of calibration samples of the layer-wise comparison.
        folder: for the candidates' files, until one is selected.
        journal: times stages and counts forward passes.
        engines: runs the candidates' engines; None where none can be run here.
        no_engines: why not.
    """

    inputs: Inputs
    reference: ReferenceRun
    calibration: CalibrationRun
    evaluations: EvaluationCache
    pricing: Pricing
    target: TargetConfig
    compare_samples: int
    folder: Path
    journal: Journal
    engines: EngineBench | None = None
    no_engines: str | None = None

    @property
    def reference_accuracy(self) -> Accuracy:
        """The float model's metric over the validation set."""
        return accuracy(self.inputs.task.metric, self.reference.scores)

    def measure(
        self, plan: QuantizationPlan, confidence: float, float_layers: Sequence[str] = (), select: bool = True
    ) -> MeasuredCandidate:
        """Measure all of a plan but its latency, and write its ONNX file.

        Args:
            plan: to measure.
            confidence: of the interval of its drop.
            float_layers: layers that fallback put back to float, worst first.
            select: measure its error on the calibration samples too, by which one of several plans is selected.

        Raises:
            JobError: the file breaks one of TensorRT's rules.
        """
        inputs, journal = self.inputs, self.journal
        path = self.folder / plan.name / "model.int8.onnx"
        path.parent.mkdir()
        deployed = apply(plan, inputs.model.prepared, inputs.model.placement)
        if violations := check(deployed, inputs.model.placement.excluded):
            raise JobError(f"plan {plan.name} breaks TensorRT's rules, which is a bug of ours: {violations[0]}")
        write_onnx(deployed, path)
        size = sum(file.stat().st_size for file in path.parent.iterdir())
        tensorrt_build, engine = self._build(plan.name, path)
        integer = self.target.device == "cpu"  # whose kernels are then what will run
        validated = len(self.reference.scores) * (2 if integer else 1)
        simulated = apply(plan, inputs.model.prepared, inputs.model.placement, simulate=True)
        with journal.bar(plan.name, (self.calibration.samples if select else 0) + validated + 1) as advance:
            model = cache(lambda: OnnxRuntimeModel(detach(simulated)))
            engine_run = in_simulation = kernel_scores = kernels = None
            with journal.timed("evaluate"):
                error = float(self._errors(plan, model, advance).mean()) if select else None
                if self.engines is None or engine is None:
                    scores = self._scores(plan, model, "evaluate", advance)
                    found = self._accuracy(scores, confidence)
                else:
                    both = self.engines.score(engine, model, advance)
                    scores, in_simulation = both.engine, self._accuracy(both.simulated, confidence)
                    found = self._accuracy(scores, confidence, "engine")
                    engine_run = self.engines.compare(engine, path, plan, simulated, both)
                if integer:
                    runs_integers = OnnxRuntimeModel(path, "integer")
                    kernel_scores = self._scores(plan, lambda: runs_integers, "integer_kernels", advance)
                    kernels = _integer_kernels(
                        runs_integers, self._accuracy(kernel_scores, confidence, "kernels"), found
                    )
            with journal.timed("compare"):
                layers = self._layers(plan, simulated)
                advance(1)
        cost = self.pricing.cost(plan)
        record = Candidate(
            name=plan.name,
            strategy=plan.strategy,
            plan=f"plans/{plan.name}.json",
            plan_hash=plan.hash,
            float_layers=list(float_layers),
            selection_error=error,
            accuracy=found,
            simulated=in_simulation,
            engine=engine_run,
            engine_reason=None if engine_run else self.no_engines or "TensorRT does not build it here",
            integer_kernels=kernels,
            latency=None,
            latency_reason="not timed yet",
            cost=cost,
            int8_mac_share=self.pricing.int8_share(plan),
            speedups=self.pricing.speedups(cost),
            nodes=count_nodes(plan, inputs.model.prepared),
            size_bytes=size,
            tensorrt_build=tensorrt_build,
            layers=layers,
        )
        return MeasuredCandidate(plan, record, scores, kernel_scores)

    def _errors(
        self, plan: QuantizationPlan, model: Callable[[], OnnxRuntimeModel], advance: Callable[[int], None]
    ) -> Scores:
        """Return the task's error of every calibration sample against the float model's outputs, shape (n,)."""

        def compute() -> Scores:
            watched = self.calibration.fingerprint.verify(self.inputs.calibration.batches())
            batches = self.journal.forward("select", watched)
            return reference_errors(model(), self.inputs.task, batches, self.calibration.outputs, advance)

        return self.evaluations.get("select", compute, plan=plan.hash).values

    def _scores(
        self,
        plan: QuantizationPlan,
        model: Callable[[], OnnxRuntimeModel],
        stage: str,
        advance: Callable[[int], None],
    ) -> Scores:
        """Return the task's score, or record, of every validation sample."""

        def compute() -> Scores:
            batches = self.reference.fingerprint.verify(self.inputs.validation.batches())
            return evaluate(model(), self.inputs.task, self.journal.forward(stage, batches), advance)

        return self.evaluations.get(stage, compute, plan=plan.hash).values

    def _build(self, name: str, path: Path) -> tuple[BuildResult, TensorRTBackend | None]:
        """Have TensorRT build the file: the engine to run where one can be, else ahead of time for the target."""
        if self.engines is not None:
            return self.engines.build(name, path)
        with self.journal.timed("tensorrt_build"):
            profile = self.reference.fingerprint.profile(self.inputs.reference.fixed_batch)
            return build(path, profile, self.target.compute_capability), None

    def _accuracy(self, scores: Scores, confidence: float, basis: Basis = "simulation") -> CandidateAccuracy:
        return candidate_accuracy(self.inputs.task.metric, self.reference.scores, scores, confidence, basis)

    def _layers(self, plan: QuantizationPlan, simulated: ir.Model) -> list[LayerError]:
        prepared, placement = self.inputs.model.prepared, self.inputs.model.placement
        outputs = [layer.output for layer in placement.layers]
        subjects = subjects_of(OnnxRuntimeBackend(prepared), OnnxRuntimeBackend(simulated), {x: x for x in outputs})
        batches = self.inputs.calibration.limited(self.compare_samples).batches()
        found = compare(subjects, self.journal.forward("compare", batches, models=3), lambda samples: None).layers
        by_tensor = {layer.tensor: layer for layer in found}
        precisions = layer_precisions(prepared, plan)
        scales = scales_in_file(plan, prepared, placement)
        return [
            self._layer(layer, precisions[layer.node], scales, by_tensor[layer.output]) for layer in placement.layers
        ]

    def _layer(
        self, layer: Layer, precision: Precision, in_file: Mapping[str, float], found: LayerDifference
    ) -> LayerError:
        scales = {name: in_file[name] for name in layer.activations} if precision == "int8" else {}
        clipped = {name: clipped_share(self.calibration.statistics[name], scale) for name, scale in scales.items()}
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


def _integer_kernels(
    model: OnnxRuntimeModel, accuracy: CandidateAccuracy, simulated: CandidateAccuracy
) -> IntegerKernels:
    return IntegerKernels(
        runtime=f"{model.runtime} on {model.device}", accuracy=accuracy, difference=accuracy.value - simulated.value
    )


def _sqnr(difference: TensorDifference | None) -> float:
    assert difference is not None  # ONNX Runtime can show each layer by itself
    return difference.sqnr_db
