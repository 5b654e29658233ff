"""Types the float nodes: fp16 where a plan says so, with casts only where the type changes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from calibrate.plan import FloatPrecision, QuantizationPlan

__all__ = ["assign_precision", "float_precision"]

_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
_FP32_ONLY = frozenset({
    "Cast", "CastLike", "Celu", "ConstantOfShape", "DynamicQuantizeLinear", "EyeLike", "IsInf", "NonMaxSuppression",
    "QLinearConv", "QLinearMatMul", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Range",
    "Resize", "TfIdfVectorizer", "Upsample",
})  # fmt: skip
"""Ops whose output type is an attribute, or with float inputs that ONNX fixes to float32."""

_LARGEST = float(np.finfo(np.float16).max)


def assign_precision(model: ir.Model, plan: QuantizationPlan, simulate: bool) -> None:
    """Give every float node its type, in place; the graph's inputs and outputs keep theirs.

    Args:
        model: float32, with the plan's Q/DQ already in it.
        plan: names the precision of every node.
        simulate: write no fp16 arithmetic but round to fp16 after each fp16 node, by a Cast there and back,
            and its constants. ONNX Runtime's CPU has no fp16 kernels and would compute such nodes in float32
            without rounding between them (100 * 1000 / 1000 gives 100 where fp16 gives inf).
    """
    graph = model.graph
    half: dict[ir.Value, ir.Value] = {}  # a float32 value -> the same rounded to fp16 (simulated: in float32)

    def halved(value: ir.Value) -> ir.Value:
        if value not in half:
            half[value] = _half_constant(graph, value, simulate) if value.is_initializer() else _cast(value, simulate)
        return half[value]

    for node in [node for node in graph if float_precision(node, plan) == "fp16"]:
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype == ir.DataType.FLOAT:
                node.replace_input_with(index, halved(value))
        if node.op_type == "DequantizeLinear" and simulate:
            # The product of an int8 and an fp16 scale: TensorRT fuses it into the layer and does not round it.
            half[node.outputs[0]] = node.outputs[0]
            continue
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT:
                single = _return_to_float(node, output, simulate)
                half[single] = single if simulate else output
    RemoveUnusedNodesPass()(model)


def float_precision(node: ir.Node, plan: QuantizationPlan) -> FloatPrecision:
    """Return the float type in which a node takes and gives its tensors; an int8 layer has one too."""
    if node.op_type in _FP32_ONLY or any(attribute.type in _GRAPHS for attribute in node.attributes.values()):
        return "fp32"
    if node.op_type == "DequantizeLinear":  # belongs to its one consumer
        return float_precision(next(iter(node.outputs[0].uses())).node, plan)
    precision = plan.layers.get(str(node.name), plan.float_precision)
    return plan.float_precision if precision == "int8" else precision


_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _half_constant(graph: ir.Graph, value: ir.Value, simulate: bool) -> ir.Value:
    """Return the constant in fp16; what is finite stays so (a mask of -3.4e38 times 0 would be NaN)."""
    assert value.const_value is not None
    array = value.const_value.numpy()
    rounded = np.where(np.isfinite(array), np.clip(array, -_LARGEST, _LARGEST), array).astype(np.float16)
    tensor = ir.tensor(rounded.astype(np.float32) if simulate else rounded)
    constant = ir.Value(name=f"{value.name}/fp16", const_value=tensor)
    constant.dtype, constant.shape = tensor.dtype, value.shape
    graph.register_initializer(constant)
    return constant


def _cast(value: ir.Value, simulate: bool) -> ir.Value:
    """Return `value` in fp16, cast right behind its producer."""
    producer = value.producer()
    nodes = [ir.node("Cast", [value], {"to": ir.DataType.FLOAT16}, name=f"{value.name}/to_fp16")]
    _name_output(nodes[0], f"{value.name}/fp16", value, ir.DataType.FLOAT16)
    if simulate:
        nodes.append(ir.node("Cast", [nodes[0].outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{value.name}/rounded"))
        _name_output(nodes[1], f"{value.name}/rounded", value, ir.DataType.FLOAT)
    graph = value.graph
    assert isinstance(graph, ir.Graph)
    if producer is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(producer, nodes)
    return nodes[-1].outputs[0]


def _return_to_float(node: ir.Node, output: ir.Value, simulate: bool) -> ir.Value:
    """Make `node` give fp16, and return the float32 cast of it, which all users of `output` get.

    The float32 tensor takes over the name, so that layers can be compared by it.
    """
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    name = str(output.name)
    back = ir.node("Cast", [output], {"to": ir.DataType.FLOAT}, name=f"{name}/to_fp32")
    nodes = [back]
    if simulate:
        there = ir.node("Cast", [output], {"to": ir.DataType.FLOAT16}, name=f"{name}/to_fp16")
        _name_output(there, f"{name}/fp16", output, ir.DataType.FLOAT16)
        back.replace_input_with(0, there.outputs[0])
        nodes.insert(0, there)
    _name_output(back, "", output, ir.DataType.FLOAT)
    replaced = back.outputs[0]
    output.replace_all_uses_with(replaced, replace_graph_outputs=True)
    nodes[0].replace_input_with(0, output)  # the line above rewired it too
    output.name = f"{name}/raw"
    # A new type, since a clone shares its type objects with the model that it was cloned from.
    output.type = ir.TensorType(ir.DataType.FLOAT if simulate else ir.DataType.FLOAT16)
    replaced.name = name
    graph.insert_after(node, nodes)
    return replaced


def _name_output(node: ir.Node, name: str, like: ir.Value, dtype: ir.DataType) -> None:
    value = node.outputs[0]
    value.name, value.dtype, value.shape = name or None, dtype, like.shape
