"""The pass over the calibration data: exact whatever the workers and the order, and it says what is not finite."""

from __future__ import annotations

import gc
import itertools
import struct
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from calibrate.graph.placement import Placement, place
from calibrate.graph.preparation import prepare
from calibrate.observation.calibration_run import unquantizable
from calibrate.observation.streaming import Observable, Observation, observable, observe
from calibrate.plan.origin import Origin
from calibrate.plan.quantization_plan import QuantizationRules
from calibrate.strategies.planning import make_plan
from validate.data.stream import Batch
from validate.exceptions import JobError
from validate.stats.histograms import Statistics

Array = NDArray[Any]

# Convolutions of 16 channels, which a CPU computes in blocks of them, and of fewer, which do not fill a block. One
# tensor is observed and is the model's own output too.
NETWORK = """agraph (float[N, 3, 8, 8] image) => (float[N, 5] logits, float[N, 16, 8, 8] early)
{
    [stem] c1 = Conv <pads = [1, 1, 1, 1]> (image, w1)
    [stem_relu] early = Relu (c1)
    [narrow] c2 = Conv <pads = [1, 1, 1, 1]> (early, w2)
    [narrow_relu] r2 = Relu (c2)
    [wide] c3 = Conv <pads = [1, 1, 1, 1]> (r2, w3)
    [wide_relu] r3 = Relu (c3)
    [last] c4 = Conv <pads = [1, 1, 1, 1]> (r3, w4)
    [pool] p = GlobalAveragePool (c4)
    [flatten] features = Flatten (p)
    [head] logits = Gemm (features, w5)
}"""
SHAPES = {"w1": (16, 3, 3, 3), "w2": (6, 16, 3, 3), "w3": (32, 6, 3, 3), "w4": (16, 32, 3, 3), "w5": (16, 5)}
OBSERVED = ("image", "early", "r2", "r3", "features")


def parsed(text: str, **weights: Array) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 19]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.checker.check_model(model, full_check=True)
    return model


def network() -> onnx.ModelProto:
    random = np.random.default_rng(0)
    return parsed(NETWORK, **{name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in SHAPES.items()})


def source(model: onnx.ModelProto) -> tuple[Observable, Placement]:
    prepared = prepare(ir.from_proto(model))
    placement = place(prepared)
    return observable(prepared, placement.tensors()), placement


@pytest.fixture(scope="module")
def cnn() -> Observable:
    return source(network())[0]


def batches(arrays: Sequence[Array], name: str = "image") -> list[Batch]:
    """Return a batch of every array."""
    first = [0, *itertools.accumulate(len(array) for array in arrays)]
    return [
        Batch({name: array.astype(np.float32)}, [None] * len(array), [bytes([i])] * len(array), first[i])
        for i, array in enumerate(arrays)
    ]


def images(seed: int = 0, sizes: Sequence[int] = (4, 4, 4, 4, 4, 4, 3)) -> list[Batch]:
    """Batches whose ranges differ a lot, so that histograms have to be widened, and at other places in each half."""
    random = np.random.default_rng(seed)
    return batches([random.normal(0, 2.0 ** random.integers(-6, 6), (n, 3, 8, 8)) for n in sizes])


def ignore(batch: Batch, outputs: Mapping[str, Array]) -> None:
    """Do nothing with a batch's outputs."""


def bits(statistics: Mapping[str, Statistics]) -> dict[str, tuple[Any, ...]]:
    return {
        name: (struct.pack("<2d", s.minimum, s.maximum), s.count, s.zeros, s.exponent, s.bins.tobytes())
        for name, s in statistics.items()
    }


# Statistics


def test_statistics_are_those_of_the_models_inner_tensors(cnn: Observable) -> None:
    """Against ONNX Runtime on the plain model with all tensors as outputs and no optimization."""
    model, data = network(), images()
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in OBSERVED if name not in {"image", "early"})
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    runs = [dict(zip(names, session.run(names, batch.inputs), strict=True)) | batch.inputs for batch in data]
    found = observe(cnn, data, ignore).statistics
    assert tuple(found) == OBSERVED
    for name, statistics in found.items():
        values = np.concatenate([run[name].ravel() for run in runs])
        near = 1e-4 * float(np.abs(values).max())
        assert statistics.count == values.size
        assert (statistics.minimum, statistics.maximum) == pytest.approx((values.min(), values.max()), abs=near)
        centres = (np.arange(statistics.bins.size) + 0.5) * statistics.width
        nonzero = statistics.bins.copy()
        nonzero[0] -= statistics.zeros
        mean = float(np.abs(values, dtype=np.float64).mean())
        assert (nonzero * centres).sum() / values.size == pytest.approx(mean, rel=1e-3, abs=statistics.width)
        assert statistics.zeros == pytest.approx((values == 0).sum(), abs=2 + 1e-3 * values.size)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_neither_workers_nor_order_show(cnn: Observable, workers: int) -> None:
    data = images()
    expected = Observation.empty(cnn.tensors)
    for number, batch in enumerate(data):
        outputs = cnn.model.run(batch.inputs)
        for name, statistics in expected.halves[number % 2].items():
            statistics.update(outputs[name])
    assert len({s.exponent for half in expected.halves for s in half.values()}) > 3  # the ranges do differ
    found = observe(cnn, data, ignore, workers)
    assert [bits(half) for half in found.halves] == [bits(half) for half in expected.halves]
    random = np.random.default_rng(workers)
    for order in [range(len(data))[::-1], *(random.permutation(len(data)) for _ in range(3))]:
        again = observe(cnn, [data[i] for i in order], ignore, workers)
        assert bits(again.statistics) == bits(expected.statistics)


@pytest.mark.parametrize("workers", [1, 3])
def test_at_every_doubling_exactly_the_batches_so_far_are_seen(cnn: Observable, workers: int) -> None:
    data, noted = images(), {}

    def note(samples: int, statistics: Callable[[str], Statistics]) -> None:
        noted[samples] = bits({name: statistics(name) for name in OBSERVED})

    observe(cnn, data, ignore, workers, on_doubling=note)
    assert noted == {4 * n: bits(observe(cnn, data[:n], ignore).statistics) for n in (1, 2, 4)}


@pytest.mark.parametrize("workers", [1, 3])
def test_halves_are_every_other_batch_and_the_statistics_their_merge(cnn: Observable, workers: int) -> None:
    data = images()
    found = observe(cnn, data, ignore, workers)
    even, odd = (observe(cnn, data[start::2], ignore).statistics for start in (0, 1))
    assert [bits(half) for half in found.halves] == [bits(even), bits(odd)]
    assert bits(even) != bits(odd)
    assert bits(found.statistics) == bits({name: even[name].merge(odd[name]) for name in even})


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 7])
def test_parts_observed_apart_merge_to_the_whole(cnn: Observable, cut: int) -> None:
    data = images()
    whole = observe(cnn, data, ignore)
    first, second = observe(cnn, data[:cut], ignore), observe(cnn, data[cut:], ignore, workers=2)
    before = [bits(half) for part in (first, second) for half in part.halves]
    assert bits(first.merge(second).statistics) == bits(whole.statistics) == bits(second.merge(first).statistics)
    assert [bits(half) for part in (first, second) for half in part.halves] == before
    if cut % 2 == 0:  # every other batch is the same one in the parts
        assert [bits(half) for half in first.merge(second).halves] == [bits(half) for half in whole.halves]


def test_one_batch_is_in_the_first_half_and_none_is_in_neither(cnn: Observable) -> None:
    one, nothing = observe(cnn, images(sizes=[4]), ignore, workers=3), observe(cnn, [], ignore, workers=2)
    assert bits(one.halves[0]) == bits(one.statistics)
    assert [s.count for s in one.halves[1].values()] == [0] * len(OBSERVED)
    assert bits(nothing.statistics) == bits(dict.fromkeys(OBSERVED, Statistics()))


def test_a_model_of_a_fixed_batch_counts_no_sample_twice(cnn: Observable) -> None:
    model = network()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    fixed, data = source(model)[0], images(sizes=[4, 1])
    found, expected = (observe(s, data, ignore).statistics for s in (fixed, cnn))
    assert {name: s.count for name, s in found.items()} == {name: s.count for name, s in expected.items()}
    assert [s.amax for s in found.values()] == pytest.approx([s.amax for s in expected.values()], rel=1e-4)


# The model's own outputs


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_on_batch_gets_the_models_own_outputs_in_order(cnn: Observable, workers: int) -> None:
    session = onnxruntime.InferenceSession(network().SerializeToString(), providers=["CPUExecutionProvider"])
    data = images()
    seen: list[Batch] = []

    def check(batch: Batch, outputs: Mapping[str, Array]) -> None:
        seen.append(batch)
        assert list(outputs) == ["logits", "early"]
        for name, expected in zip(outputs, session.run(list(outputs), batch.inputs), strict=True):
            assert outputs[name].shape == expected.shape
            assert np.abs(outputs[name] - expected).max() <= 1e-4 * np.abs(expected).max()

    observe(cnn, data, check, workers)
    assert [batch.first for batch in seen] == [0, 4, 8, 12, 16, 20, 24]
    assert all(batch is given for batch, given in zip(seen, data, strict=True))


@pytest.mark.parametrize("workers", [1, 2])
def test_few_batches_and_outputs_are_alive_at_a_time(cnn: Observable, workers: int) -> None:
    alive: list[weakref.ref[Any]] = []
    most = 0

    def stream() -> Iterator[Batch]:
        nonlocal most
        for i in range(30):
            (batch,) = images(i, [2])
            alive.append(weakref.ref(batch))
            most = max(most, sum(ref() is not None for ref in alive))
            yield batch
            del batch

    def watch(batch: Batch, outputs: Mapping[str, Array]) -> None:
        alive.extend(weakref.ref(array) for array in outputs.values())

    observe(cnn, stream(), watch, workers)
    assert len(alive) == 30 * 3
    assert 0 < most <= 3 * (2 * workers + 3), "memory grows with the number of batches"
    gc.collect()
    assert not any(ref() is not None for ref in alive)


# What is not finite

OVERFLOWING = """agraph (float[N, 3, 8, 8] image) => (float[N, 16, 8, 8] end)
{
    [stem] c = Conv <pads = [1, 1, 1, 1]> (image, w)
    [grow] e = Exp (c)
    [last] end = Conv <pads = [1, 1, 1, 1]> (e, v)
}"""
ROOT = """agraph (float[N, 4] x) => (float[N, 2] y)
{
    [first] a = Gemm (x, w)
    [root] b = Sqrt (x)
    [second] c = Gemm (b, w)
    [sum] y = Add (a, c)
}"""


def nonfinite(kind: str, bad: Sequence[int], sizes: Sequence[int] = (4, 4, 4)) -> tuple[Observable, list[Batch]]:
    """Return a model, and batches in which those samples are the bad ones, counted over all batches."""
    random = np.random.default_rng(0)
    cuts = list(itertools.accumulate(sizes))[:-1]
    if kind == "NaN in a Sqrt":
        x = random.uniform(0.1, 1, (sum(sizes), 4))
        x[list(bad), 2] = -1.0
        model, name = parsed(ROOT, w=np.ones((4, 2), np.float32)), "x"
    else:
        x = random.normal(0, 0.1, (sum(sizes), 3, 8, 8))
        x[list(bad), 2, 7, 0] = {"Inf in an Exp": 1e3, "NaN input": np.nan, "Inf input": -np.inf}[kind]
        weights = {"w": np.ones((16, 3, 3, 3), np.float32), "v": np.ones((16, 16, 3, 3), np.float32)}
        model, name = parsed(OVERFLOWING, **weights), "image"
    return source(model)[0], batches(np.split(x, cuts), name)


SAID = {
    "NaN in a Sqrt": "activation b, the output of node root, is not finite",
    "Inf in an Exp": "activation e, the output of node grow, is not finite",
    "NaN input": "activation image, an input of the model, is not finite",
    "Inf input": "activation image, an input of the model, is not finite",
}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("bad", "named"), [([0], 0), ([3], 3), ([6], 6), ([11], 11), ([10, 6, 7], 6), ([8, 4], 4)])
@pytest.mark.parametrize("kind", SAID)
def test_what_is_not_finite_is_named(kind: str, bad: list[int], named: int, workers: int) -> None:
    """Tensor, node and sample: the first one that is bad, also where later batches are bad and run beside it."""
    model, data = nonfinite(kind, bad)
    seen: list[int] = []
    with pytest.raises(JobError) as error:
        observe(model, data, lambda batch, outputs: seen.append(batch.first), workers)
    message = str(error.value)
    assert message.startswith(f"{SAID[kind]} for calibration sample {named}; ")
    assert len(message.splitlines()) == 1
    assert seen == [batch.first for batch in data if batch.first + len(batch) <= named]


@pytest.mark.parametrize("kind", SAID)
def test_the_same_models_pass_where_all_is_finite(kind: str) -> None:
    model, data = nonfinite(kind, [])
    assert all(s.amax > 0 for s in observe(model, data, ignore, workers=2).statistics.values())


# What has no range

DEAD = """agraph (float[N, 4] x) => (float[N, 2] y, float[M, 2] routed)
{
    [size] size = Abs (x)
    [below] below = Neg (size)
    [dead] zero = Relu (below)
    [fine] a = Gemm (x, w)
    [after_zero] b = Gemm (zero, w)
    [sum] y = Add (a, b)
    [total] total = ReduceSum <keepdims = 0> (zero, one)
    [which] which = NonZero (total)
    [rows] rows = Squeeze (which, zero_axis)
    [pick] picked = Gather <axis = 0> (x, rows)
    [never] routed = Gemm (picked, w)
}"""


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_layers_of_tensors_without_a_range_stay_in_float(precision: Any) -> None:
    axes = {"zero_axis": np.array([0]), "one": np.array([1])}
    model = parsed(DEAD, w=np.ones((4, 2), np.float32), **axes)
    dead, placement = source(model)
    data = batches(np.split(np.random.default_rng(0).normal(size=(12, 4)), 3), "x")
    statistics = observe(dead, data, ignore, workers=2).statistics
    assert unquantizable(statistics) == {
        "zero": "was zero for every calibration sample",
        "picked": "was computed for no calibration sample",
    }
    plan = make_plan(
        "minmax", statistics, placement, Origin(model_sha256="m"), QuantizationRules(float_precision=precision)
    )
    assert plan.layers == {"fine": "int8", "after_zero": precision, "never": precision}
    assert plan.scales.keys() == {"x"}
    assert plan.scales["x"] == pytest.approx(max(np.abs(batch.inputs["x"]).max() for batch in data) / 127)
