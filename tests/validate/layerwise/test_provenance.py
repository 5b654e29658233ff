"""What a graph says of compared tensors, and the graphs that are made to look into it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from validate.backends.onnx_files import expose, force, roundings, serialize, with_shapes
from validate.layerwise.provenance import locate_tensors


def model(graph: str, **initializers: NDArray[Any]) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 19]> {graph}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in initializers.items())
    return with_shapes(ir.from_proto(proto))


def run(graph: ir.Model, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(serialize(graph), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True))


def test_inputs_are_the_nearest_tensors_in_question() -> None:
    graph = """g (float[N, 4] x) => (float[N, 4] y) {
        [one] a = Relu(x) [two] b = Neg(a) [three] c = Exp(b) [four] d = Add(a, c) [five] y = Mul(d, x)
    }"""
    places = locate_tensors(model(graph), ["x", "a", "c", "y"])
    assert list(places) == ["a", "c", "y"], "an input of the model is computed by no node"
    assert [(p.node, p.op_type, p.depth, p.inputs) for p in places.values()] == [
        ("one", "Relu", 0, ["x"]),
        ("three", "Exp", 2, ["a"]),
        ("five", "Mul", 4, ["a", "c", "x"]),
    ]


QDQ = """g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) {
    q = QuantizeLinear(x, scale, zero) d = DequantizeLinear(q, scale, zero) e = DequantizeLinear(q, scale, zero)
    [one] y = Relu(d) [two] z = Neg(e)
}"""


@pytest.mark.parametrize(("dtype", "zero"), [(np.int8, 0), (np.int8, 5), (np.uint8, 128), (np.uint8, 3)])
def test_what_is_outside_of_the_bounds_and_nothing_else_is_clipped(dtype: Any, zero: int) -> None:
    scale = np.float32(0.25)
    places = locate_tensors(model(QDQ, scale=scale, zero=np.array(zero, dtype)), ["y", "z"])
    (quantizer,) = places["y"].quantizers
    assert places["z"].quantizers == [quantizer] and quantizer.tensor == "x" and quantizer.scale == scale
    assert places["y"].precision == "int8"
    x = np.linspace(-80, 80, 64_004).astype(np.float32).reshape(-1, 4)
    limits = np.iinfo(dtype)
    rounded = np.rint(x / scale) + zero
    clipped = (rounded < limits.min) | (rounded > limits.max)
    edge = np.minimum(np.abs(x - quantizer.low), np.abs(x - quantizer.high)) < 1e-5  # round half to even
    np.testing.assert_array_equal(((x < quantizer.low) | (x > quantizer.high))[~edge], clipped[~edge])
    assert clipped.any() and not clipped.all()
    saturated = run(model(QDQ, scale=scale, zero=np.array(zero, dtype)), x=x)["z"]
    assert (np.abs(-saturated - x)[~clipped] <= scale / 2 + 1e-5).all()


def test_a_scale_per_channel_is_no_threshold() -> None:
    graph = QDQ.replace("(x, scale, zero)", "<axis = 1>(x, scale, zero)").replace("(q, scale", "<axis = 1>(q, scale")
    places = locate_tensors(model(graph, scale=np.ones(4, np.float32), zero=np.zeros(4, np.int8)), ["y"])
    assert places["y"].quantizers == []


def test_precision_is_that_in_which_a_tensor_is_computed() -> None:
    graph = """g (float[N, 4] x) => (float[N, 4] y) {
        h = Cast<to = 10>(x) r = Relu(h) y = Cast<to = 1>(r)
    }"""
    assert locate_tensors(model(graph), ["y"])["y"].precision == "fp16"
    assert locate_tensors(model("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }"), ["y"])["y"].precision == "fp32"


def test_a_node_without_a_name_has_that_of_its_tensor() -> None:
    assert locate_tensors(model("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }"), ["y"])["y"].node == "y"


def test_forced_tensors_are_read_by_all_and_computed_all_the_same() -> None:
    graph = model("g (float[N, 4] x) => (float[N, 4] y) { a = Neg(x) b = Exp(a) y = Add(a, b) }")
    forced, computed = force(graph, ["a"])
    assert computed == {"a": "a/computed"}
    rng = np.random.default_rng(0)
    x, given = (rng.standard_normal((3, 4)).astype(np.float32) for _ in range(2))
    outputs = run(expose(forced, ["a/computed"]), x=x, a=given)
    np.testing.assert_allclose(outputs["a/computed"], -x)
    np.testing.assert_allclose(outputs["y"], given + np.exp(given), rtol=1e-6)
    np.testing.assert_allclose(run(graph, x=x)["y"], np.exp(-x) - x, rtol=1e-6), "the given graph stays as it is"


def test_roundings_change_what_is_quantized_by_at_most_their_size() -> None:
    graph = model(QDQ, scale=np.float32(1e-6), zero=np.array(0, np.int8))
    x = np.random.default_rng(0).uniform(-1e-4, 1e-4, (500, 4)).astype(np.float32)
    plain = run(graph, x=x)["z"]
    one, other = (run(roundings(graph, 0.05, seed), x=x)["z"] for seed in (1, 2))
    for changed in (one, other):
        assert np.abs(changed - plain).max() <= 0.05 * 1e-4 + 1.01e-6
        assert 0.05 < (changed != plain).mean() < 1
    assert (one != other).any()
    np.testing.assert_array_equal(run(roundings(graph, 0.0, 1), x=x)["z"], plain)
