"""Applies a plan to a prepared model: returns a new model with Q/DQ nodes and types, and changes neither."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from calibrate.graph.checker import check
from calibrate.graph.placement import Placement
from calibrate.graph.precision import BF16_OPSET, assign_precision, precision_of
from calibrate.graph.qdq import insert_qdq
from calibrate.graph.weights import edit_weights
from calibrate.plan import QuantizationPlan
from validate.backends import PLAN_KEY
from validate.exceptions import JobError
from validate.results import NodeCounts

__all__ = ["apply", "apply_checked", "count_nodes"]


def apply(plan: QuantizationPlan, model: ir.Model, placement: Placement, simulate: bool = False) -> ir.Model:
    """Return a copy of a prepared model with the plan written into it.

    Args:
        plan: for this model.
        model: what `prepare` returned; not changed.
        placement: of the model.
        simulate: write the float32 model that computes what the deployed one computes, for judging accuracy
            where there is no GPU. The default is the model to deploy, strongly typed; with bf16 in it, its opset is
            raised to the first that knows bf16 convolutions, if it is older.
    """
    result = model.clone()
    edit_weights(result, plan)
    insert_qdq(result, placement, plan)
    assign_precision(result, plan, simulate)
    if not simulate and result.opset_imports[""] < BF16_OPSET and _has_bf16(result):
        from onnxscript import version_converter

        version_converter.convert_version(result, BF16_OPSET)
    result.metadata_props[PLAN_KEY] = plan.hash
    return result


def apply_checked(plan: QuantizationPlan, model: ir.Model, placement: Placement, what: str) -> ir.Model:
    """Return the model to deploy that a plan makes; see `apply`.

    Args:
        what: what the plan is called, for a sentence.

    Raises:
        JobError: it breaks a rule of TensorRT's.
    """
    deployed = apply(plan, model, placement)
    if violations := check(deployed, placement.excluded):
        raise JobError(f"{what} breaks TensorRT's rules: {violations[0]}")
    return deployed


def count_nodes(plan: QuantizationPlan, model: ir.Model) -> NodeCounts:
    """Return how many nodes of a prepared model the plan computes in each precision.

    Nodes without a float tensor (shape arithmetic) are counted as fp32, as in the float model.

    Examples:
        >>> import onnx_ir as ir
        >>> model = ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 19]>
        ...     net (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { [product] y = MatMul(x, w) }''')
        >>> from calibrate.plan import Origin
        >>> plan = QuantizationPlan(name="p", strategy="minmax", origin=Origin(model_sha256="0" * 64),
        ...                         scales={"x": 0.02}, layers={"product": "int8"})
        >>> count_nodes(plan, model).int8
        1
    """
    counts: Counter[str] = Counter()
    for node in model.graph:
        values = [value for value in (*node.inputs, *node.outputs) if value is not None]
        counts[precision_of(node, plan) if any(v.dtype == ir.DataType.FLOAT for v in values) else "fp32"] += 1
    return NodeCounts(int8=counts["int8"], fp16=counts["fp16"], bf16=counts["bf16"], fp32=counts["fp32"])


def _has_bf16(model: ir.Model) -> bool:
    return any(value.dtype == ir.DataType.BFLOAT16 for node in model.graph for value in node.outputs)
