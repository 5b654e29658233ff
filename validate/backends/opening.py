"""Opens what a user names as a model: an ONNX file, an engine, a PyTorch module or program."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import onnx_ir as ir
from numpy.typing import NDArray

from validate.backends.base import Backend
from validate.backends.onnxruntime import Arithmetic, OnnxRuntimeBackend
from validate.backends.pytorch import PyTorchBackend, from_reference
from validate.backends.scopes import pair_with_onnx
from validate.backends.tracing import export_again
from validate.exceptions import JobError, UsageError
from validate.number_formats import FloatPrecision
from validate.registry import Registry

if TYPE_CHECKING:
    import torch

__all__ = ["MODEL_KINDS", "ModelKind", "Options", "kind_of", "open_model", "open_pytorch"]

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How a model runs: `arithmetic` of ONNX, `precision` of PyTorch, and where."""

    device: Literal["cpu", "cuda"] = "cpu"
    precision: FloatPrecision = "fp32"
    arithmetic: Arithmetic = "float"


@dataclass(frozen=True)
class ModelKind:
    """A kind of model that a user may name, and the backend that runs it.

    Attributes:
        suffixes: of its files, e.g. ``{".onnx"}``; the first that is listed stands in messages.
        open: returns the backend of a file, ready to be loaded; raises JobError where it cannot be opened. None of a
            kind that needs more than its name, as a PyTorch module does: see `open_pytorch`.
    """

    suffixes: tuple[str, ...]
    open: Callable[[Path, Options], Backend] | None


def _open_onnx(path: Path, options: Options) -> Backend:
    return OnnxRuntimeBackend(path, options.arithmetic, options.device)


def _open_engine(path: Path, options: Options) -> Backend:
    from validate.backends.tensorrt import TensorRTBackend  # asks for TensorRT, which only engines need

    return TensorRTBackend(path)


def _problem(name: str, thing: object) -> str | None:
    if not isinstance(thing, ModelKind):
        return "is not a validate.backends.ModelKind"
    return None if thing.suffixes and thing.open else "needs suffixes, and a function that opens a file"


MODEL_KINDS: Registry[ModelKind] = Registry(
    "backend",
    "int8_gate.backends",
    {
        "onnx": ModelKind((".onnx",), _open_onnx),
        "engine": ModelKind((".engine", ".plan", ".trt"), _open_engine),
        "pytorch": ModelKind((".pt2",), None),
    },
    _problem,
)
"""What can be opened, by name. A package of the user's adds its own under the entry points `int8_gate.backends`."""


def kind_of(model: str) -> str:
    """Tell what a name stands for: a key of `MODEL_KINDS`.

    Raises UsageError where it stands for nothing that can be opened.
    """
    kinds = MODEL_KINDS.items()
    suffix = Path(model).suffix
    found = next((name for name, kind in kinds.items() if suffix in kind.suffixes), None)
    if found is None and ":" in model:
        return "pytorch"
    if found is None:
        files = ", ".join(f"FILE{kind.suffixes[0]}" for kind in kinds.values())
        broken = "".join(f"; {sentence}" for sentence in MODEL_KINDS.broken.values())
        raise UsageError(f"{model} is no model that can be opened; give {files}, module:name or FILE.py:name{broken}")
    if not Path(model).is_file():
        raise UsageError(f"there is no file {model}")
    return found


def open_model(model: str, options: Options) -> Backend:
    """Return a file, ready to be loaded.

    Args:
        model: see `kind_of`; no PyTorch module or program, for which there is `open_pytorch`.
        options: what does not apply to the kind is ignored.

    Raises:
        UsageError: there is no such model.
        JobError: it cannot be opened.
    """
    opener = MODEL_KINDS[kind_of(model)].open
    if opener is None:
        raise UsageError(f"{model} is PyTorch, which is opened beside an ONNX file that says what its inputs are")
    return opener(Path(model), options)


def open_pytorch(
    model: str, options: Options, file: OnnxRuntimeBackend, example: Mapping[str, NDArray[Any]]
) -> PyTorchBackend:
    """Return a PyTorch module or program, to be compared with the ONNX file that was exported from it.

    A module is looked into by hooks. Where that leaves layers of the file without a counterpart, since not every
    product of two matrices is a module, the module is exported again, in float32, and looked into step by step.

    Args:
        model: see `kind_of`.
        options: device and precision.
        file: its inputs are the module's.
        example: a small batch of them.

    Raises:
        JobError: it cannot be opened.
    """
    made = from_reference(model)
    backend = PyTorchBackend(made, file.input_names, example, options.device, options.precision)
    left = _unpaired_layers(file.graph, backend)
    if backend.program is not None or options.precision != "fp32" or not left:
        return backend
    try:
        program = export_again(cast("torch.nn.Module", made), example, file.graph)
        again = PyTorchBackend(program, file.input_names, device=options.device)
    except JobError as error:
        log.warning("%s is looked into by hooks alone, as it cannot be exported again: %s", model, error)
        return backend
    return again if len(_unpaired_layers(file.graph, again)) < len(left) else backend


def _unpaired_layers(graph: ir.Model, backend: PyTorchBackend) -> list[ir.Node]:
    """Return the layers with a constant weight of which neither the output nor the sum with a bias is paired."""
    pairs = pair_with_onnx(graph, backend).pairs
    found = []
    for node in graph.graph:
        if node.op_type in _LAYERS and node.inputs[1] is not None and node.inputs[1].const_value is not None:
            output = node.outputs[0]
            added = [use.node.outputs[0] for use in output.uses() if use.node.op_type == "Add"]
            if not any(value.name in pairs for value in (output, *added)):
                found.append(node)
    return found
