"""Graph changes, each a small pass over an onnx_ir model with one job.

`prepare` makes a float model ready, `place` says where Q/DQ belongs, `apply` writes a plan, and `check` verifies the
result without knowing the plan.

Examples:
    >>> import onnx_ir as ir
    >>> from calibrate.plan import Origin, QuantizationPlan
    >>> model = ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 17]>
    ...     net (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { [product] y = MatMul(x, w) }''')
    >>> prepared = prepare(model)
    >>> placement = place(prepared)
    >>> placement.tensors()
    ('x',)
    >>> origin = Origin(model_sha256="0" * 64)  # of the model's file
    >>> plan = QuantizationPlan(
    ...     name="minmax", strategy="minmax", origin=origin, scales={"x": 0.02}, layers={"product": "int8"}
    ... )
    >>> deployed = apply(plan, prepared, placement)
    >>> [node.op_type for node in deployed.graph]
    ['QuantizeLinear', 'DequantizeLinear', 'DequantizeLinear', 'MatMul']
    >>> check(deployed)
    []
"""

from __future__ import annotations

from calibrate.graph.application import apply, apply_checked, count_nodes
from calibrate.graph.checker import check
from calibrate.graph.placement import Layer, Placement, place
from calibrate.graph.precision import is_always_fp32, layer_precisions, nodes_in
from calibrate.graph.preparation import prepare
from calibrate.graph.qdq import quantize_weight
from calibrate.graph.scales import nodes_with_fp32_scales, scales_in_file
from calibrate.graph.switch import SWITCHES, switchable
from calibrate.graph.torch_export import export_module, export_torch
from calibrate.graph.weights import edited

__all__ = [
    "SWITCHES",
    "Layer",
    "Placement",
    "apply",
    "apply_checked",
    "check",
    "count_nodes",
    "edited",
    "export_module",
    "export_torch",
    "is_always_fp32",
    "layer_precisions",
    "nodes_in",
    "nodes_with_fp32_scales",
    "place",
    "prepare",
    "quantize_weight",
    "scales_in_file",
    "switchable",
]
