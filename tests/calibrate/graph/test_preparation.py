"""The prepared model computes the same, in the form that quantization needs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from calibrate.graph.placement import place
from calibrate.graph.preparation import MIN_OPSET, prepare
from validate.exceptions import JobError

BATCH_NORM = "[bn] y = BatchNormalization <epsilon = 0.001> (c, gamma, beta, mean, variance)"
CONV = "[conv] c = Conv <pads = [1, 1, 1, 1]> (x, w, b)"
CONV_BN = f"g (float[N, 4, 8, 8] x) => (float[N, 6, 8, 8] y) {{ {CONV} {BATCH_NORM} }}"


@pytest.fixture
def batch_norm(normal):
    return {"gamma": normal(6), "beta": normal(6), "mean": normal(6), "variance": np.abs(normal(6)) + 0.1}


def ops(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, reference in expected.items():
        np.testing.assert_allclose(actual[name], reference, rtol=0, atol=1e-4 * np.abs(reference).max())


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 19])
def test_batch_norm_folds_from_every_opset(parse, run, normal, batch_norm, opset):
    before = parse(CONV_BN, opset=opset, ir_version=8, w=normal(6, 4, 3, 3), b=normal(6), **batch_norm)
    x = normal(2, 4, 8, 8)
    expected = run(before, x=x)
    after = prepare(ir.from_proto(before))
    assert after.opset_imports[""] >= MIN_OPSET == 19
    assert ops(after) == {"Conv": 1}
    assert_same(run(after, x=x), expected)


def test_batch_norm_folds_where_initializers_are_inputs_too(parse, run, normal, batch_norm):
    """As in files of IR version 3, such as most of the ONNX model zoo's."""
    before = parse(CONV_BN, opset=9, ir_version=3, w=normal(6, 4, 3, 3), b=normal(6), **batch_norm)
    x = normal(2, 4, 8, 8)
    expected = run(before, x=x)
    after = prepare(ir.from_proto(before))
    assert ops(after) == {"Conv": 1}
    assert [value.name for value in after.graph.inputs] == ["x"]
    assert_same(run(after, x=x), expected)


@pytest.mark.parametrize(
    ("layer", "shape", "weight_shape"),
    [
        ("Conv <pads = [1, 1, 1, 1], group = 2> (x, w)", "N, 4, 8, 8", (6, 2, 3, 3)),
        ("ConvTranspose <pads = [1, 1, 1, 1]> (x, w)", "N, 4, 8, 8", (4, 6, 3, 3)),
        ("ConvTranspose <pads = [1, 1, 1, 1], group = 2> (x, w, b)", "N, 4, 8, 8", (4, 3, 3, 3)),
        ("Gemm <transB = 1> (x, w, b)", "N, 4", (6, 4)),
        ("Gemm <alpha = 0.5, beta = 2.0> (x, w, b)", "N, 4", (4, 6)),
    ],
)
def test_batch_norm_folds_into_every_kind_of_layer(parse, run, normal, batch_norm, layer, shape, weight_shape):
    output = shape.replace("4", "6")
    graph = f"g (float[{shape}] x) => (float[{output}] y) {{ [layer] c = {layer} {BATCH_NORM} }}"
    bias = {"b": normal(6)} if "b)" in layer else {}
    before = parse(graph, w=normal(*weight_shape), **bias, **batch_norm)
    x = normal(*(3 if d == "N" else int(d) for d in shape.split(", ")))
    expected = run(before, x=x)
    after = prepare(ir.from_proto(before))
    assert [node.name for node in after.graph] == ["layer"], "users know their layers by name"
    assert_same(run(after, x=x), expected)


def test_batch_norm_stays_where_the_convolution_is_used_elsewhere(parse, run, normal, batch_norm):
    graph = f"g (float[N, 4, 8, 8] x) => (float[N, 6, 8, 8] z) {{ {CONV} {BATCH_NORM} z = Add(c, y) }}"
    before = parse(graph, w=normal(6, 4, 3, 3), b=normal(6), **batch_norm)
    x = normal(2, 4, 8, 8)
    expected = run(before, x=x)
    after = prepare(ir.from_proto(before))
    assert ops(after) == {"Conv": 1, "BatchNormalization": 1, "Add": 1}
    assert_same(run(after, x=x), expected)


def test_constants_become_initializers_and_weights_are_constants(parse, run, normal):
    """Constant nodes, and weights that are computed from constants (of any size), are initializers afterwards."""
    before = parse(
        """g (float[N, 300] x) => (float[N, 200] y) {
            half = Constant <value_float = 0.5> ()
            scaled = Mul(w, half)
            turned = Transpose <perm = [1, 0]> (scaled)
            m = MatMul(x, turned)
            single = Cast <to = 1> (w16)
            y = MatMul(m, single)
        }""",
        w=normal(400, 300),
        w16=normal(400, 200).astype(np.float16),
    )
    x = normal(2, 300)
    expected = run(before, x=x)
    after = prepare(ir.from_proto(before))
    assert ops(after) == {"MatMul": 2}
    assert len(place(after).layers) == 2
    assert_same(run(after, x=x), expected)


def test_weights_in_a_file_of_their_own_are_taken_in(parse, run, normal, tmp_path):
    """torch.onnx.export writes them so by default; what is made from the model must not look for that file."""
    before = parse("g (float[N, 4] x) => (float[N, 6] y) { y = MatMul(x, w) }", w=normal(4, 6))
    x = normal(2, 4)
    expected = run(before, x=x)
    path = tmp_path / "model.onnx"
    onnx.save(before, path, save_as_external_data=True, location="weights", size_threshold=0)
    model = ir.load(path)
    assert (tmp_path / "weights").is_file()
    after = prepare(model)
    (tmp_path / "weights").unlink()
    assert_same(run(after, x=x), expected)


@pytest.mark.parametrize("node", ["Add(v, tiny)", "Add(tiny, v)", "Sub(v, tiny)"])
@pytest.mark.parametrize("constant", ["", "tiny = Constant <value = float {1e-12}> ()"])
def test_an_epsilon_is_no_zero(parse, run, node, constant):
    """x over its own norm is 0/0 for a vector of zeros, but for the epsilon."""
    text = f"g (float[N, 4] x) => (float[N, 4] y) {{ {constant} v = ReduceMax(x, last) e = {node} y = Div(x, e) }}"
    constants = {"last": np.array([1])} | ({} if constant else {"tiny": np.float32(1e-12)})
    model = parse(text, **constants)
    x = np.float32([[0, 0, 0, 0], [1, 2, 3, 4]])
    expected = run(model, x=x)["y"]
    assert np.isfinite(expected).all()
    found = prepare(ir.from_proto(model))
    np.testing.assert_array_equal(run(found, x=x)["y"], expected)
    assert {node.domain for node in found.graph} == {""}


def test_every_node_is_named_and_no_name_occurs_twice(parse, normal):
    graph = parse(
        """g (float[N, 4] x) => (float[N, 4] y) {
            a = MatMul(x, w)
            [same] b = Relu(a)
            [same] c = MatMul(b, w)
            y = Relu(c)
        }""",
        w=normal(4, 4),
    )
    names = [node.name for node in prepare(ir.from_proto(graph)).graph]
    assert all(names)
    assert len(set(names)) == len(names) == 4


def test_types_and_shapes_are_inferred(prepared, normal):
    model = prepared(
        """g (float[N, 4, 8, 8] x) => (float[N, 6, H, W] y, int64[4] s) {
            a = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w)
            y = Relu(a)
            s = Shape(y)
        }""",
        w=normal(6, 4, 3, 3),
    )
    values = {value.name: value for node in model.graph for value in node.outputs}
    assert values["a"].dtype == ir.DataType.FLOAT
    assert [str(d) if isinstance(d, ir.SymbolicDim) else d for d in values["a"].shape][1:] == [6, 4, 4]
    assert all(value.dtype is not None and value.shape is not None for value in values.values())


QDQ = "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)"


@pytest.mark.parametrize(
    "body",
    [
        f"{{ {QDQ} }}",
        f"""{{ p = Cast <to = 9> (n)
              y = If (p) <then_branch = t () => (float[4] v) {{ {QDQ.replace("y =", "v =")} }},
                          else_branch = e () => (float[4] u) {{ u = Neg(x) }}> }}""",
    ],
    ids=["graph", "subgraph"],
)
def test_a_quantized_model_is_refused(parse, body):
    graph = f"g (float[4] x, int64 n) => (float[4] y) {body}"
    model = parse(graph, s=np.float32(0.1), z=np.int8(0))
    with pytest.raises(JobError, match="QuantizeLinear"):
        prepare(ir.from_proto(model))


def test_a_model_that_cannot_be_converted_is_refused(parse, batch_norm):
    """BatchNormalization in training mode, from a time before it said so by its outputs."""
    graph = """g (float[N, 6, 8, 8] c) => (float[N, 6, 8, 8] y) {
        y = BatchNormalization <is_test = 0> (c, gamma, beta, mean, variance)
    }"""
    with pytest.raises(JobError, match=r"from opset 6 to 19; export it again"):
        prepare(ir.from_proto(parse(graph, opset=6, **batch_norm)))


@pytest.mark.parametrize("opset", [13, 19])
def test_if_survives(parse, run, normal, opset):
    before = parse(
        """g (float[N, 4] x, bool positive) => (float[N, 6] y) {
            a = MatMul(x, w)
            y = If (positive) <
                then_branch = yes () => (float[N, 6] t) { r = Relu(a) t = Add(r, b) },
                else_branch = no () => (float[N, 6] e) { m = MatMul(x, w) e = Neg(m) }
            >
        }""",
        opset=opset,
        ir_version=8,
        w=normal(4, 6),
        b=normal(6),
    )
    x = normal(3, 4)
    inputs = [{"x": x, "positive": np.array(flag)} for flag in (True, False)]
    expected = [run(before, **feed) for feed in inputs]
    after = prepare(ir.from_proto(before))
    assert ops(after) == {"MatMul": 1, "If": 1}
    for feed, reference in zip(inputs, expected, strict=True):
        assert_same(run(after, **feed), reference)


def test_a_layer_keeps_its_name_when_batch_norm_folds_into_it(parse, normal, batch_norm):
    model = parse(CONV_BN, opset=19, ir_version=9, w=normal(6, 4, 3, 3), b=normal(6), **batch_norm)
    assert [node.name for node in prepare(ir.from_proto(model)).graph] == ["conv"]
