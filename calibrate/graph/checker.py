"""Checks that a Q/DQ model keeps TensorRT's rules. Independent of plans and of how the model was made.

Source of the rules: NVIDIA's "Working with Quantized Types" (TensorRT documentation).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrate.graph.placement import COMPUTE_OPS, CONVOLUTIONS, is_residual, weight_axis
from validate.number_formats import INT8

__all__ = ["check"]

_FUSES_INTO_CONVOLUTION = frozenset(
    {
        "BatchNormalization",
        "Clip",
        "Elu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "PRelu",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Tanh",
    }
)


def check(model: ir.Model, excluded: Collection[str] = ()) -> list[str]:
    """Return a sentence for every rule that the model breaks; an empty list where it keeps all.

    Args:
        model: with Q/DQ.
        excluded: names of nodes that were left in float on purpose, so that no rule asks for Q/DQ around them.

    Examples:
        >>> import onnx_ir as ir
        >>> model = ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 19]>
        ...     net (float[2] x) => (int8[2] y) <float scale = {0.5}, int8 zero = {3}> {
        ...         [quantize] y = QuantizeLinear(x, scale, zero)
        ...     }''')
        >>> check(model)
        ['quantize: the zero point is not 0']
    """
    found: list[str] = []
    for node in model.graph:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            found += _check_scale(node)
        if node.op_type == "QuantizeLinear":
            found += _check_placement(node)
        if node.op_type in COMPUTE_OPS:
            found += _check_layer(node)
        if is_residual(node) and node.name not in excluded:
            found += _check_residual(node)
        if node.op_type == "Concat" and node.name not in excluded:
            found += _check_concat(node)
    return found


def _check_scale(node: ir.Node) -> Iterator[str]:
    """Symmetric int8 with positive, finite, constant scales."""
    scale = _constant(node.inputs[1])
    if scale is None:
        yield f"{node.name}: the scale is not a constant"
    elif not (np.isfinite(scale).all() and (scale > 0).all()):
        yield f"{node.name}: a scale is not positive and finite"
    zero_point = _constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if zero_point is None or zero_point.dtype != INT8.numpy:
        yield f"{node.name}: there is no int8 zero point"
    elif zero_point.any():
        yield f"{node.name}: the zero point is not 0"


def _check_placement(node: ir.Node) -> Iterator[str]:
    """Activations per tensor, and nothing between a convolution and what fuses into it."""
    source = node.inputs[0]
    if _constant(source) is not None:
        return  # a float weight behind its own Q/DQ, as other tools write it
    scale = _constant(node.inputs[1])
    if scale is not None and scale.size != 1:
        yield f"{node.name}: an activation is quantized per channel"
    producer = None if source is None else source.producer()
    if producer is None or producer.op_type not in CONVOLUTIONS:
        return
    for dequantize in _consumers(node.outputs[0]):
        for consumer in _consumers(dequantize.outputs[0]):
            if consumer.op_type in _FUSES_INTO_CONVOLUTION:
                yield f"{node.name}: stands between {producer.name} and {consumer.name}, which fuse"


def _check_layer(node: ir.Node) -> Iterator[str]:
    """Both inputs quantized or neither; weights per output channel (or per tensor); bias in float."""
    activation, weight = (_dequantizer(value) for value in node.inputs[:2])
    if (activation is None) != (weight is None):
        yield f"{node.name}: only one of its two inputs is quantized"
    if len(node.inputs) > 2 and _dequantizer(node.inputs[2]) is not None:
        yield f"{node.name}: its bias is quantized"
    if weight is None or weight.inputs[0] is None or weight.inputs[0].const_value is None:
        return
    scale = _constant(weight.inputs[1])
    shape = weight.inputs[0].const_value.shape.numpy()
    if scale is None or scale.ndim == 0:
        return
    axis = weight.attributes.get_int("axis", 1) % len(shape)
    if axis != weight_axis(node):
        yield f"{node.name}: the weight is quantized along axis {axis}, not along its output channels"
    if scale.shape != (shape[axis],):
        yield f"{node.name}: {scale.size} weight scales for {shape[axis]} channels"


def _check_residual(node: ir.Node) -> Iterator[str]:
    """An Add into which an int8 convolution fuses has its other input quantized."""
    producers = [value.producer() if value is not None else None for value in node.inputs]
    for producer, other in zip(producers, reversed(node.inputs), strict=True):
        if (
            producer is not None
            and producer.op_type in CONVOLUTIONS
            and _dequantizer(producer.inputs[0]) is not None
            and len(producer.outputs[0].uses()) == 1
            and not producer.outputs[0].is_graph_output()
            and not any(_dequantizer(value) is not None for value in node.inputs)
        ):
            name = other.name if other is not None else "?"
            yield f"{node.name}: residual input {name} is not quantized, so {producer.name} leaves in high precision"
            return


def _check_concat(node: ir.Node) -> Iterator[str]:
    """A Concat whose output and inputs are quantized has one scale for all of them."""
    outputs = _scales(node.outputs[0])
    inputs = {scale for value in node.inputs if value is not None for scale in _scales(value)}
    # A scale that one reader takes in FP16 and another in float32 is one scale: rounded, by up to 2^-11.
    if outputs and max(outputs | inputs) > min(outputs | inputs) * (1 + 2**-10):
        yield f"{node.name}: its inputs and its output have different scales"


def _scales(value: ir.Value) -> set[float]:
    """Return the scales by which a tensor is quantized."""
    quantizers = [node for node in _consumers(value) if node.op_type == "QuantizeLinear"]
    constants = [_constant(node.inputs[1]) for node in quantizers]
    return {float(scale) for scale in constants if scale is not None and scale.size == 1}


def _consumers(value: ir.Value) -> list[ir.Node]:
    return [use.node for use in value.uses()]


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear that makes `value`, looking through casts."""
    producer = None if value is None else value.producer()
    while producer is not None and producer.op_type == "Cast":
        source = producer.inputs[0]
        producer = None if source is None else source.producer()
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def _constant(value: ir.Value | None) -> NDArray[Any] | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()
