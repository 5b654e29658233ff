"""Samples of what the layers of a float model read, as columns of a matrix product, and the shapes of its tensors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrate.recovery.relations import Shapes
from validate.backends import OnnxRuntimeModel, detach, expose
from validate.data import Batch

__all__ = ["as_matrices", "few", "observed_shapes", "sample_columns", "some"]

_COLUMNS, _VALUES, _ALL_VALUES = 8192, 1 << 22, 1 << 27
"""Most columns of a layer, most values of all of them together, and most values of all layers."""

Array = NDArray[np.float32]


def some(batches: Iterable[Batch], samples: int) -> list[Batch]:
    """Return the first batches, of so many samples together, and one batch at least."""
    found: list[Batch] = []
    for batch in batches:
        found.append(batch)
        if sum(map(len, found)) >= samples:
            break
    return found


def few(model: ir.Model, batch: Batch) -> dict[str, NDArray[Any]]:
    """Return inputs of a batch for a run that gives out all tensors, which would take much memory for a whole batch.

    That is two rows, where the model is not fixed to a batch size, and all inputs have the batch as their axis 0.
    """
    first_axes = [value.shape[0] for value in model.graph.inputs if value.shape is not None and len(value.shape)]
    lengths = {len(array) if array.ndim else 0 for array in batch.inputs.values()}
    if len(lengths) > 1 or any(isinstance(size, int) for size in first_axes):
        return batch.inputs
    return {name: array[:2] for name, array in batch.inputs.items()}


def observed_shapes(model: ir.Model, inputs: Mapping[str, NDArray[Any]]) -> Shapes:
    """Return the shapes that the float tensors of a model, and its inputs, have when it runs.

    Args:
        model: prepared.
        inputs: of two samples or more, or an axis that is the batch may be taken for another.
    """
    names = [v.name for node in model.graph for v in node.outputs if v.name and v.dtype == ir.DataType.FLOAT]
    arrays = {**inputs, **OnnxRuntimeModel(detach(expose(model, names))).run(inputs)}
    return {name: array.shape for name, array in arrays.items() if array.dtype.kind == "f"}


def sample_columns(
    model: ir.Model, layers: Mapping[str, str], axes: Mapping[str, int], batches: Sequence[Batch]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return random columns of what layers read, and random positions of other tensors.

    A column is all that one position of the output is computed from.

    Args:
        model: prepared.
        layers: name of the activation by the layer's node: Conv, ConvTranspose, Gemm or MatMul.
        axes: axis of the channels of the other tensors, by name.
        batches: calibration samples.

    Returns:
        float32 (channels, positions of the kernel, columns), by node, and (channels, 1, positions), by tensor.
    """
    nodes = {str(node.name): node for node in model.graph}
    tensors = list(dict.fromkeys([*layers.values(), *axes]))
    runnable = OnnxRuntimeModel(detach(expose(model, tensors)), outputs=tensors)
    values = min(_VALUES, _ALL_VALUES // (len(layers) + len(axes)))
    rng = np.random.default_rng(0)  # the same plan every time
    found: dict[str, list[Array]] = {name: [] for name in layers}
    others: dict[str, list[Array]] = {name: [] for name in axes}
    for batch in batches:
        computed = runnable.run(batch.inputs)
        for name, tensor in layers.items():
            kernel, channels = _kernel(nodes[name]), computed[tensor].shape[1 if _spatial(nodes[name]) else -1]
            most = min(_COLUMNS, max(1, values // (math.prod(kernel) * channels)))
            found[name].append(_columns(nodes[name], computed[tensor], -(-most // len(batches)), kernel, rng))
        for name, axis in axes.items():
            rows = np.moveaxis(computed[name], axis, -1)
            most = min(_COLUMNS, values // rows.shape[-1])
            others[name].append(_rows(rows, -(-most // len(batches)), rng))
    joined = ({name: np.concatenate(columns, axis=2) for name, columns in x.items()} for x in (found, others))
    return next(joined), next(joined)


def as_matrices(node: ir.Node, weight: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return a layer's weight as a matrix per group, (groups, rows, channels of a group x kernel), for its columns.

    The rows are output channels; of a ConvTranspose, output channels x kernel.
    """
    groups = node.attributes.get_int("group", 1)
    if node.op_type == "Conv":
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    if node.op_type == "ConvTranspose":
        return weight.reshape(groups, weight.shape[0] // groups, -1).swapaxes(1, 2)
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    return (weight if transposed else weight.T)[None]


def _spatial(node: ir.Node) -> bool:
    return node.op_type in {"Conv", "ConvTranspose"}


def _kernel(node: ir.Node) -> tuple[int, ...]:
    """Return the positions of the input that a position of the output is computed from."""
    weight = node.inputs[1]
    assert weight is not None and weight.const_value is not None
    return weight.const_value.numpy().shape[2:] if node.op_type == "Conv" else ()


def _columns(node: ir.Node, x: Array, count: int, kernel: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return random columns of one batch, (channels, positions of the kernel, count or fewer where there are fewer)."""
    if not _spatial(node):
        return _rows(x, count, rng)
    sizes = np.array(x.shape[2:])
    dimensions = len(sizes)
    kernel = kernel or (1,) * dimensions
    strides, dilations, pads = _steps(node, kernel, sizes)
    outputs = (sizes + pads.sum(axis=0) - dilations * (np.array(kernel) - 1) - 1) // strides + 1
    count = min(count, len(x) * int(outputs.prod()))
    sample = rng.integers(len(x), size=count)
    first = rng.integers(outputs, size=(count, dimensions)) * strides - pads[0]
    found = np.empty((x.shape[1], math.prod(kernel), count), np.float32)
    for index, offset in enumerate(itertools.product(*map(range, kernel))):
        place = first + np.array(offset) * dilations
        inside = ((place >= 0) & (place < sizes)).all(axis=1)
        place = np.clip(place, 0, sizes - 1)
        found[:, index] = (x[(sample, slice(None), *place.T)] * inside[:, None]).T
    return found


def _rows(x: Array, count: int, rng: np.random.Generator) -> Array:
    """Return random rows of an array along its last axis, (channels, 1, count or fewer)."""
    rows = x.reshape(-1, x.shape[-1])
    return rows[rng.integers(len(rows), size=min(count, len(rows)))].T[:, None]


def _steps(
    node: ir.Node, kernel: tuple[int, ...], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return strides and dilations, shape (dimensions,), and pads, shape (2, dimensions)."""
    ones = [1] * len(sizes)
    if node.op_type == "ConvTranspose":  # its columns are the positions of the input
        return np.array(ones), np.array(ones), np.zeros((2, len(sizes)), np.int64)
    strides = np.array(node.attributes.get_ints("strides", ones))
    dilations = np.array(node.attributes.get_ints("dilations", ones))
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode in {"SAME_UPPER", "SAME_LOWER"}:
        outputs = -(-sizes // strides)
        total = np.maximum((outputs - 1) * strides + dilations * (np.array(kernel) - 1) + 1 - sizes, 0)
        less, more = total // 2, total - total // 2
        return strides, dilations, np.array([less, more] if mode == "SAME_UPPER" else [more, less])
    pads = [0] * (2 * len(sizes)) if mode == "VALID" else node.attributes.get_ints("pads", [0] * (2 * len(sizes)))
    return strides, dilations, np.array(pads).reshape(2, -1)
