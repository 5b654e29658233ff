"""How long an inference call takes: rounds of calls in turns, on CPUs that the process is pinned to.

Runners exist for ONNX Runtime, PyTorch and TensorRT engines.
"""

from __future__ import annotations

from validate.latency.clocks import Load, available_cpus, busy_before, disturbances, pinned, read_clocks, read_machine
from validate.latency.command import BenchmarkRequest, benchmark_models, specs_of
from validate.latency.report import LatencyReport, ModelTiming
from validate.latency.rounds import Batches, Ratio, Timed, Timing, interleave, ratio, summarize, warm_up
from validate.latency.runners import Spec, load, torch_threads

__all__ = [
    "Batches",
    "BenchmarkRequest",
    "LatencyReport",
    "Load",
    "ModelTiming",
    "Ratio",
    "Spec",
    "Timed",
    "Timing",
    "available_cpus",
    "benchmark_models",
    "busy_before",
    "disturbances",
    "interleave",
    "load",
    "pinned",
    "ratio",
    "read_clocks",
    "read_machine",
    "specs_of",
    "summarize",
    "torch_threads",
    "warm_up",
]
