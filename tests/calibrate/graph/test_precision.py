"""fp16: what types the deployed model has, and what the simulated one computes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto

from calibrate.graph.apply import apply, count_nodes
from calibrate.graph.placement import Placement, place
from calibrate.graph.precision import float_precision
from calibrate.graph.prepare import MIN_OPSET
from validate.backends.onnxruntime import OnnxRuntimeModel
from validate.onnxfile import serialize

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16

CHAIN = """g (float[N, 4] x) => (float[N, 4] y) {
    [one] a = MatMul(x, w1)
    [relu] r = Relu(a)
    [two] b = MatMul(r, w2)
    [tanh] t = Tanh(b)
    [three] y = MatMul(t, w3)
}"""


def half(array):
    """Round to fp16 and back."""
    with np.errstate(over="ignore"):
        return np.asarray(array).astype(np.float16).astype(np.float32)


@pytest.fixture
def weights(normal):
    return {name: normal(4, 4) for name in ("w1", "w2", "w3")}


class Written:
    """A deployed model, written and read back, that ONNX and ONNX Runtime both take."""

    def __init__(self, plan, model, placement):
        self.model = onnx.load_from_string(serialize(apply(plan, model, placement)))
        onnx.checker.check_model(self.model, full_check=True)
        onnxruntime.InferenceSession(self.model.SerializeToString(), providers=["CPUExecutionProvider"])
        inferred = onnx.shape_inference.infer_shapes(self.model, strict_mode=True).graph
        self.types = {i.name: i.data_type for i in inferred.initializer}
        for value in (*inferred.input, *inferred.value_info, *inferred.output):
            self.types[value.name] = value.type.tensor_type.elem_type
        self.nodes = {node.name: node for node in self.model.graph.node}
        self.made_by = {output: node for node in self.model.graph.node for output in node.output}

    def float_types(self, name):
        """Return the float types of a node's inputs and outputs, without their order."""
        node = self.nodes[name]
        return {self.types[name] for name in (*node.input, *node.output) if name} & {FLOAT, HALF}

    @property
    def casts(self):
        """Return (what it casts, from what, to what) of every Cast, in order."""
        return [
            (self.made_by[n.input[0]].name if n.input[0] in self.made_by else n.input[0],
             self.types[n.input[0]], self.types[n.output[0]])
            for n in self.model.graph.node if n.op_type == "Cast"
        ]  # fmt: skip


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_one_layer_in_fp16(prepared, weights, make_plan, precision):
    model = prepared(CHAIN, **weights)
    placement = place(model)
    layers = {"one": "fp32", "two": "fp16", "three": "fp32"}
    written = Written(make_plan(placement, layers=layers, float_precision="fp32"), model, placement)
    assert written.float_types("two") == {HALF}
    assert all(written.float_types(name) == {FLOAT} for name in ("one", "relu", "tanh", "three"))
    assert written.casts == [("relu", FLOAT, HALF), ("two", HALF, FLOAT)]


def test_casts_only_where_the_type_changes(prepared, weights, make_plan):
    """A chain of fp16 nodes has one cast in and one out, and one int8 layer among them none."""
    model = prepared(CHAIN, **weights)
    placement = place(model)
    for layers in (dict.fromkeys(("one", "two", "three"), "fp16"), {"one": "fp16", "two": "int8", "three": "fp16"}):
        written = Written(make_plan(placement, layers=layers, float_precision="fp16"), model, placement)
        assert all(written.float_types(name) == {HALF} for name in ("one", "relu", "two", "tanh", "three"))
        assert written.casts == [("x", FLOAT, HALF), ("three", HALF, FLOAT)]


def test_float_side_of_int8_layers_follows_the_plan(prepared, weights, make_plan):
    """Scales, Q/DQ and what comes out of an int8 layer have the plan's float type."""
    model = prepared(CHAIN, **weights)
    placement = place(model)
    for precision, expected in (("fp32", FLOAT), ("fp16", HALF)):
        written = Written(make_plan(placement, float_precision=precision), model, placement)
        qdq = [n for n in written.nodes.values() if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
        assert len(qdq) == 9
        assert {written.types[node.input[1]] for node in qdq} == {expected}
        assert all(written.float_types(name) == {expected} for name in ("one", "relu", "two", "tanh", "three"))


def test_one_tensor_for_consumers_of_both_types_is_cast_once(prepared, weights, make_plan):
    graph = """g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z, float[N, 4] n) {
        [relu] r = Relu(x)
        [one] y = MatMul(r, w1)
        [two] z = MatMul(r, w2)
        [neg] n = Neg(r)
    }"""
    model = prepared(graph, **{name: weights[name] for name in ("w1", "w2")})
    placement = place(model)
    written = Written(make_plan(placement, layers={"one": "fp16", "two": "fp16"}), model, placement)
    assert sorted(written.casts) == sorted([("relu", FLOAT, HALF), ("one", HALF, FLOAT), ("two", HALF, FLOAT)])
    assert written.float_types("neg") == {FLOAT}


def test_graph_inputs_and_outputs_keep_names_and_types(prepared, normal, make_plan):
    """Also where a graph output is an inner tensor, and where an input is no float."""
    graph = """g (float[N, 4] x, int64[K] rows) => (float[N, 4] a, float[K, 4] e, float[N, 4] y, int64[2] s) {
        a = MatMul(x, w)
        r = Relu(a)
        y = MatMul(r, w)
        e = Gather(table, rows)
        s = Shape(y)
    }"""
    model = prepared(graph, w=normal(4, 4), table=normal(9, 4))
    placement = place(model)
    for layers in ({}, dict.fromkeys([layer.node for layer in placement.layers], "fp16")):
        for simulate in (False, True):
            plan = make_plan(placement, layers=layers, float_precision="fp16")
            result = onnx.load_from_string(serialize(apply(plan, model, placement, simulate))).graph
            types = [(v.name, v.type.tensor_type.elem_type) for v in (*result.input, *result.output)]
            expected = [("x", FLOAT), ("rows", TensorProto.INT64), ("a", FLOAT), ("e", FLOAT), ("y", FLOAT)]
            assert types == [*expected, ("s", TensorProto.INT64)]


def test_what_onnx_fixes_to_fp32_stays_so(prepared, normal, make_plan):
    graph = """g (float[1, 4, 8, 8] x, int64[1] k) => (float[1, 4, 16, 16] y, int64[1, 4, 16, 16] i) {
        [conv] c = Conv(x, w)
        [resize] z = Resize <mode = "linear"> (c, , zoom)
        [cast] f = Cast <to = 1> (k)
        [mul] m = Mul(z, f)
        [relu] y = Relu(m)
        [integer] i = Cast <to = 7> (y)
    }"""
    model = prepared(graph, w=normal(4, 4, 1, 1), zoom=np.float32([1, 1, 2, 2]))
    placement = place(model)
    written = Written(make_plan(placement, layers={"conv": "fp16"}, float_precision="fp16"), model, placement)
    assert written.float_types("resize") == written.float_types("cast") == written.float_types("integer") == {FLOAT}
    assert all(written.float_types(name) == {HALF} for name in ("conv", "mul", "relu"))


@pytest.mark.parametrize("opset", range(MIN_OPSET, min(25, onnx.defs.onnx_opset_version()) + 1))
def test_every_op_that_has_no_fp16_stays_fp32(make_plan, opset):
    """By ONNX's own schemas. LayerNormalization's further outputs are for training."""
    plan = make_plan(Placement((), (), (), {}, frozenset()), float_precision="fp16")
    names = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    seen = set()
    for name in names:
        try:
            schema = onnx.defs.get_schema(name, opset)
        except onnx.defs.SchemaError:
            continue  # an op of a later opset
        parameters = [*schema.inputs, *schema.outputs[:1]]
        if any("tensor(float)" in p.types and "tensor(float16)" not in p.types for p in parameters):
            seen.add(name)
            assert float_precision(ir.node(name, []), plan) == "fp32", name
    assert {"Resize", "NonMaxSuppression", "Range"} <= seen
    assert float_precision(ir.node("Relu", []), plan) == "fp16"


IF = """g (float[N, 4] x, bool c) => (float[N, 4] y) {
    [one] a = MatMul(x, w1)
    [if] z = If (c) <then_branch = t () => (float[N, 4] p) { m = MatMul(a, w2) p = Relu(m) },
                     else_branch = e () => (float[N, 4] q) { q = Neg(a) }>
    [two] y = MatMul(z, w2)
}"""


def test_nodes_with_subgraphs_stay_fp32(prepared, normal, make_plan, weights):
    """What a subgraph reads from outside is float32 for it, in fp16 for others."""
    model = prepared(IF, w1=weights["w1"], w2=weights["w2"])
    placement = place(model)
    plan = make_plan(placement, layers={"one": "fp16", "two": "fp16"}, float_precision="fp16")
    written = Written(plan, model, placement)
    assert written.float_types("one") == written.float_types("two") == {HALF}
    branches = [attribute.g for attribute in written.nodes["if"].attribute]
    outer = {name for branch in branches for node in branch.node for name in node.input} & written.types.keys()
    assert len(outer) == 2
    assert {written.types[name] for name in outer} == {FLOAT}
    x, (w1, w2) = normal(3, 4), (half(weights[name]) for name in ("w1", "w2"))
    simulated = OnnxRuntimeModel(serialize(apply(plan, model, placement, simulate=True)))
    a = half(half(x) @ w1)
    for flag, z in ((True, np.maximum(a @ weights["w2"], 0)), (False, -a)):
        y = simulated.run({"x": x, "c": np.array(flag)})["y"]
        np.testing.assert_allclose(y, half(half(z) @ w2), rtol=2e-3, atol=1e-3)


class TestSimulation:
    @pytest.mark.parametrize("precision", ["fp16", "fp32"])
    def test_overflow_is_seen(self, prepared, make_plan, precision):
        """100 * 1000 / 1000 is inf in fp16, although 100 is not; ONNX Runtime's CPU would give 100."""
        graph = """g (float[N, 1] x) => (float[N, 1] y) {
            [multiply] a = Mul(x, thousand)
            [divide] b = Div(a, thousand)
            [layer] y = MatMul(b, one)
        }"""
        model = prepared(graph, thousand=np.float32(1000), one=np.ones((1, 1), np.float32))
        placement = place(model)
        plan = make_plan(placement, layers={"layer": "fp32"}, float_precision=precision)
        simulated = OnnxRuntimeModel(serialize(apply(plan, model, placement, simulate=True)))
        y = simulated.run({"x": np.float32([[100], [2]])})["y"]
        assert y.ravel().tolist() == [np.inf if precision == "fp16" else 100.0, 2.0]

    def test_every_node_rounds(self, prepared, normal, make_plan):
        """Element-wise arithmetic, whose fp16 result is defined to the last bit: numpy's own fp16."""
        graph = """g (float[N, 64] x) => (float[N, 64] y) {
            a = Mul(x, p)
            b = Add(a, q)
            c = Div(b, p)
            d = Sub(c, x)
            [layer] m = MatMul(d, identity)
            y = Mul(m, q)
        }"""
        x, p, q = normal(8, 64), normal(64) + 3, normal(64)
        model = prepared(graph, p=p, q=q, identity=np.eye(64, dtype=np.float32))
        placement = place(model)
        plan = make_plan(placement, layers={"layer": "fp16"}, float_precision="fp16")
        y = OnnxRuntimeModel(serialize(apply(plan, model, placement, simulate=True))).run({"x": x})["y"]
        x16, p16, q16 = (array.astype(np.float16) for array in (x, p, q))
        np.testing.assert_array_equal(y.astype(np.float16), ((x16 * p16 + q16) / p16 - x16) * q16)
        np.testing.assert_array_equal(y, half(y))

    def test_only_fp16_nodes_round(self, prepared, normal, weights, make_plan):
        model = prepared(CHAIN, **weights)
        placement = place(model)
        plan = make_plan(placement, layers={"one": "fp32", "two": "fp16", "three": "fp32"})
        x = normal(5, 4)
        y = OnnxRuntimeModel(serialize(apply(plan, model, placement, simulate=True))).run({"x": x})["y"]
        relu = np.maximum(x @ weights["w1"], 0)
        expected = np.tanh(half(half(relu) @ half(weights["w2"]))) @ weights["w3"]
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6)
        unrounded = np.tanh(relu @ weights["w2"]) @ weights["w3"]
        assert np.abs(unrounded - expected).max() > 2e-5, "rounding must show, or nothing is tested"

    def test_int8_layer_between_fp16_nodes(self, prepared, normal, make_plan):
        """Q takes the fp16 tensor; the int8 product is exact, and only what the layer gives is rounded."""
        graph = "g (float[N, 64] x) => (float[N, 32] y) { y = MatMul(x, w) }"
        x, w = normal(40, 64), normal(64, 32)
        model = prepared(graph, w=w)
        placement = place(model)
        scale = float(np.float16(0.013))
        plan = make_plan(placement, scale, float_precision="fp16")
        y = OnnxRuntimeModel(serialize(apply(plan, model, placement, simulate=True))).run({"x": x})["y"]
        weight_scale = half(np.abs(w).max(axis=0) / np.float32(127)).astype(np.float64)
        int8 = np.clip(np.rint(half(x) / np.float32(scale)), -128, 127).astype(np.int64)
        int8_weight = np.clip(np.rint(w / weight_scale.astype(np.float32)), -128, 127).astype(np.int64)
        exact = (int8 @ int8_weight) * scale * weight_scale
        ulp = np.spacing(np.abs(exact).astype(np.float16)).astype(np.float64)
        np.testing.assert_array_less(np.abs(y - exact), 0.501 * ulp + 1e-6)

    def test_masks_survive(self, prepared, normal, make_plan):
        """float32's lowest number, by which language models mask, is 0 times itself where nothing is masked."""
        graph = """g (float[N, 4] x, float[N, 4] mask) => (float[N, 4] y) {
            [scores] s = MatMul(x, w)
            hidden = Sub(one, mask)
            m = Mul(hidden, lowest)
            a = Add(s, m)
            y = Softmax(a)
        }"""
        lowest = np.finfo(np.float32).min
        x, w, mask = normal(2, 4), normal(4, 4), np.float32([[1, 1, 1, 1], [1, 0, 1, 0]])
        model = prepared(graph, w=w, one=np.float32(1), lowest=lowest)
        placement = place(model)
        plan = make_plan(placement, layers={"scores": "fp16"}, float_precision="fp16")
        Written(plan, model, placement)
        simulated = OnnxRuntimeModel(serialize(apply(plan, model, placement, simulate=True)))
        y = simulated.run({"x": x, "mask": mask})["y"]
        weights = np.exp(x @ w) * mask
        np.testing.assert_allclose(y, weights / weights.sum(axis=1, keepdims=True), atol=2e-3)

    def test_infinite_constants_stay_infinite(self, prepared, normal, make_plan):
        graph = "g (float[N, 4] x) => (float[N, 4] y) { [layer] a = MatMul(x, w) y = Min(a, bound) }"
        model = prepared(graph, w=normal(4, 4), bound=np.float32([np.inf, -np.inf, 1e30, -1e30]))
        placement = place(model)
        plan = make_plan(placement, layers={"layer": "fp16"}, float_precision="fp16")
        simulated = OnnxRuntimeModel(serialize(apply(plan, model, placement, simulate=True)))
        y = simulated.run({"x": np.zeros((1, 4), np.float32)})["y"]
        assert y.tolist() == [[0, -np.inf, 0, -65504]]

    def test_it_has_the_tensors_of_the_float_model_by_name(self, prepared, weights, make_plan):
        """So that layers can be compared."""
        model = prepared(CHAIN, **weights)
        placement = place(model)
        for layers in ({}, {"two": "fp16"}, dict.fromkeys(("one", "two", "three"), "fp16")):
            plan = make_plan(placement, layers=layers, float_precision="fp16")
            simulated = apply(plan, model, placement, simulate=True)
            types = {value.name: value.dtype.value for node in simulated.graph for value in node.outputs}
            assert {name: types.get(name) for name in "arbty"} == dict.fromkeys("arbty", FLOAT)


@pytest.mark.parametrize("simulate", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_prepared_model_is_not_changed(prepared, weights, make_plan, precision, simulate):
    for graph, names in ((CHAIN, ("w1", "w2", "w3")), (IF, ("w1", "w2"))):
        model = prepared(graph, **{name: weights[name] for name in names})
        placement = place(model)
        before = serialize(model)
        for layers in ({}, {"two": "fp16"}, {"one": "fp16"}, {"one": "fp32"}):
            changed = apply(make_plan(placement, layers=layers, float_precision=precision), model, placement, simulate)
            assert serialize(changed) != before
            assert serialize(model) == before


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("layers", [{}, {"two": "fp16"}, {"one": "fp32", "two": "fp16"}, {"one": "fp16"}])
def test_counted_nodes_are_those_of_the_written_file(prepared, weights, make_plan, precision, layers):
    graph = """g (float[N, 4] x, int64[K] rows) => (float[K, 4] y, int64[2] s, int64[1] k) {
        [one] a = MatMul(x, w1)
        [relu] r = Relu(a)
        [two] b = MatMul(r, w2)
        [gather] y = Gather(b, rows)
        [shape] s = Shape(y)
        [count] k = Shape(rows)
    }"""
    model = prepared(graph, w1=weights["w1"], w2=weights["w2"])
    placement = place(model)
    plan = make_plan(placement, layers=layers, float_precision=precision)
    written = Written(plan, model, placement)

    def computed_in(node):
        inputs = [written.made_by[name].op_type for name in node.input[:2] if name in written.made_by]
        if inputs == ["DequantizeLinear", "DequantizeLinear"]:
            return "int8"
        return "fp16" if HALF in written.float_types(node.name) else "fp32"

    original = {node.name for node in model.graph}
    counted = Counter(computed_in(node) for name, node in written.nodes.items() if name in original)
    assert count_nodes(plan, model).model_dump() == {"int8": 0, "fp16": 0, "fp32": 0} | counted
    assert sum(counted.values()) == 6
