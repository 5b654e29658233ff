"""Traces one run of a PyTorch module by hooks, and repeats the export of an ONNX file."""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from validate.exceptions import JobError, first_line

if TYPE_CHECKING:
    import torch

__all__ = ["ModuleTrace", "Shape", "export_again", "trace_module"]

Shape = tuple[int | None, ...]
"""None is an axis of which the size is not known."""
_T = TypeVar("_T")


@dataclass
class ModuleTrace:
    """Shapes and calls of a module's submodules in one run, by module path.

    Attributes:
        shapes: of the outputs, in the order in which the modules finished, which is a topological one.
        parents: the modules that were running when it was called, outermost first; of all that were called.
        follows: BatchNorm -> the innermost module of which it reads the output as it is.
        left_out: modules whose output cannot be returned, with the reason.
    """

    shapes: dict[str, Shape] = field(default_factory=dict)
    parents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    follows: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def trace_module(module: torch.nn.Module, call: Callable[[], _T]) -> tuple[_T, ModuleTrace]:
    """Run `call`, which calls the module, and return its result and the trace. All outputs are in memory meanwhile.

    Examples:
        >>> import torch
        >>> module = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU())
        >>> _, trace = trace_module(module, lambda: module(torch.zeros(1, 2)))
        >>> trace.shapes
        {'0': (1, 4), '1': (1, 4)}
    """
    import torch
    from torch.nn import BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm

    trace = ModuleTrace()
    calls: Counter[str] = Counter()
    running: list[str] = []
    makers: dict[int, str] = {}  # id of a tensor -> the innermost module that returned it
    kept: list[Any] = []  # so that no id is given away again

    def before(module: torch.nn.Module, args: Any, path: str) -> None:
        running.append(path)
        if isinstance(module, BatchNorm1d | BatchNorm2d | BatchNorm3d | SyncBatchNorm) and id(args[0]) in makers:
            trace.follows[path] = makers[id(args[0])]

    def after(output: Any, path: str) -> None:
        running.pop()
        calls[path] += 1
        kept.append(output)
        trace.parents[path] = tuple(running)
        if isinstance(output, torch.Tensor):
            makers.setdefault(id(output), path)
            trace.shapes[path] = tuple(output.shape)
        else:
            trace.left_out[path] = f"it returns {type(output).__name__}, not one tensor"

    with ExitStack() as hooks:
        for path, child in module.named_modules():
            if path:
                first = lambda module, args, path=path: before(module, args, path)  # noqa: E731
                last = lambda module, args, output, path=path: after(output, path)  # noqa: E731
                hooks.callback(child.register_forward_pre_hook(first).remove)
                hooks.callback(child.register_forward_hook(last).remove)
        result = call()
    for path in [path for path, count in calls.items() if count > 1]:
        trace.shapes.pop(path, None)
        trace.left_out[path] = f"it is called {calls[path]} times in one run"
    return result, trace


def export_again(
    module: torch.nn.Module, example: Mapping[str, NDArray[Any]], model: ir.Model
) -> torch.export.ExportedProgram:
    """Return the program from which ``torch.onnx.export(module, dynamo=True)`` writes a file like `model`.

    Takes as long as that export. The axes that are dynamic in the file are so in the program.

    Args:
        module: stays as it is.
        example: a batch by the file's input names: the parameters of forward(), or in their order.
        model: the file.

    Raises:
        JobError: an input of the file has no example, or the exporter refuses the module.
    """
    import torch

    inputs = {str(value.name): value.shape for value in model.graph.inputs}
    if missing := inputs.keys() - example.keys():
        raise JobError(f"no array is given for {', '.join(sorted(missing))}")
    symbols = {name: _dynamic_axes(inputs[name]) for name in example if name in inputs}
    dims = {symbol: torch.export.Dim(symbol, min=1) for axes in symbols.values() for symbol in axes.values()}
    dynamic = {name: {axis: dims[symbol] for axis, symbol in axes.items()} for name, axes in symbols.items()}
    # A batch of one would be taken for a constant by torch.export.
    arrays = {name: example[name] for name in symbols}
    arrays |= {name: np.concatenate([a, a]) for name, a in arrays.items() if 0 in symbols[name] and len(a) == 1}
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    by_name = tensors.keys() <= inspect.signature(module.forward).parameters.keys()
    before = (logger := logging.getLogger("torch.onnx")).level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                copy.deepcopy(module).eval(),
                () if by_name else tuple(tensors.values()),
                kwargs=tensors if by_name else None,
                dynamic_shapes=dynamic if by_name else tuple(dynamic.values()),
                dynamo=True,
                optimize=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error  # the exporter's own message only counts its steps
        raise JobError(f"PyTorch cannot export {type(module).__name__}: {first_line(cause)}") from error
    finally:
        logger.setLevel(before)
    assert made is not None and made.exported_program is not None  # dynamo=True returns a program
    return made.exported_program


def _dynamic_axes(shape: ir.Shape | None) -> dict[int, str]:
    """Return the axes without a size; those that the file calls the same are the same."""
    names = {axis: size.value or "" for axis, size in enumerate(shape or ()) if not isinstance(size, int)}
    return {axis: name if name.isidentifier() else f"axis_{axis}" for axis, name in names.items()}
