"""Measures plans: error against the float model, accuracy, layer errors, latency, TensorRT build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrate.config import Config
from calibrate.graph.apply import apply, count_nodes
from calibrate.graph.check import check
from calibrate.journal import Journal
from calibrate.loading import Inputs, Seen
from calibrate.plan import QuantizationPlan
from validate.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeModel
from validate.backends.tensorrt import build
from validate.compare import compare, subjects_of
from validate.comparison import TensorDifference
from validate.evaluate import OutputStore, candidate_accuracy, evaluate, reference_errors
from validate.exceptions import JobError
from validate.latency import measure
from validate.onnxfile import detach, write
from validate.results import Candidate, CandidateAccuracy, IntegerKernels, Latency, LayerError

__all__ = ["Bench"]


@dataclass(frozen=True)
class Bench:
    """Everything that candidates are measured against.

    Attributes:
        scores: the reference's per-sample scores on the validation set.
        outputs: the prepared float model's outputs on the calibration samples.
        calibration, validation: what the first pass saw; every later one must see the same.
        folder: where candidate files go until one is selected.
    """

    config: Config
    inputs: Inputs
    journal: Journal
    scores: NDArray[np.float64]
    outputs: OutputStore
    calibration: Seen
    validation: Seen
    folder: Path

    def ranking_errors(
        self, plan: QuantizationPlan, samples: int, advance: Callable[[int], None]
    ) -> NDArray[np.float64]:
        """Return the task's error of a plan on each of the first `samples` calibration samples."""
        return self._errors(OnnxRuntimeModel(detach(self._simulated(plan))), samples, "rank", advance)

    def candidate(self, plan: QuantizationPlan, float_layers: list[str], confidence: float) -> Candidate:
        """Measure all there is to know of a plan."""
        inputs, journal = self.inputs, self.journal
        path = self.folder / plan.name / "model.int8.onnx"
        path.parent.mkdir()
        deployed = apply(plan, inputs.model.prepared, inputs.model.placement)
        if violations := check(deployed, inputs.model.placement.excluded):
            raise JobError(f"plan {plan.name} breaks TensorRT's rules, which is a bug of ours: {violations[0]}")
        write(deployed, path)
        samples = len(self.scores) * (2 if self.config.target.device == "cpu" else 1)
        simulated = self._simulated(plan)
        with journal.bar(plan.name, len(self.calibration.order) + samples + 3) as advance:
            with journal.timed("evaluate"):
                model = OnnxRuntimeModel(detach(simulated))
                error = float(self._errors(model, None, "select", advance).mean())
                accuracy = self._accuracy(model, confidence, "evaluate", advance)
                kernels = self._integer_kernels(path, accuracy, confidence, advance)
            with journal.timed("compare"):
                layers = self._layers(plan, simulated)
                advance(1)
            with journal.timed("latency"):
                latency, latency_reason = self.latency(path)
                advance(1)
            with journal.timed("tensorrt_build"):
                profile = self.validation.profile(inputs.reference.fixed_batch)
                tensorrt_build = build(path, profile, self.config.target.compute_capability)
                advance(1)
        return Candidate(
            name=plan.name, strategy=plan.strategy, plan=f"plans/{plan.name}.json", plan_hash=plan.hash,
            float_layers=float_layers, selection_error=error, accuracy=accuracy, integer_kernels=kernels,
            latency=latency, latency_reason=latency_reason,
            nodes=count_nodes(plan, inputs.model.prepared),
            size_bytes=sum(file.stat().st_size for file in path.parent.iterdir()),
            tensorrt_build=tensorrt_build, layers=layers,
        )  # fmt: skip

    def _simulated(self, plan: QuantizationPlan) -> ir.Model:
        return apply(plan, self.inputs.model.prepared, self.inputs.model.placement, simulate=True)

    def _errors(
        self, model: OnnxRuntimeModel, samples: int | None, stage: str, advance: Callable[[int], None]
    ) -> NDArray[np.float64]:
        stream = self.inputs.calibration if samples is None else self.inputs.calibration.limited(samples)
        batches = self.journal.forward(stage, self.calibration.again(stream.batches()))
        return reference_errors(model, self.inputs.task, batches, self.outputs, advance)

    def _accuracy(
        self, model: OnnxRuntimeModel, confidence: float, stage: str, advance: Callable[[int], None]
    ) -> CandidateAccuracy:
        task = self.inputs.task
        batches = self.journal.forward(stage, self.validation.again(self.inputs.validation.batches()))
        return candidate_accuracy(task.metric, self.scores, evaluate(model, task, batches, advance), confidence)

    def _integer_kernels(
        self, path: Path, simulated: CandidateAccuracy, confidence: float, advance: Callable[[int], None]
    ) -> IntegerKernels | None:
        if self.config.target.device != "cpu":
            return None
        model = OnnxRuntimeModel(path, "integer")
        accuracy = self._accuracy(model, confidence, "integer_kernels", advance)
        return IntegerKernels(
            runtime=f"{model.runtime} on {model.device}", accuracy=accuracy,
            difference=accuracy.value - simulated.value,
        )  # fmt: skip

    def _layers(self, plan: QuantizationPlan, simulated: ir.Model) -> list[LayerError]:
        prepared, placement = self.inputs.model.prepared, self.inputs.model.placement
        outputs = [layer.output for layer in placement.layers]
        subjects = subjects_of(OnnxRuntimeBackend(prepared), OnnxRuntimeBackend(simulated), {x: x for x in outputs})
        batches = self.inputs.calibration.limited(self.config.compare_samples).batches()
        found = compare(subjects, self.journal.forward("compare", batches, models=3), lambda samples: None).layers
        by_tensor = {layer.tensor: layer for layer in found}
        return [
            LayerError(
                node=layer.node, op_type=layer.op_type, tensor=layer.output, precision=plan.layers[layer.node],
                depth=by_tensor[layer.output].depth, sqnr_db=_sqnr(by_tensor[layer.output].accumulated),
                isolated_sqnr_db=_sqnr(by_tensor[layer.output].isolated),
                clipped_share=max((q.clipped_share for q in by_tensor[layer.output].quantized_inputs), default=0.0),
            )
            for layer in placement.layers
        ]  # fmt: skip

    def latency(self, model: Path) -> tuple[Latency | None, str | None]:
        """Time an ONNX file with this machine's default kernels; return why where it could not be timed."""
        config, stream = self.config.latency, self.inputs.calibration
        if config.runs == 0:
            return None, "latency.runs is 0 in the config"
        batch = next(iter(stream.limited(stream.batch_size).batches()))
        size = self.inputs.reference.fixed_batch or config.batch_size
        inputs = {name: np.resize(array, (size, *array.shape[1:])) for name, array in batch.inputs.items()}
        try:
            return measure(OnnxRuntimeModel(model, "integer"), inputs, config.runs), None
        except JobError as error:  # a candidate that this CPU cannot run may still run on the target
            return None, str(error)


def _sqnr(difference: TensorDifference | None) -> float:
    assert difference is not None  # ONNX Runtime can show each layer by itself
    return difference.sqnr_db
