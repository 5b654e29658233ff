"""Opens what a user names as a model: an ONNX file, an engine, a PyTorch module or program."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from validate.backends.base import Backend, CannotForceError, Deployable, Runnable
from validate.backends.onnx_files import with_shapes
from validate.backends.onnxruntime import Arithmetic, OnnxRuntimeBackend
from validate.backends.pytorch import PyTorchBackend, from_reference
from validate.backends.scopes import pair_with_onnx
from validate.backends.tracing import export_again
from validate.exceptions import JobError, UsageError
from validate.number_formats import FloatPrecision
from validate.registry import Registry

if TYPE_CHECKING:
    import torch

__all__ = [
    "MODEL_KINDS",
    "ModelKind",
    "Options",
    "kind_of",
    "model_name",
    "module_of",
    "open_model",
    "open_pytorch",
    "parameter_names",
]

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How to run a model: the device, the arithmetic of ONNX and the precision of PyTorch."""

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


def kind_of(model: object) -> str:
    """Return which kind of model this is or names: a key of `MODEL_KINDS`, or ``opened``.

    Raises UsageError where it is nothing that can be opened.

    Examples:
        >>> kind_of("models.py:resnet18")
        'pytorch'
    """
    if not isinstance(model, str | Path):
        return _kind_of_object(model)
    name, kinds = str(model), MODEL_KINDS.items()
    suffix = Path(name).suffix
    found = next((key for key, kind in kinds.items() if suffix in kind.suffixes), None)
    if found is None and ":" in name:
        return "pytorch"
    if found is None:
        files = ", ".join(f"FILE{kind.suffixes[0]}" for kind in kinds.values())
        broken = "".join(f"; {sentence}" for sentence in MODEL_KINDS.broken.values())
        raise UsageError(f"{name} is no model that can be opened; give {files}, module:name or FILE.py:name{broken}")
    if not Path(name).is_file():
        raise UsageError(f"there is no file {name}")
    return found


def _kind_of_object(model: object) -> str:
    if isinstance(model, onnx.ModelProto | Deployable):
        return "onnx"
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module | torch.export.ExportedProgram):
        return "pytorch"
    if isinstance(model, Backend | Runnable):
        return "opened"
    raise UsageError(
        f"a {type(model).__name__} is no model that can be opened; give a path, an onnx.ModelProto, a torch.nn.Module, "
        "what quantize() returned, or an object that runs as validate.backends.Runnable does"
    )


def model_name(model: object) -> str:
    """Return what results call a model."""
    if isinstance(model, str | Path):
        return str(model)
    if isinstance(model, onnx.ModelProto):
        return model.graph.name or "ONNX model"
    return model.name if isinstance(model, Deployable) else type(model).__name__


def open_model(model: object, options: Options) -> Backend:
    """Return a model that is not PyTorch's, ready to be loaded.

    Args:
        model: see `kind_of`. A `Deployable` is opened in float simulation.
        options: what does not apply to the kind is ignored.

    Raises:
        UsageError: there is no such model, or it is PyTorch's, for which there is `open_pytorch`.
        JobError: it cannot be opened.
    """
    kind = kind_of(model)
    if kind == "opened":
        return model if isinstance(model, Backend) else _Opened(cast("Runnable", model))
    if isinstance(model, onnx.ModelProto):
        return OnnxRuntimeBackend(with_shapes(ir.from_proto(model)), options.arithmetic, options.device)
    if isinstance(model, Deployable):
        return OnnxRuntimeBackend(model.simulation(), options.arithmetic, options.device)
    opener = MODEL_KINDS[kind].open
    if opener is None:
        raise UsageError(f"{model} is PyTorch, which is opened beside an ONNX file that says what its inputs are")
    return opener(Path(str(model)), options)


class _Opened:
    """A model that runs already, and of which no inner tensor is known; see `Backend`."""

    def __init__(self, model: Runnable) -> None:
        self._model = model
        self.input_names, self.output_names = tuple(model.input_names), tuple(model.output_names)
        self.tensors: Mapping[str, str] = dict.fromkeys(self.output_names, type(model).__name__)

    def load(self, outputs: Sequence[str] | None = None, forced: Sequence[str] = ()) -> Runnable:
        """See `Backend`."""
        if forced:
            raise CannotForceError("a model that runs already cannot be fed inner tensors")
        if unknown := set(outputs or ()) - set(self.output_names):
            raise JobError(f"the model gives no output called {', '.join(sorted(unknown))}")
        return self._model


def parameter_names(model: object) -> tuple[str, ...] | None:
    """Return what the inputs of a module in memory are called: the parameters of forward() that have no default.

    None of what is no module, or of one whose forward() names none.
    """
    forward = getattr(model, "forward", None)
    if isinstance(model, str | Path) or not callable(forward):
        return None
    kinds = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    parameters = inspect.signature(forward).parameters.values()
    return tuple(p.name for p in parameters if p.kind in kinds and p.default is p.empty) or None


def open_pytorch(
    model: object, options: Options, file: OnnxRuntimeBackend, example: Mapping[str, NDArray[Any]]
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
    made = module_of(model)
    backend = PyTorchBackend(made, file.input_names, example, options.device, options.precision)
    left = _unpaired_layers(file.graph, backend)
    if backend.program is not None or options.precision != "fp32" or not left:
        return backend
    try:
        program = export_again(cast("torch.nn.Module", made), example, file.graph)
        again = PyTorchBackend(program, file.input_names, device=options.device)
    except JobError as error:
        log.warning("%s is looked into by hooks alone, as it cannot be exported again: %s", model_name(model), error)
        return backend
    return again if len(_unpaired_layers(file.graph, again)) < len(left) else backend


def module_of(model: object) -> torch.nn.Module | torch.export.ExportedProgram:
    """Return the module or program that is given, or that a name stands for; see `from_reference`."""
    if isinstance(model, str | Path):
        return from_reference(str(model))
    return cast("torch.nn.Module | torch.export.ExportedProgram", model)


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
