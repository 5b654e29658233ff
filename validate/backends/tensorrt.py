"""Asks a real TensorRT builder whether it accepts a file.

One implementation over two libraries with one API: `tensorrt` (11, needs a GPU to build) and `tensorrt_rtx`
(builds ahead of time for a named compute capability on a machine without a GPU). Verified here with
tensorrt_rtx 1.7 only; `tensorrt` 11 cannot be installed where this was written.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from validate.results import BuildResult

__all__ = ["Profile", "build"]

_AHEAD_OF_TIME = "tensorrt_rtx"

log = logging.getLogger(__name__)

Profile = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Per input the smallest, usual and largest shape that the engine must take."""


def build(model: Path, profile: Profile, compute_capability: str) -> BuildResult:
    """Parse the ONNX file strongly typed and build an engine; the engine is not kept.

    Takes `tensorrt` where it finds a GPU, else `tensorrt_rtx`.

    Args:
        model: an ONNX file; external data is found beside it.
        profile: shapes of the inputs with dynamic dimensions; others are ignored.
        compute_capability: what TensorRT-RTX builds for, e.g. ``"8.9"``; `tensorrt` builds for its own GPU.

    Returns:
        `ok` None where no TensorRT can build here, False with TensorRT's own errors where it refuses.
    """
    reasons = []
    for name in ("tensorrt", _AHEAD_OF_TIME):
        errors: list[str] = []
        try:
            trt = importlib.import_module(name)
            builder = trt.Builder(_logger(trt, errors))
        except ModuleNotFoundError:
            reasons.append(f"{name} is not installed")
            continue
        except (ImportError, OSError, RuntimeError, TypeError) as error:  # TypeError: pybind's, without a GPU
            reasons.append(f"{name} cannot start here ({errors[0] if errors else error})")
            continue
        if not _can_build_for(trt, compute_capability):
            reasons.append(f"{name} {trt.__version__} cannot build for compute capability {compute_capability}")
            continue
        started = time.perf_counter()
        where = _build(trt, builder, model, profile, compute_capability, errors)
        return BuildResult(
            ok=where is not None,
            backend=name,
            version=str(trt.__version__),
            message=f"built for {where}" if where else "; ".join(errors) or "refused without a message",
            seconds=round(time.perf_counter() - started, 2),
        )
    message = f"not checked: {' and '.join(reasons)} (tensorrt-rtx needs no GPU)"
    return BuildResult(ok=None, backend=None, version=None, message=message)


def _logger(trt: ModuleType, errors: list[str]) -> Any:
    class Collector(trt.ILogger):  # type: ignore[name-defined, misc]
        """Sends TensorRT's messages to `logging` and keeps its errors."""

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                errors.append(" ".join(message.split()))
                log.error("TensorRT: %s", message)
            else:
                log.debug("TensorRT: %s", message)

    return Collector()


def _can_build_for(trt: ModuleType, compute_capability: str) -> bool:
    """Tell whether the library can; `tensorrt` builds for the GPU of the machine and is not asked."""
    return trt.__name__ != _AHEAD_OF_TIME or _sm(compute_capability) in trt.ComputeCapability.__members__


def _sm(compute_capability: str) -> str:
    return "SM" + compute_capability.replace(".", "")


def _build(
    trt: ModuleType, builder: Any, model: Path, profile: Profile, compute_capability: str, errors: list[str]
) -> str | None:
    """Return what the engine was built for, or None where TensorRT refused; `errors` then says why."""
    # From TensorRT 11 on every network is strongly typed and the flag is ignored; before, it is needed.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse_from_file(str(model)):
        # A description alone may be "false"; the error as a whole names the node too.
        errors[:] = [" ".join(str(parser.get_error(i)).split()) for i in range(parser.num_errors)] or errors
        return None
    config = builder.create_builder_config()
    where = "the GPU of this machine"
    if trt.__name__ == _AHEAD_OF_TIME:
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.__members__[_sm(compute_capability)], 0)
        where = f"compute capability {compute_capability}, ahead of time"
    dynamic = [t.name for t in map(network.get_input, range(network.num_inputs)) if -1 in tuple(t.shape)]
    if missing := set(dynamic) - set(profile):
        errors.append(f"the profile gives no shapes for input {', '.join(sorted(missing))}, whose shape is dynamic")
        return None
    optimization = builder.create_optimization_profile()
    for name in dynamic:
        optimization.set_shape(name, *profile[name])
    config.add_optimization_profile(optimization)
    return where if builder.build_serialized_network(network, config) is not None else None
