"""Groups the nodes of a model as TensorRT fuses them, by the rules that its documentation gives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from calibrate.cost.shapes import Shape, multiply_accumulates_of, tensor_shapes

__all__ = ["Fused", "Operation", "Operations", "fused", "operations"]

_POINTWISE = frozenset(
    {
        "Abs",
        "Add",
        "BatchNormalization",
        "Cast",
        "Ceil",
        "Clip",
        "Cos",
        "Div",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "Greater",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Less",
        "Log",
        "Max",
        "Min",
        "Mish",
        "Mul",
        "Neg",
        "PRelu",
        "Pow",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Sin",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Sub",
        "Swish",
        "Tanh",
        "ThresholdedRelu",
        "Where",
    }
)
_VIEWS = frozenset({"Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_COMMUTES = frozenset(
    {"Concat", "DepthToSpace", "Expand", "Gather", "MaxPool", "Slice", "SpaceToDepth", "Split", "Tile", "Transpose"}
)
"""Ops whose output holds only values of their input: they give the same whether quantized before or after."""
_READS_WHAT_IT_WRITES = frozenset({"Gather", "GatherElements", "GatherND", "Slice"})


@dataclass(frozen=True)
class Operation:
    """A node with float outputs.

    Attributes:
        name: of the node.
        inputs: names of the computed float tensors that it reads; in place of a view, the tensor that is viewed.
        outputs: names of its float outputs.
        constants: number of elements of each float constant that it reads, by name.
        macs: multiply-accumulates.
        pointwise: whether each element of the output depends only on the same element of each input.
        commutes: whether it commutes with quantization, so that it may run on int8 as well as on float.
        reads_what_it_writes: whether it reads only as many elements as it writes (Gather, Slice).
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, int]
    macs: int
    pointwise: bool
    commutes: bool
    reads_what_it_writes: bool


@dataclass
class Operations:
    """The operations of a graph that compute float tensors.

    Attributes:
        operations: in topological order.
        outputs: names of the graph's float outputs.
        sizes: number of elements of every float tensor, by name.
        roots: for every tensor that is a view of another one, the name of that one.
        producers: index of the operation that computes a tensor, by name.
        readers: indices of the operations that read a tensor, in order, by name.
    """

    operations: list[Operation] = field(default_factory=list)
    outputs: set[str] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)
    roots: dict[str, str] = field(default_factory=dict)
    producers: dict[str, int] = field(default_factory=dict)
    readers: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Fused:
    """One kernel.

    Attributes:
        members: indices of its operations; the kernel has the name of the first.
        inputs: names of the tensors that it reads.
        outputs: names of the tensors that it writes.
    """

    members: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def operations(model: ir.Model, inputs: Mapping[str, Shape]) -> Operations:
    """Return the float operations of a prepared model.

    Views are left out, as they move no data, and so are integer operations, as they move little.

    Args:
        model: prepared; not changed.
        inputs: the shape of every input of the model, batch included.

    Raises:
        JobError: see `tensor_shapes`.
    """
    shapes = tensor_shapes(model, inputs)
    found = Operations()
    found.sizes = {str(v.name): math.prod(shapes[str(v.name)]) for v in model.graph.inputs if _is_float(v)}
    for node in model.graph:
        outputs = tuple(str(value.name) for value in node.outputs if value.name and _is_float(value))
        given = [value for value in node.inputs if value is not None and _is_float(value)]
        names = [found.roots.get(str(v.name), str(v.name)) for v in given if v.const_value is None]
        standard = node.domain == ""
        if not outputs:
            continue
        if standard and node.op_type in _VIEWS and names:
            found.roots[outputs[0]] = names[0]
            continue
        operation = Operation(
            name=str(node.name),
            inputs=tuple(dict.fromkeys(name for name in names if name in found.sizes)),
            outputs=outputs,
            constants={str(v.name): math.prod(shapes[str(v.name)]) for v in given if v.const_value is not None},
            macs=multiply_accumulates_of(node, shapes),
            pointwise=standard and node.op_type in _POINTWISE,
            commutes=standard and (node.op_type in _COMMUTES or _pads_with_zero(node)),
            reads_what_it_writes=standard and node.op_type in _READS_WHAT_IT_WRITES,
        )
        index = len(found.operations)
        found.operations.append(operation)
        for name in outputs:
            found.sizes[name], found.producers[name] = math.prod(shapes[name]), index
        for name in operation.inputs:
            found.readers.setdefault(name, []).append(index)
    names = [found.roots.get(str(value.name), str(value.name)) for value in model.graph.outputs]
    found.outputs = {name for name in names if name in found.sizes}
    return found


def fused(graph: Operations) -> list[Fused]:
    """Return the kernels, in topological order of their first operations.

    A kernel takes in the pointwise operations behind it as long as it writes one tensor in the end: bias, activation,
    and the Add of a residual that was computed before. A kernel with multiply-accumulates takes in only operations
    whose output has as many elements as its own.

    Examples:
        >>> import onnx_ir as ir
        >>> model = ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 19]>
        ...     net (float[1, 2] x) => (float[1, 2] y) <float[2, 2] w = {1, 2, 3, 4}> {
        ...         [product] z = MatMul(x, w)
        ...         [activation] y = Relu(z)
        ...     }''')
        >>> graph = operations(model, {"x": (1, 2)})
        >>> [[graph.operations[member].name for member in kernel.members] for kernel in fused(graph)]
        [['product', 'activation']]
    """
    taken: set[int] = set()
    kernels = []
    for start in range(len(graph.operations)):
        if start not in taken:
            members = _grow(graph, start, taken)
            taken.update(members)
            kernels.append(Fused(tuple(members), _inputs(graph, members), tuple(_outputs(graph, members))))
    return kernels


def _grow(graph: Operations, start: int, taken: set[int]) -> list[int]:
    """Return the operations that fuse with `start`: the longest run from it that leaves one tensor."""
    first = graph.operations[start]
    members, end = [start], 1
    if not (first.pointwise or first.macs):
        return members
    while True:
        following = {
            reader for m in members for out in graph.operations[m].outputs for reader in graph.readers.get(out, ())
        }
        following -= set(members)
        if not following:
            break
        index = min(following)
        candidate = graph.operations[index]
        if index in taken or not candidate.pointwise:
            break
        if first.macs and graph.sizes[candidate.outputs[0]] != graph.sizes[first.outputs[0]]:
            break
        # What else it reads was there before `start`: so the kernel never waits for something that waits for it.
        makers = {graph.producers.get(name, -1) for name in candidate.inputs}
        if any(maker > start and maker not in members for maker in makers):
            break
        members.append(index)
        if len(_outputs(graph, members)) == 1:
            end = len(members)
    return members[:end]


def _inputs(graph: Operations, members: list[int]) -> tuple[str, ...]:
    """Return what is read from outside, each tensor once."""
    own = {out for member in members for out in graph.operations[member].outputs}
    return tuple(dict.fromkeys(name for m in members for name in graph.operations[m].inputs if name not in own))


def _outputs(graph: Operations, members: list[int]) -> list[str]:
    """Return what others read."""
    inside = set(members)
    return [
        out
        for member in members
        for out in graph.operations[member].outputs
        if out in graph.outputs or not inside.issuperset(graph.readers.get(out, ()))
    ]


def _pads_with_zero(node: ir.Node) -> bool:
    """Return whether the node is a Pad that adds only values of its input, or zero, which int8 holds exactly."""
    if node.op_type != "Pad":
        return False
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if node.attributes.get_string("mode", "constant") != "constant" or value is None:
        return True
    return value.const_value is not None and not value.const_value.numpy().any()


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()
