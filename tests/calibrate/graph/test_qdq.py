"""The Q/DQ nodes that a plan becomes, and what they compute, against numpy."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import ValidationError

from calibrate.graph.application import apply
from calibrate.graph.placement import place
from calibrate.graph.qdq import quantize_weight
from calibrate.plan.origin import Origin
from calibrate.plan.quantization_plan import QuantizationRules
from calibrate.strategies.planning import make_plan as plan_from_statistics
from validate.backends.onnx_files import serialize
from validate.backends.onnxruntime import OnnxRuntimeModel
from validate.stats.histograms import Statistics

IMAGE = "g (float[N, 4, 8, 8] x) => (float[N, C, 8, 8] y)"
CONV = "Conv <pads = [1, 1, 1, 1]>"


def fake_quantized(x, scale):
    """What Q/DQ computes, by its definition."""
    return np.clip(np.rint(x / np.float32(scale)), -128, 127) * np.float32(scale)


def fake_quantized_weight(weight, axis):
    """The same for a weight: channel after channel, and rounded by Python, which rounds halves to even."""
    result = np.empty_like(weight)
    for channel in range(weight.shape[axis]):
        index = (slice(None),) * axis + (channel,)
        values = weight[index]
        scale = np.float32(np.abs(values).max() / np.float32(127)) or np.float32(1)
        result[index] = np.array([scale * min(max(round(float(v / scale)), -128), 127) for v in values.flat]).reshape(
            values.shape
        )
    return result


def convolution(x, w, pad=1, group=1):
    """A plain Conv with stride 1, in float64."""
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = sliding_window_view(x, w.shape[2:], axis=(2, 3))
    per_group = [
        np.einsum("nchwij,ocij->nohw", part, kernel)
        for part, kernel in zip(np.split(windows, group, axis=1), np.split(w.astype(np.float64), group), strict=True)
    ]
    return np.concatenate(per_group, axis=1)


def transposed_convolution(x, w, pad=1):
    """ConvTranspose with stride 1 is Conv with the kernel turned around and its first two axes swapped."""
    return convolution(x, w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3), pad=w.shape[2] - 1 - pad)


def producers(model):
    return {output: node for node in model.graph.node for output in node.output}


def initializers(model):
    return {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}


def deployed(plan, model, placement):
    """Return the written file, read back and found valid by ONNX itself."""
    result = onnx.load_from_string(serialize(apply(plan, model, placement)))
    onnx.checker.check_model(result, full_check=True)
    return result


@pytest.mark.parametrize(
    ("node", "weight_shape", "axis", "compute"),
    [
        (f"{CONV} (x, w, b)", (6, 4, 3, 3), 0, convolution),
        ("Conv <pads = [1, 1, 1, 1], group = 4> (x, w, b)", (4, 1, 3, 3), 0, lambda x, w: convolution(x, w, group=4)),
        ("Conv <pads = [1, 1, 1, 1], group = 2> (x, w, b)", (6, 2, 3, 3), 0, lambda x, w: convolution(x, w, group=2)),
        ("ConvTranspose <pads = [1, 1, 1, 1]> (x, w, b)", (4, 6, 3, 3), 1, transposed_convolution),
        ("Gemm (x, w, b)", (4, 6), 1, lambda x, w: x @ w),
        ("Gemm <transB = 1> (x, w, b)", (6, 4), 0, lambda x, w: x @ w.T),
        ("Gemm <alpha = 0.5, beta = 2.0> (x, w, b)", (4, 6), 1, lambda x, w: 0.5 * (x @ w)),
        ("MatMul (x, w)", (4, 6), 1, lambda x, w: x @ w),
    ],
    ids=["conv", "depthwise", "grouped", "transposed", "gemm", "gemm-transB", "gemm-alpha-beta", "matmul"],
)
def test_float_simulation_computes_what_numpy_computes(prepared, normal, make_plan, node, weight_shape, axis, compute):
    """The bias is not quantized, and values beyond the scale's range are clipped."""
    image = "Conv" in node
    shape = (3, 4, 8, 8) if image else (5, 4)
    weight, x = normal(*weight_shape), 1.5 * normal(*shape)
    outputs = compute(x, weight).shape[1]
    bias = normal(outputs)
    dimensions = ("N, 4, 8, 8", f"N, {outputs}, 8, 8") if image else ("N, 4", f"N, {outputs}")
    graph = f"g (float[{dimensions[0]}] x) => (float[{dimensions[1]}] y) {{ y = {node} }}"
    model = prepared(graph, w=weight, **({"b": bias} if ", b)" in node else {}))
    placement = place(model)
    scale = 0.011
    assert (np.abs(x) > 128 * scale).mean() > 0.1, "a good part of the values is clipped"

    quantized = apply(make_plan(placement, scale), model, placement)
    actual = OnnxRuntimeModel(serialize(quantized), "float").run({"x": x})["y"]

    expected = compute(fake_quantized(x, scale), fake_quantized_weight(weight, axis))
    if ", b)" in node:
        factor = 2 if "beta" in node else 1
        expected = expected + factor * bias.reshape(-1, *(1,) * (x.ndim - 2))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)
    unquantized = OnnxRuntimeModel(serialize(model), "float").run({"x": x})["y"]
    assert np.abs(unquantized - expected).max() > 0.1, "quantization must show, or nothing is tested"


def test_nodes_of_a_small_network(prepared, normal, make_plan):
    """Q/DQ in front of each convolution, none behind it, and the activation function is next to it."""
    graph = f"{IMAGE} {{ [one] a = {CONV} (x, w, b) r = Relu(a) [two] y = {CONV} (r, v, b) }}"
    model = prepared(graph, w=normal(4, 4, 3, 3), v=normal(4, 4, 3, 3), b=normal(4))
    placement = place(model)
    result = deployed(make_plan(placement, {"x": 0.02, "r": 0.03}), model, placement)
    made_by, constants = producers(result), initializers(result)

    def follow(tensor):
        node = made_by.get(tensor)
        return [tensor] if node is None else [node.op_type, *follow(node.input[0])]

    assert follow("y") == [
        "Conv",
        "DequantizeLinear",
        "QuantizeLinear",
        "Relu",
        "Conv",
        "DequantizeLinear",
        "QuantizeLinear",
        "x",
    ]
    assert [node.op_type for node in result.graph.node].count("DequantizeLinear") == 4
    for name, tensor, scale, weight in (("one", "x", 0.02, "w"), ("two", "r", 0.03, "v")):
        node = next(n for n in result.graph.node if n.name == name)
        activation, kernel = made_by[node.input[0]], made_by[node.input[1]]
        quantize = made_by[activation.input[0]]
        assert quantize.input[0] == tensor
        assert [constants[i] for i in quantize.input[1:]] == [np.float32(scale), 0]
        assert [constants[i] for i in activation.input[1:]] == [np.float32(scale), 0]
        int8, scales, zeros = (constants[i] for i in kernel.input)
        assert int8.dtype == zeros.dtype == np.int8
        assert scales.shape == zeros.shape == (4,)
        assert not zeros.any()
        assert [a.i for a in kernel.attribute if a.name == "axis"] == [0]
        assert node.input[2] == "b", "the bias stays float"
        assert constants["b"].dtype == np.float32
        assert weight not in constants, "the float weight is not in the file any more"


def test_only_int8_layers_are_quantized(prepared, normal, make_plan):
    graph = "g (float[N, 4] x) => (float[N, 4] y) { [one] a = MatMul(x, w) [two] y = MatMul(a, v) }"
    model = prepared(graph, w=normal(4, 4), v=normal(4, 4))
    placement = place(model)
    result = deployed(make_plan(placement, layers={"one": "fp32"}), model, placement)
    quantized = [node.input[0] for node in result.graph.node if node.op_type == "QuantizeLinear"]
    assert quantized == ["a"]
    assert next(node for node in result.graph.node if node.name == "one").input == ["x", "w"]


@pytest.mark.parametrize("int8", [{"first", "second"}, {"first"}, {"second"}, set()])
def test_residual_between_two_convolutions(prepared, normal, make_plan, int8):
    graph = f"{IMAGE} {{ [first] a = {CONV} (x, w) [second] b = {CONV} (x, v) [add] s = Add(a, b) y = Relu(s) }}"
    model = prepared(graph, w=normal(4, 4, 3, 3), v=normal(4, 4, 3, 3))
    placement = place(model)
    layers = {name: "int8" if name in int8 else "fp32" for name in ("first", "second")}
    result = deployed(make_plan(placement, layers=layers), model, placement)
    made_by = producers(result)
    add = next(node for node in result.graph.node if node.name == "add")
    branches = [made_by[name] for name in add.input]
    dequantized = [node for node in branches if node.op_type == "DequantizeLinear"]
    fused = {node.name for node in branches if node.op_type == "Conv"}
    if int8:
        assert len(dequantized) == len(fused) == 1
        assert fused <= int8
        quantize = made_by[dequantized[0].input[0]]
        assert {made_by[quantize.input[0]].name} == {"first", "second"} - fused
    else:
        assert fused == {"first", "second"}


class TestSharedTensors:
    """The float consumers of a tensor that int8 layers take too get the float tensor."""

    SCALE = 0.5  # so coarse that a mistake shows

    def run(self, prepared, make_plan, graph, inputs, **constants):
        model = prepared(graph, **constants)
        placement = place(model)
        quantized = apply(make_plan(placement, self.SCALE), model, placement)
        assert sum(node.op_type == "QuantizeLinear" for node in quantized.graph) == 1
        return OnnxRuntimeModel(serialize(quantized), "float").run(inputs)

    def test_float_node_and_graph_output(self, prepared, normal, make_plan):
        graph = """g (float[N, 4] x) => (float[N, 6] y, float[N, 4] r, float[N, 4] t) {
            r = Relu(x)
            y = MatMul(r, w)
            t = Tanh(r)
        }"""
        x, w = normal(5, 4), normal(4, 6)
        outputs = self.run(prepared, make_plan, graph, {"x": x}, w=w)
        relu = np.maximum(x, 0)
        expected = fake_quantized(relu, self.SCALE) @ fake_quantized_weight(w, 1)
        np.testing.assert_array_equal(outputs["r"], relu)
        np.testing.assert_allclose(outputs["t"], np.tanh(relu), atol=1e-6)
        np.testing.assert_allclose(outputs["y"], expected, atol=1e-5)

    @pytest.mark.parametrize("flag", [True, False])
    def test_consumer_inside_a_subgraph(self, prepared, normal, make_plan, flag):
        graph = """g (float[N, 4] x, bool flag) => (float[N, 6] y, float[N, 4] z) {
            r = Relu(x)
            y = MatMul(r, w)
            z = If (flag) <then_branch = yes () => (float[N, 4] p) { p = Neg(r) },
                           else_branch = no () => (float[N, 4] q) { q = Sqrt(r) }>
        }"""
        x, w = normal(5, 4), normal(4, 6)
        outputs = self.run(prepared, make_plan, graph, {"x": x, "flag": np.array(flag)}, w=w)
        relu = np.maximum(x, 0)
        expected = fake_quantized(relu, self.SCALE) @ fake_quantized_weight(w, 1)
        np.testing.assert_allclose(outputs["z"], -relu if flag else np.sqrt(relu), atol=1e-6)
        np.testing.assert_allclose(outputs["y"], expected, atol=1e-5)

    def test_graph_input_that_is_used_three_times(self, prepared, normal, make_plan):
        """Quantized once; each int8 consumer has a DequantizeLinear of its own, so that TensorRT can fuse each."""
        graph = """g (float[N, 4] x) => (float[N, 6] y, float[N, 6] z, float[N, 4] n) {
            [one] y = MatMul(x, w)
            [two] z = MatMul(x, v)
            n = Neg(x)
        }"""
        x, w, v = normal(5, 4), normal(4, 6), normal(4, 6)
        model = prepared(graph, w=w, v=v)
        placement = place(model)
        result = deployed(make_plan(placement, self.SCALE), model, placement)
        made_by = producers(result)
        mine = {n.name: made_by[n.input[0]] for n in result.graph.node if n.op_type == "MatMul"}
        assert mine["one"].name != mine["two"].name
        assert mine["one"].input[0] == mine["two"].input[0]
        outputs = self.run(prepared, make_plan, graph, {"x": x}, w=w, v=v)
        np.testing.assert_array_equal(outputs["n"], -x)
        for name, weight in (("y", w), ("z", v)):
            expected = fake_quantized(x, self.SCALE) @ fake_quantized_weight(weight, 1)
            np.testing.assert_allclose(outputs[name], expected, atol=1e-5)


class TestSharedWeights:
    def test_two_convolutions_with_one_weight(self, prepared, normal, make_plan):
        graph = f"{IMAGE} {{ a = {CONV} (x, w) r = Relu(a) y = {CONV} (r, w) }}"
        x, w = normal(2, 4, 8, 8), normal(4, 4, 3, 3)
        model = prepared(graph, w=w)
        placement = place(model)
        result = deployed(make_plan(placement, {"x": 0.02, "r": 0.1}), model, placement)
        stored = [a for a in initializers(result).values() if a.shape == w.shape]
        assert [a.dtype for a in stored] == [np.int8], "one int8 weight, and no float one"
        kernel = fake_quantized_weight(w, 0)
        middle = np.maximum(convolution(fake_quantized(x, 0.02), kernel), 0).astype(np.float32)
        outputs = OnnxRuntimeModel(result.SerializeToString()).run({"x": x})
        np.testing.assert_allclose(outputs["y"], convolution(fake_quantized(middle, 0.1), kernel), atol=1e-4)

    def test_one_weight_along_both_axes(self, prepared, normal, make_plan):
        """A MatMul and a Gemm with transB want it quantized along different axes."""
        graph = """g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) {
            y = MatMul(x, w)
            z = Gemm <transB = 1> (x, w)
        }"""
        x, w = normal(5, 4), normal(4, 4) * np.float32([1, 10, 100, 1000])
        model = prepared(graph, w=w)
        placement = place(model)
        outputs = OnnxRuntimeModel(serialize(apply(make_plan(placement), model, placement))).run({"x": x})
        quantized = fake_quantized(x, 0.05)
        for name, expected in {
            "y": quantized @ fake_quantized_weight(w, 1),
            "z": quantized @ fake_quantized_weight(w, 0).T,
        }.items():
            np.testing.assert_allclose(outputs[name], expected, rtol=0, atol=1e-6 * np.abs(expected).max())

    def test_weight_of_a_matrix_product_that_is_looked_up_too(self, prepared, normal, make_plan):
        """As in a language model with tied embeddings: Gather gets the float rows."""
        graph = """g (float[N, 4] x, int64[K] rows) => (float[N, 6] y, float[K, 6] e) {
            y = MatMul(x, w)
            e = Gather(w, rows)
        }"""
        x, w, rows = normal(5, 4), normal(4, 6), np.array([3, 1])
        model = prepared(graph, w=w)
        placement = place(model)
        quantized = apply(make_plan(placement), model, placement)
        outputs = OnnxRuntimeModel(serialize(quantized)).run({"x": x, "rows": rows})
        np.testing.assert_array_equal(outputs["e"], w[rows])
        expected = fake_quantized(x, 0.05) @ fake_quantized_weight(w, 1)
        np.testing.assert_allclose(outputs["y"], expected, atol=1e-5)


def test_tensors_that_a_concat_joins_get_the_widest_scale(prepared, normal):
    graph = """g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y, float[N, 4, 8, 8] z) {
        a = Relu(x)
        b = Neg(x)
        p = Conv(a, w1)
        j = Concat <axis = 1> (a, b)
        y = Conv(j, w2)
        s = Conv(b, w1)
        z = Add(p, s)
    }"""
    model = prepared(graph, w1=normal(4, 4, 1, 1), w2=normal(4, 8, 1, 1))
    placement = place(model)
    ranges = {"a": 3.0, "b": 10.0, "j": 10.0}
    statistics = {}
    for tensor in placement.tensors():
        statistics[tensor] = Statistics()
        statistics[tensor].update(np.linspace(0, ranges.get(tensor, 20.0), 100, dtype=np.float32))
    plan = plan_from_statistics("minmax", statistics, placement, Origin(model_sha256="0"), QuantizationRules())
    result = deployed(plan, model, placement)
    constants = initializers(result)
    scales = {n.input[0]: constants[n.input[1]] for n in result.graph.node if n.op_type == "QuantizeLinear"}
    assert scales["a"] == scales["b"] == scales["j"] == np.float32(10 / 127)
    assert scales["p"] == np.float32(20 / 127)


class TestWeights:
    @pytest.mark.parametrize(("shape", "axis"), [((6, 4, 3, 3), 0), ((4, 6, 3, 3), 1), ((5, 7), 1), ((5, 7), 0)])
    def test_like_the_definition(self, prepared, normal, make_plan, shape, axis):
        weight = normal(*shape)
        int8, scales = quantize_weight(weight, axis, make_plan(_no_layers()), "fp32")
        assert (int8.dtype, scales.dtype, scales.shape) == (np.int8, np.float32, (shape[axis],))
        broadcast = scales.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        np.testing.assert_array_equal(int8 * broadcast, fake_quantized_weight(weight, axis).astype(np.float32))
        assert (np.abs(int8).max(axis=tuple(i for i in range(len(shape)) if i != axis)) == 127).all()

    def test_halves_are_rounded_to_even(self, make_plan):
        weight = np.float32([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]])  # the scale is 1
        int8, scales = quantize_weight(weight, 0, make_plan(_no_layers()), "fp32")
        assert scales == [1]
        assert int8.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126]]

    def test_a_channel_of_zeros(self, prepared, normal, make_plan):
        weight = normal(6, 4, 3, 3)
        weight[2] = 0
        int8, scales = quantize_weight(weight, 0, make_plan(_no_layers()), "fp32")
        assert scales[2] == 1
        assert not int8[2].any()
        model = prepared(f"{IMAGE} {{ y = {CONV} (x, w) }}", w=weight)
        placement = place(model)
        result = deployed(make_plan(placement), model, placement)
        y = OnnxRuntimeModel(result.SerializeToString()).run({"x": normal(1, 4, 8, 8)})["y"]
        assert np.isfinite(y).all()
        assert not y[:, 2].any()
        assert y[:, 3].any()

    def test_scales_fit_the_float_type_of_the_layer(self, make_plan):
        """The int8 values belong to the scale that is written, not to the one before it was rounded to fp16."""
        weight = np.float32([[1e-5, -1e-5, 5e-6], [0.1, 0.07, -0.03]])
        int8, scales = quantize_weight(weight, 0, make_plan(_no_layers()), "fp16")
        np.testing.assert_array_equal(scales, scales.astype(np.float16).astype(np.float32))
        smallest = float(np.float16(2**-24))
        assert scales[0] == smallest, "1e-5 / 127 is between fp16's two smallest numbers"
        assert int8[0].tolist() == [127, -128, round(5e-6 / smallest)], "beyond the range is clipped"
        assert scales[1] == np.float16(0.1 / 127)
        assert int8[1].tolist() == [round(float(w / scales[1])) for w in weight[1]]

    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    @pytest.mark.parametrize("value", [1e-45, 1e-12, 3e38])
    def test_no_weight_gets_a_scale_of_zero_or_infinity(self, make_plan, precision, value):
        weight = np.full((2, 3), value, np.float32)
        _, scales = quantize_weight(weight, 0, make_plan(_no_layers()), precision)
        assert (scales > 0).all()
        assert np.isfinite(scales.astype(np.float16 if precision == "fp16" else np.float32)).all()


def _no_layers():
    from calibrate.graph.placement import Placement

    return Placement((), (), (), {}, frozenset())


class TestScales:
    @pytest.mark.parametrize("scale", [0.0, -0.1, math.inf, -math.inf, math.nan])
    def test_a_plan_with_a_scale_that_is_none_is_refused(self, prepared, normal, make_plan, scale):
        placement = place(prepared("g (float[N, 4] x) => (float[N, 6] y) { y = MatMul(x, w) }", w=normal(4, 6)))
        with pytest.raises(ValidationError, match=r"scale of x is .*; it must be positive and finite"):
            make_plan(placement, {"x": scale})

    @pytest.mark.parametrize(
        ("scale", "precision", "written"),
        [
            (0.1, "fp32", np.float32(0.1)),
            (0.1, "fp16", np.float32(np.float16(0.1))),
            (1e-12, "fp16", np.float32(2**-24)),
            (1e-60, "fp32", np.float32(2**-126)),
            (1e6, "fp16", np.float32(65504)),
            (1e60, "fp32", np.finfo(np.float32).max),
        ],
    )
    def test_scales_fit_the_float_type_of_the_layer(self, prepared, normal, make_plan, scale, precision, written):
        model = prepared("g (float[N, 4] x) => (float[N, 6] y) { y = MatMul(x, w) }", w=normal(4, 6))
        placement = place(model)
        result = deployed(make_plan(placement, scale, float_precision=precision), model, placement)
        constants, made_by = initializers(result), producers(result)
        quantize = next(node for node in result.graph.node if node.op_type == "QuantizeLinear")
        dequantize = next(node for node in made_by.values() if node.input[0] == quantize.output[0])
        assert constants[quantize.input[1]] == constants[dequantize.input[1]] == written

    def test_tensors_of_the_model_that_are_called_like_ours(self, prepared, normal, make_plan):
        """A model may have a `zero_point` of its own, or an `x/scale`: it is neither used nor lost."""
        graph = """g (float[N, 4] x) => (float[N, 6] y) {
            p = MatMul(x, w)
            q = Mul(p, factor)
            y = Add(q, zero_point)
        }"""
        w, x, offset = normal(4, 6), normal(5, 4), normal(6)
        model = prepared(graph, w=w, factor=np.float32(3), zero_point=offset)
        model.graph.initializers["factor"].name = "x/scale"  # the text format has no slashes in names
        placement = place(model)
        result = deployed(make_plan(placement, 0.02), model, placement)
        y = OnnxRuntimeModel(result.SerializeToString()).run({"x": x})["y"]
        expected = fake_quantized(x, 0.02) @ fake_quantized_weight(w, 1) * 3 + offset
        np.testing.assert_allclose(y, expected, atol=1e-4)
