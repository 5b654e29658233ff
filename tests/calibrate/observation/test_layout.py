"""Statistics of tensors that are read as they lie in memory, against the same tensors from a plain session."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from calibrate.observation.layout import keep_blocked
from calibrate.observation.streaming import Observable, observable, observe
from validate.backends.onnx_files import detach, expose, serialize
from validate.backends.onnxruntime import write_optimized
from validate.data.stream import Batch
from validate.exceptions import JobError
from validate.stats.histograms import MAX_BINS, Statistics

Array = NDArray[Any]
Outputs = dict[str, Array]
Normal = Callable[..., NDArray[np.float32]]
Prepared = Callable[..., ir.Model]
Run = Callable[..., Outputs]

CONV = "Conv <pads = [1, 1, 1, 1]>"
NETWORK = f"""g (float[N, 3, 8, 8] x) => (float[N, 10] y) {{
    a = {CONV} (x, w1)
    r = Relu(a)
    b = {CONV} (r, w2)
    c = {CONV} (b, w3)
    s = Add(c, r)
    t = Relu(s)
    d = {CONV} (t, w4)
    u = Relu(d)
    e = {CONV} (u, w5)
    f = {CONV} (e, w6)
    v = Relu(f)
    p = GlobalAveragePool(v)
    q = Flatten(p)
    y = Gemm(q, w7)
}}"""
SHAPES = {
    "w1": (16, 3, 3, 3),
    "w2": (32, 16, 3, 3),
    "w3": (16, 32, 3, 3),
    "w4": (24, 16, 3, 3),
    "w5": (20, 24, 3, 3),
    "w6": (32, 20, 3, 3),
    "w7": (32, 10),
}
TENSORS = ("x", "a", "r", "b", "c", "s", "t", "d", "u", "e", "f", "v", "p", "q", "y")
BLOCKED = {"a", "r", "b", "c", "s", "t", "f", "v"}
"""Those of 16 or 32 channels: blocks of 8 and of 16 are full. `d`, `u` and `e` have 24, 24 and 20."""


@pytest.fixture
def network(prepared: Prepared, normal: Normal) -> ir.Model:
    """Return a small ResNet: six convolutions, one residual, a head."""
    return prepared(NETWORK, **{name: 0.2 * normal(*shape) for name, shape in SHAPES.items()})


def optimized(model: ir.Model, tensors: tuple[str, ...], folder: Path) -> ir.Model:
    """Return the graph that ONNX Runtime makes for this CPU; skip the test where it knows no blocks here."""
    write_optimized(detach(expose(model, tensors)), folder / "optimized.onnx")
    result = ir.load(folder / "optimized.onnx")
    if not any(node.op_type == "ReorderOutput" for node in result.graph):
        pytest.skip("ONNX Runtime computes no convolution in blocks on this CPU")
    return result


def batches_of(*inputs: Array, name: str = "x") -> list[Batch]:
    starts = np.cumsum([0, *map(len, inputs)])
    return [
        Batch({name: array}, [None] * len(array), [b""] * len(array), int(start))
        for array, start in zip(inputs, starts, strict=False)
    ]


def observed(source: Observable, batches: list[Batch], workers: int = 1) -> dict[str, Statistics]:
    return observe(source, batches, lambda batch, outputs: None, workers).statistics


def plain(model: ir.Model, tensors: tuple[str, ...], batches: list[Batch]) -> list[Outputs]:
    """Return the tensors, batch by batch, from ONNX Runtime's own session with its own optimizations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    data = serialize(expose(model, tensors))
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return [dict(zip(names, session.run(None, batch.inputs), strict=True)) for batch in batches]


def assert_statistics_of(statistics: Statistics, arrays: list[Array]) -> None:
    """Compare bit for bit with what numpy counts; bins are multiples of the least power of two that suffices."""
    values = np.concatenate([array.ravel() for array in arrays]).astype(np.float64)
    assert (statistics.count, statistics.zeros) == (values.size, int((values == 0).sum()))
    assert (statistics.minimum, statistics.maximum) == (values.min(), values.max())
    width = 2.0 ** (math.frexp(np.abs(values).max())[1] - math.log2(MAX_BINS))
    assert statistics.width == width
    bins = np.bincount((np.abs(values) // width).astype(int), minlength=MAX_BINS)
    np.testing.assert_array_equal(statistics.bins, bins)


def assert_like_plain(model: ir.Model, tensors: tuple[str, ...], batches: list[Batch]) -> None:
    statistics, expected = observed(observable(model, tensors), batches), plain(model, tensors, batches)
    assert tuple(statistics) == tensors
    for tensor in tensors:
        assert_statistics_of(statistics[tensor], [outputs[tensor] for outputs in expected])


@pytest.mark.parametrize("workers", [1, 2])
def test_statistics_are_those_of_a_plain_session(network: ir.Model, normal: Normal, run: Run, workers: int) -> None:
    """Bit for bit: it is the same optimized graph, and only the order of the values differs."""
    batches = batches_of(normal(3, 3, 8, 8), normal(1, 3, 8, 8), normal(5, 3, 8, 8))
    statistics = observed(observable(network, TENSORS), batches, workers)
    expected = plain(network, TENSORS, batches)
    assert tuple(statistics) == TENSORS
    for tensor in TENSORS:
        assert_statistics_of(statistics[tensor], [outputs[tensor] for outputs in expected])
    as_written = [run(expose(network, TENSORS), **batch.inputs) for batch in batches]
    for tensor in TENSORS:  # other kernels, so the last bits differ
        amax = max(np.abs(outputs[tensor]).max() for outputs in as_written)
        assert statistics[tensor].amax == pytest.approx(amax, rel=1e-5)


def test_every_sample_keeps_its_values(network: ir.Model, normal: Normal, tmp_path: Path) -> None:
    """Only those in full blocks come in another order, and only within their sample."""
    optimized(network, TENSORS, tmp_path)
    batch = batches_of(normal(4, 3, 8, 8))
    values = observable(network, TENSORS).model.run(batch[0].inputs)
    (expected,) = plain(network, TENSORS, batch)
    reordered = {tensor for tensor in TENSORS if not np.array_equal(values[tensor], expected[tensor])}
    assert reordered == BLOCKED
    for tensor in reordered:
        ours, theirs = (np.sort(array.reshape(4, -1), axis=1) for array in (values[tensor], expected[tensor]))
        np.testing.assert_array_equal(ours, theirs)
        assert len(np.unique(theirs[:, -1])) == 4, "samples differ, or nothing is tested"


@pytest.mark.parametrize("channels", [8, 12, 16, 20, 24, 40, 48])
def test_what_fills_up_a_block_is_not_counted(prepared: Prepared, normal: Normal, channels: int) -> None:
    """All values are negative, and a block is filled up with zeros, which would show at once."""
    graph = f"""g (float[N, 16, 8, 8] x) => (float[N, 16, 8, 8] y) {{
        a = {CONV} (x, w, b)
        y = {CONV} (a, v)
    }}"""
    bias = np.full(channels, -100, np.float32)
    w, v = 0.01 * normal(channels, 16, 3, 3), normal(16, channels, 3, 3)
    model = prepared(graph, w=w, b=bias, v=v)
    batches = batches_of(normal(3, 16, 8, 8))
    statistics = observed(observable(model, ("a",)), batches)["a"]
    assert statistics.count == 3 * channels * 8 * 8
    assert statistics.zeros == 0
    assert -110 < statistics.minimum < statistics.maximum < -90
    assert_like_plain(model, ("x", "a"), batches)


def test_zeros_of_a_relu_are_counted_exactly(prepared: Prepared, normal: Normal) -> None:
    """Six of the 24 channels are positive everywhere, and the others are zero everywhere."""
    graph = f"""g (float[N, 16, 8, 8] x) => (float[N, 16, 8, 8] y) {{
        a = {CONV} (x, w, b)
        r = Relu(a)
        y = {CONV} (r, v)
    }}"""
    bias = np.where(np.arange(24) % 4 == 0, 100, -100).astype(np.float32)
    model = prepared(graph, w=0.01 * normal(24, 16, 3, 3), b=bias, v=normal(16, 24, 3, 3))
    statistics = observed(observable(model, ("r",)), batches_of(normal(2, 16, 8, 8), normal(1, 16, 8, 8)))["r"]
    assert statistics.count == 3 * 24 * 64
    assert statistics.zeros == 3 * 18 * 64


def test_own_outputs_keep_their_layout(prepared: Prepared, normal: Normal, run: Run) -> None:
    """One is observed too, another is the input of the next convolution, and a third is not observed."""
    outputs = ("r", "b", "y")
    graph = f"""g (float[N, 16, 8, 8] x) => ({", ".join(f"float[N, 16, 8, 8] {name}" for name in outputs)}) {{
        a = {CONV} (x, w)
        r = Relu(a)
        b = {CONV} (r, v)
        c = {CONV} (b, w)
        y = Add(c, r)
    }}"""
    model = prepared(graph, w=0.1 * normal(16, 16, 3, 3), v=0.1 * normal(16, 16, 3, 3))
    tensors = ("x", "a", "r", "b", "c")
    batches = batches_of(normal(2, 16, 8, 8), normal(3, 16, 8, 8), normal(1, 16, 8, 8))
    given: list[tuple[Batch, Mapping[str, Array]]] = []
    source = observable(model, tensors)
    statistics = observe(source, batches, lambda batch, values: given.append((batch, values)), 2).statistics
    assert source.outputs == outputs
    assert [batch.first for batch, _ in given] == [0, 2, 5]
    expected = plain(model, tensors, batches)
    for (batch, values), want in zip(given, expected, strict=True):
        assert tuple(values) == outputs
        as_written = run(model, **batch.inputs)
        for name in outputs:
            np.testing.assert_array_equal(values[name], want[name])
            np.testing.assert_allclose(values[name], as_written[name], rtol=0, atol=1e-4)
    for tensor in tensors:
        assert_statistics_of(statistics[tensor], [want[tensor] for want in expected])


@pytest.mark.parametrize(
    "body",
    [
        f"c = {CONV} (x, w) t = Transpose <perm = [0, 2, 3, 1]> (c) n = Neg(t) y = Transpose <perm = [0, 3, 1, 2]> (n)",
        f"c = {CONV} (x, w) t = MaxPool <kernel_shape = [2, 2]> (c) n = {CONV} (t, w) y = Relu(n)",
        f"c = {CONV} (x, w) t = {CONV} (x, v) n = Concat <axis = 1> (c, t) y = Conv (n, z)",
        "c = Conv <pads = [1, 1, 1, 1], group = 16> (x, g) t = Sigmoid(c) n = Mul(c, t) y = Relu(n)",
        f"c = {CONV} (x, w) t = GlobalAveragePool(c) n = Conv (t, k) y = Mul(c, n)",
    ],
    ids=["channels-last", "pool", "concat", "depthwise-swish", "squeeze-excite"],
)
def test_other_neighbours_of_a_convolution(prepared: Prepared, normal: Normal, body: str) -> None:
    shapes = {"w": (16, 16, 3, 3), "v": (16, 16, 3, 3), "z": (16, 32, 1, 1), "g": (16, 1, 3, 3), "k": (16, 16, 1, 1)}
    weights = {name: 0.1 * normal(*shape) for name, shape in shapes.items() if f", {name})" in body}
    model = prepared(f"g (float[N, 16, 8, 8] x) => (float[N, M, H, W] y) {{ {body} }}", **weights)
    assert_like_plain(model, ("x", "c", "t", "n", "y"), batches_of(normal(3, 16, 8, 8), normal(2, 16, 8, 8)))


def test_a_batch_smaller_than_a_model_is_fixed_to(prepared: Prepared, normal: Normal) -> None:
    """It is filled up, and what was filled in is not counted: no more in blocks than elsewhere."""
    graph = f"g (float[4, 16, 8, 8] x) => (float[4, 16, 8, 8] y) {{ c = {CONV} (x, w) r = Relu(c) y = {CONV} (r, w) }}"
    model = prepared(graph, w=normal(16, 16, 3, 3))
    x = normal(4, 16, 8, 8)
    statistics = observed(observable(model, ("c", "r")), batches_of(x[:3]))
    (expected,) = plain(model, ("c", "r"), batches_of(x))
    for tensor in ("c", "r"):
        assert_statistics_of(statistics[tensor], [expected[tensor][:3]])


def test_the_sample_at_which_a_tensor_overflows_is_named(network: ir.Model, normal: Normal) -> None:
    """In blocks the batch is still the first axis."""
    batches = batches_of(normal(3, 3, 8, 8), normal(4, 3, 8, 8))
    batches[1].inputs["x"][2] = 1e38
    message = r"activation b, the output of node .+, is not finite for calibration sample 5;"
    with pytest.raises(JobError, match=message):
        observed(observable(network, ("b",)), batches)


def test_a_model_without_convolutions(prepared: Prepared, normal: Normal) -> None:
    graph = "g (float[N, 4] x) => (float[N, 4] y) { a = MatMul(x, w) r = Relu(a) s = Add(r, x) y = MatMul(s, v) }"
    model = prepared(graph, w=normal(4, 4), v=normal(4, 4))
    batches = batches_of(normal(7, 4), normal(2, 4))
    assert_like_plain(model, ("x", "a", "r", "s", "y"), batches)
    assert observable(model, ("x", "a")).tensors == {"x": "", "a": str(model.graph[0].name)}


def test_only_the_named_tensors_are_kept_in_blocks(network: ir.Model, normal: Normal, tmp_path: Path) -> None:
    tensors = ("b", "d", "t", "p")
    graph = optimized(network, tensors, tmp_path)
    names = [output.name for output in graph.graph.outputs]
    assert not keep_blocked(graph, {"d", "y", "nothing"})
    assert keep_blocked(graph, {"b", "d"})
    assert [output.name for output in graph.graph.outputs] == names
    x = normal(2, 3, 8, 8)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(serialize(graph), options, providers=["CPUExecutionProvider"])
    values = dict(zip(names, session.run(None, {"x": x}), strict=True))
    (expected,) = plain(network, tensors, batches_of(x))
    assert [name for name in names if not np.array_equal(values[name], expected[name])] == ["b"]
