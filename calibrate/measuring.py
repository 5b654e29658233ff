"""Measures plans: error against the float model, accuracy, layer errors, latency, TensorRT build."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrate.config import Config
from calibrate.cost import CostModel
from calibrate.evaluations import Evaluated, Evaluations
from calibrate.graph.apply import apply, count_nodes
from calibrate.graph.check import check
from calibrate.graph.switch import SWITCHES, switchable
from calibrate.journal import Journal
from calibrate.loading import Inputs, Seen
from calibrate.plan import QuantizationPlan
from validate.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeModel
from validate.backends.tensorrt import build
from validate.compare import compare, subjects_of
from validate.comparison import TensorDifference
from validate.data import Batch
from validate.evaluate import OutputStore, candidate_accuracy, evaluate, reference_errors
from validate.exceptions import JobError
from validate.latency import measure
from validate.onnxfile import detach, write
from validate.results import Candidate, CandidateAccuracy, IntegerKernels, Latency, LayerError
from validate.tasks.base import Outputs

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
    evaluations: Evaluations
    costs: CostModel
    macs: Mapping[str, int]
    folder: Path

    def errors_alone(
        self, plan: QuantizationPlan, samples: Sequence[int], advance: Callable[[int], None]
    ) -> Callable[[str, int], float]:
        """Return what gives the task's error with one layer alone in int8, by layer and by position in `samples`.

        Args:
            samples: indices of calibration samples.
            advance: called with 1 for each layer that is done.
        """
        inputs, task = self.inputs, self.inputs.task
        layers = [layer.node for layer in inputs.model.placement.layers]
        switched = switchable(inputs.model.prepared, inputs.model.placement, plan)
        model = cache(lambda: OnnxRuntimeModel(detach(switched)))
        off = np.zeros(len(layers), np.bool_)

        def run(batch: Batch, on: NDArray[np.bool_]) -> Outputs:
            return model().run({**batch.inputs, SWITCHES: on})

        @cache
        def references() -> list[tuple[Batch, Outputs]]:
            stream = replace(inputs.calibration.limited(max(samples) + 1), batch_size=1)
            batches = [b for b in self.calibration.again(stream.batches()) if b.first in samples]
            return [(b, run(b, off)) for b in self.journal.forward("rank", batches)]

        def of_layer(layer: str) -> NDArray[np.float64]:
            on = np.array([name == layer for name in layers])
            known = references()
            self.journal.forwarded("rank", len(known))
            return np.concatenate([task.errors(run(batch, on), reference) for batch, reference in known])

        @cache
        def stored(layer: str) -> NDArray[np.float64]:
            key = {"plan": plan.hash, "layer": layer, "samples": list(samples)}
            errors = self.evaluations.get("alone", partial(of_layer, layer), **key).values
            advance(1)
            return errors

        return lambda layer, index: float(stored(layer)[index])

    def judge(
        self,
        plan: QuantizationPlan,
        hopeless: Callable[[NDArray[np.float64]], bool],
        looks: NDArray[np.float64],
        advance: Callable[[int], None],
    ) -> Evaluated:
        """Return the scores of a plan on the validation samples, or on the first of them where it is hopeless.

        Args:
            hopeless: tells from how much worse the first samples are.
            looks: numbers of samples after which it is asked.
        """
        task = self.inputs.task

        def compute() -> NDArray[np.float64]:
            model, due = OnnxRuntimeModel(detach(self._simulated(plan))), deque(looks)
            scores = np.empty(0)
            batches = self.validation.again(self.inputs.validation.batches())
            for batch in self.journal.forward("trials", batches):
                scores = np.concatenate([scores, evaluate(model, task, [batch], advance)])
                if due and scores.size >= due[0]:
                    due.popleft()
                    if hopeless(task.metric.worsening(self.scores[: scores.size], scores)):
                        break
            return scores

        return self.evaluations.get("trial", compute, plan=plan.hash, looks=[float(x) for x in looks])

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
        write(deployed, path)
        samples = len(self.scores) * (2 if self.config.target.device == "cpu" else 1)
        simulated = self._simulated(plan)
        with journal.bar(plan.name, len(self.calibration.order) + samples + 3) as advance:
            with journal.timed("evaluate"):
                model = cache(lambda: OnnxRuntimeModel(detach(simulated)))
                error = float(self._errors(plan, model, advance).mean()) if select else None
                accuracy = self._accuracy(plan, model, confidence, "evaluate", advance)
                kernels = self._integer_kernels(plan, path, accuracy, confidence, advance)
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
            cost=self.costs.cost(plan.layers), int8_mac_share=self._int8_share(plan),
            nodes=count_nodes(plan, inputs.model.prepared),
            size_bytes=sum(file.stat().st_size for file in path.parent.iterdir()),
            tensorrt_build=tensorrt_build, layers=layers,
        )  # fmt: skip

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
        self, plan: QuantizationPlan, model: Callable[[], OnnxRuntimeModel], confidence: float, stage: str,
        advance: Callable[[int], None],
    ) -> CandidateAccuracy:  # fmt: skip
        task = self.inputs.task

        def compute() -> NDArray[np.float64]:
            batches = self.journal.forward(stage, self.validation.again(self.inputs.validation.batches()))
            return evaluate(model(), task, batches, advance)

        scores = self.evaluations.get(stage, compute, plan=plan.hash).values
        return candidate_accuracy(task.metric, self.scores, scores, confidence)

    def _integer_kernels(
        self, plan: QuantizationPlan, path: Path, simulated: CandidateAccuracy, confidence: float,
        advance: Callable[[int], None],
    ) -> IntegerKernels | None:  # fmt: skip
        if self.config.target.device != "cpu":
            return None
        model = OnnxRuntimeModel(path, "integer")
        accuracy = self._accuracy(plan, lambda: model, confidence, "integer_kernels", advance)
        return IntegerKernels(
            runtime=f"{model.runtime} on {model.device}", accuracy=accuracy,
            difference=accuracy.value - simulated.value,
        )  # fmt: skip

    def _int8_share(self, plan: QuantizationPlan) -> float:
        total = sum(self.macs.values())
        return sum(self.macs[layer] for layer in plan.int8_layers) / total if total else 0.0

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
