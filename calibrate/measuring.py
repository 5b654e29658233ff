"""Measures plans: error against the float model, accuracy, layer errors, latency, TensorRT build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibrate.config import Config
from calibrate.graph.apply import apply, count_nodes, expose, serialize
from calibrate.graph.check import check
from calibrate.journal import Journal
from calibrate.loading import Inputs
from calibrate.plan import QuantizationPlan
from validate.backends.onnxruntime import OnnxRuntimeModel
from validate.backends.tensorrt import Profile, build
from validate.compare import layer_sqnr
from validate.evaluate import OutputStore, candidate_accuracy, evaluate, reference_errors
from validate.exceptions import JobError
from validate.latency import measure
from validate.results import Candidate, CandidateAccuracy, IntegerKernels, Latency, LayerError

__all__ = ["Bench"]


@dataclass(frozen=True)
class Bench:
    """Everything that candidates are measured against.

    Attributes:
        scores: the reference's per-sample scores on the validation set.
        outputs: the reference's outputs on the calibration samples.
        selection_samples: how many calibration samples there are.
        profile: input shapes that a TensorRT engine must take.
        folder: where candidate files go until one is selected.
    """

    config: Config
    inputs: Inputs
    journal: Journal
    scores: NDArray[np.float64]
    outputs: OutputStore
    selection_samples: int
    profile: Profile
    folder: Path

    def errors(
        self, plan: QuantizationPlan, samples: int | None, stage: str, advance: Callable[[int], None]
    ) -> NDArray[np.float64]:
        """Return the task's error of a plan per calibration sample: the first `samples`, or all."""
        model = OnnxRuntimeModel(self._simulated(plan))
        return self._errors(model, samples, stage, advance)

    def candidate(self, plan: QuantizationPlan, float_layers: list[str], confidence: float) -> Candidate:
        """Measure all there is to know of a plan."""
        inputs, journal = self.inputs, self.journal
        path = self.folder / f"{plan.name}.onnx"
        deployed = apply(plan, inputs.prepared, inputs.placement)
        if violations := check(deployed):
            raise JobError(f"plan {plan.name} breaks TensorRT's rules, which is a bug of ours: {violations[0]}")
        serialize(deployed, path)
        samples = len(self.scores) * (2 if self.config.target.device == "cpu" else 1)
        with journal.bar(plan.name, self.selection_samples + samples + 3) as advance:
            with journal.timed("evaluate"):
                model = OnnxRuntimeModel(self._simulated(plan))
                error = float(self._errors(model, None, "select", advance).mean())
                accuracy = self._accuracy(model, confidence, "evaluate", advance)
                kernels = self._integer_kernels(path, accuracy, confidence, advance)
            with journal.timed("compare"):
                layers = self._layers(plan)
                advance(1)
            with journal.timed("latency"):
                latency = self.latencies(OnnxRuntimeModel(path, "integer"))[-1]
                advance(1)
            with journal.timed("tensorrt_build"):
                tensorrt_build = build(path, self.profile, self.config.target.compute_capability)
                advance(1)
        return Candidate(
            name=plan.name, strategy=plan.strategy, plan=f"plans/{plan.name}.json", plan_hash=plan.hash,
            float_layers=float_layers, selection_error=error, accuracy=accuracy, integer_kernels=kernels,
            latency=latency, latency_reason=None if latency else "latency.runs is 0 in the config",
            nodes=count_nodes(plan, inputs.prepared), size_bytes=path.stat().st_size,
            tensorrt_build=tensorrt_build, layers=layers,
        )  # fmt: skip

    def _simulated(self, plan: QuantizationPlan) -> bytes:
        return serialize(apply(plan, self.inputs.prepared, self.inputs.placement, simulate=True))

    def _errors(
        self, model: OnnxRuntimeModel, samples: int | None, stage: str, advance: Callable[[int], None]
    ) -> NDArray[np.float64]:
        stream = self.inputs.calibration if samples is None else self.inputs.calibration.limited(samples)
        batches = self.journal.forward(stage, stream.batches())
        return reference_errors(model, self.inputs.task, batches, self.outputs, advance)

    def _accuracy(
        self, model: OnnxRuntimeModel, confidence: float, stage: str, advance: Callable[[int], None]
    ) -> CandidateAccuracy:
        task = self.inputs.task
        batches = self.journal.forward(stage, self.inputs.validation.batches())
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

    def _layers(self, plan: QuantizationPlan) -> list[LayerError]:
        inputs = self.inputs
        outputs = tuple(layer.output for layer in inputs.placement.layers)
        simulated = apply(plan, inputs.prepared, inputs.placement, simulate=True)
        reference, candidate = (
            OnnxRuntimeModel(serialize(expose(model, outputs)), outputs=outputs)
            for model in (inputs.prepared, simulated)
        )
        batches = inputs.calibration.limited(self.config.compare_samples).batches()
        sqnr = layer_sqnr(reference, candidate, outputs, self.journal.forward("compare", batches, models=2))
        depth = {node.name: index for index, node in enumerate(inputs.prepared.graph)}
        return [
            LayerError(
                node=layer.node, op_type=layer.op_type, tensor=layer.output, depth=depth[layer.node],
                precision=plan.layers[layer.node], sqnr_db=sqnr[layer.output],
            )
            for layer in inputs.placement.layers
        ]  # fmt: skip

    def latencies(self, *candidates: OnnxRuntimeModel) -> list[Latency | None]:
        """Time the reference and the candidates in turn; None for each where the config asks for no timing."""
        config = self.config.latency
        models = [self.inputs.reference, *candidates]
        if config.runs == 0:
            return [None] * len(models)
        batch = next(iter(self.inputs.calibration.limited(self.inputs.calibration.batch_size).batches()))
        size = self.inputs.reference.fixed_batch or config.batch_size
        inputs = {name: np.resize(array, (size, *array.shape[1:])) for name, array in batch.inputs.items()}
        return list(measure(models, inputs, config.runs))
