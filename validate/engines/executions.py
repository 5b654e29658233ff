"""Legitimate executions of a simulated graph: what a right engine may make of it, as it rounds elsewhere.

A simulation rounds to FP16 after every FP16 node. An engine fuses nodes, keeps sums and what is between fused nodes in
float32, and rounds what it writes to memory: fewer roundings, in other places. Products of float32 may round their
operands to TF32.
"""

from __future__ import annotations

import onnx_ir as ir

from validate.backends import roundings
from validate.layerwise import ROUNDING

__all__ = ["executions"]

_UNITS = {ir.DataType.FLOAT16: 2.0**-11, ir.DataType.BFLOAT16: 2.0**-8}
"""Unit roundoff: the largest relative error of rounding to nearest, half the distance of 1 to the next number."""
_TF32 = 2.0**-11
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_SEEDS = 3


def executions(simulated: ir.Model, tf32: bool) -> list[ir.Model]:
    """Return the graph as other right runtimes compute it.

    They are: without rounding to FP16 or BF16 between nodes, where the graph does so; and, for several seeds, with a
    random relative error of one unit roundoff in every value that is rounded to FP16 or BF16, in the operands of
    float32 products if they may be TF32, and of 2^-19, as sums of float32 have it, in every value that is quantized.

    Args:
        simulated: in float32, with FP16 as pairs of Casts; not changed.
        tf32: whether float32 products may round their operands to TF32.

    Examples:
        >>> half = ir.from_onnx_text(
        ...     '<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] y) '
        ...     "{h = Exp(x) c = Cast<to = 10>(h) r = Cast<to = 1>(c) y = Neg(r)}"
        ... )
        >>> for model in executions(half, tf32=False):
        ...     print([node.op_type for node in model.graph])
        ['Exp', 'Cast', 'Cast', 'Neg']
        ['Exp', 'RandomUniformLike', 'Mul', 'Cast', 'Cast', 'Neg']
        ['Exp', 'RandomUniformLike', 'Mul', 'Cast', 'Cast', 'Neg']
    """
    found = [_perturbed(simulated, seed, tf32) for seed in range(_SEEDS)]
    if any(_unit(node) for node in simulated.graph):
        found.insert(0, _unrounded(roundings(simulated, ROUNDING, _SEEDS)))
    return found


def _unit(node: ir.Node) -> float | None:
    """Return the unit roundoff of a Cast of a float tensor to FP16 or BF16; None for other nodes."""
    value = node.inputs[0] if node.op_type == "Cast" else None
    if value is None or value.const_value is not None:
        return None
    return _UNITS.get(ir.DataType(node.attributes["to"].as_int()))


def _unrounded(model: ir.Model) -> ir.Model:
    """Make Casts to FP16 or BF16 that only round, since what reads them are Casts back, Casts to float32, in place."""
    for node in model.graph:
        cast = node.outputs[0]
        if _unit(node) and all(use.node.op_type == "Cast" for use in cast.uses()):
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
            cast.type = ir.TensorType(ir.DataType.FLOAT)  # a new one: clones share theirs
    return model


def _perturbed(model: ir.Model, seed: int, tf32: bool) -> ir.Model:
    result = roundings(model, ROUNDING, seed)
    for number, node in enumerate(list(result.graph)):
        if unit := _unit(node):
            _perturb(node, 0, unit, seed * 1009 + 2 * number)
        elif tf32 and node.op_type in _PRODUCTS:
            for index, value in enumerate(node.inputs[:2]):
                producer = value.producer() if value is not None else None
                # INT8 times a scale and FP16 are products of their own type.
                if producer is None or producer.op_type not in {"Cast", "DequantizeLinear"}:
                    _perturb(node, index, _TF32, seed * 1009 + 2 * number + index)
    return result


def _perturb(node: ir.Node, index: int, size: float, seed: int) -> None:
    """Multiply an input by random factors in [1 - `size`, 1 + `size`], one per element."""
    value, graph = node.inputs[index], node.graph
    assert value is not None and isinstance(graph, ir.Graph)
    attributes = {"low": 1 - size, "high": 1 + size, "seed": float(seed + 1)}  # of 0 and 1, ONNX Runtime makes the same
    factors = ir.node("RandomUniformLike", [value], attributes, name=f"{node.name}/factors{index}")
    product = ir.node("Mul", [value, factors.outputs[0]], name=f"{node.name}/perturbed{index}")
    factors.outputs[0].name, product.outputs[0].name = str(factors.name), str(product.name)
    graph.insert_before(node, [factors, product])
    node.replace_input_with(index, product.outputs[0])
