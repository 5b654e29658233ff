"""Runtimes that run or build a model: one module or package each, behind the protocols of `base`.

ONNX files, and what a user may name as a model, are here too.
"""

from __future__ import annotations

from validate.backends.base import Backend, CannotForceError, Deployable, Runnable
from validate.backends.gpu import Gpu, local_gpu
from validate.backends.onnx_files import (
    PLAN_KEY,
    detach,
    expose,
    file_hash,
    files_of,
    read_onnx,
    roundings,
    weight_bytes,
    with_shapes,
    write_onnx,
)
from validate.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeModel, cpu_name, write_optimized
from validate.backends.opening import (
    MODEL_KINDS,
    ModelKind,
    Options,
    kind_of,
    model_name,
    module_of,
    open_model,
    open_pytorch,
    parameter_names,
)
from validate.backends.pytorch import PyTorchBackend, from_reference
from validate.backends.scopes import pair_with_onnx

__all__ = [
    "MODEL_KINDS",
    "PLAN_KEY",
    "Backend",
    "CannotForceError",
    "Deployable",
    "Gpu",
    "ModelKind",
    "OnnxRuntimeBackend",
    "OnnxRuntimeModel",
    "Options",
    "PyTorchBackend",
    "Runnable",
    "cpu_name",
    "detach",
    "expose",
    "file_hash",
    "files_of",
    "from_reference",
    "kind_of",
    "local_gpu",
    "model_name",
    "module_of",
    "open_model",
    "open_pytorch",
    "pair_with_onnx",
    "parameter_names",
    "read_onnx",
    "roundings",
    "weight_bytes",
    "with_shapes",
    "write_onnx",
    "write_optimized",
]
