"""The layer-wise comparison, against numpy, and on models in which one layer is broken."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from calibrate.graph.application import apply
from calibrate.graph.placement import place
from calibrate.graph.preparation import prepare
from calibrate.plan.origin import Origin
from calibrate.plan.quantization_plan import QuantizationPlan
from validate.backends.onnx_files import with_shapes
from validate.backends.onnxruntime import OnnxRuntimeBackend
from validate.data.stream import Batch
from validate.exceptions import NothingComparedError
from validate.layerwise.comparator import Findings, compare, subjects_of

WIDTH, DEPTH = 32, 8
Array = NDArray[np.float32]


def chain(weights: Sequence[Array], outputs: int = WIDTH) -> onnx.ModelProto:
    """Return layer after layer: y0 = x w0, r0 = relu(y0), y1 = r0 w1, ..."""
    body, last = [], "x"
    for i in range(len(weights)):
        body.append(f"[layer{i}] y{i} = MatMul({last}, w{i}) [relu{i}] r{i} = Relu(y{i})")
        last = f"r{i}"
    text = f"g (float[N, {WIDTH}] x) => (float[N, {outputs}] {last}) {{ {' '.join(body)} }}"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 19]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights))
    return model


def backend(model: onnx.ModelProto | ir.Model) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(with_shapes(ir.from_proto(model)) if isinstance(model, onnx.ModelProto) else model)


def batched(x: Array, size: int) -> Iterator[Batch]:
    for first in range(0, len(x), size):
        part = x[first : first + size]
        yield Batch({"x": part}, [None] * len(part), [b""] * len(part), first)


def found(reference: OnnxRuntimeBackend, candidate: OnnxRuntimeBackend, x: Array, size: int = 8) -> Findings:
    pairs = {name: name for name in reference.tensors if name in candidate.tensors}
    return compare(subjects_of(reference, candidate, pairs), batched(x, size), lambda _: None)


@pytest.fixture
def weights() -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.normal(0, (2 / WIDTH) ** 0.5, (WIDTH, WIDTH)).astype(np.float32) for _ in range(DEPTH)]


@pytest.fixture
def x() -> Array:
    return np.random.default_rng(1).standard_normal((20, WIDTH)).astype(np.float32)


def test_both_views_are_what_numpy_says(weights: list[Array], x: Array) -> None:
    rng = np.random.default_rng(2)
    others = [w + rng.normal(0, 1e-3, w.shape).astype(np.float32) for w in weights]
    result = found(backend(chain(weights)), backend(chain(others)), x)
    assert (result.samples, result.passes) == (20, 3)
    by_name = {layer.tensor: layer for layer in result.layers}
    ours = theirs = x.astype(np.float64)
    for i, (w, other) in enumerate(zip(weights, others, strict=True)):
        isolated = ours @ other
        ours, theirs = ours @ w, theirs @ other
        layer = by_name[f"y{i}"]
        for view, value in ((layer.accumulated, theirs), (layer.isolated, isolated)):
            assert view is not None
            wanted = 10 * math.log10((ours**2).sum() / ((ours - value) ** 2).sum())
            assert view.sqnr_db == pytest.approx(wanted, abs=0.05)
            assert view.max_abs == pytest.approx(np.abs(ours - value).max(), rel=1e-2)
            assert view.elements == ours.size
        ours, theirs = np.maximum(ours, 0), np.maximum(theirs, 0)
        assert by_name[f"r{i}"].isolated.match_share == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [1, 7, 20])
def test_batches_do_not_matter(weights: list[Array], x: Array, size: int) -> None:
    others = [w * np.float32(1.001) for w in weights]
    whole = found(backend(chain(weights)), backend(chain(others)), x, 20)
    parts = found(backend(chain(weights)), backend(chain(others)), x, size)
    for a, b in zip(whole.layers, parts.layers, strict=True):
        assert a.accumulated is not None and b.accumulated is not None
        assert b.accumulated.elements == a.accumulated.elements
        assert b.accumulated.sqnr_db == pytest.approx(a.accumulated.sqnr_db, abs=1e-3)


def test_growth_is_where_error_comes_in(weights: list[Array], x: Array) -> None:
    others = [w.copy() for w in weights]
    others[4] = others[4][::-1].copy()
    growth = {
        layer.tensor: layer.growth_db for layer in found(backend(chain(weights)), backend(chain(others)), x).layers
    }
    assert max(growth, key=lambda name: growth[name] or 0) == "y4"
    assert all(growth[f"y{i}"] == 0 for i in range(4))


def test_a_nan_is_blamed_on_the_first_layer_that_has_it(weights: list[Array], x: Array) -> None:
    others = [w.copy() for w in weights]
    others[3][5, 6] = np.nan
    layers = {layer.tensor: layer for layer in found(backend(chain(weights)), backend(chain(others)), x).layers}
    assert layers["y3"].growth_db == math.inf
    assert layers["y4"].growth_db == 0
    assert layers["y3"].isolated is not None and "NaN or infinity (20 in the candidate)" in (
        layers["y3"].isolated.problem or ""
    )
    assert layers["y3"].isolated.first_not_finite == (0, 6)
    assert layers["y4"].isolated is not None and layers["y4"].isolated.sqnr_db == math.inf


def test_tensors_of_another_shape_are_a_finding_and_the_others_are_compared(weights: list[Array], x: Array) -> None:
    last = np.ones((WIDTH, WIDTH // 2), np.float32)
    result = found(backend(chain(weights)), backend(chain([*weights[:-1], last], WIDTH // 2)), x)
    layers = {layer.tensor: layer for layer in result.layers}
    for view in (layers["y7"].accumulated, layers["y7"].isolated):
        assert view is not None and "shapes differ: (8, 32) and (8, 16)" in (view.problem or "")
    assert layers["y6"].isolated is not None and layers["y6"].isolated.sqnr_db == math.inf


def test_nothing_to_compare_is_an_error(weights: list[Array], x: Array) -> None:
    model = backend(chain(weights))
    with pytest.raises(NothingComparedError, match="no tensor of the reference could be paired"):
        compare(subjects_of(model, model, {}), batched(x, 8), lambda _: None)
    with pytest.raises(NothingComparedError, match="no samples"):
        compare(subjects_of(model, model, {"y0": "y0"}), [], lambda _: None)


def quantized(weights: list[Array], scales: dict[str, float]) -> tuple[ir.Model, ir.Model]:
    """Return the prepared float chain, and its simulation in int8."""
    prepared = prepare(ir.from_proto(chain(weights)))
    placement = place(prepared)
    plan = QuantizationPlan(
        name="plan",
        strategy="by hand",
        origin=Origin(model_sha256="0"),
        scales=scales,
        layers={layer.node: "int8" for layer in placement.layers},
    )
    return prepared, apply(plan, prepared, placement, simulate=True)


def test_what_is_quantized_is_told_with_what_it_clips(weights: list[Array], x: Array) -> None:
    scales = {"x": 0.01} | {f"r{i}": 0.05 for i in range(DEPTH - 1)}
    float_model, int8_model = quantized(weights, scales)
    layers = {layer.tensor: layer for layer in found(backend(float_model), backend(int8_model), x).layers}
    (first,) = layers["y0"].quantized_inputs
    assert (first.tensor, layers["y0"].precision, layers["r0"].precision) == ("x", "int8", "fp32")
    assert (
        first.scale == pytest.approx(0.01) and first.high == pytest.approx(1.275) and first.low == pytest.approx(-1.285)
    )
    assert first.clipped_share == np.mean((x > first.high) | (x < first.low))
    assert first.amax == np.abs(x).max()
    assert first.histogram is not None and sum(first.histogram.counts) == x.size
    assert len(first.histogram.counts) * first.histogram.width >= first.amax
    assert layers["y1"].inputs == ["r0"] and layers["r0"].inputs == ["y0"] and layers["y0"].inputs == []


def test_the_runtime_is_told_from_quantization(weights: list[Array], x: Array) -> None:
    """A runtime that executes the file is within rounding; one that executes another file is not."""
    scales = {"x": 0.03} | {f"r{i}": 0.03 for i in range(DEPTH - 1)}
    float_model, int8_model = quantized(weights, scales)
    _, wrong = quantized([*weights[:5], weights[5] * np.float32(1.05), *weights[6:]], scales)
    pairs = {name: name for name in backend(float_model).tensors}
    for runtime, guilty in ((int8_model, False), (wrong, True)):
        subjects = subjects_of(backend(float_model), backend(int8_model), pairs, backend(runtime), floors=2)
        result = compare(subjects, batched(x, 8), lambda _: None)
        layers = {layer.tensor: layer for layer in result.layers}
        last, before = layers["y5"].runtime, layers["y4"].runtime
        assert last is not None and before is not None and result.passes == 6
        assert (last.excess_low_db > 3) == guilty
        assert before.excess_low_db <= 0
