"""TensorRT: builds engines, says what they are for, and runs them.

One implementation over two libraries with one API: `tensorrt` (11, needs a GPU to build) and `tensorrt_rtx`
(builds ahead of time for a named compute capability on a machine without a GPU). Read `building.py` for what is
built, `fingerprint.py` for what may be loaded where, and `engine.py` for the part that runs on a GPU only.

Importing this package imports neither library, nor torch. What was seen to work, and where: everything up to the
engine file with tensorrt_rtx 1.7 on a machine without a GPU, and engines with tensorrt_rtx 1.6.1 on an H200
(``pytest tests/gpu``); `tensorrt` 11 cannot be installed where this was written, and its documentation is followed.
"""

from __future__ import annotations

from validate.backends.tensorrt.backend import TensorRTBackend
from validate.backends.tensorrt.building import RefusedError, build, build_engine
from validate.backends.tensorrt.command import adopt_engine, build_from_onnx
from validate.backends.tensorrt.engine import TensorRTEngine
from validate.backends.tensorrt.fingerprint import Fingerprint, adopt, hardware_fits, require, sha256, version_fits
from validate.backends.tensorrt.inspection import Layer, parse_layers
from validate.backends.tensorrt.library import Library, find_builder, installed_libraries
from validate.backends.tensorrt.options import BuildOptions, Profile, ShapeRanges
from validate.backends.tensorrt.probe import needs_fp32_scales, require_running, why_not_running

__all__ = [
    "BuildOptions",
    "Fingerprint",
    "Layer",
    "Library",
    "Profile",
    "RefusedError",
    "ShapeRanges",
    "TensorRTBackend",
    "TensorRTEngine",
    "adopt",
    "adopt_engine",
    "build",
    "build_engine",
    "build_from_onnx",
    "find_builder",
    "hardware_fits",
    "installed_libraries",
    "needs_fp32_scales",
    "parse_layers",
    "require",
    "require_running",
    "sha256",
    "version_fits",
    "why_not_running",
]
