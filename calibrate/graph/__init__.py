"""Graph changes, each a small pass over an onnx_ir model with one job.

`prepare` makes a float model ready, `place` says where Q/DQ belongs, `apply` writes a plan, and `check` verifies the
result without knowing the plan.
"""

from __future__ import annotations

from calibrate.graph.application import apply, count_nodes
from calibrate.graph.checker import check
from calibrate.graph.placement import Layer, Placement, place
from calibrate.graph.precision import FORMATS, is_always_fp32, layer_precisions
from calibrate.graph.preparation import prepare
from calibrate.graph.switch import SWITCHES, switchable
from calibrate.graph.torch_export import export_torch

__all__ = [
    "FORMATS",
    "SWITCHES",
    "Layer",
    "Placement",
    "apply",
    "check",
    "count_nodes",
    "export_torch",
    "is_always_fp32",
    "layer_precisions",
    "place",
    "prepare",
    "switchable",
]
