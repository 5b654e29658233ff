"""Runs a model piece by piece, so that what one layer gives can be changed before the next one reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from calibrate.recovery.relations import read_inside
from validate.backends import OnnxRuntimeModel, detach

__all__ = ["Segment", "segments"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Segment:
    """The nodes of a model behind one end, up to the next.

    Attributes:
        end: name of its last node.
        output: name of that node's output.
        spent: tensors that no later segment reads.
        model: the nodes, from what they need to what later segments read.
    """

    end: str
    output: str
    spent: frozenset[str]
    model: ir.Model

    def run(self, batches: Sequence[dict[str, Array]]) -> None:
        """Add what the segment computes to the tensors of each batch, and take away what is spent."""
        runnable = OnnxRuntimeModel(detach(self.model))
        for tensors in batches:
            tensors.update(runnable.run({name: tensors[name] for name in runnable.input_names}))
            for name in self.spent:
                tensors.pop(name, None)


def segments(model: ir.Model, ends: Sequence[str]) -> Iterator[Segment]:
    """Yield the pieces of a model that end at those nodes, in topological order; what is behind the last is left out.

    Args:
        model: prepared, or made from one: its nodes in topological order, its values with their types.
        ends: names of nodes.

    Examples:
        >>> import numpy as np
        >>> from calibrate.graph import prepare
        >>> model = prepare(ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 19]>
        ...     net (float[N] x) => (float[N] y) { [first] a = Neg(x) [second] b = Abs(a) [last] y = Add(a, b) }'''))
        >>> tensors = {"x": np.float32([1, -2])}
        >>> for segment in segments(model, ["second", "last"]):
        ...     segment.run([tensors])
        ...     print(segment.end, sorted(tensors))
        second ['a', 'b']
        last ['y']
    """
    nodes = list(model.graph)
    positions = [i for i, node in enumerate(nodes) if node.name in set(ends)]
    readers: dict[ir.Value, int] = {}  # the last node that reads a value, those inside of subgraphs with their parent
    for i, node in enumerate(nodes[: positions[-1] + 1] if positions else []):
        for value in _read(node):
            readers[value] = i
    computed: dict[ir.Value, int] = {}
    for value in model.graph.inputs:
        computed[value] = -1
    start = 0
    for number, position in enumerate(positions):
        piece = nodes[start : position + 1]
        needs = {value: None for node in piece for value in _read(node) if value in computed}
        for node in piece:
            computed |= dict.fromkeys(node.outputs, number)
        end = nodes[position].outputs[0]
        given = [v for node in piece for v in node.outputs if readers.get(v, -1) > position or v is end]
        spent = frozenset(str(v.name) for v in computed if readers.get(v, -1) <= position and v is not end)
        piece_model = _piece(model, list(needs), given)
        yield Segment(str(nodes[position].name), str(end.name), spent, piece_model)
        start = position + 1


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """Yield all values that a node reads, with those that its subgraphs take from outside."""
    yield from (value for value in node.inputs if value is not None)
    yield from read_inside(node)


def _piece(model: ir.Model, needs: Sequence[ir.Value], given: Sequence[ir.Value]) -> ir.Model:
    """Return the part of a model between given tensors, as a model; it says nothing of the shapes of those."""
    graph = ir.convenience.extract(model.graph, needs, given)
    for value in (*graph.inputs, *graph.outputs):
        value.shape = None
    return ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
