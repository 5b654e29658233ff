"""What the user decides of a plan: exclusions, attention, weights per tensor; and the plan's file that carries it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from calibrate.graph.application import apply
from calibrate.graph.checker import check
from calibrate.graph.placement import Placement, ResidualInput, place
from calibrate.plan.origin import Origin
from calibrate.plan.quantization_plan import Exclusion, QuantizationPlan, QuantizationRules
from calibrate.strategies.planning import plan_of_scales
from validate.backends.onnx_files import serialize, write_onnx
from validate.backends.onnxruntime import OnnxRuntimeModel
from validate.backends.tensorrt import build
from validate.exceptions import JobError

Array = NDArray[Any]
Normal = Callable[..., NDArray[np.float32]]
Prepared = Callable[..., ir.Model]

ORIGIN = Origin(model_sha256="0")
CONV = "Conv <pads = [1, 1, 1, 1]>"
CHAIN = """g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) {
    [block_0_fc] a = MatMul(x, w1)
    [block_0_act] r = Relu(a)
    [block_1_fc] b = MatMul(r, w2)
    [block_1_skip] s = Add(b, x)
    [block_10_fc] y = Gemm(s, w3)
    [head] z = MatMul(r, w4)
}"""


@pytest.fixture
def chain(prepared: Prepared, normal: Normal) -> ir.Model:
    """Return three matrix products and a Gemm; `r` is the input of two of them."""
    return prepared(CHAIN, **{f"w{i}": normal(4, 4) for i in range(1, 5)})


def excluding(**what: list[str]) -> QuantizationRules:
    return QuantizationRules(exclude=Exclusion(**what))


def plan_of(placement: Placement, rules: QuantizationRules, scale: float = 0.05, **scales: float) -> QuantizationPlan:
    """Return the plan, made as the product makes it, with one scale for all tensors but those named."""
    every = dict.fromkeys(placement.tensors(), scale) | scales
    return plan_of_scales("by hand", every, placement, ORIGIN, rules)


def quantized(model: ir.Model, rules: QuantizationRules, scale: float = 0.05, simulate: bool = False) -> ir.Model:
    placement = place(model, rules)
    return apply(plan_of(placement, rules, scale), model, placement, simulate)


def file_of(model: ir.Model) -> onnx.ModelProto:
    """Return the model as it is read back from its file, valid by ONNX's own judgement."""
    result = onnx.load_from_string(serialize(model))
    onnx.checker.check_model(result, full_check=True)
    return result


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def quantized_tensors(model: onnx.ModelProto) -> list[str]:
    return [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]


def constant(model: onnx.ModelProto, name: str) -> Array:
    return onnx.numpy_helper.to_array(next(i for i in model.graph.initializer if i.name == name))


def dequantizer(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto:
    """Return the DequantizeLinear that makes a tensor."""
    node = next(node for node in model.graph.node if tensor in node.output)
    assert node.op_type == "DequantizeLinear"
    return node


def fake_quantized(x: Array, scale: float | np.float32) -> Array:
    """What Q/DQ computes, by its definition, in float64."""
    exact = np.float64(np.float32(scale))
    return np.clip(np.rint(x / np.float32(scale)), -128, 127).astype(np.float64) * exact


def per_column(weight: Array) -> Array:
    """Return the weight of a MatMul as int8 holds it, a scale per output feature."""
    return np.stack([fake_quantized(column, np.abs(column).max() / np.float32(127)) for column in weight.T], axis=1)


class TestExclusion:
    @pytest.mark.parametrize(
        ("what", "excluded"),
        [
            ({"names": ["block_1_fc"]}, {"block_1_fc"}),
            ({"names": ["head", "block_1_skip"]}, {"head", "block_1_skip"}),
            ({"patterns": ["block_1"]}, {"block_1_fc", "block_1_skip", "block_10_fc"}),
            ({"patterns": ["^block_1_"]}, {"block_1_fc", "block_1_skip"}),
            ({"patterns": ["_fc$"]}, {"block_0_fc", "block_1_fc", "block_10_fc"}),
            ({"patterns": ["(?i)HEAD", "act"]}, {"head", "block_0_act"}),
            ({"op_types": ["Gemm"]}, {"block_10_fc"}),
            ({"op_types": ["MatMul", "Relu"]}, {"block_0_fc", "block_0_act", "block_1_fc", "head"}),
            (
                {"names": ["head"], "patterns": ["0_fc"], "op_types": ["Add"]},
                {"head", "block_0_fc", "block_10_fc", "block_1_skip"},
            ),
        ],
    )
    def test_what_is_excluded_stays_in_float(
        self, chain: ir.Model, what: dict[str, list[str]], excluded: set[str]
    ) -> None:
        everything = {"block_0_fc", "block_1_fc", "block_10_fc", "head"}
        rules = excluding(**what)
        placement = place(chain, rules)
        assert placement.excluded == excluded
        assert {layer.node for layer in placement.layers} == everything - excluded
        assert placement.left_in_float == dict.fromkeys(everything & excluded, "excluded by quantization.exclude")
        assert set(plan_of(placement, rules).layers) == everything - excluded
        graph = file_of(quantized(chain, rules)).graph
        fed_by_int8 = {node.name for node in graph.node if any(name.endswith(f"/{node.name}") for name in node.input)}
        assert fed_by_int8 == everything - excluded

    @pytest.mark.parametrize("simulate", [False, True])
    def test_an_excluded_node_gets_the_float_tensor_that_an_int8_layer_shares(
        self, chain: ir.Model, normal: Normal, simulate: bool
    ) -> None:
        """`r` goes to `block_1_fc` in int8 and to the head in float; the scale is so coarse that a mistake shows."""
        result = file_of(quantized(chain, excluding(names=["head"]), 0.5, simulate))
        assert list(node_of(result, "head").input) == ["r", "w4"]
        assert constant(result, "w4").dtype == np.float32
        assert quantized_tensors(result) == ["x", "r", "s"]
        weights = {name: chain.graph.initializers[name].const_value.numpy() for name in ("w1", "w2", "w3", "w4")}
        x = normal(9, 4)
        a = fake_quantized(x, 0.5) @ per_column(weights["w1"])
        r = np.maximum(a, 0).astype(np.float32)
        s = (fake_quantized(r, 0.5) @ per_column(weights["w2"]) + x).astype(np.float32)
        outputs = OnnxRuntimeModel(result.SerializeToString()).run({"x": x})
        np.testing.assert_allclose(outputs["z"], r @ weights["w4"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(outputs["y"], fake_quantized(s, 0.5) @ per_column(weights["w3"]), rtol=0, atol=1e-5)
        int8_head = OnnxRuntimeModel(serialize(quantized(chain, QuantizationRules(), 0.5))).run({"x": x})["z"]
        assert np.abs(int8_head - r @ weights["w4"]).max() > 0.1, "in int8 the head gives something else"

    @pytest.mark.parametrize("what", [{"names": ["conv"]}, {"names": ["add"]}, {"op_types": ["Add"]}])
    def test_an_excluded_residual_is_not_quantized(
        self, prepared: Prepared, normal: Normal, what: dict[str, list[str]]
    ) -> None:
        """Neither where the Add is excluded, nor where the convolution is that would fuse into it."""
        graph = f"""g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {{
            [first] a = {CONV} (x, w)
            [conv] c = {CONV} (a, v)
            n = Neg(a)
            [add] y = Add(c, n)
        }}"""
        model = prepared(graph, w=normal(4, 4, 3, 3), v=normal(4, 4, 3, 3))
        assert place(model).residuals == (ResidualInput("add", 1, "n", "conv"),)
        rules = excluding(**what)
        placement = place(model, rules)
        assert placement.residuals == ()
        result = quantized(model, rules)
        assert list(node_of(file_of(result), "add").input) == ["c", "n"]
        assert quantized_tensors(file_of(result)) == (["x"] if "conv" in placement.excluded else ["x", "a"])
        assert check(result, placement.excluded) == []

    def test_the_other_convolution_takes_the_place_of_an_excluded_one(self, prepared: Prepared, normal: Normal) -> None:
        """The Add fuses into the last convolution, unless that one stays in float."""
        graph = f"""g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {{
            [first] a = {CONV} (x, w) [second] b = {CONV} (x, v) [add] y = Add(a, b)
        }}"""
        model = prepared(graph, w=normal(4, 4, 3, 3), v=normal(4, 4, 3, 3))
        assert quantized_tensors(file_of(quantized(model, QuantizationRules()))) == ["x", "a"]
        result = file_of(quantized(model, excluding(names=["second"])))
        assert quantized_tensors(result) == ["x", "b"]
        assert list(node_of(result, "second").input) == ["x", "v"]
        assert node_of(result, "add").input[0] == "a"

    @pytest.mark.parametrize("exclude", [False, True])
    def test_an_excluded_concat_joins_no_scales(self, prepared: Prepared, normal: Normal, exclude: bool) -> None:
        graph = """g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] p, float[N, 4, 8, 8] y) {
            a = Relu(x)
            b = Neg(x)
            p = Conv(a, w1)
            [concat] j = Concat <axis = 1> (a, b)
            y = Conv(j, w2)
        }"""
        model = prepared(graph, w1=normal(4, 4, 1, 1), w2=normal(4, 8, 1, 1))
        rules = excluding(op_types=["Concat"]) if exclude else QuantizationRules()
        placement = place(model, rules)
        assert placement.scale_groups() == ([] if exclude else [frozenset({"a", "j"})])
        plan = plan_of(placement, rules, a=0.01, j=0.04)
        assert plan.scales == ({"a": 0.01, "j": 0.04} if exclude else {"a": 0.04, "j": 0.04})
        result = apply(plan, model, placement)
        assert list(node_of(file_of(result), "concat").input) == ["a", "b"]
        assert check(result, placement.excluded) == []
        assert bool(check(result)) == exclude, "to one who knows of no exclusion, that Concat is a mistake"

    @pytest.mark.parametrize(
        ("what", "message"),
        [
            ({"names": ["block_1_fx"]}, r"exclude\.names: no node is called 'block_1_fx'; did you mean 'block_1_fc'\?"),
            ({"names": ["head", "nothing at all"]}, r"exclude\.names: no node is called 'nothing at all' \("),
            ({"patterns": ["_fc$", "^fc"]}, r"exclude\.patterns: '\^fc' is in no node's name"),
            ({"op_types": ["Gemm", "Conv"]}, r"exclude\.op_types: the model has no Conv"),
            ({"op_types": ["gemm"]}, r"exclude\.op_types: the model has no gemm"),
        ],
    )
    def test_what_matches_nothing_is_a_mistake(self, chain: ir.Model, what: dict[str, list[str]], message: str) -> None:
        with pytest.raises(JobError, match=rf"^quantization\.{message}") as error:
            place(chain, excluding(**what))
        assert "\n" not in str(error.value)
        assert str(error.value).endswith("(python -m calibrate inspect lists the nodes)")

    @pytest.mark.parametrize("pattern", ["(", "block[", "*fc"])
    def test_a_pattern_that_is_no_regular_expression(self, pattern: str) -> None:
        with pytest.raises(ValidationError, match="is not a regular expression"):
            Exclusion(patterns=["fine", pattern])


class TestAttention:
    GRAPH = """g (float[N, 6, 4] x) => (float[N, 6, 6] y) {
        [query] q = MatMul(x, wq)
        [key] k = MatMul(x, wk)
        [turn] t = Transpose <perm = [0, 2, 1]> (k)
        [product] y = MatMul(q, t)
    }"""
    ON = QuantizationRules(attention=True)

    @pytest.fixture
    def model(self, prepared: Prepared, normal: Normal) -> ir.Model:
        return prepared(self.GRAPH, wq=normal(4, 4), wk=normal(4, 4))

    def test_off_unless_asked_for(self, model: ir.Model) -> None:
        placement = place(model)
        assert [layer.node for layer in placement.layers] == ["query", "key"]
        assert "quantization.attention: true" in placement.left_in_float["product"]
        assert list(node_of(file_of(quantized(model, QuantizationRules())), "product").input) == ["q", "t"]

    @pytest.mark.parametrize("simulate", [False, True])
    def test_both_inputs_are_quantized(self, model: ir.Model, normal: Normal, simulate: bool) -> None:
        placement = place(model, self.ON)
        assert placement.left_in_float == {}
        assert set(placement.tensors()) == {"x", "q", "t"}
        plan = plan_of(placement, self.ON, x=0.03, q=0.05, t=0.11)
        result = apply(plan, model, placement, simulate)
        proto = file_of(result)
        assert check(result) == []
        for tensor, scale in zip(node_of(proto, "product").input, (0.05, 0.11), strict=True):
            node = dequantizer(proto, tensor)
            assert constant(proto, node.input[1]) == np.float32(scale)
            assert not node.attribute, "per tensor"
        x = normal(3, 6, 4)
        wq, wk = (model.graph.initializers[name].const_value.numpy() for name in ("wq", "wk"))
        q, k = (fake_quantized(x, 0.03) @ per_column(w) for w in (wq, wk))
        left, right = (fake_quantized(v.astype(np.float32), s) for v, s in ((q, 0.05), (k, 0.11)))
        expected = left @ right.transpose(0, 2, 1)
        y = OnnxRuntimeModel(proto.SerializeToString()).run({"x": x})["y"]
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-4)
        assert np.abs(q @ k.transpose(0, 2, 1) - expected).max() > 0.1, "quantization must show"

    def test_one_tensor_that_is_both_inputs(self, prepared: Prepared, normal: Normal) -> None:
        graph = "g (float[N, 4, 4] x) => (float[N, 4, 4] y) { r = Relu(x) [square] y = MatMul(r, r) }"
        model = prepared(graph)
        assert place(model).layers == ()
        assert place(model, self.ON).tensors() == ("r",)
        result = file_of(quantized(model, self.ON, 0.3))
        assert quantized_tensors(result) == ["r"]
        for tensor in node_of(result, "square").input:
            assert dequantizer(result, tensor).input[0] == "r/quantized"
        x = normal(3, 4, 4)
        r = fake_quantized(np.maximum(x, 0), 0.3)
        y = OnnxRuntimeModel(result.SerializeToString()).run({"x": x})["y"]
        np.testing.assert_allclose(y, r @ r, rtol=0, atol=1e-5)

    def test_an_exclusion_prevails(self, model: ir.Model) -> None:
        rules = QuantizationRules(attention=True, exclude=Exclusion(names=["product"]))
        assert place(model, rules).left_in_float == {"product": "excluded by quantization.exclude"}
        assert list(node_of(file_of(quantized(model, rules)), "product").input) == ["q", "t"]


PER_TENSOR = QuantizationRules(weights="per_tensor")


class TestPerTensorWeights:
    @pytest.mark.parametrize(
        ("node", "shape", "product"),
        [
            ("Conv", (6, 4, 1, 1), "nchw,ocij->nohw"),
            ("Gemm <transB = 1>", (6, 4), "nc,oc->no"),
            ("Gemm", (4, 6), "nc,co->no"),
            ("MatMul", (4, 6), "nc,co->no"),
        ],
    )
    def test_one_scale_for_the_whole_weight(
        self, prepared: Prepared, normal: Normal, node: str, shape: tuple[int, ...], product: str
    ) -> None:
        """Channels of very different size, so that one scale gives another result than one per channel would."""
        w = normal(*shape) * np.logspace(-2, 0, shape[0], dtype=np.float32).reshape(-1, *[1] * (len(shape) - 1))
        size = ", 5, 5" if node == "Conv" else ""
        graph = f"g (float[N, 4{size}] x) => (float[N, 6{size}] y) {{ [layer] y = {node} (x, w) }}"
        result = quantized(prepared(graph, w=w), PER_TENSOR, 0.02)
        proto = file_of(result)
        assert check(result) == []
        dequantize = dequantizer(proto, node_of(proto, "layer").input[1])
        assert not dequantize.attribute, "an axis belongs to a vector of scales"
        int8, scale, zero_point = (constant(proto, name) for name in dequantize.input)
        expected_scale = np.abs(w).max() / np.float32(127)
        assert scale.shape == zero_point.shape == ()
        assert (scale, zero_point, int8.dtype) == (expected_scale, 0, np.int8)
        weight = fake_quantized(w, expected_scale)
        np.testing.assert_array_equal(int8 * np.float64(scale), weight)
        x = normal(3, 4, 5, 5) if size else normal(3, 4)
        y = OnnxRuntimeModel(proto.SerializeToString()).run({"x": x})["y"]
        np.testing.assert_allclose(y, np.einsum(product, fake_quantized(x, 0.02), weight), rtol=0, atol=1e-5)


@pytest.mark.parametrize("float_precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    "rules",
    [
        {"attention": True},
        {"weights": "per_tensor"},
        {"exclude": {"names": ["conv"], "op_types": ["Concat"], "patterns": ["^que"]}},
        {"attention": True, "weights": "per_tensor", "exclude": {"names": ["add"]}},
    ],
    ids=["attention", "per-tensor", "excluded", "all"],
)
def test_tensorrt_builds_it(
    prepared: Prepared, normal: Normal, tmp_path: Path, rules: dict[str, Any], float_precision: str
) -> None:
    """Two convolutions with a residual and a Concat, then attention over their pixels."""
    pytest.importorskip("tensorrt_rtx", reason="asks TensorRT's own builder; pip install tensorrt-rtx")
    graph = f"""g (float[N, 8, 4, 4] x) => (float[N, 16, 16] y) {{
        [first] a = {CONV} (x, w)
        r = Relu(a)
        [conv] c = {CONV} (r, v)
        [add] s = Add(c, r)
        [concat] j = Concat <axis = 1> (s, r)
        f = Reshape(j, rows)
        [query] q = MatMul(f, wq)
        [key] k = MatMul(f, wk)
        t = Transpose <perm = [0, 2, 1]> (k)
        [product] p = MatMul(q, t)
        y = Softmax(p)
    }}"""
    shapes = {"w": (8, 8, 3, 3), "v": (8, 8, 3, 3), "wq": (16, 16), "wk": (16, 16)}
    model = prepared(graph, rows=np.array([0, 16, 16]), **{name: normal(*shape) for name, shape in shapes.items()})
    wishes = QuantizationRules(float_precision=float_precision, **rules)
    placement = place(model, wishes)
    result = quantized(model, wishes)
    assert check(result, placement.excluded) == []
    assert ("product" in {layer.node for layer in placement.layers}) == wishes.attention
    write_onnx(result, tmp_path / "model.onnx")
    built = build(tmp_path / "model.onnx", {"x": ((1, 8, 4, 4), (2, 8, 4, 4), (4, 8, 4, 4))}, "8.9")
    assert built.ok, built.message


class TestPlanFile:
    RULES = QuantizationRules(
        float_precision="fp16",
        weights="per_tensor",
        attention=True,
        exclude=Exclusion(names=["head"], patterns=["^block_1_fc$"], op_types=["Add"]),
    )

    def test_what_is_read_is_what_was_written(self, chain: ir.Model, tmp_path: Path) -> None:
        """With it the rules, so that the same nodes stay in float and the same file comes out."""
        placement = place(chain, self.RULES)
        plan = plan_of(placement, self.RULES, x=0.1, r=1 / 3, s=1e-7)
        plan.write(tmp_path / "plan.json")
        read = QuantizationPlan.read(tmp_path / "plan.json")
        assert read == plan
        assert read.hash == plan.hash
        assert {name: getattr(read, name) for name in QuantizationRules.model_fields} == dict(self.RULES)
        again = place(chain, read)
        assert again == placement != place(chain)
        assert serialize(apply(read, chain, again)) == serialize(apply(plan, chain, placement))

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (lambda text: text[: len(text) // 2], r"is not a plan: Invalid JSON"),
            (lambda _: "", r"is not a plan: Invalid JSON"),
            (lambda _: "[]", r"is not a plan: Input should be an object"),
            (lambda text: json.dumps(json.loads(text) | {"zero_point": 3}), r"is not a plan: zero_point: Extra inputs"),
            (lambda text: text.replace('"per_channel"', '"per_row"'), r"is not a plan: weights: Input should be"),
            (lambda text: text.replace("0.05", "-0.05", 1), r"is not a plan: scales: .*must be positive and finite"),
            (lambda text: text.replace('"patterns": []', '"patterns": ["("]'), r"is not a plan: exclude\.patterns: "),
            (lambda text: text.replace(f'"{ORIGIN.version}"', '"0.0.7"'), r"was made by version 0\.0\.7 .* again"),
        ],
    )
    def test_what_is_no_plan_of_ours(
        self, chain: ir.Model, tmp_path: Path, edit: Callable[[str], str], message: str
    ) -> None:
        path = tmp_path / "plan.json"
        plan_of(place(chain), QuantizationRules()).write(path)
        QuantizationPlan.read(path)
        path.write_text(edit(path.read_text()))
        with pytest.raises(JobError, match=message) as error:
            QuantizationPlan.read(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_plan_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(JobError, match=r"nowhere\.json cannot be read: No such file"):
            QuantizationPlan.read(tmp_path / "nowhere.json")
