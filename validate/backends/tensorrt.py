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

log = logging.getLogger(__name__)

Profile = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Per input the smallest, usual and largest shape that the engine must take."""


def build(model: Path, profile: Profile, compute_capability: str) -> BuildResult:
    """Parse the ONNX file strongly typed and build an engine; the engine is not kept.

    Args:
        model: an ONNX file; external data is found beside it.
        profile: shapes of the inputs with dynamic dimensions; others are ignored.
        compute_capability: what TensorRT-RTX builds for, e.g. ``"8.9"``; `tensorrt` builds for its own GPU.

    Returns:
        `ok` None where no TensorRT is installed, False with TensorRT's own errors where it refuses.
    """
    trt = _library()
    if trt is None:
        message = "not checked: neither tensorrt nor tensorrt_rtx is installed (pip install tensorrt-rtx)"
        return BuildResult(ok=None, backend=None, version=None, message=message)
    backend, version = trt.__name__, str(trt.__version__)
    started = time.perf_counter()
    errors: list[str] = []
    logger = _logger(trt, errors)
    ok, where = _build(trt, logger, model, profile, compute_capability, errors)
    seconds = time.perf_counter() - started
    message = f"built for {where}" if ok else "; ".join(errors) or "refused without a message"
    return BuildResult(ok=ok, backend=backend, version=version, message=message, seconds=round(seconds, 2))


def _library() -> ModuleType | None:
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError, RuntimeError) as error:
            log.warning("%s is installed but cannot be loaded: %s", name, error)
    return None


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


def _build(
    trt: ModuleType, logger: Any, model: Path, profile: Profile, compute_capability: str, errors: list[str]
) -> tuple[bool, str]:
    builder = trt.Builder(logger)
    if builder is None:
        return False, ""
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        errors.extend(parser.get_error(i).desc() for i in range(parser.num_errors))
        return False, ""
    config = builder.create_builder_config()
    where = "the GPU of this machine"
    if hasattr(config, "set_compute_capability"):
        capability = getattr(trt.ComputeCapability, "SM" + compute_capability.replace(".", ""), None)
        if capability is None:
            errors.append(f"{trt.__name__} {trt.__version__} cannot build for compute capability {compute_capability}")
            return False, ""
        config.num_compute_capabilities = 1
        config.set_compute_capability(capability, 0)
        where = f"compute capability {compute_capability}, ahead of time"
    config.add_optimization_profile(_optimization_profile(builder, network, profile))
    engine = builder.build_serialized_network(network, config)
    return engine is not None, where


def _optimization_profile(builder: Any, network: Any, profile: Profile) -> Any:
    optimization = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 in tuple(tensor.shape):
            optimization.set_shape(tensor.name, *profile[tensor.name])
    return optimization
