"""Legitimate executions of a simulated graph: what a right engine may make of it, as it rounds elsewhere.

A simulation rounds to FP16 after every FP16 node. An engine fuses nodes, keeps sums and what is between fused nodes in
float32, and rounds what it writes to memory: fewer roundings, in other places. Products of float32 may round their
operands to TF32.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from validate.backends import roundings
from validate.layerwise import ROUNDING

__all__ = ["executions"]

_UNITS = {ir.DataType.FLOAT16: 2.0**-11, ir.DataType.BFLOAT16: 2.0**-8}
"""Unit roundoff: the largest relative error of rounding to nearest, half the distance of 1 to the next number."""
_TF32 = 2.0**-11
"""Unit roundoff of what float32 products may round their operands to, and with TensorRT-RTX 1.6.1 do in any case: on an
H200, engines that were built with and without `BuilderFlag.TF32` gave the same bits, 63.5 dB from float32."""
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_BLOCK = 16
"""Terms that a product of FP16 adds up before it rounds to FP16. Tensor cores may accumulate in FP16: with TensorRT-RTX
1.6.1 on an H200, products over 4,096 terms had 52 to 61 dB (docs/fp16.md), and a convolution over 768 had 53."""
_MOVES = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Concat", "Slice", "Gather", "Shape"})
"""What computes nothing."""
_SEEDS = 3


def executions(simulated: ir.Model) -> list[ir.Model]:
    """Return the graph as other right runtimes compute it.

    They are: without rounding to FP16 or BF16 between nodes, where the graph does so; and, for several seeds, with a
    random relative error of one unit roundoff in every value that is rounded to FP16 or BF16 and in the operands of
    float32 products, which may be TF32, and of 2^-19, as sums of float32 have it, in every value that is quantized. The
    results of FP16 products over n terms have an error of sqrt(n / 16) units: that many partial sums, each rounded,
    are a random walk (Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., section 2.8).

    Args:
        simulated: with types. FP16 is pairs of Casts, as in what `apply` simulates, or tensors of that type, as in a
            file that was made elsewhere. Not changed.

    Examples:
        >>> half = ir.from_onnx_text(
        ...     '<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] y) '
        ...     "{h = Exp(x) c = Cast<to = 10>(h) r = Cast<to = 1>(c) y = Neg(r)}"
        ... )
        >>> for model in executions(half):
        ...     print([node.op_type for node in model.graph])
        ['Exp', 'Cast', 'Cast', 'Neg']
        ['Exp', 'RandomUniformLike', 'Mul', 'Cast', 'Cast', 'Neg']
        ['Exp', 'RandomUniformLike', 'Mul', 'Cast', 'Cast', 'Neg']
        ['Exp', 'RandomUniformLike', 'Mul', 'Cast', 'Cast', 'Neg']
    """
    found = [_perturbed(simulated, seed) for seed in range(_SEEDS)]
    if any(_only_rounds(node) for node in simulated.graph):
        found.insert(0, _unrounded(roundings(simulated, ROUNDING, _SEEDS)))
    return found


def _unit(node: ir.Node) -> float | None:
    """Return the unit roundoff of a Cast of a float tensor to FP16 or BF16; None for other nodes."""
    value = node.inputs[0] if node.op_type == "Cast" else None
    if value is None or value.const_value is not None:
        return None
    return _UNITS.get(ir.DataType(node.attributes["to"].as_int()))


def _only_rounds(node: ir.Node) -> bool:
    """Return whether a Cast to FP16 or BF16 is read by nothing but Casts back to float32."""
    uses = [use.node for use in node.outputs[0].uses()]
    return _unit(node) is not None and all(
        use.op_type == "Cast" and use.attributes["to"].as_int() == ir.DataType.FLOAT for use in uses
    )


def _unrounded(model: ir.Model) -> ir.Model:
    """Let Casts that only round do nothing, in place."""
    for node in model.graph:
        if _only_rounds(node):
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)  # a new one: clones share theirs
    return model


def _perturbed(model: ir.Model, seed: int) -> ir.Model:
    result = roundings(model, ROUNDING, seed)
    perturbed = 0
    for node in list(result.graph):
        for index, value in enumerate(node.inputs):
            if value is not None and (size := _size(node, index, value)):
                _perturb(node, index, size, seed=1 + seed * 100_003 + perturbed)
                perturbed += 1
    return result


def _size(node: ir.Node, index: int, value: ir.Value) -> float | None:
    """Return the relative error that an input may have; None where it has that of its producer only."""
    if node.op_type == "Cast":
        unit = _unit(node)
        return None if unit is None else unit * _accumulated(value.producer(), unit)
    if value.dtype in _UNITS:
        return None if node.op_type in _MOVES or value.const_value is not None else _UNITS[value.dtype]
    return _TF32 if node.op_type in _PRODUCTS and index < 2 and _is_of_float32(node) else None


def _is_of_float32(product: ir.Node) -> bool:
    """Return whether a product is of float32: not of what was rounded to FP16 or BF16, and not of INT8 times scales."""
    producers = [_computing(value) for value in product.inputs[:2]]
    rounded = (node is not None and node.op_type == "Cast" and _type_of(node.inputs[0]) in _UNITS for node in producers)
    return not any(rounded) and not all(node is not None and node.op_type == "DequantizeLinear" for node in producers)


def _computing(value: ir.Value | None) -> ir.Node | None:
    """Return the node that computes a value, which others may have moved; None for inputs and constants."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in _MOVES and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node


def _type_of(value: ir.Value | None) -> ir.DataType | None:
    return None if value is None else value.dtype


def _accumulated(node: ir.Node | None, unit: float) -> float:
    """Return by how many units roundoff the result of a node may be off that accumulates in FP16; 1 of all others."""
    if node is None or node.op_type not in _PRODUCTS or unit != _UNITS[ir.DataType.FLOAT16]:
        return 1.0
    left, right = node.inputs[:2]
    if left is None or right is None or right.shape is None:
        return 1.0
    if any((made := value.producer()) is not None and made.op_type == "DequantizeLinear" for value in (left, right)):
        return 1.0  # integers are added up exactly
    sizes = [size for size in right.shape if isinstance(size, int)]
    if len(sizes) < len(right.shape) or len(sizes) < 2:
        return 1.0
    outputs = {"Conv": sizes[0], "ConvTranspose": sizes[1], "MatMul": sizes[-1] * math.prod(sizes[:-2])}
    transposed = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int()
    terms = math.prod(sizes) / max(outputs.get(node.op_type, sizes[0] if transposed else sizes[1]), 1)
    return max(1.0, math.sqrt(terms / _BLOCK))


def _perturb(node: ir.Node, index: int, size: float, seed: int) -> None:
    """Multiply an input by random factors in [1 - `size`, 1 + `size`], one per element."""
    value, graph = node.inputs[index], node.graph
    assert value is not None and isinstance(graph, ir.Graph)
    own = node.name or node.outputs[0].name  # nodes need no name
    half = value.dtype if value.dtype in _UNITS else None
    # The seed is not 0, of which ONNX Runtime makes the same as of 1.
    attributes = {"low": 1 - size, "high": 1 + size, "seed": float(seed), "dtype": int(ir.DataType.FLOAT)}
    factors = ir.node("RandomUniformLike", [value], attributes, name=f"{own}/factors{index}")
    added = [factors]
    if half is not None:
        added.append(ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{own}/wide{index}"))
        value = added[-1].outputs[0]
    added.append(ir.node("Mul", [value, factors.outputs[0]], name=f"{own}/perturbed{index}"))
    if half is not None:
        added.append(ir.node("Cast", [added[-1].outputs[0]], {"to": half}, name=f"{own}/narrow{index}"))
    for one in added:
        one.outputs[0].name = str(one.name)
    graph.insert_before(node, added)
    node.replace_input_with(index, added[-1].outputs[0])
