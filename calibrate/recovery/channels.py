"""Finds the channels that can be scaled without a change of what the model computes, and which of them together."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from calibrate.recovery.relations import Link, Relation, Shapes, read_inside, relation_of

__all__ = ["Channels", "find_channels"]

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Channels:
    """The channels of a model that can have a factor: a tensor is divided by it, and what reads it takes it in.

    Attributes:
        axes: axis of the channels, by tensor; of tensors that are not there no channel can have one.
        classes: for every channel of such a tensor, the number of its factor. Channels with the same number must have
            the same factor. That of number 0 is 1.
        count: how many factors there are, with number 0.
    """

    axes: Mapping[str, int]
    classes: Mapping[str, Indices]
    count: int

    def factors_of(self, tensor: str, factors: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Return the factor of every channel of a tensor, shape (channels,); None where all are 1."""
        classes = self.classes.get(tensor)
        if classes is None or not classes.any():
            return None
        found = factors[classes]
        return None if (found == 1).all() else found


def find_channels(model: ir.Model, shapes: Shapes) -> Channels:
    """Return which channels of a prepared model can have factors, by exact rules for each operator.

    Args:
        model: prepared.
        shapes: of all float tensors that it computes, and of its inputs.

    Examples:
        >>> model = ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 19]>
        ...     net (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}, float[2, 2] v = {1, 2, 3, 4}> {
        ...         h = MatMul(x, w)
        ...         r = Relu(h)
        ...         y = MatMul(r, v)
        ...     }''')
        >>> found = find_channels(model, dict.fromkeys("xhry", (8, 2)))
        >>> found.classes["h"].tolist(), found.classes["r"].tolist(), found.classes["y"].tolist()
        ([1, 2], [1, 2], [0, 0])
    """
    relations = [(node, relation_of(node, shapes)) for node in model.graph]
    links = [link for _, relation in relations for link in relation.links]
    axes = _spread(_seeds([relation for _, relation in relations]), links)
    start, total = {}, 1
    for name in axes:
        start[name] = total
        total += shapes[name][axes[name]]
    ids = {name: np.arange(start[name], start[name] + shapes[name][axes[name]]) for name in axes}
    pairs = [pair for link in links for pair in _equal(link, axes, ids)]
    pairs += [(ids[name], np.zeros_like(ids[name])) for name in _fixed(model, relations, axes) & axes.keys()]
    return Channels(axes, *_numbered(ids, pairs, total))


def _seeds(relations: list[Relation]) -> dict[str, int]:
    """Return the tensors whose channel axis a layer or a normalization gives."""
    found: dict[str, int] = {}
    for relation in relations:
        for name, axis in (relation.free or {}).items():
            if axis is not None:
                found.setdefault(name, axis)
    return found


def _spread(axes: dict[str, int], links: list[Link]) -> dict[str, int]:
    """Return the channel axes of all tensors that links connect with those."""
    beside: dict[str, list[Link]] = {}
    for link in links:
        beside.setdefault(link.given, []).append(link)
        beside.setdefault(link.made, []).append(link)
    todo = deque(axes)
    while todo:
        name = todo.popleft()
        for link in beside.get(name, ()):
            if name == link.given:
                other, axis = link.made, link.axes.get(axes[name])
            else:
                other, axis = link.given, _before(link, axes[name])
            if axis is not None and other not in axes:
                axes[other] = axis
                todo.append(other)
    return axes


def _before(link: Link, axis: int) -> int | None:
    return next((before for before, after in link.axes.items() if after == axis), None)


def _equal(link: Link, axes: Mapping[str, int], ids: Mapping[str, Indices]) -> list[tuple[Indices, Indices]]:
    """Return which factors a link makes equal: to each other, or to 1 where they cannot pass."""
    given, made = axes.get(link.given), axes.get(link.made)
    if given is not None and made is not None and link.axes.get(given) == made:
        first, second = ids[link.given], ids[link.made]
        if link.joined == given:
            second = second[link.offset : link.offset + len(first)]
        if len(first) == len(second):
            return [(first, second)]
    return [(ids[name], np.zeros_like(ids[name])) for name in (link.given, link.made) if name in axes]


def _fixed(model: ir.Model, relations: list[tuple[ir.Node, Relation]], axes: Mapping[str, int]) -> set[str]:
    """Return the tensors that stay as they are: what the model gives and takes, and what a node cannot have scaled."""
    fixed = {str(value.name) for value in (*model.graph.inputs, *model.graph.outputs)}
    for node, relation in relations:
        named = [str(value.name) for value in (*node.inputs, *node.outputs) if value is not None and value.name]
        if node.op_type != "Shape":
            fixed |= set(named) - set(relation.names())
        # A tensor that a node takes twice, once as what carries a factor and once as something else.
        carriers = set(relation.names())
        fixed |= {name for name in carriers if named.count(name) > max(1, sum(x.given == name for x in relation.links))}
        fixed |= {n for n, axis in (relation.free or {}).items() if axis is not None and axes.get(n) != axis}
        fixed |= {str(value.name) for value in read_inside(node)}
    return fixed


def _numbered(
    ids: Mapping[str, Indices], pairs: list[tuple[Indices, Indices]], total: int
) -> tuple[dict[str, Indices], int]:
    """Return the number of every channel's factor, 0 for 1, and how many there are."""
    first = np.concatenate([pair[0] for pair in pairs]) if pairs else np.zeros(0, np.int64)
    second = np.concatenate([pair[1] for pair in pairs]) if pairs else np.zeros(0, np.int64)
    edges = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(total, total))
    count, labels = connected_components(edges, directed=False)
    order = np.zeros(count, np.int64)
    order[labels[0]] = -1  # so that it is the first
    numbers = np.empty(count, np.int64)
    numbers[np.argsort(order, kind="stable")] = np.arange(count)
    return {name: numbers[labels[own]] for name, own in ids.items()}, count
