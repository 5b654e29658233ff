"""Kernels that TensorRT is assumed to make of a model: fused nodes, and the bytes that each reads and writes.

Only rules that NVIDIA documents are followed, since nothing else can be known without a GPU: "Layer Fusion Catalog"
(docs.nvidia.com/deeplearning/tensorrt/latest/performance/fusion-catalog.html) for what fuses, and "Explicit
Quantization" (.../inference-library/quantized-types-explicit-quantization.html) for where INT8 is read and written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrate.cost.fusion import Fused, Operation, fused, operations
from calibrate.graph import Placement
from validate.number_formats import INT8, NUMBER_FORMATS, FloatPrecision, Precision

__all__ = ["BYTES", "Kernels", "Traffic", "kernels_of"]

BYTES = {name: row.bytes for name, row in NUMBER_FORMATS.items()}
"""Of one element."""

_QUANTIZES_IF_INT8, _QUANTIZES, _NEVER_QUANTIZES = range(3)

_Ints = NDArray[np.int64]
_Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Traffic:
    """Memory traffic of a plan, in bytes.

    Attributes:
        kernels: bytes read and written by each kernel, shape (kernels,).
        reformats: bytes read and written by each kernel that only changes a type, shape (reformats,).
    """

    kernels: NDArray[np.float64]
    reformats: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Kernels:
    """A model as kernels, and the float tensors that pass between them.

    How the types of a plan follow (`traffic`):

    - A tensor is written as int8 where its writer can do that and all its readers want it. An int8 layer can, with
      whatever fused behind it, and so can pointwise operations and those that commute with quantization.
    - An int8 layer wants its activations as int8, and the residual input that is quantized for it; an operation that
      commutes (MaxPool, Transpose, ...) does where all readers of its output do.
    - Otherwise a tensor is written in the float type of its writer. Each other type in which it is wanted takes one
      kernel that reads it and writes a copy (a quantization or a cast); only pointwise operations and those that
      commute take any float type as it is.

    Attributes:
        layers: names of the layers that may be int8, in the order of `placement.layers`.
        nodes: names of the nodes of each kernel; views and shape arithmetic are in none.
        macs: multiply-accumulates of each kernel, shape (kernels,).
        layer: index of each kernel's layer in `layers`, -1 where it has none, shape (kernels,).
    """

    layers: tuple[str, ...]
    nodes: tuple[tuple[str, ...], ...]
    macs: _Ints
    layer: _Ints
    weights: _Ints
    """Per kernel: elements of the weight that is int8 where the layer is."""
    constants: _Ints
    """Per kernel: elements of all other constants."""
    sizes: _Ints
    """Per tensor: elements."""
    producer: _Ints
    """Per tensor: the kernel that writes it, -1 where it is given."""
    quantizes: _Ints
    """Per tensor: whether its producer can write int8."""
    first_reader: _Ints
    """Per tensor: its first reader. Readers are in the order of tensors, and each tensor has one at least."""
    tensor: _Ints
    """Per reader: what it reads."""
    reader: _Ints
    """Per reader: the kernel, -1 for whoever takes the model's outputs."""
    reads: _Ints
    """Per reader: elements."""
    takes_any_float: _Flags
    """Per reader: it takes any float type, as it converts in passing."""
    required_layers: NDArray[np.float32]
    """Per reader and layer, 1 where it reads int8 only if the layer is int8."""
    can_read_int8: _Flags
    """Per reader: it reads int8 where all that it needs are int8."""

    def traffic(self, precisions: Mapping[str, Precision], float_precision: FloatPrecision) -> Traffic:
        """Return the bytes that a plan reads and writes.

        A layer with scales in float32 (`QuantizationPlan.fp32_scales`) counts as one of `float_precision`: on an H200 a
        product with a Cast behind it was as fast (6.8 against 7.1 us).

        Args:
            precisions: of every layer, by node name.
            float_precision: of everything else, and of the float side of int8 layers.
        """
        side = BYTES[float_precision]
        int8 = np.array([NUMBER_FORMATS[precisions[name]].scaled for name in self.layers], bool)
        wide = np.where(int8, side, [BYTES[precisions[name]] for name in self.layers]).astype(np.int64)
        # One element more than layers and kernels, for -1: of no layer, and of no kernel, whose tensors are float32.
        int8, wide = np.append(int8, False), np.append(wide, side)
        floats = np.append(wide[self.layer], BYTES["fp32"])

        wants = self.can_read_int8 & (self.required_layers @ (~int8[:-1]).astype(np.float32) == 0)
        all_want = np.logical_and.reduceat(wants, self.first_reader)
        written_by_int8 = np.append(int8[self.layer], False)[self.producer]
        able = (self.quantizes == _QUANTIZES) | ((self.quantizes == _QUANTIZES_IF_INT8) & written_by_int8)
        stored_float = floats[self.producer]
        stored = np.where(all_want & able, INT8.bytes, stored_float)
        taken = np.where(
            wants, INT8.bytes, np.where(self.takes_any_float, stored_float[self.tensor], floats[self.reader])
        )

        count = len(self.nodes)
        moved = np.bincount(self.reader + 1, self.reads * taken, count + 1)[1:]
        moved += np.bincount(self.producer + 1, self.sizes * stored, count + 1)[1:]
        moved += self.weights * np.where(int8[self.layer], INT8.bytes, floats[:-1]) + self.constants * floats[:-1]
        reformats = []
        for width in sorted(set(BYTES.values())):
            needed = np.logical_or.reduceat(taken == width, self.first_reader) & (stored != width)
            reformats.append((self.sizes * (stored + width))[needed])
        return Traffic(moved.astype(np.float64), np.concatenate(reformats).astype(np.float64))


def kernels_of(model: ir.Model, placement: Placement, shapes: Mapping[str, tuple[int, ...]]) -> Kernels:
    """Return the kernels of a prepared model.

    Args:
        model: is not changed.
        placement: of the model.
        shapes: of the model's inputs, batch included.

    Raises:
        JobError: the shapes do not fit the model; see `tensor_shapes`.

    Examples:
        >>> import onnx_ir as ir
        >>> from calibrate.graph import place
        >>> model = ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 19]>
        ...     net (float[1, 2] x) => (float[1, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { [product] y = MatMul(x, w) }''')
        >>> kernels = kernels_of(model, place(model), {"x": (1, 2)})
        >>> traffic = kernels.traffic({"product": "int8"}, "fp16")  # the input and the output are fp32
        >>> traffic.kernels.tolist(), traffic.reformats.tolist()
        ([10.0], [10.0, 12.0])
    """
    graph = operations(model, shapes)
    groups = fused(graph)
    layers = {layer.node: index for index, layer in enumerate(placement.layers)}
    starts = [graph.operations[group.members[0]] for group in groups]
    layer = [layers.get(start.name, -1) for start in starts]
    weight_names = {one.node: one.weight for one in placement.layers if one.axis is not None}
    sizes, kernel_of = graph.sizes, {out: i for i, group in enumerate(groups) for out in group.outputs}
    quantized = {(one.node, name) for one in placement.layers for name in one.activations}
    quantized |= {(one.fused_into, one.tensor) for one in placement.residuals}
    quantized = {(node, graph.roots.get(name, name)) for node, name in quantized}

    readers: dict[str, list[tuple[int, int]]] = {}  # tensor -> (kernel, elements)
    for index, (group, start) in enumerate(zip(groups, starts, strict=True)):
        for name in group.inputs:
            elements = min(sizes[name], sizes[start.outputs[0]]) if start.reads_what_it_writes else sizes[name]
            readers.setdefault(name, []).append((index, elements))
    for name in graph.outputs:
        readers.setdefault(name, []).append((-1, 0))
    requirements = _int8_requirements(groups, starts, layer, readers, quantized)
    flat = [(name, kernel, elements) for name, them in readers.items() for kernel, elements in them]
    position = {name: index for index, name in enumerate(readers)}
    counts = [len(them) for them in readers.values()]
    required = np.zeros((len(flat), len(layers)), np.float32)
    for row, (name, kernel, _) in enumerate(flat):
        required[row, sorted(requirements.get((kernel, name)) or ())] = 1
    producer = [kernel_of.get(name, -1) for name in readers]
    return Kernels(
        layers=tuple(layers),
        nodes=tuple(tuple(graph.operations[member].name for member in group.members) for group in groups),
        macs=_ints([start.macs for start in starts]),
        layer=_ints(layer),
        weights=_ints([start.constants.get(weight_names.get(start.name, ""), 0) for start in starts]),
        constants=_ints([_constants(graph.operations, group, weight_names) for group in groups]),
        sizes=_ints([sizes[name] for name in readers]),
        producer=_ints(producer),
        quantizes=_ints([_NEVER_QUANTIZES if k < 0 else _quantizes(starts[k], layer[k]) for k in producer]),
        first_reader=_ints(np.cumsum([0, *counts[:-1]])),
        tensor=_ints([position[name] for name, _, _ in flat]),
        reader=_ints([kernel for _, kernel, _ in flat]),
        reads=_ints([elements for _, _, elements in flat]),
        takes_any_float=np.array([k >= 0 and (starts[k].pointwise or starts[k].commutes) for _, k, _ in flat], bool),
        required_layers=required,
        can_read_int8=np.array([requirements.get((kernel, name)) is not None for name, kernel, _ in flat], bool),
    )


def _int8_requirements(
    groups: list[Fused],
    starts: list[Operation],
    layer: list[int],
    readers: Mapping[str, list[tuple[int, int]]],
    quantized: set[tuple[str, str]],
) -> dict[tuple[int, str], frozenset[int] | None]:
    """Return, by kernel and tensor that it reads, the layers that must be int8 for it to read int8; None: never.

    An int8 layer reads its activations in int8, and the residual input that is quantized for it. A kernel that
    commutes with QuantizeLinear reads int8 where all readers of its outputs do ("Q backward-propagation" in NVIDIA's
    words).
    """
    requirements: dict[tuple[int, str], frozenset[int] | None] = {}
    for index in range(len(groups) - 1, -1, -1):
        start, through = starts[index], None
        if start.commutes:
            behind = [requirements.get((k, out)) for out in groups[index].outputs for k, _ in readers.get(out, [])]
            if behind and None not in behind:
                through = frozenset[int]().union(*(wish for wish in behind if wish is not None))
        for name in groups[index].inputs:
            own = frozenset({layer[index]}) if (start.name, name) in quantized else None
            requirements[index, name] = through if start.commutes else own
    return requirements


def _quantizes(start: Operation, layer: int) -> int:
    """Return whether a kernel can write int8: an int8 layer can, and pointwise or commuting operations can."""
    if layer >= 0:
        return _QUANTIZES_IF_INT8
    return _QUANTIZES if start.pointwise or start.commutes else _NEVER_QUANTIZES


def _constants(all_operations: list[Operation], group: Fused, weight_names: Mapping[str, str]) -> int:
    """Return the elements of a kernel's constants, but for the weight that may be int8."""
    found: dict[str, int] = {}
    for member in group.members:
        found |= all_operations[member].constants
    weight = weight_names.get(all_operations[group.members[0]].name)
    return sum(elements for name, elements in found.items() if name != weight)


def _ints(values: Any) -> _Ints:
    return np.array(values, np.int64)
