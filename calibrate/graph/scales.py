"""Scales as the file of a plan holds them, and the nodes that need them in float32 where the rest is FP16."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrate.graph.placement import Layer, Placement
from calibrate.graph.precision import float_precision
from calibrate.graph.qdq import representable, weight_scales
from calibrate.graph.weights import edit_weights
from calibrate.plan import QuantizationPlan

__all__ = ["nodes_with_fp32_scales", "scales_in_file"]

_LARGEST_ERROR = 0.01
"""Relative error of a rounded scale that is let pass. INT8 rounds a value by up to 0.4 % of the largest."""


_DEAD = 2.0**-10
"""Of the largest scale of a weight. Output channels below that were turned off by a BatchNormalization, which is folded
into them: EfficientNet-Lite0 has 124, in 27 of 50 layers, and FP32 scales for these gain nothing. Who reads the
output in INT8, with one scale for all channels, does not see them."""


def nodes_with_fp32_scales(
    plan: QuantizationPlan, model: ir.Model, placement: Placement, everywhere: bool
) -> frozenset[str]:
    """Return the layers and residual Adds whose scales have to be float32; see `QuantizationPlan.fp32_scales`.

    They are those with a scale that the plan's float type does not hold to 1 %: of an activation, of any output channel
    of the weight, as the plan edits it, that is not next to nothing beside the others, or of the residual input of an
    Add that fuses into the layer. In FP16 that is a scale below about 3e-6, where its numbers are 6e-8 apart, or above
    65504. All layers with scales count, also those
    that the plan has in float, since the set is kept while layers change their precision.

    Args:
        plan: for this model.
        model: what `prepare` returned; not changed.
        placement: of the model.
        everywhere: return all of them, whatever their scales are.

    Examples:
        >>> import onnx_ir as ir
        >>> from calibrate.graph.placement import place
        >>> model = ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 19]>
        ...     net (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { [product] y = MatMul(x, w) }''')
        >>> from calibrate.plan import Origin
        >>> plan = QuantizationPlan(name="p", strategy="minmax", origin=Origin(model_sha256="0" * 64),
        ...                         scales={"x": 1e-7}, layers={"product": "int8"}, float_precision="fp16")
        >>> sorted(nodes_with_fp32_scales(plan, model, place(model), everywhere=False))
        ['product']
    """
    if plan.float_precision == "fp32":
        return frozenset()
    edited = model.clone() if plan.weight_edits else model
    edit_weights(edited, plan)
    nodes = {node.name: node for node in edited.graph}
    read = {layer.node: set(layer.activations) for layer in placement.layers}
    for residual in placement.residuals:
        read[residual.fused_into].add(residual.tensor)

    def is_lost(layer: Layer) -> bool:
        scales = [np.asarray(plan.scales[tensor]) for tensor in read[layer.node]]
        weight = nodes[layer.node].inputs[1]
        if layer.axis is not None and weight is not None and weight.const_value is not None:
            array = weight.const_value.numpy()
            of_weight = weight_scales(array, layer.axis, plan)
            scales.append(of_weight[of_weight > _DEAD * np.abs(array).max() / plan.number_format.largest])
        return any((_rounding(exact, plan) > _LARGEST_ERROR * exact).any() for exact in scales)

    scaled = [layer for layer in placement.layers if plan.scales.keys() >= read[layer.node]]
    found = {layer.node for layer in scaled if everywhere or is_lost(layer)}
    # An Add fuses into its convolution, so that both have one type.
    return frozenset(found | {residual.node for residual in placement.residuals if residual.fused_into in found})


def scales_in_file(plan: QuantizationPlan, model: ir.Model, placement: Placement) -> dict[str, float]:
    """Return the scale of every quantized activation as the file holds it: rounded to the float type of its reader.

    Where readers have different types, it is the smallest, by which most is clipped.

    Args:
        plan: for this model.
        model: what `prepare` returned; not changed.
        placement: of the model.

    Examples:
        >>> import onnx_ir as ir
        >>> from calibrate.graph.placement import place
        >>> model = ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 19]>
        ...     net (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { [product] y = MatMul(x, w) }''')
        >>> from calibrate.plan import Origin
        >>> plan = QuantizationPlan(name="p", strategy="minmax", origin=Origin(model_sha256="0" * 64),
        ...                         scales={"x": 1e6}, layers={"product": "int8"}, float_precision="fp16")
        >>> scales_in_file(plan, model, place(model))
        {'x': 65504.0}
    """
    nodes = {node.name: node for node in model.graph}
    scales: dict[str, float] = {}
    for reader, tensor in _readers(plan, placement):
        kind = float_precision(nodes[reader], plan)
        scale = float(representable(np.asarray(plan.scales[tensor]), kind))
        scales[tensor] = min(scale, scales.get(tensor, scale))
    return scales


def _readers(plan: QuantizationPlan, placement: Placement) -> Iterator[tuple[str, str]]:
    """Yield the nodes that read a quantized activation, each with the name of that."""
    for layer in placement.layers:
        if layer.node in plan.int8_layers:
            yield from ((layer.node, tensor) for tensor in layer.activations)
    for residual in placement.residual_inputs(plan.int8_layers):
        yield residual.node, residual.tensor


def _rounding(scales: NDArray[np.floating[Any]], plan: QuantizationPlan) -> NDArray[np.floating[Any]]:
    rounded: NDArray[np.floating[Any]] = np.abs(representable(scales, plan.float_precision) - scales)
    return rounded
