"""Where nodes stand in an ONNX graph, past the nodes that only quantize or cast."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["REFORMATS", "ancestors", "depths", "producer_of", "quantized_layers", "reformat_nodes", "source"]

REFORMATS = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast"})
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def reformat_nodes(model: ir.Model) -> frozenset[str]:
    """Return the names of the nodes that only quantize, dequantize or cast.

    Examples:
        >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] y) '
        >>> sorted(reformat_nodes(ir.from_onnx_text(text + "{[half] h = Cast<to = 10>(x) [back] y = Cast<to = 1>(h)}")))
        ['back', 'half']
    """
    return frozenset(str(node.name) for node in model.graph if node.op_type in REFORMATS)


def quantized_layers(model: ir.Model) -> frozenset[str]:
    """Return the names of the layers that a Q/DQ file has in INT8 or FP8, whoever made it: products of two such inputs.

    Examples:
        >>> text = '<ir_version: 8, opset_import: ["": 17]> g (int8[2, 2] a, int8[2, 2] b) => (float[2, 2] y) '
        >>> nodes = "{p = DequantizeLinear(a, s) q = DequantizeLinear(b, s) [product] y = MatMul(p, q)}"
        >>> quantized_layers(ir.from_onnx_text(text + "<float s = {0.5}>" + nodes))
        frozenset({'product'})
    """
    return frozenset(
        str(node.name)
        for node in model.graph
        if node.op_type in _PRODUCTS and all(_is_dequantized(value) for value in node.inputs[:2])
    )


def _is_dequantized(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    while node is not None and node.op_type == "Cast" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "DequantizeLinear"


def depths(model: ir.Model) -> dict[str, int]:
    """Return the position of every node in topological order, by its name."""
    return {str(node.name): depth for depth, node in enumerate(model.graph)}


def producer_of(value: ir.Value) -> ir.Node:
    """Return the node that gives a value, which is neither an input nor a constant."""
    node = value.producer()
    assert node is not None, value.name
    return node


def source(node: ir.Node) -> ir.Node:
    """Return the node whose result this one quantizes or casts, or the node itself where it computes anything."""
    while node.op_type in REFORMATS and node.inputs[0] is not None:
        before = node.inputs[0].producer()
        if before is None:
            break
        node = before
    return node


def ancestors(node: ir.Node) -> list[ir.Node]:
    """Return the nodes that compute the inputs of a node, and their inputs, and so on; nearest first."""
    found: dict[ir.Node, None] = {}
    level = [node]
    while level:
        producers = [value.producer() for one in level for value in one.inputs if value is not None]
        level = [one for one in dict.fromkeys(source(p) for p in producers if p is not None) if one not in found]
        level = [one for one in level if one is not node]
        found |= dict.fromkeys(level)
    return [one for one in found if one.op_type not in REFORMATS]
