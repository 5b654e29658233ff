"""Brings a float model into the form that quantization needs, with onnx_ir's and onnxscript's own passes."""

from __future__ import annotations

import logging

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

# It warns of every conversion, which is for those who configure logging.
logging.getLogger("onnxscript").addHandler(logging.NullHandler())

MIN_OPSET = 19
"""First opset in which QuantizeLinear takes fp16."""

_NO_LIMIT = 2**62
"""A weight of any size that is computed from constants (a Cast, a product) becomes a constant itself."""

_OPAQUE_DOMAIN = "calibrate.aside"
"""Domain that hides nodes from the optimizer: it takes numbers within 1e-8 of 0 for 0, and so x + 1e-12 for x. But
where x is 0, this sum keeps a norm from dividing by 0."""


def prepare(model: ir.Model) -> ir.Model:
    """Return the model at opset >= 19 with constants and BatchNorm folded, shapes inferred, every node named.

    Args:
        model: float, without Q/DQ; it is changed, and not to be used afterwards.

    Raises:
        JobError: the model holds Q/DQ already, or cannot be converted to opset 19.

    Examples:
        >>> import onnx_ir as ir
        >>> model = ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 17]>
        ...     net (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }''')
        >>> prepared = prepare(model)
        >>> prepared.opset_imports[""], all(node.name for node in prepared.graph)
        (19, True)
    """
    from onnxscript import optimizer, rewriter, version_converter
    from onnxscript.rewriter.rules.common import (
        fuse_batchnorm_into_conv_rule,
        fuse_batchnorm_into_conv_transpose_rule,
        fuse_batchnorm_into_gemm_rule,
    )

    if any(node.op_type in {"QuantizeLinear", "DequantizeLinear"} for node in model.graph.all_nodes()):
        raise JobError("the model holds QuantizeLinear nodes already; give the float model")
    RemoveInitializersFromInputsPass()(model)  # or the BatchNorm of files older than IR version 4 is not folded
    if model.opset_imports.get("", MIN_OPSET) < MIN_OPSET:
        version_converter.convert_version(model, MIN_OPSET, fallback=True)
        if model.opset_imports[""] < MIN_OPSET:
            raise JobError(
                f"the model cannot be converted from opset {model.opset_imports['']} to {MIN_OPSET}; "
                "export it again with a newer opset"
            )
    names, epsilons = _fused_names(model), [node for node in model.graph if _adds_an_epsilon(node)]
    if epsilons:
        ShapeInferencePass()(model)  # the optimizer cannot infer what nodes give that it does not know
    for node in epsilons:
        node.domain = _OPAQUE_DOMAIN
    optimizer.optimize_ir(model, input_size_limit=_NO_LIMIT)
    for node in epsilons:
        node.domain = ""
    rules = [fuse_batchnorm_into_conv_rule, fuse_batchnorm_into_conv_transpose_rule, fuse_batchnorm_into_gemm_rule]
    rewriter.rewrite(model, rules)
    for node in model.graph:
        if node.op_type != "BatchNormalization":
            node.name = names.get(str(node.outputs[0].name), node.name)
    passes = ir.passes.Sequential(
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        RemoveUnusedNodesPass(),
        TopologicalSortPass(),
        NameFixPass(),
        ShapeInferencePass(),
    )
    return passes(model).model


def _adds_an_epsilon(node: ir.Node) -> bool:
    """Return whether a node adds or subtracts a constant that is almost 0."""
    if node.domain or node.op_type not in {"Add", "Sub"}:
        return False
    constants = [ir.convenience.get_const_tensor(value) for value in node.inputs if value is not None]
    numbers = [float(tensor.numpy().reshape(())) for tensor in constants if tensor is not None and tensor.size == 1]
    return any(0 < abs(number) < 1e-6 for number in numbers)


def _fused_names(model: ir.Model) -> dict[str, str]:
    """Return the name of the layer that each BatchNorm fuses into, by the BatchNorm's output.

    The rewriter gives a fused layer a new name or none, and users know the layer by its old name.
    """
    fused = {}
    for node in model.graph:
        layer = node.inputs[0].producer() if node.op_type == "BatchNormalization" and node.inputs[0] else None
        if layer is not None and layer.name:
            fused[str(node.outputs[0].name)] = layer.name
    return fused
