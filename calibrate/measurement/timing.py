"""Latency of the float model, its FP16 form and the candidates, timed in turns on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from calibrate.cost import TargetConfig
from calibrate.graph import apply
from calibrate.loading import Inputs, SplitFingerprint
from calibrate.measurement.engines import EngineBench
from calibrate.measurement.settings import LatencyConfig
from calibrate.plan import QuantizationPlan
from validate.backends import write_onnx
from validate.backends.tensorrt import Profile, ShapeRanges
from validate.exceptions import JobError
from validate.latency import (
    Batches,
    Spec,
    Timed,
    Timing,
    available_cpus,
    interleave,
    load,
    pinned,
    ratio,
    summarize,
    torch_threads,
    warm_up,
)
from validate.results import Baseline, Candidate, Latency, Speedup

__all__ = ["Times", "engine_profile", "time_models"]

_BATCHES = 4
"""Number of different input batches; calls take them in turn."""
_ENGINE = "TensorRT TF32"
"""What TensorRT makes of a float model by default."""
_ORT, _ORT_FP16 = "ONNX Runtime FP32", "ONNX Runtime FP16"
_EAGER, _COMPILED = "PyTorch eager", "PyTorch torch.compile"


@dataclass(frozen=True)
class Times:
    """Latencies of the float model, other baselines and candidates, measured in turns.

    Attributes:
        timings: of baselines and candidates, by name.
        absent: why a model was not timed, by name.
        on_target: whether this machine has the device that the model will run on.
    """

    timings: dict[str, Timing] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    on_target: bool = False

    def of_reference(self) -> tuple[Latency | None, str | None]:
        """Return the latency of the float model; or None and the reason why it is not known."""
        return self._latency(_ORT if _ORT in {*self.timings, *self.absent} else _ENGINE)

    def of_baseline(self, baseline: Baseline) -> Baseline:
        """Return the baseline with its latency."""
        latency, reason = self._latency(baseline.name)
        return baseline.model_copy(update={"latency": latency, "reason": baseline.reason or reason})

    def add_to(self, candidate: Candidate) -> Candidate:
        """Return the candidate with its latency, and its speedup over each baseline that was timed.

        A speedup is the baseline's time over the candidate's: above 1 where the candidate is faster.
        """
        latency, reason = self._latency(candidate.name)
        speedups = list(candidate.speedups)
        for name, timing in self.timings.items():
            if latency is not None and name.startswith(("ONNX Runtime ", "PyTorch ", "TensorRT ")):
                found = ratio(self.timings[candidate.name].p50s_ms, timing.p50s_ms)
                speedups.append(
                    Speedup(
                        against=name,
                        value=found.value,
                        ci_low=found.ci_low,
                        ci_high=found.ci_high,
                        confidence=found.confidence,
                        basis="measured",
                        on_target=self.on_target,
                        source=f"{latency.runtime} on {latency.device}, batch size {latency.batch_size}",
                    )
                )
        return candidate.model_copy(update={"latency": latency, "latency_reason": reason, "speedups": speedups})

    def _latency(self, name: str) -> tuple[Latency | None, str | None]:
        if name in self.timings:
            return self.timings[name].latency, None
        return None, self.absent.get(name, "it was not timed")


def time_models(
    latency: LatencyConfig,
    target: TargetConfig,
    torch: str | None,
    inputs: Inputs,
    plans: Sequence[QuantizationPlan],
    folder: Path,
    engines: EngineBench | None,
) -> Times:
    """Time the candidates and the float model in turns, with all runtimes that this machine and the config have.

    With a GPU, the very engines that were judged are timed, and those of the baselines. Elsewhere models run with ONNX
    Runtime's kernels on the CPU, whose times say nothing about a GPU.

    Args:
        latency: settings of the measurement.
        target: device that the model will run on.
        torch: ``module:name`` of the PyTorch model, where the job has one.
        inputs: the float model, and the calibration set, whose first samples are the inputs.
        plans: of the candidates; their ONNX files are in `folder`.
        folder: for files.
        engines: that were run; None where none could be.
    """
    names = [_ORT, *(plan.name for plan in plans)]
    if latency.runs == 0:
        return Times(absent=dict.fromkeys(names, "latency.runs is 0 in the config"))
    batches = _batches(latency.batch_size, inputs)
    absent: dict[str, str] = {}
    if engines is not None:
        specs = [Spec(name, str(file)) for name, file in engines.files.items()]
        absent |= {plan.name: "TensorRT built no engine of it" for plan in plans if plan.name not in engines.files}
        specs += _modules(torch, latency.torch_compile)
        return Times(_in_turns(specs, "cuda", "fp16", batches, latency.runs, absent), absent, on_target=True)
    fp16 = folder / "fp16.onnx"
    write_onnx(apply(plans[0].in_float("fp16", _ORT_FP16), inputs.model.prepared, inputs.model.placement), fp16)
    specs = [Spec(_ORT, str(inputs.model.path)), Spec(_ORT_FP16, str(fp16)), *_modules(torch, latency.torch_compile)]
    specs += [Spec(plan.name, str(folder / plan.name / "model.int8.onnx")) for plan in plans]
    timings = _in_turns(specs, "cpu", "fp32", batches, latency.runs, absent)
    return Times(timings, absent, on_target=target.device == "cpu")


def engine_profile(latency: LatencyConfig, inputs: Inputs, splits: Sequence[SplitFingerprint]) -> Profile:
    """Return the shapes that the engines of a run must take: those of all samples, and of the calls that are timed."""
    shapes = [split.shapes for split in splits]
    if latency.runs:
        shapes.append(ShapeRanges.of(_batches(latency.batch_size, inputs)))
    return ShapeRanges.union(shapes).profile(inputs.reference.fixed_batch)


def _batches(batch_size: int, inputs: Inputs) -> Batches:
    size, each = inputs.rows_of_a_call(batch_size), inputs.calibration.preparation.rows
    stream = inputs.calibration.limited(_BATCHES * size // each)
    rows = [{k: v[i : i + 1] for k, v in b.inputs.items()} for b in stream.batches() for i in range(len(b) * each)]
    # Samples may differ in shape from batch to batch, and a call has one shape: that of the first.
    alike = [row for row in rows if all(row[name].shape == array.shape for name, array in rows[0].items())]
    groups = [[alike[(first + i) % len(alike)] for i in range(size)] for first in range(0, len(alike), size)]
    return [{name: np.concatenate([sample[name] for sample in group]) for name in group[0]} for group in groups]


def _modules(torch: str | None, torch_compile: bool) -> list[Spec]:
    if torch is None:
        return []
    compiled = [Spec(_COMPILED, torch, compiled=True)] if torch_compile else []
    return [Spec(_EAGER, torch), *compiled]


def _in_turns(
    specs: Sequence[Spec],
    device: Literal["cpu", "cuda"],
    precision: str,
    batches: Batches,
    runs: int,
    absent: dict[str, str],
) -> dict[str, Timing]:
    """Load what can be loaded, and time it; `absent` gets the rest."""
    timed: dict[str, Timed] = {}
    with ExitStack() as stack:
        threads = available_cpus()
        stack.enter_context(pinned(threads))
        if any("PyTorch" in spec.name for spec in specs):
            stack.enter_context(torch_threads(threads))
        for spec in specs:
            try:
                timed[spec.name] = load(spec, device, threads, precision, cuda_graph=True).timed(batches)
                warm_up(timed[spec.name], len(batches))
            except JobError as error:  # a candidate that this machine cannot run may still run on the target
                absent[spec.name] = str(error)
                timed.pop(spec.name, None)
        if not timed:
            return {}
        size = len(next(iter(batches[0].values())))
        return summarize(timed, [interleave(timed, len(batches), runs)], size)
