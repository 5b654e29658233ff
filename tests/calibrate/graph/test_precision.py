"""fp16 and bf16: what types the deployed model has, and what the simulated one computes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto

from calibrate.graph.application import apply
from calibrate.graph.placement import Placement, place
from calibrate.graph.precision import BF16_OPSET, float_precision
from calibrate.graph.preparation import MIN_OPSET
from calibrate.graph.qdq import representable
from validate.backends.onnx_files import serialize
from validate.backends.onnxruntime import OnnxRuntimeModel

FLOAT, HALF, BRAIN = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
TYPES = {"fp16": HALF, "bf16": BRAIN, "fp32": FLOAT}
NUMPY = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}

CHAIN = """g (float[N, 4] x) => (float[N, 4] y) {
    [one] a = MatMul(x, w1)
    [relu] r = Relu(a)
    [two] b = MatMul(r, w2)
    [tanh] t = Tanh(b)
    [three] y = MatMul(t, w3)
}"""


def half(array, precision="fp16"):
    """Round to fp16 or bf16 and back."""
    with np.errstate(over="ignore"):
        return np.asarray(array).astype(NUMPY[precision]).astype(np.float32)


@pytest.fixture
def weights(normal):
    return {name: normal(4, 4) for name in ("w1", "w2", "w3")}


class Written:
    """A deployed model, written and read back, that ONNX and ONNX Runtime (which has no bf16) both take."""

    def __init__(self, plan, model, placement):
        self.model = onnx.load_from_string(serialize(apply(plan, model, placement)))
        onnx.checker.check_model(self.model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(self.model, strict_mode=True).graph
        self.types = {i.name: i.data_type for i in inferred.initializer}
        for value in (*inferred.input, *inferred.value_info, *inferred.output):
            self.types[value.name] = value.type.tensor_type.elem_type
        if BRAIN not in self.types.values():
            onnxruntime.InferenceSession(self.model.SerializeToString(), providers=["CPUExecutionProvider"])
        self.nodes = {node.name: node for node in self.model.graph.node}
        self.made_by = {output: node for node in self.model.graph.node for output in node.output}

    def float_types(self, name):
        """Return the float types of a node's inputs and outputs, without their order."""
        node = self.nodes[name]
        return {self.types[name] for name in (*node.input, *node.output) if name} & {FLOAT, HALF, BRAIN}

    @property
    def casts(self):
        """Return (what it casts, from what, to what) of every Cast, in order."""
        return [
            (
                self.made_by[n.input[0]].name if n.input[0] in self.made_by else n.input[0],
                self.types[n.input[0]],
                self.types[n.output[0]],
            )
            for n in self.model.graph.node
            if n.op_type == "Cast"
        ]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_one_layer_in_lower_precision(prepared, weights, make_plan, precision):
    model = prepared(CHAIN, **weights)
    placement = place(model)
    layers = {"one": "fp32", "two": precision, "three": "fp32"}
    written = Written(make_plan(placement, layers=layers, float_precision="fp32"), model, placement)
    low = TYPES[precision]
    assert written.float_types("two") == {low}
    assert all(written.float_types(name) == {FLOAT} for name in ("one", "relu", "tanh", "three"))
    assert written.casts == [("relu", FLOAT, low), ("two", low, FLOAT)]


def test_from_fp16_to_bf16_is_one_cast(prepared, weights, make_plan):
    """And the other way round; not by way of fp32, which nothing there is."""
    model = prepared(CHAIN, **weights)
    placement = place(model)
    layers = {"one": "fp16", "two": "bf16", "three": "fp16"}
    written = Written(make_plan(placement, layers=layers, float_precision="fp16"), model, placement)
    assert written.float_types("two") == {BRAIN}
    assert all(written.float_types(name) == {HALF} for name in ("one", "relu", "tanh", "three"))
    assert written.casts == [("x", FLOAT, HALF), ("relu", HALF, BRAIN), ("two", BRAIN, HALF), ("three", HALF, FLOAT)]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_casts_only_where_the_type_changes(prepared, weights, make_plan, precision):
    """A chain of nodes of one type has one cast in and one out, and one int8 layer among them none."""
    model = prepared(CHAIN, **weights)
    placement = place(model)
    low = TYPES[precision]
    for two in (precision, "int8"):
        layers = {"one": precision, "two": two, "three": precision}
        written = Written(make_plan(placement, layers=layers, float_precision=precision), model, placement)
        assert all(written.float_types(name) == {low} for name in ("one", "relu", "two", "tanh", "three"))
        assert written.casts == [("x", FLOAT, low), ("three", low, FLOAT)]


def test_float_side_of_int8_layers_follows_the_plan(prepared, weights, make_plan):
    """Scales, Q/DQ and what comes out of an int8 layer have the plan's float type."""
    model = prepared(CHAIN, **weights)
    placement = place(model)
    for precision, expected in TYPES.items():
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


LATEST = min(25, onnx.defs.onnx_opset_version())


@pytest.mark.parametrize(
    ("precision", "opset", "some"),
    [("fp16", opset, {"Resize", "NonMaxSuppression", "Range"}) for opset in range(MIN_OPSET, LATEST + 1)]
    + [("bf16", opset, {"Resize", "Einsum", "Compress"}) for opset in range(BF16_OPSET, LATEST + 1)],
)
def test_every_op_that_has_not_the_type_stays_fp32(make_plan, precision, opset, some):
    """By ONNX's own schemas. LayerNormalization's further outputs are for training."""
    plan = make_plan(Placement((), (), (), {}, frozenset()), float_precision=precision)
    names = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    wanted = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}[precision]
    seen = set()
    for name in names:
        try:
            schema = onnx.defs.get_schema(name, opset)
        except onnx.defs.SchemaError:
            continue  # an op of a later opset
        parameters = [*schema.inputs, *schema.outputs[:1]]
        if any("tensor(float)" in p.types and wanted not in p.types for p in parameters):
            seen.add(name)
            assert float_precision(ir.node(name, []), plan) == "fp32", name
    assert some <= seen
    assert "Conv" not in seen
    assert float_precision(ir.node("Relu", []), plan) == precision


def test_only_bf16_raises_the_opset(prepared, weights, make_plan):
    model = prepared(CHAIN, **weights)
    placement = place(model)
    for layers, expected in (({}, 19), ({"one": "fp16"}, 19), ({"one": "bf16"}, BF16_OPSET)):
        for simulate in (False, True):
            written = apply(make_plan(placement, layers=layers), model, placement, simulate)
            assert written.opset_imports[""] == (19 if simulate else expected)
    assert model.opset_imports[""] == 19


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


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_scales_are_what_the_type_can_hold(precision):
    """Never zero or infinite, and with the type's own rounding between."""
    dtype = NUMPY.get(precision, np.float32)
    small, large, tenth = representable(np.float64([1e-300, 1e300, 0.1]), precision)
    largest = float(ml_dtypes.finfo(dtype).max)
    assert large == largest
    assert 0 < small == np.float32(small.astype(dtype)) < 1e-6
    assert tenth == np.float32(np.float32(0.1).astype(dtype))


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

    def test_bf16_rounds_and_does_not_overflow(self, prepared, make_plan):
        """1.01 lies between 1.0078125 and 1.015625, bf16's numbers; optimization must not take the casts away."""
        graph = """g (float[N, 1] x) => (float[N, 1] y) { [m] a = Mul(x, large) [d] y = Div(a, large) }"""
        model = prepared(graph, large=np.float32(2**20))
        plan = make_plan(place(model), float_precision="bf16")
        simulated = serialize(apply(plan, model, place(model), simulate=True))
        for optimize in (True, False):
            y = OnnxRuntimeModel(simulated, optimize=optimize).run({"x": np.float32([[1.01], [-3]])})["y"]
            assert y.ravel().tolist() == [1.0078125, -3]

    @pytest.mark.parametrize("precision", ["fp16", "bf16"])
    def test_every_node_rounds(self, prepared, normal, make_plan, precision):
        """Element-wise arithmetic, whose result is defined to the last bit: numpy's fp16, ml_dtypes' bf16."""
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
        plan = make_plan(placement, layers={"layer": precision}, float_precision=precision)
        y = OnnxRuntimeModel(serialize(apply(plan, model, placement, simulate=True))).run({"x": x})["y"]
        x16, p16, q16 = (array.astype(NUMPY[precision]) for array in (x, p, q))
        np.testing.assert_array_equal(y.astype(NUMPY[precision]), ((x16 * p16 + q16) / p16 - x16) * q16)
        np.testing.assert_array_equal(y, half(y, precision))

    def test_nodes_that_pick_values_are_not_rounded_again(self, prepared, normal, make_plan):
        """Casts take long; what a node of another type gives is rounded once, and then by arithmetic alone."""
        graph = """g (float[4, 8] x) => (float[8, 4] y) {
            [wide] w = Mul(x, p)
            t = Transpose(w)
            r = Relu(t)
            c = Clip(r, q, top)
            n = Neg(c)
            y = Mul(n, p)
        }"""
        x, p, q, top = normal(4, 8), np.float32(1.01), np.float32(0.1), np.float32(0.9)
        model = prepared(graph, p=p, q=q, top=top)
        placement = place(model)
        plan = make_plan(placement, float_precision="fp16").model_copy(update={"wide_nodes": frozenset({"wide"})})
        simulated = apply(plan, model, placement, simulate=True)
        y = OnnxRuntimeModel(serialize(simulated)).run({"x": x})["y"]
        picked = -np.clip(np.maximum(half((x * p).T), 0), half(q), half(top))
        np.testing.assert_array_equal(y, half(picked * half(p)))
        assert sum(node.op_type == "Cast" for node in simulated.graph) == 4

    def test_every_type_rounds_to_itself(self, prepared, normal, make_plan):
        """From fp32 to fp16, to int8, to bf16, and back: the identity matrix in every layer, and numpy's arithmetic."""
        graph = """g (float[N, 16] x) => (float[N, 16] y) {
            [thirds] t = Div(x, three)
            [half] h = MatMul(t, identity)
            [between] b = Mul(h, three)
            [int8] i = MatMul(b, identity)
            [brain] k = MatMul(i, identity)
            [last] y = Div(k, three)
        }"""
        x, three, scale = normal(8, 16), np.float32(3), np.float32(2**-5)
        model = prepared(graph, three=three, identity=np.eye(16, dtype=np.float32))
        placement = place(model)
        plan = make_plan(placement, float(scale), {"half": "fp16", "brain": "bf16"})
        y = OnnxRuntimeModel(serialize(apply(plan, model, placement, simulate=True))).run({"x": x})["y"]
        one = np.float32(127) * (np.float32(1) / np.float32(127))  # as the int8 weight holds it
        int8 = np.clip(np.rint(half(x / three) * three / scale), -128, 127) * scale * one
        np.testing.assert_array_equal(y, half(int8, "bf16") / three)

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
        graph = "g (float[N, 64] x) => (float[N, 32] y) { n = Neg(x) y = MatMul(n, w) }"
        x, w = normal(40, 64), normal(64, 32)
        model = prepared(graph, w=w)
        placement = place(model)
        scale = float(np.float16(0.013))
        plan = make_plan(placement, scale, float_precision="fp16")
        y = OnnxRuntimeModel(serialize(apply(plan, model, placement, simulate=True))).run({"x": x})["y"]
        weight_scale = half(np.abs(w).max(axis=0) / np.float32(127)).astype(np.float64)
        int8 = np.clip(np.rint(half(-x) / np.float32(scale)), -128, 127).astype(np.int64)
        int8_weight = np.clip(np.rint(w / weight_scale.astype(np.float32)), -128, 127).astype(np.int64)
        exact = (int8 @ int8_weight) * scale * weight_scale
        ulp = np.spacing(np.abs(exact).astype(np.float16)).astype(np.float64)
        np.testing.assert_array_less(np.abs(y - exact), 0.501 * ulp + 1e-6)

    @pytest.mark.parametrize("precision", ["fp16", "bf16"])
    def test_masks_survive(self, prepared, normal, make_plan, precision):
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
        plan = make_plan(placement, layers={"scores": precision}, float_precision=precision)
        Written(plan, model, placement)
        simulated = OnnxRuntimeModel(serialize(apply(plan, model, placement, simulate=True)))
        y = simulated.run({"x": x, "mask": mask})["y"]
        weights = np.exp(x @ w) * mask
        tolerance = {"fp16": 2e-3, "bf16": 16e-3}[precision]  # three bits fewer
        np.testing.assert_allclose(y, weights / weights.sum(axis=1, keepdims=True), atol=tolerance)

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
        for layers in ({}, {"two": "fp16"}, {"two": "bf16"}, dict.fromkeys(("one", "two", "three"), "fp16")):
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
