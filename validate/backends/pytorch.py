"""PyTorch, eager or exported, on the CPU or a CUDA GPU.

Two kinds of model, and which to take:

- a **module** is what the user trained: it runs eagerly, owes nothing to any exporter, and so is the independent
  reference. Its tensors are the outputs of its submodules, by module path (``layer1.0.conv1``). What happens between
  modules (a residual ``+``, the projections of MultiheadAttention, which calls no module for them) is not among them.
- an **exported program** is a graph whose every step can be an output, by fx node name; but an error that
  torch.export made is in it as it is in the ONNX file. `validate.backends.tracing.export_again` makes the program
  that torch.onnx.export wrote a file from.

Importing this file does not import torch. While a model runs, switches that hold for the whole process are set (see
`_plain_arithmetic`), so that models should not run in several threads at once.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from validate.backends.onnxruntime import cpu_name
from validate.backends.tracing import ModuleTrace, Shape, trace_module
from validate.exceptions import JobError
from validate.number_formats import FloatPrecision
from validate.references import load_object

if TYPE_CHECKING:
    import torch

__all__ = ["Device", "PyTorchBackend", "from_reference"]

Device = Literal["cpu", "cuda"]
_Visit = Callable[[str, "torch.Tensor"], "torch.Tensor"]  # sees a tensor by name, returns what goes on in its place
_T = TypeVar("_T")

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def from_reference(reference: str, base: Path = Path()) -> torch.nn.Module | torch.export.ExportedProgram:
    """Return the module or program that a user names.

    Args:
        reference: ``module:name`` or ``path/to/file.py:name`` of a function without arguments that returns an
            nn.Module (or of a module itself), or the path of a ``.pt2`` file that torch.export.save wrote.
        base: the folder at which relative paths start.

    Raises:
        JobError: there is no such thing, it fails, or PyTorch is not installed.
    """
    _require_torch()
    import torch

    try:
        if reference.endswith(".pt2"):
            return torch.export.load(base / reference)
        made = load_object(reference, base)
        made = made if isinstance(made, torch.nn.Module) else made()
    except Exception as error:  # the user's code and file: anything may come out of them
        raise JobError(f"{reference} cannot be loaded: {_first_line(error)}") from error
    if not isinstance(made, torch.nn.Module):
        raise JobError(f"{reference} returns {type(made).__name__}, not a torch.nn.Module; let it return the module")
    return made


class PyTorchBackend:
    """A `Backend` over a copy of a module, in eval mode, or of an exported program.

    A module's tensors are only known after it has run, so it is run on `example` here. One that is called more than
    once in that run has no single output and is left out, as is one whose output is not a tensor.

    Args:
        model: stays as it is; a copy is moved and converted.
        input_names: given to forward() by name where all of them are parameters of it, else in this order.
        example: a small batch by input name, which a module needs and a program does not.
        device: ``cpu`` or ``cuda``.
        precision: of all parameters, and of inputs that are floats. A program keeps the types that its steps name.
        output_names: of the model's own outputs. By default the keys of the mapping that forward() returns, else
            ``output_0``, ``output_1``, ...; the fx node names of a program.

    Attributes:
        shapes: by tensor; a module's are those on `example`, and a program's dynamic axes are None.
        left_out: what ran and is not among `tensors`, with the reason.
        trace: of a module, else None.
        program: as it was given, else None.

    Raises:
        JobError: PyTorch or the GPU is missing, the names do not fit, or the module fails on `example`.

    Examples:
        >>> import torch
        >>> module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
        >>> list(PyTorchBackend(module, ["x"], {"x": np.zeros((1, 2), np.float32)}).tensors)
        ['0', '1', 'output_0']
    """

    def __init__(
        self,
        model: torch.nn.Module | torch.export.ExportedProgram,
        input_names: Sequence[str],
        example: Mapping[str, NDArray[Any]] | None = None,
        device: Device = "cpu",
        precision: FloatPrecision = "fp32",
        output_names: Sequence[str] | None = None,
    ) -> None:
        _require_torch()
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise JobError("PyTorch finds no CUDA GPU here; take device cpu, or a machine with one and a CUDA build")
        dtype: torch.dtype = getattr(torch, _DTYPES[precision])
        self.trace: ModuleTrace | None = None
        self.program: torch.export.ExportedProgram | None = None
        self.model: _Eager | _Program
        if isinstance(model, torch.nn.Module):
            self.model = _Eager(model, input_names, example, device, dtype)
            self.trace = self.model.trace
        else:
            self.model = _Program(model, input_names, device, dtype)
            self.program = model
        kind = f"{precision}, exported program" if self.program else precision
        self.runtime = f"torch {torch.__version__} ({kind})"
        self.device = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
        self.input_names = tuple(input_names)
        outputs = self.model.outputs
        self.output_names = tuple(outputs if output_names is None else output_names)
        if len(set(self.output_names)) != len(outputs):
            raise JobError(
                f"the model has {len(outputs)} outputs, so output_names needs as many different names "
                f"and not ({', '.join(self.output_names)})"
            )
        own = dict(zip(self.output_names, outputs, strict=True))
        hidden = {*self.input_names, *(name for name, step in own.items() if name != step or self.trace)}
        self.inner = {name: shape for name, shape in self.model.shapes.items() if name not in hidden}
        self.shapes = self.inner | {name: outputs[step] for name, step in own.items()}
        self.tensors: Mapping[str, str] = {n: n if n in self.inner else type(model).__name__ for n in self.shapes}
        same = "an input or output of the model has the same name"
        self.left_out = self.model.left_out | {name: same for name in self.model.shapes if name in hidden}

    def load(self, outputs: Sequence[str] | None = None, forced: Sequence[str] = ()) -> _Running:
        """See `Backend`. All that is loaded shares one copy of the weights."""
        if unknown := {*(outputs or ()), *forced}.difference(self.tensors):
            names = [f"{n} ({self.left_out[n]})" if n in self.left_out else n for n in sorted(unknown)]
            raise JobError(f"the PyTorch model has no tensor called {', '.join(names)}")
        return _Running(self, self.output_names if outputs is None else tuple(outputs), tuple(forced))


class _Running:
    """See `Runnable`."""

    def __init__(self, backend: PyTorchBackend, outputs: tuple[str, ...], forced: tuple[str, ...]) -> None:
        self._backend = backend
        self._forced = forced
        self.runtime, self.device = backend.runtime, backend.device
        self.input_names = (*backend.input_names, *forced)
        self.output_names = outputs

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Runnable`. bfloat16 comes back as float32, which holds it exactly, since numpy has no such type."""
        found: dict[str, NDArray[Any]] = {}
        given = {name: _tensor(name, inputs) for name in self._forced}

        def visit(name: str, value: torch.Tensor) -> torch.Tensor:
            if name in found:
                raise JobError(f"{name} is computed more than once on this batch, though not on the example")
            found[name] = _to_numpy(value)  # at once: what follows may change it in place
            return _like(name, given[name], value) if name in given else value

        names = {*self.output_names, *self._forced}.intersection(self._backend.inner)
        feeds = _feeds(inputs, self._backend.model.types)
        outputs = _running(feeds, lambda: self._backend.model.run(feeds, names, visit))
        for name, value in zip(self._backend.output_names, outputs, strict=True):
            found.setdefault(name, _to_numpy(value))
        if absent := [name for name in self.output_names if name not in found]:
            raise JobError(f"{absent[0]} is not computed on this batch, though it is on the example")
        return {name: found[name] for name in self.output_names}


class _Eager:
    """A module that is run with hooks."""

    def __init__(
        self,
        module: torch.nn.Module,
        input_names: Sequence[str],
        example: Mapping[str, NDArray[Any]] | None,
        device: Device,
        dtype: torch.dtype,
    ) -> None:
        if example is None:
            raise JobError("a torch.nn.Module needs an example batch, by which its tensors are found; give a small one")
        self.types = {name: _dtype_in_run(_tensor(name, example).dtype, dtype) for name in input_names}
        parameters = inspect.signature(module.forward).parameters.values()
        named = [p.name for p in parameters if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}]
        self._by_name = _by_name(input_names, named)
        self._module = copy.deepcopy(module).eval().to(device=device, dtype=dtype)
        self._device = device
        feeds = _feeds(example, self.types)
        self.input_shapes: dict[str, Shape] = {name: tuple(feed.shape) for name, feed in feeds.items()}
        outputs, self.trace = _running(feeds, lambda: trace_module(self._module, lambda: self._call(feeds)))
        self.outputs: dict[str, Shape] = {name: tuple(value.shape) for name, value in outputs.items()}
        self.shapes, self.left_out = self.trace.shapes, self.trace.left_out

    def run(self, feeds: Mapping[str, torch.Tensor], names: Collection[str], visit: _Visit) -> list[torch.Tensor]:
        """Return the module's outputs; `visit` sees the outputs of the submodules that are named."""
        with ExitStack() as hooks:
            for name in names:
                hook = lambda module, args, output, name=name: visit(name, output)  # noqa: E731
                hooks.callback(self._module.get_submodule(name).register_forward_hook(hook).remove)
            return list(self._call(feeds).values())

    def _call(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        moved = {name: feed.to(self._device) for name, feed in feeds.items()}
        return _outputs(self._module(**moved) if self._by_name else self._module(*moved.values()))


class _Program:
    """An exported program that is run node by node."""

    def __init__(
        self, program: torch.export.ExportedProgram, input_names: Sequence[str], device: Device, dtype: torch.dtype
    ) -> None:
        import torch
        from torch.fx.node import map_aggregate

        self._module = copy.deepcopy(program.module()).to(device=device, dtype=dtype)
        # torch.export.passes.move_to_device_pass refuses programs of which an input is called "input".
        there = torch.device(device)
        for node in self._module.graph.nodes:
            if node.target is torch.ops.aten.view.default:
                # Kernels leave different strides, so what was a view where it was exported may be none here.
                node.target = torch.ops.aten.reshape.default
            node.args = map_aggregate(node.args, lambda a: there if isinstance(a, torch.device) else a)
            node.kwargs = map_aggregate(node.kwargs, lambda a: there if isinstance(a, torch.device) else a)
        self._device = device
        values = {node.name: node.meta.get("val") for node in program.graph.nodes}
        tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        nodes = {node.name: node for node in self._module.graph.nodes}
        takes = [str(name) for name in program.graph_signature.user_inputs]
        if len(takes) != len(input_names) or not tensors.keys() >= set(takes):
            raise JobError(
                f"the exported program takes {', '.join(takes)}, all to be tensors, not {', '.join(input_names)}"
            )
        by_name = _by_name(input_names, takes)
        self._sources = {take: take if by_name else name for take, name in zip(takes, input_names, strict=True)}
        self.types = {name: _dtype_in_run(tensors[take].dtype, dtype) for take, name in self._sources.items()}
        steps = [name for name, node in nodes.items() if node.op == "call_function" and name in tensors]
        shapes = {
            name: tuple(n if isinstance(n, int) else None for n in value.shape) for name, value in tensors.items()
        }
        self.shapes = {name: shapes[name] for name in steps}
        self.input_shapes = {name: shapes[take] for take, name in self._sources.items()}
        returned = next(node.args[0] for node in nodes.values() if node.op == "output")
        self._returned = {str(node): i for i, node in enumerate(returned) if str(node) in tensors}
        self.outputs = {name: shapes[name] for name in self._returned}
        self.left_out: dict[str, str] = {}

    def run(self, feeds: Mapping[str, torch.Tensor], names: Collection[str], visit: _Visit) -> list[torch.Tensor]:
        """Return the program's outputs; `visit` sees the values of the nodes that are named."""
        import torch

        class Visiting(torch.fx.Interpreter):
            def run_node(self, n: torch.fx.Node) -> Any:
                value = super().run_node(n)
                return visit(n.name, value) if n.name in names else value

        given = [feeds[name].to(self._device) for name in self._sources.values()]
        values = Visiting(self._module).run(*given, enable_io_processing=False)
        return [values[i] for i in self._returned.values()]


def _running(feeds: Mapping[str, torch.Tensor], compute: Callable[[], _T]) -> _T:
    """Return what is computed; whatever goes wrong in it is a JobError that says on what."""
    try:
        with _plain_arithmetic():
            return compute()
    except JobError:
        raise
    except Exception as error:  # the user's code: anything may come out of it
        shapes = ", ".join(f"{name} {tuple(feed.shape)}" for name, feed in feeds.items())
        raise JobError(f"PyTorch cannot run the model on {shapes}: {_first_line(error)}") from error


@contextmanager
def _plain_arithmetic() -> Iterator[None]:
    """No TF32 or bfloat16 in float32 products, no fused Transformer layer, which calls no module, and no gradients."""
    import torch

    backends: Any = torch.backends
    switches: list[tuple[Any, str, Any]]
    if hasattr(backends.cuda.matmul, "fp32_precision"):  # since PyTorch 2.9, which forbids to mix it with allow_tf32
        units = [getattr(backends.mkldnn, kind) for kind in ("matmul", "conv", "rnn")]
        units += [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
        switches = [(unit, "fp32_precision", "ieee") for unit in units]
    else:
        switches = [(unit, "allow_tf32", False) for unit in (backends.cuda.matmul, backends.cudnn)]
    before = [getattr(unit, name) for unit, name, _ in switches]
    fused = backends.mha.get_fastpath_enabled()
    try:
        backends.mha.set_fastpath_enabled(False)
        for unit, name, value in switches:
            setattr(unit, name, value)
        with torch.inference_mode():
            yield
    finally:
        backends.mha.set_fastpath_enabled(fused)
        for (unit, name, _), value in zip(switches, before, strict=True):
            setattr(unit, name, value)


def _by_name(names: Sequence[str], parameters: Sequence[str]) -> bool:
    """Return whether inputs go to parameters by name, else by place; a name at another's place is refused."""
    if set(names) <= set(parameters):
        return True
    for name, parameter in zip(names, parameters, strict=False):
        if name in parameters and name != parameter:
            raise JobError(f"input {name} stands where forward() takes {parameter}; name all inputs as forward() does")
    return False


def _outputs(value: Any) -> dict[str, torch.Tensor]:
    import torch

    if isinstance(value, Mapping) and all(v is None or isinstance(v, torch.Tensor) for v in value.values()):
        return {str(name): tensor for name, tensor in value.items() if tensor is not None}
    return {f"output_{i}": tensor for i, tensor in enumerate(_leaves(value))}


def _leaves(value: Any) -> list[torch.Tensor]:
    import torch

    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in _leaves(part)]
    return [value] if isinstance(value, torch.Tensor) else []


def _feeds(inputs: Mapping[str, NDArray[Any]], types: Mapping[str, torch.dtype]) -> dict[str, torch.Tensor]:
    return {name: _converted(name, _tensor(name, inputs), dtype) for name, dtype in types.items()}


def _tensor(name: str, arrays: Mapping[str, NDArray[Any]]) -> torch.Tensor:
    """Return a copy, since a model may compute in place."""
    import torch

    if name not in arrays:
        raise JobError(f"no array is given for {name}")
    try:
        return torch.from_numpy(np.array(arrays[name], order="C"))  # with no strides that PyTorch has not
    except (TypeError, ValueError) as error:
        raise JobError(f"PyTorch cannot take {name}: {_first_line(error)}") from error


def _dtype_in_run(dtype: torch.dtype, precision: torch.dtype) -> torch.dtype:
    return precision if dtype.is_floating_point else dtype


def _converted(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Change the width; another kind of number is a forgotten preprocessing and refused."""
    import torch

    kinds = [(t == torch.bool, t.is_floating_point, t.is_complex) for t in (tensor.dtype, dtype)]
    if kinds[0] != kinds[1]:
        raise JobError(
            f"{name} is {str(dtype).removeprefix('torch.')} in PyTorch, but the array that is given is "
            f"{str(tensor.dtype).removeprefix('torch.')}"
        )
    return tensor.to(dtype)


def _like(name: str, given: torch.Tensor, computed: torch.Tensor) -> torch.Tensor:
    if given.shape != computed.shape:
        raise JobError(f"{name} is forced to an array of shape {tuple(given.shape)}, but is {tuple(computed.shape)}")
    return _converted(name, given, computed.dtype).to(computed.device)


def _to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    import torch

    wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    array: NDArray[Any] = wide.detach().to("cpu", copy=True).numpy()
    return array


def _require_torch() -> None:
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise JobError("a PyTorch model needs PyTorch; pip install -e '.[torch]'") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
