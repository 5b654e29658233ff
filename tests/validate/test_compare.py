"""The layer-wise comparison, against numpy, and on a model in which one layer is broken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from calibrate.graph.apply import apply
from calibrate.graph.placement import place
from calibrate.graph.prepare import prepare
from calibrate.origin import Origin
from calibrate.plan import QuantizationPlan
from validate.backends.onnxruntime import OnnxRuntimeModel
from validate.compare import layer_sqnr
from validate.data import Batch
from validate.exceptions import JobError
from validate.onnxfile import expose, serialize

WIDTH, DEPTH = 32, 8
TENSORS = tuple(f"y{i}" for i in range(DEPTH))


def chain(weights: list[NDArray[np.float32]], outputs: int = WIDTH) -> onnx.ModelProto:
    """Return layer after layer: y0 = x w0, r0 = relu(y0), y1 = r0 w1, ... with every y an output."""
    body, last = [], "x"
    for i in range(len(weights)):
        body.append(f"[layer{i}] y{i} = MatMul({last}, w{i}) r{i} = Relu(y{i})")
        last = f"r{i}"
    declared = ", ".join(f"float[N, {outputs}] y{i}" for i in range(len(weights)))
    text = f"g (float[N, {WIDTH}] x) => ({declared}) {{ {' '.join(body)} }}"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 19]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights))
    return model


def runnable(model: onnx.ModelProto | ir.Model, **options: Any) -> OnnxRuntimeModel:
    data = model.SerializeToString() if isinstance(model, onnx.ModelProto) else serialize(model)
    return OnnxRuntimeModel(data, threads=1, **options)


def batched(x: NDArray[np.float32], size: int) -> Iterator[Batch]:
    for first in range(0, len(x), size):
        part = x[first : first + size]
        yield Batch({"x": part}, [None] * len(part), [b""] * len(part), first)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def weights(rng: np.random.Generator) -> list[NDArray[np.float32]]:
    return [(rng.standard_normal((WIDTH, WIDTH)) * (2 / WIDTH) ** 0.5).astype(np.float32) for _ in range(DEPTH)]


@pytest.fixture
def x(rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.standard_normal((50, WIDTH)).astype(np.float32)


def activations(x: NDArray[np.float32], weights: list[NDArray[np.float32]]) -> list[NDArray[np.float64]]:
    """Return y0, y1, ... by numpy."""
    outputs, last = [], x.astype(np.float64)
    for w in weights:
        outputs.append(last @ w)
        last = np.maximum(outputs[-1], 0)
    return outputs


@pytest.mark.parametrize("size", [50, 7])
def test_like_numpy(weights, x, rng, size):
    """Signal over noise of all the batches together, and not the mean over them."""
    disturbed = [w + (0.01 * rng.standard_normal(w.shape)).astype(np.float32) for w in weights]
    scaled = x * np.linspace(0.01, 10, len(x), dtype=np.float32)[:, None]
    measured = layer_sqnr(runnable(chain(weights)), runnable(chain(disturbed)), TENSORS, batched(scaled, size))
    assert tuple(measured) == TENSORS
    for name, r, v in zip(TENSORS, activations(scaled, weights), activations(scaled, disturbed), strict=True):
        expected = 10 * np.log10((r**2).sum() / ((r - v) ** 2).sum())
        assert measured[name] == pytest.approx(expected, abs=0.01)
    assert 10 < measured["y7"] < measured["y0"] < 60


def test_equal_models_have_no_noise(weights, x):
    measured = layer_sqnr(runnable(chain(weights)), runnable(chain(weights)), TENSORS, batched(x, 16))
    assert set(measured.values()) == {np.inf}


def test_only_the_tensors_that_are_asked_for(weights, x):
    models = runnable(chain(weights)), runnable(chain(weights))
    assert layer_sqnr(*models, ["y3"], batched(x, 16)).keys() == {"y3"}


@pytest.mark.parametrize("which", ["reference", "candidate"])
def test_a_missing_tensor_is_an_error(weights, x, which):
    whole, part = runnable(chain(weights)), runnable(chain(weights), outputs=TENSORS[:-1])
    models = {"reference": whole, "candidate": whole} | {which: part}
    with pytest.raises(JobError, match=f"the {which} does not give y7"):
        layer_sqnr(models["reference"], models["candidate"], TENSORS, batched(x, 16))


def test_a_tensor_that_is_called_nearly_the_same_is_missing(weights, x):
    """Names are not matched by their beginning."""
    model = runnable(chain(weights))
    with pytest.raises(JobError, match="the reference does not give y,"):
        layer_sqnr(model, model, ["y", "y1"], batched(x, 16))


def test_tensors_of_different_shapes_are_an_error(weights, x):
    narrow = runnable(chain([w[:, :8] for w in weights[:1]], outputs=8))
    with pytest.raises(JobError, match=r"tensor y0 cannot be compared: .*\(16, 32\).*\(16, 8\)"):
        layer_sqnr(runnable(chain(weights)), narrow, ["y0"], batched(x, 16))


@pytest.mark.parametrize("broken", [0, 3, 7])
def test_a_planted_fault_is_the_first_bad_layer(weights, x, broken):
    """One activation scale is 8 times too small, so that most of what the layer reads is clipped."""
    model = prepare(ir.from_proto(chain(weights)))
    placement = place(model)
    inputs = [x, *(np.maximum(y, 0) for y in activations(x, weights)[:-1])]
    scales = {
        layer.activation: float(np.abs(array).max() / 127) / (8 if index == broken else 1)
        for index, (layer, array) in enumerate(zip(placement.layers, inputs, strict=True))
    }
    plan = QuantizationPlan(
        name="planted", strategy="by hand", origin=Origin(model_sha256="0"), scales=scales, float_precision="fp32",
        layers={layer.node: "int8" for layer in placement.layers},
    )  # fmt: skip
    tensors = [layer.output for layer in placement.layers]
    assert tensors == list(TENSORS)
    quantized = expose(apply(plan, model, placement, simulate=True), TENSORS)
    measured = layer_sqnr(runnable(expose(model, TENSORS)), runnable(quantized), tensors, batched(x, 16))
    bad = [name for name in tensors if measured[name] < 15]
    assert bad[0] == f"y{broken}"
    assert bad == tensors[broken:], "what comes after it has its error too"
    assert all(measured[name] > 25 for name in tensors[:broken])
