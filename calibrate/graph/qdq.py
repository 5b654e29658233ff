"""Writes Q/DQ pairs where a plan asks for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrate.graph.placement import Placement
from calibrate.graph.precision import float_precision
from calibrate.plan import QuantizationPlan
from validate.number_formats import NUMBER_FORMATS, FloatPrecision, NumberFormat

__all__ = ["insert_qdq", "quantize_weight", "representable", "weight_scales"]


def insert_qdq(model: ir.Model, placement: Placement, plan: QuantizationPlan) -> None:
    """Quantize the inputs of every int8 layer, in place.

    An activation is quantized once, and every consumer has a DequantizeLinear of its own, so that TensorRT can
    fuse each. Where consumers have different float types, it is quantized once per type: TensorRT-RTX 1.7 fuses
    layers that read one QuantizeLinear, and fails where they give different types. Only the consumers that the plan
    names are rewired: all others, graph outputs and subgraphs keep the float tensor. Weights become int8 initializers
    behind a DequantizeLinear; biases stay float.
    All scales are float32 here, holding values that the float type of their layer can represent.
    """
    nodes = {node.name: node for node in model.graph}
    number_format = plan.number_format
    values = {value.name: value for value in _values(model)}
    quantized: dict[tuple[str, FloatPrecision], ir.Value] = {}

    def dequantized(tensor: str, consumer: ir.Node) -> ir.Value:
        kind = float_precision(consumer, plan)
        scale = representable(np.asarray(plan.scales[tensor]), kind)
        if (tensor, kind) not in quantized:
            suffix = "" if kind == plan.float_precision else f"/{kind}"
            quantized[tensor, kind] = _quantize(model.graph, values[tensor], scale, number_format, suffix)
        return _dequantize(consumer, quantized[tensor, kind], tensor, ir.tensor(scale), number_format, None)

    for layer in placement.layers:
        if layer.node in plan.int8_layers:
            node = nodes[layer.node]
            dequantized_inputs = {name: dequantized(name, node) for name in dict.fromkeys(layer.activations)}
            node.replace_input_with(0, dequantized_inputs[layer.activation])
            if layer.axis is None:
                node.replace_input_with(1, dequantized_inputs[layer.weight])
            else:
                node.replace_input_with(1, _dequantized_weight(model.graph, node, layer.axis, plan))
    for residual in placement.residual_inputs(plan.int8_layers):
        add = nodes[residual.node]
        add.replace_input_with(residual.index, dequantized(residual.tensor, add))


def quantize_weight(
    weight: NDArray[np.float32], axis: int, plan: QuantizationPlan, precision: FloatPrecision
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return the quantized weight and its scales along `axis`, shape (weight.shape[axis],), or its one scale, shape ().

    ``scale = max |w| / largest`` (127 in int8) per channel, or over all where the plan's weights are per tensor. A
    channel of zeros gets scale 1, since any positive scale is exact for it.

    Args:
        weight: any shape.
        axis: of the output channels.
        plan: says if weights have scales per channel.
        precision: float type of the layer, which has to hold the scales.

    Examples:
        >>> from calibrate.plan import Origin
        >>> plan = QuantizationPlan(name="p", strategy="minmax", origin=Origin(model_sha256="0" * 64), scales={},
        ...                         layers={})
        >>> array, scales = quantize_weight(np.array([[127.0, -1.0], [508.0, 4.0]], np.float32), 0, plan, "fp16")
        >>> array.tolist(), scales.tolist()
        ([[127, -1], [127, 1]], [1.0, 4.0])
    """
    scales = representable(weight_scales(weight, axis, plan), precision)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)] if scales.ndim else []
    return plan.number_format.encode(weight / scales.reshape(shape)), scales


def weight_scales(weight: NDArray[np.float32], axis: int, plan: QuantizationPlan) -> NDArray[np.float32]:
    """Return the scales of a weight before they are rounded to the float type of the layer; see `quantize_weight`."""
    per_channel = plan.weights == "per_channel"
    reduced = tuple(i for i in range(weight.ndim) if i != axis or not per_channel)
    amax = np.abs(weight).max(axis=reduced)
    return np.where(amax > 0, amax / np.float32(plan.number_format.largest), np.float32(1))


def representable(scale: NDArray[np.floating[Any]], precision: FloatPrecision) -> NDArray[np.float32]:
    """Return scales rounded to a float type, as float32; never 0 and never infinite.

    Examples:
        >>> representable(np.array([0.5, 1e6]), "fp16").tolist()
        [0.5, 65504.0]
    """
    kind = NUMBER_FORMATS[precision]
    bounded: NDArray[np.floating[Any]] = np.clip(scale, kind.smallest, kind.largest)
    return bounded.astype(kind.numpy).astype(np.float32)


def _quantize(
    graph: ir.Graph, value: ir.Value, scale: NDArray[np.float32], number_format: NumberFormat, suffix: str
) -> ir.Value:
    name = str(value.name)
    inputs = [value, _constant(graph, f"{name}/scale", ir.tensor(scale)), _zero_point(graph, number_format, None)]
    node = ir.node("QuantizeLinear", inputs, name=f"{name}/QuantizeLinear{suffix}")
    _set(node.outputs[0], f"{name}/quantized{suffix}", ir.DataType[number_format.onnx], value.shape)
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return node.outputs[0]


def _dequantize(
    consumer: ir.Node,
    value: ir.Value,
    name: str,
    scale: ir.TensorProtocol,
    number_format: NumberFormat,
    axis: int | None,
) -> ir.Value:
    graph = consumer.graph
    assert isinstance(graph, ir.Graph)
    channels = None if axis is None else scale.numpy().size
    inputs = [value, _constant(graph, f"{name}/scale", scale), _zero_point(graph, number_format, channels)]
    attributes = {} if axis is None else {"axis": axis}
    node = ir.node("DequantizeLinear", inputs, attributes, name=f"{name}/DequantizeLinear/{consumer.name}")
    _set(node.outputs[0], f"{name}/dequantized/{consumer.name}", ir.DataType.FLOAT, value.shape)
    graph.insert_before(consumer, node)
    return node.outputs[0]


def _dequantized_weight(graph: ir.Graph, node: ir.Node, axis: int, plan: QuantizationPlan) -> ir.Value:
    weight = node.inputs[1]  # not always the layer's own: the plan may have edited it
    assert weight is not None and weight.const_value is not None
    name = f"{weight.name}/axis{axis}"  # a shared weight may be used along either axis
    array, scales = quantize_weight(weight.const_value.numpy(), axis, plan, float_precision(node, plan))
    quantized = _constant(graph, f"{name}/quantized", ir.tensor(array, ir.DataType[plan.number_format.onnx]))
    return _dequantize(node, quantized, name, ir.tensor(scales), plan.number_format, axis if scales.ndim else None)


def _zero_point(graph: ir.Graph, number_format: NumberFormat, channels: int | None) -> ir.Value:
    """Return the shared zero point: a scalar, or a vector of one zero per channel."""
    name = "zero_point" if channels is None else f"zero_point/{channels}"
    return _constant(graph, name, ir.tensor(np.zeros(() if channels is None else channels, number_format.numpy)))


def _constant(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Return the initializer that holds `tensor`: called `name`, unless the model has another one of that name."""
    while (value := graph.initializers.get(name)) is not None:
        held = value.const_value
        if held is not None and held.dtype == tensor.dtype and np.array_equal(held.numpy(), tensor.numpy()):
            return value
        name += "_"
    value = ir.Value(name=name, const_value=tensor)
    _set(value, name, tensor.dtype, tensor.shape)  # type: ignore[arg-type]
    graph.register_initializer(value)
    return value


def _set(value: ir.Value, name: str, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    value.name, value.dtype, value.shape = name, dtype, shape


def _values(model: ir.Model) -> list[ir.Value]:
    produced = [value for node in model.graph for value in node.outputs]
    return [*model.graph.inputs, *model.graph.initializers.values(), *produced]
