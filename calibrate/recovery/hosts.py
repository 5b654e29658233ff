"""Writes factors of channels into the constants of a model, and knows which constant takes which factor."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrate.plan import WeightEdit
from calibrate.recovery.channels import Channels
from calibrate.recovery.relations import Shapes, is_constant, layer_axes, relation_of

__all__ = ["edits_of", "weight_factors"]

Factors = NDArray[np.float64]


def edits_of(model: ir.Model, channels: Channels, factors: Factors, shapes: Shapes) -> Iterator[WeightEdit]:
    """Yield the edits that divide every tensor by its channels' factors, and change nothing that the model gives.

    Args:
        model: prepared.
        channels: of the model.
        factors: by number, shape (channels.count,); number 0 is 1.
        shapes: of all float tensors.
    """
    for node in model.graph:
        for index, factor in sorted(_constant_factors(node, channels, factors, shapes).items()):
            if not (factor == 1).all():
                yield WeightEdit(str(node.name), index, "multiply", factor.astype(np.float32))


def weight_factors(node: ir.Node, taken: Factors | None, given: Factors | None) -> Factors:
    """Return what a layer's weight is multiplied by, in a shape that broadcasts with it.

    Args:
        node: Conv, ConvTranspose, Gemm or MatMul with a constant weight.
        taken: factor of every channel of the input; None: all are 1.
        given: of the output.

    Examples:
        >>> weight = ir.Value(name="w", const_value=ir.tensor(np.ones((3, 2), np.float32)))
        >>> weight_factors(ir.node("MatMul", [None, weight]), np.array([1.0, 2, 4]), np.array([1.0, 8])).tolist()
        [[1.0, 0.125], [2.0, 0.25], [4.0, 0.5]]
    """
    weight = node.inputs[1]
    assert weight is not None and weight.const_value is not None
    shape = weight.const_value.numpy().shape
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not node.attributes.get_int("transB", 0)):
        rows, columns = np.ones(shape[0]) if taken is None else taken, np.ones(shape[1]) if given is None else given
        return rows[:, None] / columns
    if node.op_type == "Gemm":
        rows, columns = np.ones(shape[0]) if given is None else given, np.ones(shape[1]) if taken is None else taken
        return columns / rows[:, None]
    groups, spatial = node.attributes.get_int("group", 1), [1] * (len(shape) - 2)
    first, second = (given, taken) if node.op_type == "Conv" else (taken, given)
    # Along axis 0 all channels of that side; along axis 1 those of the other side that are in the same group.
    along_0 = np.ones(shape[0]) if first is None else first
    along_1 = (np.ones(groups * shape[1]) if second is None else second).reshape(groups, shape[1])
    along_1 = np.repeat(along_1, shape[0] // groups, axis=0)
    both = along_1 / along_0[:, None] if node.op_type == "Conv" else along_0[:, None] / along_1
    return both.reshape(*shape[:2], *spatial)


def _constant_factors(node: ir.Node, channels: Channels, factors: Factors, shapes: Shapes) -> dict[int, Factors]:
    """Return what each constant of a node is multiplied by, by index of the input."""
    made = str(node.outputs[0].name)
    given = channels.factors_of(made, factors)
    if layer_axes(node, shapes) is not None:
        taken = channels.factors_of(str(node.inputs[0].name), factors)  # type: ignore[union-attr]
        found = {} if taken is None and given is None else {1: weight_factors(node, taken, given)}
        if given is not None and len(node.inputs) > 2 and node.inputs[2] is not None:
            found[2] = 1 / given
        return found
    relation = relation_of(node, shapes)
    constants = {index: value for index, value in enumerate(node.inputs) if is_constant(value)}
    if relation.links:  # a term of a sum; the constants of a Clip or a PRelu are not to be scaled
        if node.op_type not in {"Add", "Sub"} or given is None:
            return {}
        return {index: _beside(1 / given, made, channels, shapes) for index in constants}
    if not relation.free:
        return {}
    if node.op_type not in {"Mul", "Div"}:  # a normalization: gain and offset
        return {} if given is None else {index: 1 / given for index in constants if index in {1, 2}}
    (index,) = constants
    product = np.ones(())
    for name in relation.free:
        if (factor := channels.factors_of(name, factors)) is not None:
            shaped = _beside(factor, name, channels, shapes)
            product = product / shaped if name == made else product * shaped
    return {index: product if node.op_type == "Mul" else 1 / product}


def _beside(factor: Factors, tensor: str, channels: Channels, shapes: Shapes) -> Factors:
    """Return a factor in the shape in which it broadcasts along the tensor's channel axis."""
    return factor.reshape(-1, *[1] * (len(shapes[tensor]) - 1 - channels.axes[tensor]))
