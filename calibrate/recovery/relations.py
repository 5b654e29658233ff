"""What each operator asks of the factors per channel of its inputs and outputs: equal ones, none, or any."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

__all__ = ["Link", "Relation", "Shapes", "is_constant", "layer_axes", "read_inside", "relation_of"]

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of every float tensor, by name, as it was when the model ran; what files say of inner ones may be wrong."""

_HOMOGENEOUS = frozenset({"Identity", "LeakyRelu", "PRelu", "Relu"})
"""Ops with f(s x) = s f(x) for every s > 0, element by element."""

_POOLING = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})
_RESHAPING = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
_REDUCING = frozenset({"ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"})
_GATES = frozenset({"Clip", "HardSigmoid", "Sigmoid", "Softmax", "Tanh"})
"""Ops that make the factor of a product that carries no scale, as in x * sigmoid(x)."""

_NORMS = {"BatchNormalization": 1, "InstanceNormalization": 1, "LayerNormalization": -1, "RMSNormalization": -1}
"""Channel axis of normalizations, whose gain and offset can carry any factor of the output."""


@dataclass(frozen=True)
class Link:
    """Two tensors of a node that have the same factor per channel.

    Attributes:
        given, made: names of the input and the output.
        axes: which axis of the input is which of the output; a factor along any other cannot pass.
        joined: the axis along which a Concat puts the input at `offset`; None: all channels are those of the output.
    """

    given: str
    made: str
    axes: Mapping[int, int]
    joined: int | None = None
    offset: int = 0


@dataclass(frozen=True)
class Relation:
    """What a node asks of factors. Tensors that it names nowhere must have none.

    Attributes:
        links: pairs with equal factors.
        free: tensors whose factor the node's own constants take in or give out, each with the axis of the channels;
            None: any axis.
    """

    links: tuple[Link, ...] = ()
    free: Mapping[str, int | None] | None = None

    def names(self) -> Iterator[str]:
        """Yield the tensors that may have a factor."""
        for link in self.links:
            yield from (link.given, link.made)
        yield from self.free or ()


def is_constant(value: ir.Value | None) -> bool:
    """Return whether a value is a float32 constant that an edit can change."""
    return value is not None and value.const_value is not None and value.dtype == ir.DataType.FLOAT


def read_inside(node: ir.Node) -> Iterator[ir.Value]:
    """Yield all values that the subgraphs of a node read or give, those from outside among them."""
    for attribute in node.attributes.values():
        if attribute.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}:
            graphs = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else attribute.as_graphs()
            for inner in (n for graph in graphs for n in ir.traversal.RecursiveGraphIterator(graph)):
                yield from (value for value in inner.inputs if value is not None)
            yield from (value for graph in graphs for value in graph.outputs)


def layer_axes(node: ir.Node, shapes: Shapes) -> tuple[int, int] | None:
    """Return the channel axes of the input and the output of a layer with a constant weight; None where it is none."""
    if node.domain or len(node.inputs) < 2 or not is_constant(node.inputs[1]) or _name(node.inputs[0]) not in shapes:
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None and not is_constant(node.inputs[2]):
        return None
    weight = node.inputs[1]
    assert weight is not None and weight.const_value is not None
    rank = len(shapes[_name(node.inputs[0])])
    if node.op_type in {"Conv", "ConvTranspose"}:
        return 1, 1
    if node.op_type == "Gemm" and not node.attributes.get_int("transA", 0) and _fits_bias(node):
        return 1, 1
    if node.op_type == "MatMul" and len(weight.const_value.shape) == 2 and rank > 1:
        return rank - 1, rank - 1
    return None


def relation_of(node: ir.Node, shapes: Shapes) -> Relation:
    """Return what a node asks of the factors of its tensors, exactly; of an operator that is not known, none at all.

    Args:
        node: of the main graph.
        shapes: of all float tensors.
    """
    made = str(node.outputs[0].name)
    if node.domain or made not in shapes:
        return Relation()
    if (axes := layer_axes(node, shapes)) is not None:
        return Relation(free={_name(node.inputs[0]): axes[0], made: axes[1]})
    if node.op_type in _NORMS:
        return _normalization(node, made, shapes)
    computed = [_name(value) for value in node.inputs if _name(value) in shapes and not is_constant(value)]
    if node.op_type in {"Add", "Sub", "Max", "Min", "Mul", "Div"}:
        return _elementwise(node, computed, made, shapes)
    if node.op_type == "Concat":
        return Relation(_joined(node, made, shapes))
    if not computed or (axes_kept := _axes_kept(node, shapes[computed[0]], shapes[made])) is None:
        return Relation()
    return Relation((Link(computed[0], made, axes_kept),))


def _axes_kept(node: ir.Node, before: tuple[int, ...], after: tuple[int, ...]) -> Mapping[int, int] | None:
    """Return which axes pass through a node with one computed input, channel by channel; None: none does."""
    op, same = node.op_type, {axis: axis for axis in range(len(before))}
    if op in _HOMOGENEOUS or (op == "Clip" and _is_relu(node)):
        return same
    if op in _POOLING:
        return {1: 1}
    if op == "Transpose":
        order = node.attributes.get_ints("perm", tuple(reversed(range(len(before)))))
        return {before_axis: axis for axis, before_axis in enumerate(order)}
    if op in _RESHAPING:
        # Row-major: channels stay what they are where as many elements are before them, and they are as many.
        return {
            i: j
            for i, size in enumerate(before)
            for j, other in enumerate(after)
            if size == other > 1 and math.prod(before[:i]) == math.prod(after[:j])
        }
    if op in _REDUCING:
        return _reduced(node, len(before))
    if op == "Resize" and node.attributes.get_string("coordinate_transformation_mode", "") != "tf_crop_and_resize":
        return {axis: axis for axis in same if before[axis] == after[axis]}
    return None


def _reduced(node: ir.Node, rank: int) -> Mapping[int, int] | None:
    """Return where a reduction leaves the axes that it keeps."""
    listed = node.inputs[1] if len(node.inputs) > 1 else None
    if listed is None or listed.const_value is None:
        return None
    gone = {int(axis) % rank for axis in listed.const_value.numpy().ravel()}
    kept = [axis for axis in range(rank) if axis not in gone]
    if node.attributes.get_int("keepdims", 1):
        return {axis: axis for axis in kept}
    return {axis: index for index, axis in enumerate(kept)}


def _elementwise(node: ir.Node, computed: list[str], made: str, shapes: Shapes) -> Relation:
    """A sum asks for one factor of all its terms, and a product takes it from one of them.

    A constant takes in what it must: a term is divided by the factor, and a product's is what is left of both factors.
    """
    constants = [value for value in node.inputs if is_constant(value)]
    whole = all(shapes[name] == shapes[made] for name in computed[:1])
    if len(computed) + len(constants) != 2 or len(node.inputs) != 2 or computed[:1] == computed[1:]:
        return Relation()
    if constants:
        (constant,) = constants
        assert constant is not None and constant.const_value is not None
        if not whole or len(constant.const_value.shape) > len(shapes[made]) or node.op_type in {"Max", "Min"}:
            return Relation()
        if node.op_type in {"Add", "Sub"}:
            return Relation((_aligned(computed[0], made, shapes),))
        if node.op_type == "Div" and is_constant(node.inputs[0]):
            return Relation()
        return Relation(free={computed[0]: None, made: None})
    if node.op_type in {"Add", "Sub", "Max", "Min"}:
        return Relation(tuple(_aligned(name, made, shapes) for name in computed))
    carriers = computed[:1] if node.op_type == "Div" else computed
    carriers = [name for name in carriers if shapes[name] == shapes[made]]
    carriers.sort(key=lambda name: _makes_gates(node, name))  # sorted() is stable: the first of equals
    return Relation((_aligned(carriers[0], made, shapes),)) if carriers else Relation()


def _makes_gates(node: ir.Node, name: str) -> bool:
    value = next(value for value in node.inputs if _name(value) == name)
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type in _GATES


def _aligned(given: str, made: str, shapes: Shapes) -> Link:
    """Link a term with its sum, axes counted from the last; along an axis that is broadcast no factor passes."""
    before, after = shapes[given], shapes[made]
    lead = len(after) - len(before)
    return Link(given, made, {i: i + lead for i, size in enumerate(before) if size == after[i + lead]})


def _joined(node: ir.Node, made: str, shapes: Shapes) -> tuple[Link, ...]:
    rank = len(shapes[made])
    axis, offset, links = node.attributes.get_int("axis", 0) % rank, 0, []
    for value in node.inputs:
        name = _name(value)
        if is_constant(value) or name not in shapes:
            return ()
        links.append(Link(name, made, {i: i for i in range(rank)}, axis, offset))
        offset += shapes[name][axis]
    return tuple(links)


def _normalization(node: ir.Node, made: str, shapes: Shapes) -> Relation:
    """A normalization that is left gives out any factor through its gain and offset; it takes none in."""
    rank = len(shapes[made])
    axis = _NORMS[node.op_type] % rank
    if axis == rank - 1 and node.attributes.get_int("axis", -1) % rank != axis:
        return Relation()
    for value in node.inputs[1:3]:
        if value is not None and (not is_constant(value) or value.const_value.shape != (shapes[made][axis],)):  # type: ignore[union-attr]
            return Relation()
    return Relation(free={made: axis})


def _fits_bias(node: ir.Node) -> bool:
    """Return whether a Gemm's bias, if there is one, has a value per output."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return bias is None or (bias.shape is not None and len(bias.shape) == 1 and bias.shape[0] != 1)


def _is_relu(node: ir.Node) -> bool:
    """Return whether a Clip is from 0 to infinity."""
    low, high = (node.inputs[i] if i < len(node.inputs) else None for i in (1, 2))
    return (
        low is not None
        and low.const_value is not None
        and float(low.const_value.numpy()) == 0
        and (high is None or (high.const_value is not None and math.isinf(float(high.const_value.numpy()))))
    )


def _name(value: ir.Value | None) -> str:
    return "" if value is None else str(value.name)
