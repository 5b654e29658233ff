"""Brings a float model into the form that quantization needs, with onnx_ir's and onnxscript's own passes."""

from __future__ import annotations

import warnings

import onnx_ir as ir
from onnx_ir.passes.common import (
    LiftConstantsToInitializersPass,
    NameFixPass,
    RemoveInitializersFromInputsPass,
    RemoveUnusedNodesPass,
    ShapeInferencePass,
    TopologicalSortPass,
)

from validate.exceptions import JobError

__all__ = ["MIN_OPSET", "prepare"]

MIN_OPSET = 19
"""First opset in which QuantizeLinear takes fp16."""


def prepare(model: ir.Model) -> ir.Model:
    """Return the model at opset >= 19 with constants and BatchNorm folded, shapes inferred, every node named.

    The given model is used up. Raises JobError where it holds Q/DQ already or cannot be converted.
    """
    from onnxscript import optimizer, rewriter, version_converter
    from onnxscript.rewriter.rules.common import (
        fuse_batchnorm_into_conv_rule,
        fuse_batchnorm_into_conv_transpose_rule,
        fuse_batchnorm_into_gemm_rule,
    )

    if any(node.op_type in {"QuantizeLinear", "DequantizeLinear"} for node in model.graph):
        raise JobError("the model holds QuantizeLinear nodes already; give the float model")
    if model.opset_imports.get("", MIN_OPSET) < MIN_OPSET:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # onnxscript says that it falls back to onnx's own converter
            version_converter.convert_version(model, MIN_OPSET, fallback=True)
        if model.opset_imports[""] < MIN_OPSET:
            raise JobError(
                f"the model cannot be converted from opset {model.opset_imports['']} to {MIN_OPSET}; "
                "export it again with a newer opset"
            )
    optimizer.optimize_ir(model)
    rules = [fuse_batchnorm_into_conv_rule, fuse_batchnorm_into_conv_transpose_rule, fuse_batchnorm_into_gemm_rule]
    rewriter.rewrite(model, rules)
    passes = ir.passes.Sequential(
        RemoveInitializersFromInputsPass(),
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        RemoveUnusedNodesPass(),
        TopologicalSortPass(),
        NameFixPass(),
        ShapeInferencePass(),
    )
    return passes(model).model
