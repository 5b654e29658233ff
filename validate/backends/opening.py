"""Opens what a user names as a model: an ONNX file, an engine, a PyTorch module or program."""

from __future__ import annotations

import logging
from collections.abc import Mapping
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

if TYPE_CHECKING:
    import torch

__all__ = ["Options", "kind_of", "open_model", "open_pytorch"]

Kind = Literal["onnx", "engine", "pytorch"]
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_ENGINES = frozenset({".engine", ".plan", ".trt"})

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How to run a model: the device, the arithmetic of ONNX and the precision of PyTorch."""

    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    arithmetic: Arithmetic = "float"


def kind_of(model: str) -> Kind:
    """Return which kind of model a name stands for. Raises UsageError where it names nothing that can be opened.

    Examples:
        >>> kind_of("models.py:resnet18")
        'pytorch'
    """
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


def open_model(model: str, options: Options) -> Backend:
    """Return an ONNX file or an engine, ready to be loaded.

    Args:
        model: see `kind_of`.
        options: what does not apply to the kind is ignored.

    Raises:
        UsageError: there is no such model.
        JobError: it cannot be opened.
    """
    if kind_of(model) == "onnx":
        return OnnxRuntimeBackend(Path(model), options.arithmetic, options.device)
    from validate.backends.tensorrt import TensorRTBackend

    return TensorRTBackend(Path(model))


def open_pytorch(
    model: str, options: Options, file: OnnxRuntimeBackend, example: Mapping[str, NDArray[Any]]
) -> PyTorchBackend:
    """Return a PyTorch module or program, to be compared with the ONNX file that was exported from it.

    A module's tensors are read by hooks. Where layers of the file stay unpaired, since not every product of two
    matrices is a module, the module is exported again, in float32, and its tensors are read node by node.

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
