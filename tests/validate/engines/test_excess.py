"""Noise over the floor, and graphs as other right runtimes compute them, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from validate.backends import OnnxRuntimeModel, detach, with_shapes
from validate.engines.excess import TensorNoise
from validate.engines.executions import executions

ONES = np.ones((16, 100), np.float32)


def noise_of(size: float, rng: np.random.Generator) -> TensorNoise:
    """Of an engine whose noise is `size` times that of the floor."""
    noise = TensorNoise()
    draw = lambda: rng.normal(0, 1e-3, ONES.shape).astype(np.float32)  # noqa: E731
    noise.add(ONES, ONES + size * draw(), [ONES + draw() for _ in range(3)], 0)
    return noise


def test_the_bound_covers_the_truth():
    rng = np.random.default_rng(0)
    found = [noise_of(2.0, rng).excess() for _ in range(300)]
    truth = 20 * np.log10(2)
    assert np.mean([excess.db for excess in found]) == pytest.approx(truth, abs=0.1)
    assert sum(excess.low_db > truth for excess in found) <= 3, "0.3 of 300 are to be expected"
    assert np.mean([excess.low_db for excess in found]) > truth - 2


def test_values_that_tip_over_in_one_sample_prove_nothing():
    tipped = ONES.copy()
    tipped[3, 5] = 2
    noise = TensorNoise()
    noise.add(ONES, tipped, [ONES], 0)
    excess = noise.excess()
    assert excess.db > 50
    assert excess.low_db < 0


def test_values_that_are_not_finite_in_simulation_either_are_no_fault():
    masked = ONES.copy()
    masked[0, 0] = -np.inf
    noise = TensorNoise()
    noise.add(masked, masked, [masked], 0)
    assert (noise.not_finite, noise.errors.sqnr_db, noise.excess().db) == (0, np.inf, 0.0)
    noise.add(masked, np.full_like(ONES, np.nan), [masked], 16)
    assert noise.not_finite == ONES.size - 1


@pytest.mark.parametrize(  # of ones, none tips over when it is quantized
    ("nodes", "relative"),
    [
        ("{h = Cast<to = 10>(x) y = Cast<to = 1>(h)}", 2.0**-11),
        ("{y = MatMul(x, w)}", 2.0**-11),
        ("{q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s) e = DequantizeLinear(v, s) y = MatMul(d, e)}", 0),
        ("{y = Relu(x)}", 0),
    ],
)
def test_executions_differ_by_what_rounding_does(nodes, relative):
    ones = ", ".join(["1"] * 100)
    constants = f"<float[100, 1] w = {{{ones}}}, int8[100, 1] v = {{{ones}}}, float s = {{0.01}}, int8 z = {{0}}>"
    text = f'<ir_version: 9, opset_import: ["": 19]> g (float[N, 100] x) => (float[N, M] y) {constants} {nodes}'
    model = with_shapes(ir.from_onnx_text(text))
    outputs = [OnnxRuntimeModel(detach(one)).run({"x": ONES})["y"] for one in (model, *executions(model))]
    first, *others = outputs
    largest = max(float(np.abs(other / first - 1).max()) for other in others)
    assert largest <= 2 * relative * 1.01 + 1e-6, "two operands"
    assert (largest > relative / 100) == bool(relative)
    assert all((a != b).any() for a, b in zip(others[-2:], others[-3:], strict=False)) or not relative
