"""Writes a plan as a model with a switch per layer, so that one session computes every plan."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from calibrate.graph.placement import Layer, Placement
from calibrate.graph.precision import float_precision
from calibrate.graph.qdq import quantize_weight, representable
from calibrate.graph.weights import edit_weights
from calibrate.plan import QuantizationPlan
from validate.number_formats import FloatPrecision

__all__ = ["SWITCHES", "switchable"]

SWITCHES = "calibrate/switches"
"""Name of the input that says which layers are int8: bool, shape (layers,), in the order of `placement.layers`."""


def switchable(model: ir.Model, placement: Placement, plan: QuantizationPlan) -> ir.Model:
    """Return a copy of a prepared model that takes `SWITCHES` as one more input.

    Where all of the plan's int8 layers are on, and no others, it computes what the plan's simulated file does. A layer
    that is off is float32, whatever type the plan gives it, with weights as the plan edits them. Each layer is an If
    with the float layer in one branch and the quantized one in the other: only one of them runs, and both have constant
    weights, which runtimes lay out beforehand. Layers that are not int8 in the plan have no scales, and stay as they
    are.

    Args:
        model: what `prepare` returned; not changed.
        placement: of the model.
        plan: for this model.

    Examples:
        >>> import onnx_ir as ir
        >>> model = ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 19]>
        ...     net (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { [product] y = MatMul(x, w) }''')
        >>> from calibrate.graph.placement import place
        >>> from calibrate.plan import Origin
        >>> plan = QuantizationPlan(name="p", strategy="minmax", origin=Origin(model_sha256="0" * 64),
        ...                         scales={"x": 0.02}, layers={"product": "int8"})
        >>> [value.name for value in switchable(model, place(model), plan).graph.inputs]
        ['x', 'calibrate/switches']
    """
    result = model.clone()
    edit_weights(result, plan)
    graph = result.graph
    switches = ir.Value(name=SWITCHES, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape(["layers"]))
    graph.inputs.append(switches)
    nodes = {node.name: node for node in graph}
    kinds = {node.name: float_precision(node, plan) for node in graph}
    on = {
        layer.node: _switch(graph, switches, index)
        for index, layer in enumerate(placement.layers)
        if layer.node in plan.int8_layers
    }
    for layer in placement.layers:
        if layer.node in on:
            _switch_layer(nodes[layer.node], layer, on[layer.node], plan, kinds[layer.node])
    for residual_node in dict.fromkeys(residual.node for residual in placement.residuals):
        taken: ir.Value | None = None
        for residual in (r for r in placement.residuals if r.node == residual_node and r.fused_into in on):
            condition = on[residual.fused_into]
            if taken is not None:  # only one input of an Add is quantized: the first whose layer is on
                free = _before(nodes[residual_node], "Not", [taken])
                condition = _before(nodes[residual_node], "And", [condition, free])
            pair = _quantized(nodes[residual_node], residual.index, residual.tensor, plan, kinds[residual_node])
            _switch_residual(nodes[residual_node], residual.index, condition, pair)
            taken = on[residual.fused_into]
    RemoveUnusedNodesPass()(result)
    return result


def _switch(graph: ir.Graph, switches: ir.Value, index: int) -> ir.Value:
    """Return one switch, a scalar."""
    position = _initializer(graph, f"{SWITCHES}/{index}", ir.tensor(np.asarray(index, np.int64)))
    gather = ir.node("Gather", [switches, position], {"axis": 0}, name=f"{SWITCHES}/gather/{index}")
    gather.outputs[0].name, gather.outputs[0].dtype = f"{SWITCHES}/on/{index}", ir.DataType.BOOL
    graph.insert_before(graph[0], gather)
    return gather.outputs[0]


def _switch_layer(node: ir.Node, layer: Layer, on: ir.Value, plan: QuantizationPlan, kind: FloatPrecision) -> None:
    """Put `node` into an If, by itself or with its inputs quantized."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    inputs = list(node.inputs)
    quantized: dict[str, list[ir.Node]] = {}  # by tensor: a product with itself quantizes it once
    for index, tensor in enumerate(layer.activations):
        if tensor not in quantized:
            quantized[tensor] = _quantized(node, index, tensor, plan, kind)
        inputs[index] = quantized[tensor][-1].outputs[0]
    if layer.axis is not None:
        inputs[1] = _quantized_weight(graph, node, layer.axis, plan, kind)
    int8 = ir.node(node.op_type, inputs, dict(node.attributes), name=f"{node.name}/int8", version=node.version)
    float32 = ir.node(node.op_type, node.inputs, dict(node.attributes), name=f"{node.name}/fp32", version=node.version)
    _replace(node, on, [*(quantizer for pair in quantized.values() for quantizer in pair), int8], [float32])


def _switch_residual(add: ir.Node, index: int, on: ir.Value, quantizers: list[ir.Node]) -> None:
    """Put an If before an input of an Add: quantized by a Q/DQ pair, or as it is."""
    value = add.inputs[index]
    assert value is not None
    passed = ir.node("Identity", [value], name=f"{add.name}/{index}/fp32")
    add.replace_input_with(index, _if(add, f"{add.name}/{index}", on, quantizers, [passed], value))


def _quantized(node: ir.Node, index: int, tensor: str, plan: QuantizationPlan, kind: FloatPrecision) -> list[ir.Node]:
    """Return the Q/DQ pair of an input of a node, whose float type is `kind`; `tensor` names it in the plan."""
    graph, value = node.graph, node.inputs[index]
    assert isinstance(graph, ir.Graph) and value is not None
    amount = representable(np.asarray(plan.scales[tensor]), kind)
    constants = [
        _initializer(graph, f"{value.name}/{node.name}/scale", ir.tensor(amount)),
        _initializer(graph, f"{value.name}/{node.name}/zero_point", ir.tensor(np.zeros((), plan.number_format.numpy))),
    ]
    quantize = ir.node("QuantizeLinear", [value, *constants], name=f"{value.name}/{node.name}/QuantizeLinear")
    return [quantize, ir.node("DequantizeLinear", [quantize.outputs[0], *constants])]


def _quantized_weight(
    graph: ir.Graph, node: ir.Node, axis: int, plan: QuantizationPlan, kind: FloatPrecision
) -> ir.Value:
    """Return the weight as it is after quantization, in float32, which needs no kernel at run time."""
    weight = node.inputs[1]
    assert weight is not None and weight.const_value is not None
    array, scales = quantize_weight(weight.const_value.numpy(), axis, plan, kind)
    shape = [-1 if i == axis else 1 for i in range(array.ndim)] if scales.ndim else []
    return _initializer(graph, f"{node.name}/weight/dequantized", ir.tensor(array * scales.reshape(shape)))


def _replace(node: ir.Node, on: ir.Value, then: list[ir.Node], otherwise: list[ir.Node]) -> None:
    """Put an If in the place of `node`."""
    graph, old = node.graph, node.outputs[0]
    assert isinstance(graph, ir.Graph)
    new = _if(node, str(node.name), on, then, otherwise, old)
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    new.name = name


def _if(
    before: ir.Node, name: str, on: ir.Value, then: list[ir.Node], otherwise: list[ir.Node], like: ir.Value
) -> ir.Value:
    """Insert ``If(on)`` before a node, with branches that end with their last node's output; return its output."""
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    branches = {}
    for branch, nodes in (("then_branch", then), ("else_branch", otherwise)):
        for number, node in enumerate(nodes):
            for output in node.outputs:
                output.name = f"{name}/{branch}/{number}"
        nodes[-1].outputs[0].type = like.type
        constants = _own_constants(nodes, f"{name}/{branch}")
        outputs = [nodes[-1].outputs[0]]
        branches[branch] = ir.Graph([], outputs, nodes=nodes, name=f"{name}/{branch}", initializers=constants)
    attributes = [ir.AttrGraph(branch, subgraph) for branch, subgraph in branches.items()]
    node = ir.Node("", "If", [on], attributes, name=f"{name}/switch")
    output = node.outputs[0]
    output.name, output.type, output.shape = f"{name}/switched", like.type, like.shape
    graph.insert_before(before, node)
    return output


def _own_constants(nodes: list[ir.Node], prefix: str) -> list[ir.Value]:
    """Give the nodes of a branch constants of their own, of the same data: outer ones are not constant there."""
    own: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        for index, value in enumerate(node.inputs):
            if value is not None and value.is_initializer():
                if value not in own:
                    own[value] = ir.Value(
                        name=f"{prefix}/{value.name}", const_value=value.const_value, type=value.type, shape=value.shape
                    )
                node.replace_input_with(index, own[value])
    return list(own.values())


def _before(node: ir.Node, op_type: str, inputs: list[ir.Value]) -> ir.Value:
    """Insert a logical operation before `node`; return its output."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    made = ir.node(op_type, inputs)
    made.outputs[0].dtype = ir.DataType.BOOL
    graph.insert_before(node, made)
    return made.outputs[0]


def _initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=shape)
    graph.register_initializer(value)
    return value
