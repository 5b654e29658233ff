"""From what a user types to a model: an ONNX file, an engine, or a PyTorch module or program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from validate.backends.base import Backend
from validate.backends.onnxruntime import Arithmetic, OnnxRuntimeBackend
from validate.exceptions import UsageError

__all__ = ["Options", "kind_of", "open_model"]

Kind = Literal["onnx", "engine", "pytorch"]
_ENGINES = frozenset({".engine", ".plan", ".trt"})


@dataclass(frozen=True)
class Options:
    """How a model runs: `arithmetic` of ONNX, `precision` of PyTorch, and where."""

    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    arithmetic: Arithmetic = "float"


def kind_of(model: str) -> Kind:
    """Tell what a name stands for. Raises UsageError where it stands for nothing that can be opened."""
    suffix = Path(model).suffix
    if suffix == ".onnx":
        kind: Kind = "onnx"
    elif suffix in _ENGINES:
        kind = "engine"
    elif suffix == ".pt2":
        kind = "pytorch"
    elif ":" in model:
        return "pytorch"
    else:
        raise UsageError(
            f"{model} is no model that can be opened; give FILE.onnx, FILE.engine, FILE.pt2, module:name or "
            "FILE.py:name"
        )
    if not Path(model).is_file():
        raise UsageError(f"there is no file {model}")
    return kind


def open_model(
    model: str, options: Options, input_names: Sequence[str] = (), example: Mapping[str, NDArray[Any]] | None = None
) -> Backend:
    """Return a model, ready to be loaded.

    Args:
        model: see `kind_of`.
        options: what does not apply to the kind is ignored.
        input_names, example: a module's inputs, and a small batch of them; needed for PyTorch only.

    Raises:
        UsageError: there is no such model.
        JobError: it cannot be opened.
    """
    kind = kind_of(model)
    if kind == "onnx":
        return OnnxRuntimeBackend(Path(model), options.arithmetic, options.device)
    if kind == "engine":
        from validate.backends.tensorrt import TensorRTBackend

        return TensorRTBackend(Path(model))
    from validate.backends.pytorch import PyTorchBackend, from_reference

    small = None if example is None else {name: np.asarray(array)[:1] for name, array in example.items()}
    return PyTorchBackend(from_reference(model), input_names, small, options.device, options.precision)
