"""Provenance of compared tensors in the graph: depth, node, inputs, and how they are quantized."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from validate.number_formats import NUMBER_FORMATS, Precision

__all__ = ["Place", "Quantizer", "locate_tensors"]

_RANGES = {
    **{ir.DataType[row.onnx]: (row.lowest, row.largest) for row in NUMBER_FORMATS.values() if row.scaled},
    # What other tools quantize to.
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.UINT16: (0, 65535),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
}
_PRECISIONS: dict[ir.DataType | None, Precision] = {
    ir.DataType[row.onnx]: row.name for row in NUMBER_FORMATS.values() if not row.scaled
}


@dataclass(frozen=True)
class Quantizer:
    """A QuantizeLinear of an activation with one constant scale; `low` and `high` bound what it does not clip."""

    tensor: str
    scale: float
    low: float
    high: float


@dataclass
class Place:
    """Where a tensor stands in a graph.

    Attributes:
        node, op_type: what computes it.
        depth: position of that node in topological order.
        precision: int8 where activations are quantized on the way into it, else its type.
        inputs: the nearest of the other requested tensors that it is computed from.
        quantizers: those between `inputs` and the tensor.
    """

    node: str
    op_type: str
    depth: int
    precision: Literal[Precision, "other"]
    inputs: list[str] = field(default_factory=list)
    quantizers: list[Quantizer] = field(default_factory=list)


def locate_tensors(model: ir.Model, tensors: Collection[str]) -> dict[str, Place]:
    """Return the place of each of `tensors` that a node of the main graph computes, in topological order.

    Examples:
        >>> model = ir.from_onnx_text(
        ...     '<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] x) => (float[N, 2] y) {r = Relu(x) y = Neg(r)}'
        ... )
        >>> {name: (place.op_type, place.inputs) for name, place in locate_tensors(model, ["x", "y"]).items()}
        {'y': ('Neg', ['x'])}
    """
    wanted = set(tensors)
    places: dict[str, Place] = {}
    # Per value the nearest tensors in question, itself where it is one, and the quantizers since.
    reach: dict[ir.Value, tuple[dict[str, None], dict[Quantizer, None]]] = {}
    for given in model.graph.inputs:
        reach[given] = ({str(given.name): None} if given.name in wanted else {}, {})
    for depth, node in enumerate(model.graph):
        inputs: dict[str, None] = {}
        quantizers: dict[Quantizer, None] = {}
        for value in node.inputs:
            before = reach.get(value) if value is not None else None
            if before is not None:
                inputs |= before[0]
                quantizers |= before[1]
        if (quantizer := _quantizer(node)) is not None:
            quantizers[quantizer] = None
        for output in node.outputs:
            name = str(output.name)
            if name not in wanted:
                reach[output] = inputs, quantizers
                continue
            precision = "int8" if quantizers else _precision(output)
            places[name] = Place(str(node.name or name), node.op_type, depth, precision, list(inputs), list(quantizers))
            reach[output] = {name: None}, {}
    return places


def _precision(value: ir.Value) -> Literal[Precision, "other"]:
    """Return the type in which a value is computed, whatever it is cast to afterwards."""
    producer = value.producer()
    if producer is not None and producer.op_type == "Cast" and producer.inputs[0] is not None:
        return _precision(producer.inputs[0])
    return _PRECISIONS.get(value.dtype, "other")


def _quantizer(node: ir.Node) -> Quantizer | None:
    """Return what a QuantizeLinear of an activation does; None for other nodes, and for a scale that is not one."""
    if node.op_type != "QuantizeLinear" or node.inputs[0] is None or node.inputs[0].const_value is not None:
        return None
    scale, zero = (
        value.const_value.numpy() if value is not None and value.const_value is not None else None
        for value in (node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None)
    )
    dtype = node.outputs[0].dtype or (node.inputs[2].dtype if len(node.inputs) > 2 and node.inputs[2] else None)
    if scale is None or scale.size != 1 or dtype not in _RANGES:
        return None
    step, offset = float(scale.item()), float(zero.astype(np.float64).item()) if zero is not None else 0.0
    smallest, largest = _RANGES[dtype]
    # Half a step beyond the last level still rounds to it.
    return Quantizer(str(node.inputs[0].name), step, (smallest - 0.5 - offset) * step, (largest + 0.5 - offset) * step)
