"""One small graph for each of TensorRT's rules, and where that rule wants Q/DQ."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.graph.placement import Layer, ResidualInput, place

IMAGE = "g (float[N, 4, 8, 8] x) => (float[N, C, 8, 8] y)"


@pytest.mark.parametrize(
    ("node", "input_shape", "weight_shape", "axis"),
    [
        ("Conv <pads = [1, 1, 1, 1]> (x, w)", "N, 4, 8, 8", (6, 4, 3, 3), 0),
        ("Conv <pads = [1, 1, 1, 1], group = 4> (x, w)", "N, 4, 8, 8", (4, 1, 3, 3), 0),
        ("Conv <pads = [1, 1, 1, 1], group = 2> (x, w)", "N, 4, 8, 8", (6, 2, 3, 3), 0),
        ("ConvTranspose <pads = [1, 1, 1, 1]> (x, w)", "N, 4, 8, 8", (4, 6, 3, 3), 1),
        ("ConvTranspose <pads = [1, 1, 1, 1], group = 2> (x, w)", "N, 4, 8, 8", (4, 3, 3, 3), 1),
        ("Gemm (x, w, b)", "N, 4", (4, 6), 1),
        ("Gemm <transB = 1> (x, w, b)", "N, 4", (6, 4), 0),
        ("MatMul (x, w)", "N, 7, 4", (4, 6), 1),
    ],
    ids=["conv", "depthwise", "grouped", "transposed", "transposed-grouped", "gemm", "gemm-transB", "matmul"],
)
def test_layer(prepared, normal, node, input_shape, weight_shape, axis):
    op_type = node.split(" ")[0]
    dimensions = input_shape.split(", ")
    output = ", ".join(["N", *(["M"] * (len(dimensions) - 1))])
    bias = {"b": normal(6)} if "b)" in node else {}
    graph = f"g (float[{input_shape}] x) => (float[{output}] y) {{ [layer] y = {node} }}"
    placement = place(prepared(graph, w=normal(*weight_shape), **bias))
    assert placement.layers == (Layer("layer", op_type, "x", "w", axis, "y"),)
    assert placement.left_in_float == {}
    assert placement.residuals == placement.concats == ()
    assert placement.tensors() == ("x",)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("t = Transpose <perm = [0, 2, 1]> (x) [layer] y = MatMul(x, t)", "both its inputs are computed"),
        ("[layer] y = MatMul(square, x)", "its first input is a constant"),
        ("[layer] y = MatMul(x, batched)", "its weight is not a matrix"),
        ("[layer] y = MatMul(x, broken)", "its weight holds a NaN or an infinity"),
        ("d = Cast <to = 11> (x) [layer] e = MatMul(d, double) y = Cast <to = 1> (e)", "its weight is DOUBLE"),
        ("r = Reshape(x, rows) [layer] m = Gemm <transA = 1> (r, column) y = Reshape(m, cube)", "is transposed"),
    ],
)
def test_left_in_float_with_a_reason(prepared, normal, body, reason):
    constants = {
        "square": normal(5, 5),
        "batched": normal(3, 5, 5),
        "broken": np.where(np.eye(5), np.inf, 1).astype(np.float32),
        "double": normal(5, 5).astype(np.float64),
        "rows": np.array([15, 5]),
        "column": normal(15, 9),
        "cube": np.array([3, 3, 5]),
    }
    used = {name: array for name, array in constants.items() if name in body}
    graph = f"g (float[3, 5, 5] x) => (float[3, P, Q] y) {{ {body} }}"
    placement = place(prepared(graph, **used))
    assert placement.layers == ()
    assert placement.left_in_float.keys() == {"layer"}
    assert reason in placement.left_in_float["layer"]


def test_layers_inside_subgraphs_are_left_alone(prepared, normal):
    graph = """g (float[N, 4] x, bool c) => (float[N, 6] y) {
        [outer] a = MatMul(x, w)
        y = If (c) <then_branch = t () => (float[N, 6] p) { [inner] m = MatMul(x, w) p = Neg(m) },
                    else_branch = e () => (float[N, 6] q) { q = Neg(a) }>
    }"""
    assert [layer.node for layer in place(prepared(graph, w=normal(4, 6))).layers] == ["outer"]


CONV = "Conv <pads = [1, 1, 1, 1]>"


@pytest.mark.parametrize("swapped", [False, True])
def test_residual_from_the_identity_branch(prepared, normal, swapped):
    inputs = "x, c" if swapped else "c, x"
    graph = f"{IMAGE} {{ [conv] c = {CONV} (x, w) [add] s = Add({inputs}) y = Relu(s) }}"
    placement = place(prepared(graph, w=normal(4, 4, 3, 3)))
    assert placement.residuals == (ResidualInput("add", 0 if swapped else 1, "x", "conv"),)
    assert placement.tensors() == ("x",)


TWO_BRANCHES = f"""{IMAGE} {{
    [first] a = {CONV} (x, w)
    [second] b = {CONV} (x, v)
    [add] s = Add(a, b)
    y = Relu(s)
}}"""


@pytest.mark.parametrize(
    ("int8", "fused_into", "quantized"),
    [
        ({"first", "second"}, "second", "a"),
        ({"second"}, "second", "a"),
        ({"first"}, "first", "b"),
        (set(), None, None),
    ],
)
def test_residual_between_two_convolutions(prepared, normal, int8, fused_into, quantized):
    """One of them fuses with the Add, whichever is int8, and the other's output is quantized."""
    placement = place(prepared(TWO_BRANCHES, w=normal(4, 4, 3, 3), v=normal(4, 4, 3, 3)))
    residuals = placement.residual_inputs(int8)
    assert [(r.node, r.fused_into, r.tensor) for r in residuals] == ([("add", fused_into, quantized)] if int8 else [])
    assert [r.index for r in residuals] == ([{"a": 0, "b": 1}[quantized]] if int8 else [])
    assert set(placement.tensors(int8)) == ({"x", quantized} if int8 else set())
    assert set(placement.tensors()) == {"x", "a", "b"}, "either may be needed, so both are observed"


@pytest.mark.parametrize(
    "body",
    [
        f"c = {CONV} (x, w) y = Add(c, bias)",
        f"c = {CONV} (x, w) y = Add(c, c)",
        f"c = {CONV} (x, w) n = Neg(c) s = Add(c, x) y = Add(s, n)",
        f"c = {CONV} (x, w) y = Mul(c, x)",
        f"c = {CONV} (x, w) r = Relu(c) y = Add(r, x)",
        f"c = {CONV} (x, w) p = GlobalAveragePool(x) y = Add(c, p)",
        f"p = GlobalAveragePool(x) c = {CONV} (p, w) y = Add(x, c)",
        f"c = {CONV} (x, w) p = ReduceMax <keepdims = 0> (x, batch) y = Add(p, c)",
    ],
    ids=[
        "bias",
        "doubled",
        "convolution-used-twice",
        "product",
        "activation-between",
        "broadcast-other",
        "broadcast-convolution",
        "broadcast-rank",
    ],
)
def test_no_residual(prepared, normal, body):
    constants = {"w": normal(4, 4, 3, 3), "bias": normal(1, 4, 8, 8), "batch": np.array([0])}
    used = {name: array for name, array in constants.items() if name in body}
    assert place(prepared(f"{IMAGE} {{ {body} }}", **used)).residuals == ()


def test_no_residual_where_ranks_differ_and_sizes_are_not_known(prepared, normal):
    graph = f"""g (float[N, 4, H, W] x) => (float[N, 4, H, W] y) {{
        c = {CONV} (x, w)
        p = ReduceMax <keepdims = 0> (x, batch)
        y = Add(p, c)
    }}"""
    assert place(prepared(graph, w=normal(4, 4, 3, 3), batch=np.array([0]))).residuals == ()


def test_residual_where_sizes_are_not_known(prepared, normal):
    graph = f"g (float[N, 4, H, W] x) => (float[N, 4, H, W] y) {{ c = {CONV} (x, w) y = Add(x, c) }}"
    assert len(place(prepared(graph, w=normal(4, 4, 3, 3))).residuals) == 1


def test_no_residual_where_the_convolution_is_a_graph_output(prepared, normal):
    """Its output is needed in high precision anyway, so the Add cannot take its place."""
    outputs = "float[N, 4, 8, 8] c, float[N, 4, 8, 8] y"
    graph = f"g (float[N, 4, 8, 8] x) => ({outputs}) {{ c = {CONV} (x, w) y = Add(c, x) }}"
    assert place(prepared(graph, w=normal(4, 4, 3, 3))).residuals == ()


def test_no_residual_for_a_matrix_product(prepared, normal):
    graph = "g (float[N, 4] x) => (float[N, 4] y) { m = MatMul(x, w) y = Add(m, x) }"
    assert place(prepared(graph, w=normal(4, 4))).residuals == ()


POINTWISE = {"w1": (4, 4, 1, 1), "w2": (4, 4, 1, 1), "w3": (2, 8, 1, 1), "w4": (2, 12, 1, 1)}


def test_tensors_that_a_concat_joins_are_one_group(prepared, normal):
    """`a` is quantized for a layer, and so is the Concat; `r` is not quantized at all."""
    graph = """g (float[N, 4, 8, 8] x) => (float[N, C, 8, 8] y) {
        a = Relu(x)
        b = Conv(a, w1)
        r = Relu(b)
        [concat] j = Concat <axis = 1> (a, r)
        y = Conv(j, w3)
    }"""
    placement = place(prepared(graph, w1=normal(*POINTWISE["w1"]), w3=normal(*POINTWISE["w3"])))
    assert placement.concats == (("j", "a", "r"),)
    assert placement.tensors() == ("a", "j")
    assert placement.scale_groups() == [frozenset({"a", "j"})]


def test_concats_with_a_tensor_in_common_are_one_group(prepared, normal):
    graph = """g (float[N, 4, 8, 8] x) => (float[N, C, 8, 8] q, float[N, C, 8, 8] y, float[N, C, 8, 8] z) {
        a = Relu(x)
        b = Neg(x)
        p = Conv(a, w1)
        q = Conv(b, w2)
        j = Concat <axis = 1> (a, p)
        k = Concat <axis = 1> (j, b)
        y = Conv(j, w3)
        z = Conv(k, w4)
    }"""
    placement = place(prepared(graph, **{name: normal(*shape) for name, shape in POINTWISE.items()}))
    assert placement.scale_groups() == [frozenset({"a", "b", "j", "k"})]


def test_a_concat_whose_output_is_not_quantized_joins_nothing(prepared, normal):
    graph = """g (float[N, 4, 8, 8] x) => (float[N, 8, 8, 8] y, float[N, C, 8, 8] p, float[N, C, 8, 8] q) {
        a = Relu(x)
        b = Neg(x)
        p = Conv(a, w1)
        q = Conv(b, w2)
        y = Concat <axis = 1> (a, b)
    }"""
    placement = place(prepared(graph, w1=normal(*POINTWISE["w1"]), w2=normal(*POINTWISE["w2"])))
    assert set(placement.tensors()) == {"a", "b"}
    assert placement.scale_groups() == []


def test_tensors_are_in_topological_order_and_each_once(prepared, normal):
    graph = """g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) {
        [one] a = MatMul(x, w1)
        [two] b = MatMul(a, w2)
        [three] y = MatMul(a, w3)
        [four] z = MatMul(b, w4)
    }"""
    placement = place(prepared(graph, **{f"w{i}": normal(4, 4) for i in range(1, 5)}))
    assert placement.tensors() == ("x", "a", "b")
    assert placement.tensors({"four", "two"}) == ("a", "b")
