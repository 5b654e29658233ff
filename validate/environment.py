"""The environment of a run: versions and hardware."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from validate.backends import cpu_name

__all__ = ["environment"]

_PACKAGES = (
    "int8-gate",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxscript",
    "torch",
    "tensorrt",
    "tensorrt-rtx",
    "datasets",
    "mlflow",
)


def environment() -> dict[str, str]:
    """Return platform, CPU, and the version of every package that numbers depend on."""
    found = {"python": sys.version.split()[0], "platform": platform.platform(), "cpu": cpu_name()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
