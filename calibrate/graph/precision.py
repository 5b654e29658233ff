"""Types the float nodes: FP16 or BF16 where a plan says so, with casts only where the type changes."""

from __future__ import annotations

from typing import cast

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from calibrate.plan import QuantizationPlan
from validate.number_formats import NUMBER_FORMATS, FloatPrecision, Precision

__all__ = [
    "BF16_OPSET",
    "assign_precision",
    "float_precision",
    "is_always_fp32",
    "layer_precisions",
    "nodes_in",
    "precision_of",
]

BF16_OPSET = 22
"""First opset in which convolutions and pooling take bfloat16."""

_FP32_ONLY = frozenset(
    {
        "Cast",
        "CastLike",
        "Celu",
        "ConstantOfShape",
        "DynamicQuantizeLinear",
        "EyeLike",
        "IsInf",
        "MeanVarianceNormalization",
        "NonMaxSuppression",
        "QLinearConv",
        "QLinearMatMul",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Range",
        "Resize",
        "TfIdfVectorizer",
        "Upsample",
    }
)
"""Ops whose output type is an attribute, or with float inputs that ONNX fixes to float32, and the one that the builder
of TensorRT-RTX 1.7 takes in no other type (MeanVarianceNormalization)."""

_NO_BF16_IN_ONNX = frozenset(
    {
        "Compress",
        "ConcatFromSequence",
        "Einsum",
        "OneHot",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "ReverseSequence",
        "Scatter",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceInsert",
        "SequenceMap",
        "Shrink",
        "SplitToSequence",
        "TopK",
        "Unique",
    }
)
"""Ops that have no bf16 by ONNX's schemas at `BF16_OPSET`."""

_NO_BF16_IN_TENSORRT = frozenset(
    {
        "ConvTranspose",
        "GRU",
        "GlobalLpPool",
        "HardSwish",
        "LpNormalization",
        "LpPool",
        "Mean",
        "Mish",
    }
)
"""Ops that the builder of TensorRT-RTX 1.7 does not take in bf16; it takes all of them in fp16. And Mean, which gives
zeros with 1.6.1 on an H200 (docs/fp16.md)."""

_KEEPS_ROUNDED = frozenset(
    {
        # The product of an int8 and a scale is not rounded: TensorRT fuses it into the layer.
        "DequantizeLinear",
        # What these give is one of the values that they take, or its negative: rounded already.
        "Abs",
        "Clip",
        "Concat",
        "DepthToSpace",
        "Dropout",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "GlobalMaxPool",
        "Identity",
        "Max",
        "MaxPool",
        "Min",
        "Neg",
        "Pad",
        "ReduceMax",
        "ReduceMin",
        "Relu",
        "Reshape",
        "ScatterElements",
        "ScatterND",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "TopK",
        "Transpose",
        "Trilu",
        "Unsqueeze",
        "Where",
    }
)
"""Ops whose output a simulation need not round."""

_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def assign_precision(model: ir.Model, plan: QuantizationPlan, simulate: bool) -> None:
    """Give every float node its type, in place; the graph's inputs and outputs keep theirs.

    Args:
        model: float32, with the plan's Q/DQ already in it.
        plan: has the precision of every node.
        simulate: keep all arithmetic in float32, and round the outputs of each fp16 or bf16 node, by a Cast there and
            back, and its constants. ONNX Runtime's CPU has no fp16 kernels and would compute such nodes in float32
            without rounding between them (100 * 1000 / 1000 gives 100 where fp16 gives inf); bf16 nodes it refuses.
    """
    graph = model.graph
    # A float32 value in another type (simulated: rounded to it, in float32), and the tensor that it was cast from.
    typed: dict[tuple[ir.Value, FloatPrecision], ir.Value] = {}
    origin: dict[ir.Value, ir.Value] = {}

    def converted(value: ir.Value, precision: FloatPrecision) -> ir.Value:
        if (value, precision) not in typed:
            if value.is_initializer():
                typed[value, precision] = _rounded_constant(graph, value, precision, simulate)
            else:
                typed[value, precision] = _cast(value, origin.get(value, value), precision, simulate)
        return typed[value, precision]

    for node, precision in [(node, float_precision(node, plan)) for node in graph]:
        if precision == "fp32":
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype == ir.DataType.FLOAT:
                node.replace_input_with(index, converted(value, precision))
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT:
                if simulate and node.op_type in _KEEPS_ROUNDED:
                    typed[output, precision] = output
                    continue
                single = _return_to_float(node, output, precision, simulate)
                typed[single, precision] = single if simulate else output
                if not simulate:
                    origin[single] = output
    RemoveUnusedNodesPass()(model)


def float_precision(node: ir.Node, plan: QuantizationPlan) -> FloatPrecision:
    """Return the float type in which a node takes and gives its tensors; an int8 layer has one too.

    A node that cannot have the type that the plan names is fp32: its values leave FP16's range
    (`QuantizationPlan.wide_nodes`), its scales are float32 (`QuantizationPlan.fp32_scales`), or ONNX or TensorRT has no
    bf16 there.

    Examples:
        >>> from calibrate.plan import Origin
        >>> plan = QuantizationPlan(name="p", strategy="none", origin=Origin(model_sha256="0" * 64), scales={},
        ...                         layers={}, float_precision="fp16", wide_nodes={"large"})
        >>> [float_precision(ir.node("Mul", [], name=name), plan) for name in ("small", "large")]
        ['fp16', 'fp32']
    """
    if is_always_fp32(node):
        return "fp32"
    if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:  # belong to what reads them, which is of one type
        return float_precision(next(iter(node.outputs[0].uses())).node, plan)
    wanted = plan.layers.get(str(node.name), plan.float_precision)
    precision = plan.float_precision if NUMBER_FORMATS[wanted].scaled else cast("FloatPrecision", wanted)
    if precision == "fp16" and node.name in plan.wide_nodes:
        return "fp32"
    if node.name in plan.fp32_scales and _reads_scales(node, plan):
        return "fp32"
    if precision == "bf16" and node.op_type in _NO_BF16_IN_ONNX | _NO_BF16_IN_TENSORRT:
        return "fp32"
    return precision


def precision_of(node: ir.Node, plan: QuantizationPlan) -> Precision:
    """Return the precision of a node of a prepared model: int8, or its float type; see `float_precision`."""
    wanted = plan.layers.get(str(node.name))
    return wanted if wanted is not None and NUMBER_FORMATS[wanted].scaled else float_precision(node, plan)


def layer_precisions(model: ir.Model, plan: QuantizationPlan) -> dict[str, Precision]:
    """Return the precision in which the ONNX file computes each of the plan's layers, by node name.

    It may differ from that in `QuantizationPlan.layers`; see `float_precision`.

    Args:
        model: what `prepare` returned; not changed.
        plan: for this model.

    Examples:
        >>> import onnx_ir as ir
        >>> model = ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 19]>
        ...     net (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { [product] y = MatMul(x, w) }''')
        >>> from calibrate.plan import Origin
        >>> plan = QuantizationPlan(name="fp16", strategy="none", origin=Origin(model_sha256="0" * 64), scales={},
        ...                         layers={"product": "fp16"}, wide_nodes={"product"})
        >>> layer_precisions(model, plan)
        {'product': 'fp32'}
    """
    return {str(node.name): precision_of(node, plan) for node in model.graph if node.name in plan.layers}


def nodes_in(precision: Precision, model: ir.Model, plan: QuantizationPlan) -> list[str]:
    """Return the names of the nodes that a plan computes in a precision, in topological order.

    Nodes without a float tensor (shape arithmetic) are not among them.

    Args:
        precision: int8, or a float type.
        model: what `prepare` returned; not changed.
        plan: for this model.

    Examples:
        >>> import onnx_ir as ir
        >>> model = ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 19]>
        ...     net (float[2] x) => (float[2] z) { [square] y = Mul(x, x) [turn] z = Neg(y) }''')
        >>> from calibrate.plan import Origin
        >>> plan = QuantizationPlan(name="p", strategy="none", origin=Origin(model_sha256="0" * 64), scales={},
        ...                         layers={}, float_precision="fp16", wide_nodes={"square"})
        >>> nodes_in("fp16", model, plan)
        ['turn']
    """
    return [
        str(node.name)
        for node in model.graph
        if precision_of(node, plan) == precision
        and any(value is not None and value.dtype == ir.DataType.FLOAT for value in (*node.inputs, *node.outputs))
    ]


def is_always_fp32(node: ir.Node) -> bool:
    """Return whether a node's float tensors are float32 in every plan.

    Examples:
        >>> is_always_fp32(ir.node("Resize", [])), is_always_fp32(ir.node("Conv", []))
        (True, False)
    """
    return node.op_type in _FP32_ONLY or any(attribute.type in _GRAPHS for attribute in node.attributes.values())


def _reads_scales(node: ir.Node, plan: QuantizationPlan) -> bool:
    """Return whether a node is an int8 layer, or no layer and behind one, as a residual Add is."""
    makers = [value.producer() for value in node.inputs if value is not None]
    readers = [node] if node.name in plan.layers else [maker for maker in makers if maker is not None]
    precisions = [plan.layers.get(str(reader.name)) for reader in readers]
    return any(precision is not None and NUMBER_FORMATS[precision].scaled for precision in precisions)


def _rounded_constant(graph: ir.Graph, value: ir.Value, precision: FloatPrecision, simulate: bool) -> ir.Value:
    """Return the constant in `precision`; what is finite stays so (a mask of -3.4e38 times 0 would be NaN)."""
    assert value.const_value is not None
    array, kind = value.const_value.numpy(), NUMBER_FORMATS[precision]
    rounded = np.where(np.isfinite(array), np.clip(array, kind.lowest, kind.largest), array).astype(kind.numpy)
    tensor = ir.tensor(rounded.astype(np.float32) if simulate else rounded)
    constant = ir.Value(name=f"{value.name}/{precision}", const_value=tensor)
    constant.dtype, constant.shape = tensor.dtype, value.shape
    graph.register_initializer(constant)
    return constant


def _cast(value: ir.Value, source: ir.Value, precision: FloatPrecision, simulate: bool) -> ir.Value:
    """Return `value` in `precision`, cast right behind the producer of `source`, which holds the same."""
    name, kind = str(value.name), ir.DataType[NUMBER_FORMATS[precision].onnx]
    nodes = [ir.node("Cast", [source], {"to": kind}, name=f"{name}/to_{precision}")]
    _name_output(nodes[0], f"{name}/{precision}", value, kind)
    if simulate:
        nodes.append(ir.node("Cast", [nodes[0].outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{name}/from_{precision}"))
        _name_output(nodes[1], f"{name}/rounded_to_{precision}", value, ir.DataType.FLOAT)
    graph, producer = value.graph, source.producer()
    assert isinstance(graph, ir.Graph)
    if producer is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(producer, nodes)
    return nodes[-1].outputs[0]


def _return_to_float(node: ir.Node, output: ir.Value, precision: FloatPrecision, simulate: bool) -> ir.Value:
    """Type the output of `node` in `precision`, and return the float32 cast of it, which all users of `output` read.

    The float32 tensor takes over the name, so that layers can be compared by it.
    """
    graph, kind = node.graph, ir.DataType[NUMBER_FORMATS[precision].onnx]
    assert isinstance(graph, ir.Graph)
    name = str(output.name)
    back = ir.node("Cast", [output], {"to": ir.DataType.FLOAT}, name=f"{name}/to_fp32")
    nodes = [back]
    if simulate:
        there = ir.node("Cast", [output], {"to": kind}, name=f"{name}/to_{precision}")
        _name_output(there, f"{name}/{precision}", output, kind)
        back.replace_input_with(0, there.outputs[0])
        nodes.insert(0, there)
    _name_output(back, "", output, ir.DataType.FLOAT)
    replaced = back.outputs[0]
    output.replace_all_uses_with(replaced, replace_graph_outputs=True)
    nodes[0].replace_input_with(0, output)  # the line above rewired it too
    output.name = f"{name}/raw"
    # A new type, since a clone shares its type objects with the model that it was cloned from.
    output.type = ir.TensorType(ir.DataType.FLOAT if simulate else kind)
    replaced.name = name
    graph.insert_after(node, nodes)
    return replaced


def _name_output(node: ir.Node, name: str, like: ir.Value, dtype: ir.DataType) -> None:
    value = node.outputs[0]
    value.name, value.dtype, value.shape = name or None, dtype, like.shape
