"""Good quantized graphs pass; a graph that breaks one rule yields exactly that violation."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from calibrate.graph.application import apply
from calibrate.graph.checker import check
from calibrate.graph.placement import place

CONV = "Conv <pads = [1, 1, 1, 1]>"
GRAPH = f"""g (float[N, 4, 8, 8] x) => (float[N, 6] y) {{
    [stem] c = {CONV} (x, w1, b)
    [relu] r = Relu(c)
    [block] d = {CONV} (r, w2, b)
    [add] s = Add(d, r)
    [concat] j = Concat <axis = 1> (s, r)
    [up] t = ConvTranspose (j, w3)
    [pool] p = GlobalAveragePool(t)
    [flatten] f = Flatten(p)
    [head] y = Gemm <transB = 1> (f, w4, v)
}}"""


@pytest.fixture
def parts(prepared, normal):
    shapes = {"w1": (4, 4, 3, 3), "w2": (4, 4, 3, 3), "w3": (8, 5, 2, 2), "w4": (6, 5), "b": (4,), "v": (6,)}
    model = prepared(GRAPH, **{name: normal(*shape) for name, shape in shapes.items()})
    return model, place(model)


@pytest.fixture
def good(parts, make_plan):
    model, placement = parts
    return apply(make_plan(placement), model, placement)


def node(model: ir.Model, name: str) -> ir.Node:
    return next(n for n in model.graph if n.name == name)


def source(value: ir.Value | None) -> ir.Node:
    assert value is not None
    producer = value.producer()
    assert producer is not None
    return producer


def constant(model: ir.Model, name: str, array) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array))
    model.graph.register_initializer(value)
    return value


def set_constant(model: ir.Model, user: ir.Node, index: int, array) -> None:
    """Give one node a constant of its own, and leave the others that share the old one as they are."""
    user.replace_input_with(index, constant(model, f"{user.name}/own{index}", array))


def quantize_dequantize(model: ir.Model, value: ir.Value, users: list[ir.Node], scale=0.05) -> ir.Node:
    """Put a per-tensor Q/DQ pair between a tensor and some of its users; return the QuantizeLinear."""
    inputs = [constant(model, f"{value.name}/s", np.float32(scale)), constant(model, f"{value.name}/z", np.int8(0))]
    quantize = ir.node("QuantizeLinear", [value, *inputs], name=f"{value.name}/Q")
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], *inputs], name=f"{value.name}/DQ")
    for user in users:
        for index, old in enumerate(user.inputs):
            if old is value:
                user.replace_input_with(index, dequantize.outputs[0])
    producer = value.producer()
    if producer is None:
        model.graph.insert_before(users[0], [quantize, dequantize])
    else:
        model.graph.insert_after(producer, [quantize, dequantize])
    return quantize


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_apply_writes_is_good(parts, make_plan, precision):
    """All in int8, all in float, and every layer left out or alone; as it is deployed and as it is simulated."""
    model, placement = parts
    names = [layer.node for layer in placement.layers]
    assert names == ["stem", "block", "up", "head"]
    assert len(placement.residuals) == len(placement.scale_groups()) == 1
    for float_layers in [(), names, *([name] for name in names), *([n for n in names if n != name] for name in names)]:
        for simulate in (False, True):
            plan = make_plan(placement, layers=dict.fromkeys(float_layers, "fp16"), float_precision=precision)
            assert check(apply(plan, model, placement, simulate)) == []


def test_the_float_model_is_good(parts):
    assert check(parts[0]) == []


@pytest.mark.parametrize(
    ("scale", "problem"),
    [
        (0.0, "not positive and finite"),
        (-0.05, "not positive and finite"),
        (np.nan, "not positive and finite"),
        (np.inf, "not positive and finite"),
    ],
)
@pytest.mark.parametrize("of_weight", [False, True], ids=["activation", "weight"])
def test_scale(good, scale, problem, of_weight):
    dequantize = source(node(good, "block").inputs[1 if of_weight else 0])
    broken = np.float32([0.1, scale, 0.1, 0.1]) if of_weight else np.float32(scale)
    set_constant(good, dequantize, 1, broken)
    assert check(good) == [f"{dequantize.name}: a scale is {problem}"]


def test_scale_of_a_quantize_linear(good):
    quantize = source(source(node(good, "head").inputs[0]).inputs[0])
    assert quantize.op_type == "QuantizeLinear"
    set_constant(good, quantize, 1, np.float32(0))
    assert check(good) == [f"{quantize.name}: a scale is not positive and finite"]


def test_computed_scale(good):
    """As in dynamic quantization, which TensorRT does not take for int8."""
    quantize = source(source(node(good, "head").inputs[0]).inputs[0])
    maximum = ir.node("ReduceMax", [quantize.inputs[0]], {"keepdims": 0}, name="maximum")
    good.graph.insert_before(quantize, maximum)
    quantize.replace_input_with(1, maximum.outputs[0])
    assert check(good) == [f"{quantize.name}: the scale is not a constant"]


@pytest.mark.parametrize(
    ("zero_point", "problem"),
    [(np.int8(3), "the zero point is not 0"), (np.uint8(0), "there is no int8 zero point")],
)
def test_zero_point(good, zero_point, problem):
    quantize = source(source(node(good, "block").inputs[0]).inputs[0])
    set_constant(good, quantize, 2, zero_point)
    assert check(good) == [f"{quantize.name}: {problem}"]


def test_missing_zero_point(good):
    """Without one, ONNX means uint8."""
    quantize = source(source(node(good, "block").inputs[0]).inputs[0])
    quantize.resize_inputs(2)
    assert check(good) == [f"{quantize.name}: there is no int8 zero point"]


def test_zero_point_of_one_weight_channel(good):
    dequantize = source(node(good, "block").inputs[1])
    set_constant(good, dequantize, 2, np.int8([0, 0, 1, 0]))
    assert check(good) == [f"{dequantize.name}: the zero point is not 0"]


@pytest.mark.parametrize(("layer", "wrong", "channels"), [("block", 1, 4), ("up", 0, 8), ("head", 1, 5)])
def test_weight_axis(good, layer, wrong, channels):
    dequantize = source(node(good, layer).inputs[1])
    dequantize.attributes["axis"] = ir.AttrInt64("axis", wrong)
    set_constant(good, dequantize, 1, np.full(channels, 0.1, np.float32))
    set_constant(good, dequantize, 2, np.zeros(channels, np.int8))
    assert check(good) == [f"{layer}: the weight is quantized along axis {wrong}, not along its output channels"]


@pytest.mark.parametrize(("layer", "axis"), [("block", 0), ("up", 1), ("head", 0)])
def test_weight_axis_counted_from_the_end(good, layer, axis):
    """The same axis, written as a negative number, is good."""
    dequantize = source(node(good, layer).inputs[1])
    dequantize.attributes["axis"] = ir.AttrInt64("axis", axis - (2 if layer == "head" else 4))
    assert check(good) == []


def test_number_of_weight_scales(good):
    dequantize = source(node(good, "head").inputs[1])
    set_constant(good, dequantize, 1, np.full(5, 0.1, np.float32))
    assert check(good) == ["head: 5 weight scales for 6 channels"]


def test_weight_per_tensor_is_good(good):
    dequantize = source(node(good, "block").inputs[1])
    set_constant(good, dequantize, 1, np.float32(0.1))
    set_constant(good, dequantize, 2, np.int8(0))
    assert check(good) == []


def test_activation_per_channel(good):
    quantize = source(source(node(good, "block").inputs[0]).inputs[0])
    set_constant(good, quantize, 1, np.full(4, 0.05, np.float32))
    assert check(good) == [f"{quantize.name}: an activation is quantized per channel"]


def test_float_weight_behind_its_own_pair_is_good(parts, good):
    """Other tools leave the weight in float and quantize it in the graph, per channel."""
    block = node(good, "block")
    dequantize = source(block.inputs[1])
    weight = constant(good, "float_weight", parts[0].graph.initializers["w2"].const_value.numpy())
    quantize = ir.node("QuantizeLinear", [weight, *dequantize.inputs[1:]], {"axis": 0}, name="weight/Q")
    good.graph.insert_before(dequantize, quantize)
    dequantize.replace_input_with(0, quantize.outputs[0])
    assert check(good) == []


def test_quantized_bias(good):
    stem = node(good, "stem")
    bias = constant(good, "int8_bias", np.int8([1, 2, 3, 4]))
    inputs = [bias, constant(good, "s", np.float32(0.1)), constant(good, "z", np.int8(0))]
    dequantize = ir.node("DequantizeLinear", inputs, name="bias/DQ")
    good.graph.insert_before(stem, dequantize)
    stem.replace_input_with(2, dequantize.outputs[0])
    assert check(good) == ["stem: its bias is quantized"]


def test_pair_between_a_convolution_and_its_activation(good):
    relu = node(good, "relu")
    quantize = quantize_dequantize(good, relu.inputs[0], [relu])
    assert check(good) == [f"{quantize.name}: stands between stem and relu, which fuse"]


@pytest.mark.parametrize("index", [0, 1])
def test_one_input_quantized(parts, good, index):
    head = node(good, "head")
    original = node(parts[0], "head").inputs[index]
    values = {value.name: value for n in good.graph for value in n.outputs}
    if index == 0:
        head.replace_input_with(0, values[original.name])
    else:
        head.replace_input_with(1, constant(good, "float_weight", original.const_value.numpy()))
    assert check(good) == ["head: only one of its two inputs is quantized"]


def test_residual_in_float(good):
    add = node(good, "add")
    relu = node(good, "relu").outputs[0]
    assert source(add.inputs[1]).op_type == "DequantizeLinear"
    add.replace_input_with(1, relu)
    assert check(good) == [f"add: residual input {relu.name} is not quantized, so block leaves in high precision"]


@pytest.mark.parametrize("int8", ["first", "second"])
def test_residual_where_a_float_convolution_is_the_other_branch(prepared, normal, make_plan, int8):
    """The branch that is int8 fuses with the Add, whichever comes first."""
    graph = f"""g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {{
        [first] a = {CONV} (x, w1) [second] b = {CONV} (x, w2) [add] y = Add(a, b)
    }}"""
    model = prepared(graph, w1=normal(4, 4, 3, 3), w2=normal(4, 4, 3, 3))
    placement = place(model)
    other = {"first": "second", "second": "first"}[int8]
    quantized = apply(make_plan(placement, layers={other: "fp16"}, float_precision="fp16"), model, placement)
    assert check(quantized) == []
    add = node(quantized, "add")
    index = next(i for i, value in enumerate(add.inputs) if source(value).op_type == "DequantizeLinear")
    add.replace_input_with(index, source(source(add.inputs[index]).inputs[0]).inputs[0])
    (violation,) = check(quantized)
    assert violation.startswith("add: residual input")
    assert violation.endswith(f"so {int8} leaves in high precision")


@pytest.mark.parametrize(
    ("outputs", "body"),
    [
        ("float[N, 4, 8, 8] y", f"c = {CONV} (x, w) p = GlobalAveragePool(x) y = Add(c, p)"),
        ("float[N, 4, 8, 8] y", f"c = {CONV} (x, w) y = Add(c, offset)"),
        ("float[N, 4, 8, 8] c, float[N, 4, 8, 8] y", f"c = {CONV} (x, w) y = Add(c, x)"),
        ("float[N, 4, 8, 8] y", f"c = {CONV} (x, w) r = Relu(c) y = Add(r, x)"),
        ("float[N, 4, 8, 8] y", f"c = {CONV} (x, w) n = Neg(c) s = Add(c, x) y = Add(s, n)"),
        ("float[N, 4, 8, 8] y", "m = MatMul(x, v) y = Add(m, x)"),
    ],
    ids=["broadcast", "bias", "graph-output", "activation-between", "used-twice", "matrix-product"],
)
def test_an_add_that_does_not_fuse_needs_no_quantized_input(prepared, normal, make_plan, outputs, body):
    constants = {"w": normal(4, 4, 3, 3), "v": normal(8, 8), "offset": normal(1, 4, 8, 8)}
    used = {name: array for name, array in constants.items() if f" {name})" in body}
    model = prepared(f"g (float[N, 4, 8, 8] x) => ({outputs}) {{ {body} }}", **used)
    placement = place(model)
    assert check(apply(make_plan(placement), model, placement)) == []


def test_scales_of_a_concat(good):
    concat = node(good, "concat")
    quantize = source(source(node(good, "up").inputs[0]).inputs[0])
    assert quantize.inputs[0] is concat.outputs[0]
    set_constant(good, quantize, 1, np.float32(0.06))
    assert check(good) == ["concat: its inputs and its output have different scales"]


def test_inputs_of_a_concat_that_is_not_quantized_itself(prepared, normal, make_plan):
    """They are quantized for other layers, and each may have its own scale."""
    graph = """g (float[N, 4, 8, 8] x) => (float[N, 8, 8, 8] j, float[N, 4, 8, 8] p, float[N, 4, 8, 8] q) {
        a = Relu(x) b = Neg(x)
        p = Conv(a, w1) q = Conv(b, w2)
        j = Concat <axis = 1> (a, b)
    }"""
    model = prepared(graph, w1=normal(4, 4, 1, 1), w2=normal(4, 4, 1, 1))
    placement = place(model)
    assert check(apply(make_plan(placement, {"a": 0.1, "b": 0.2}), model, placement)) == []


def test_a_cast_behind_dequantize_linear_is_looked_through(good):
    """As other tools write int8 layers with fp16 around them."""
    head = node(good, "head")
    for index in (0, 1):
        cast = ir.node("Cast", [head.inputs[index]], {"to": ir.DataType.FLOAT}, name=f"cast{index}")
        good.graph.insert_before(head, cast)
        head.replace_input_with(index, cast.outputs[0])
        assert check(good) == []


def test_every_violation_is_reported(good):
    """One sentence for each rule that is broken, not the first only."""
    quantize = source(source(node(good, "up").inputs[0]).inputs[0])
    set_constant(good, quantize, 2, np.int8(1))
    set_constant(good, quantize, 1, np.float32(0.06))
    relu = node(good, "relu")
    between = quantize_dequantize(good, relu.inputs[0], [relu])
    assert sorted(check(good)) == sorted(
        [
            f"{quantize.name}: the zero point is not 0",
            "concat: its inputs and its output have different scales",
            f"{between.name}: stands between stem and relu, which fuse",
        ]
    )
