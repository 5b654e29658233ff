"""Writes a plan's weight edits into a model."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from calibrate.plan import QuantizationPlan
from validate.exceptions import JobError

__all__ = ["edit_weights", "edited"]

_BROADCASTING = frozenset({"Add", "Div", "Mul", "Sub"})
"""Ops of which a constant may grow, as a scalar does that becomes a factor per channel."""


def edited(model: ir.Model, plan: QuantizationPlan) -> ir.Model:
    """Return the float model that a plan quantizes: a copy of a prepared model with the plan's edits of constants.

    Raises:
        JobError: the plan edits what the model does not have.

    Examples:
        >>> from calibrate.plan import Origin, WeightEdit
        >>> model = ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 19]>
        ...     net (float[N, 2] x) => (float[N, 2] y) <float[2] b = {1, 2}> { [sum] y = Add(x, b) }''')
        >>> plan = QuantizationPlan(name="p", strategy="minmax", origin=Origin(model_sha256="0" * 64), scales={},
        ...                         layers={}).with_weight_edits([WeightEdit("sum", 1, "add", np.float32(3))])
        >>> edited(model, plan).graph.initializers["sum/1/edited"].const_value.numpy().tolist()
        [4.0, 5.0]
    """
    result = model.clone()
    edit_weights(result, plan)
    RemoveUnusedNodesPass()(result)
    return result


def edit_weights(model: ir.Model, plan: QuantizationPlan) -> None:
    """Change the constants of a prepared model as the plan says, in place.

    A node gets a constant of its own, since others may read the one that it had.

    Raises:
        JobError: the plan edits what the model does not have.
    """
    nodes = {node.name: node for node in model.graph}
    edited: set[ir.Value] = set()
    for edit in plan.weight_edits:
        where = f"plan {plan.name} edits input {edit.input} of node {edit.node}"
        if (node := nodes.get(edit.node)) is None:
            raise JobError(f"{where}, which the model does not have")
        held = node.inputs[edit.input] if edit.input < len(node.inputs) else None
        if held is not None and (held.const_value is None or held.dtype != ir.DataType.FLOAT):
            raise JobError(f"{where}, which is not a constant in float32")
        old = None if held is None or held.const_value is None else held.const_value.numpy()
        try:
            array = edit.edited(old)
        except ValueError as error:
            raise JobError(f"{where}: {error}") from error
        if old is not None and array.shape != old.shape and node.op_type not in _BROADCASTING:
            raise JobError(f"{where}: its shape {old.shape} would become {array.shape}")
        if held in edited:
            assert held is not None
            held.const_value = ir.tensor(array)
            held.shape = ir.Shape(array.shape)
        else:
            edited.add(_set_input(node, edit.input, array))


def _set_input(node: ir.Node, index: int, array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> ir.Value:
    """Give a node an initializer of its own as an input, which it may not have had."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    name = f"{node.name}/{index}/edited"
    while name in graph.initializers:
        name += "_"
    value = ir.Value(
        name=name, const_value=ir.tensor(array), type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(array.shape)
    )
    graph.register_initializer(value)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)
    return value
