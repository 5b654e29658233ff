"""TensorRT engines of a run: built, run over the validation samples, and held against their simulation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrate.cost import Pricing, TargetConfig
from calibrate.graph import apply
from calibrate.journal import Journal
from calibrate.loading import Inputs
from calibrate.measurement.evaluation_cache import EvaluationCache
from calibrate.measurement.reference import ReferenceRun
from calibrate.plan import QuantizationPlan
from validate.accuracy import batch_scores, candidate_accuracy
from validate.backends import Gpu, OnnxRuntimeModel, Runnable, detach, local_gpu, read_onnx, write_onnx
from validate.backends.tensorrt import (
    BuildOptions,
    Profile,
    RefusedError,
    TensorRTBackend,
    build_engine,
    find_builder,
    installed_libraries,
    why_not_running,
)
from validate.data import Batch
from validate.engines import compare_engine, int8_in_engine, reformat_nodes
from validate.exceptions import JobError
from validate.number_formats import FloatPrecision
from validate.results import Baseline, BuildResult, EngineRun, Int8InEngine
from validate.tasks import Agreement, Answering, Outputs

__all__ = ["ENGINE", "EngineBench", "EngineScores", "why_no_engine"]

ENGINE = "model.engine"
"""Name of the engine file in a candidate's folder, and in the run's."""
_COMPARED = 32
"""Calibration samples on which an engine is compared with its simulation; of 16, a scale that was 5 % off was not told
from rounding (docs/engines.md)."""
_PROFILED = 10
"""Inferences by which the kernels of an engine are timed."""
_FIRST_WITH_BF16 = (8, 0)
"""Compute capability of Ampere, the first that computes in BF16."""

Scores = NDArray[np.float64]


def why_no_engine(target: TargetConfig) -> str | None:
    """Return why no engine can be run on this machine for a target; None where one can.

    Whether a library runs engines on a GPU is asked of the library, not looked up; see `why_not_running`.
    """
    if target.device == "cpu":
        return "the target is the CPU"
    gpu = local_gpu()
    if gpu is None:
        return "no NVIDIA GPU is found here"
    if not target.is_gpu(gpu.name, gpu.compute_capability):
        wanted = target.gpu or f"one of compute capability {target.compute_capability}"
        return f"the GPU here is {gpu}, and the target is {wanted}: see target.compute_capability"
    libraries, reasons = installed_libraries()
    for library in libraries.values():
        if (reason := why_not_running(library, gpu)) is None:
            return None
        reasons.append(f"{library} does not run engines on {gpu} ({reason})")
    return " and ".join(reasons)


@dataclass(frozen=True)
class EngineScores:
    """Scores of every validation sample, shape (n,), or records, shape (n, k).

    Attributes:
        simulated: of the float simulation.
        engine: of the engine.
        agreement: how often, or by the task's metric how well, the engine gives the simulation's answers; None where
            the task gives none.
        not_finite: samples of which the engine gives a value that is not finite, where the simulation's are.
    """

    simulated: Scores
    engine: Scores
    agreement: float | None
    not_finite: int


@dataclass(frozen=True)
class EngineBench:
    """Builds engines for this machine's GPU and runs them.

    Attributes:
        inputs: the model, its data and its task.
        reference: scores of the float model on the validation set.
        evaluations: cache of evaluations. An engine's scores are found again only for the very same file.
        pricing: multiply-accumulates of layers.
        profile: shapes that engines must take: those of the samples, and of the calls that are timed.
        folder: for files.
        journal: counts forward passes.
        files: engine files by the name of what they were built from.
    """

    inputs: Inputs
    reference: ReferenceRun
    evaluations: EvaluationCache
    pricing: Pricing
    profile: Profile
    folder: Path
    journal: Journal
    files: dict[str, Path] = field(default_factory=dict)

    def build(self, name: str, model: Path) -> tuple[BuildResult, TensorRTBackend | None]:
        """Build the engine of an ONNX file beside it; None, with TensorRT's words, where it refuses."""
        engine, (library, _) = model.with_name(ENGINE), find_builder(None, local_gpu())
        answer = partial(BuildResult, backend=library.flavour, version=library.version)
        with self.journal.timed("tensorrt_build"):
            try:
                build_engine(model, engine, self.profile)
            except RefusedError as error:
                return answer(ok=False, message=str(error)), None
        self.files[name] = engine
        return answer(ok=True, message="built for the GPU of this machine"), TensorRTBackend(engine)

    def score(
        self, engine: TensorRTBackend, simulation: Callable[[], Runnable], advance: Callable[[int], None]
    ) -> EngineScores:
        """Run an engine and its simulation over the validation samples, batch by batch."""
        task = self.inputs.task
        inner = task.task if isinstance(task, Agreement) else task

        def compute() -> Scores:
            models = simulation(), engine.load()
            agreement = Agreement(inner) if isinstance(inner, Answering) else None
            rows: list[Scores] = []
            for batch in self.journal.forward("engine", self._validation(), models=2):
                outputs = [model.run(batch.inputs) for model in models]
                parts = [batch_scores(task, batch, found, is_reference=False) for found in outputs]
                if agreement is not None:
                    parts += [batch_scores(agreement, batch, outputs[0], is_reference=True)]
                    parts += [batch_scores(agreement, batch, outputs[1], is_reference=False)]
                finite = [_finite_samples(found, len(batch)) for found in outputs]
                rows.append(np.column_stack([*parts, finite[0] & ~finite[1]]))
                advance(len(batch))
            return np.concatenate(rows)

        stored = self.evaluations.get("engine", compute, engine=engine.fingerprint.engine_sha256).values
        found, not_finite = stored[:, :-1], int(stored[:, -1].sum())
        each = 1 if self.reference.scores.ndim == 1 else self.reference.scores.shape[1]
        columns = [found[:, i * each : (i + 1) * each] for i in range(found.shape[1] // each)]
        simulated, own, *agreed = (part[:, 0] if self.reference.scores.ndim == 1 else part for part in columns)
        value = task.metric.value(agreed[1]) if agreed else None
        return EngineScores(simulated, own, value, not_finite)

    def compare(
        self, engine: TensorRTBackend, model: Path, plan: QuantizationPlan, simulated: ir.Model, scores: EngineScores
    ) -> EngineRun:
        """Hold an engine against its simulation, and look what of it runs in INT8.

        Args:
            engine: that was run.
            model: the ONNX file that it was built from.
            plan: that made the file.
            simulated: its simulation.
            scores: of the validation samples.
        """
        prepared = self.inputs.model.prepared
        batches = self.inputs.calibration.limited(_COMPARED).batches()
        found = compare_engine(
            prepared,
            simulated,
            engine,
            self.journal.forward("compare_engine", batches),
            unfused=self._with_inner_tensors(model, engine.fingerprint.options),
        )
        return EngineRun(
            file=engine.file(),
            agreement=scores.agreement,
            not_finite_samples=scores.not_finite,
            compared=found.samples,
            outputs=found.outputs,
            departure=found.departure,
            inner_tensors=found.inner_tensors,
            int8=self._int8(engine, model, plan),
        )

    def baselines(self, plan: QuantizationPlan, confidence: float) -> list[Baseline]:
        """Build the float model's engines, and run them over the validation samples: what INT8 has to beat.

        Args:
            plan: any of the run's; its nodes that FP16 cannot hold stay in FP32.
            confidence: of the interval of each drop.
        """
        gpu = local_gpu()
        assert gpu is not None  # see `why_no_engine`
        kinds: list[tuple[str, FloatPrecision, bool]] = [
            ("TensorRT FP32", "fp32", False),
            ("TensorRT TF32", "fp32", True),
            ("TensorRT FP16", "fp16", True),
        ]
        if _capability(gpu) >= _FIRST_WITH_BF16:
            kinds.append(("TensorRT BF16", "bf16", True))
        return [self._baseline(name, plan.in_float(kind, name), tf32, confidence) for name, kind, tf32 in kinds]

    def _baseline(self, name: str, plan: QuantizationPlan, tf32: bool, confidence: float) -> Baseline:
        path = self.folder / name.replace(" ", "-") / "model.onnx"
        path.parent.mkdir()
        model = self.inputs.model
        write_onnx(apply(plan, model.prepared, model.placement), path)
        simulated = apply(plan, model.prepared, model.placement, simulate=True)
        try:
            build_engine(path, path.with_name(ENGINE), self.profile, BuildOptions(tf32=tf32))
            engine = TensorRTBackend(path.with_name(ENGINE))
            scores = self.score(engine, lambda: OnnxRuntimeModel(detach(simulated)), lambda samples: None)
            run = self.compare(engine, path, plan, simulated, scores)
        except JobError as error:  # a type that this GPU or library cannot compute in is no reason to give up
            return Baseline(name=name, engine=None, reason=str(error))
        self.files[name] = path.with_name(ENGINE)
        found = partial(candidate_accuracy, self.inputs.task.metric, self.reference.scores, confidence=confidence)
        return Baseline(
            name=name, engine=run, accuracy=found(scores.engine, basis="engine"), simulated=found(scores.simulated)
        )

    def _validation(self) -> Iterator[Batch]:
        return self.reference.fingerprint.verify(self.inputs.validation.batches())

    def _with_inner_tensors(self, model: Path, options: BuildOptions) -> TensorRTBackend | None:
        """Return another engine of the file, which shows the tensors that fusion leaves; None where there is none."""
        engine = model.with_name("inner-tensors") / ENGINE
        engine.parent.mkdir(exist_ok=True)
        try:
            build_engine(model, engine, self.profile, options.model_copy(update={"debug": "unfused"}))
            return TensorRTBackend(engine)
        except JobError as error:
            self.journal.warn(f"the inner tensors of {model.parent.name} cannot be looked at: {error}")
            return None

    def _int8(self, engine: TensorRTBackend, model: Path, plan: QuantizationPlan) -> Int8InEngine | None:
        planned = plan.int8_layers
        if not planned:
            return None
        batch = next(iter(self.inputs.calibration.limited(_COMPARED).batches()))
        times = engine.load().layer_times(batch.inputs, _PROFILED)
        return int8_in_engine(engine.layers, planned, self.pricing.macs, reformat_nodes(read_onnx(model)), times)


def _finite_samples(outputs: Outputs, samples: int) -> NDArray[np.bool_]:
    """Return whether all values of each sample are finite, shape (n,). Outputs without samples speak for all."""
    finite = np.ones(samples, np.bool_)
    for array in outputs.values():
        if array.dtype.kind == "f":
            values = np.isfinite(array)
            whole = array.ndim == 0 or array.shape[0] != samples
            finite &= values.all() if whole else values.reshape(samples, -1).all(axis=1)
    return finite


def _capability(gpu: Gpu) -> tuple[int, ...]:
    return tuple(int(part) for part in gpu.compute_capability.split("."))
