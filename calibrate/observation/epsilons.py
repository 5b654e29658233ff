"""Constants that FP16 would round to 0 where they keep a divisor from 0, such as the epsilon of a norm."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from validate.number_formats import NUMBER_FORMATS

__all__ = ["nodes_that_need_epsilons"]

_STAYS_SMALL = frozenset(
    {
        "Abs",
        "Add",
        "Clip",
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Max",
        "Mean",
        "Min",
        "Mul",
        "Neg",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Slice",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Sum",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    }
)
"""Ops whose output may be tiny where an input is."""

_ROUNDED_TO_0 = NUMBER_FORMATS["fp16"].smallest / 2
"""Greatest number that FP16 rounds to 0: a tie goes to the even neighbour."""


def nodes_that_need_epsilons(prepared: ir.Model) -> set[ir.Node]:
    """Return the nodes that FP16 could break, or change, by rounding a constant of one element to 0.

    - Readers of such a constant: without it, a zero vector over its own norm, ``x / max(|x|, 1e-12)``, is 0/0 and NaN.
    - The nodes from there to a division, reciprocal, negative power or logarithm, that included, since FP16 would round
      the tensors between them.
    - Readers of a reciprocal, which may be too large.

    Constants of more elements are weights, of which some may be tiny without harm.

    Args:
        prepared: what `calibrate.graph.preparation` returned; not changed.

    Examples:
        >>> from calibrate.graph import prepare
        >>> model = prepare(ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 19]>
        ...     net (float[2] x) => (float[2] y) <float[1] tiny = {1e-12}> {
        ...         [sum] z = Add(x, tiny)
        ...         [quotient] q = Div(x, z)
        ...         [activation] y = Relu(q)
        ...     }'''))
        >>> sorted(node.name for node in nodes_that_need_epsilons(model))
        ['quotient', 'sum']
    """
    nodes = list(prepared.graph)
    epsilons = {value for value in prepared.graph.initializers.values() if _underflows(value)}
    small = set(epsilons)
    for node in nodes:
        if (node.op_type in _STAYS_SMALL or _exponent(node) > 0) and _any(node.inputs, small):
            small.update(node.outputs)
    guarded: set[ir.Node] = set()
    readers: set[ir.Node] = {node for node in nodes if _any(node.inputs, epsilons)}
    for node in reversed(nodes):
        if _fails_at_zero(node, small):
            guarded.add(node)
            if _is_reciprocal(node):
                readers.update(use.node for use in node.outputs[0].uses())
        elif any(use.node in guarded for value in node.outputs if value in small for use in value.uses()):
            guarded.add(node)
    return guarded | readers


def _underflows(value: ir.Value) -> bool:
    if value.dtype != ir.DataType.FLOAT or value.const_value is None or value.const_value.size != 1:
        return False
    return 0 < abs(float(value.const_value.numpy().reshape(()))) <= _ROUNDED_TO_0


def _fails_at_zero(node: ir.Node, small: set[ir.Value]) -> bool:
    """Return whether a node has no finite result where an input that may be tiny is rounded to 0."""
    if node.op_type == "Div":
        return node.inputs[1] in small
    return (node.op_type in {"Log", "Reciprocal"} or _exponent(node) < 0) and node.inputs[0] in small


def _is_reciprocal(node: ir.Node) -> bool:
    if node.op_type == "Div":
        return node.inputs[0] is not None and node.inputs[0].is_initializer()
    return node.op_type == "Reciprocal" or _exponent(node) < 0


def _exponent(node: ir.Node) -> float:
    """Return the constant exponent of a Pow; 0 of what is none."""
    if node.op_type != "Pow" or (exponent := node.inputs[1]) is None or not exponent.is_initializer():
        return 0.0
    constant = exponent.const_value
    return float(constant.numpy().reshape(())) if constant is not None and constant.size == 1 else 0.0


def _any(values: Iterable[ir.Value | None], wanted: set[ir.Value]) -> bool:
    return any(value in wanted for value in values)
