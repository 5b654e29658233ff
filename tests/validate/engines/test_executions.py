"""Legitimate executions: products that accumulate in FP16."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from validate.backends import OnnxRuntimeModel, detach
from validate.backends.onnx_files import with_shapes
from validate.engines.executions import executions

TEXT = """<ir_version: 10, opset_import: ["" : 19]>
    net (float[N, {terms}] x, float[{terms}, 64] w) => (float[N, 64] y) {{
        half = Cast<to = {to}>(x)
        given = Cast<to = 1>(half)
        [product] raw = MatMul(given, w)
        rounded = Cast<to = {to}>(raw)
        y = Cast<to = 1>(rounded)
    }}"""


def simulated(terms: int, to: int) -> ir.Model:
    model = ir.from_onnx_text(TEXT.format(terms=terms, to=to))
    weight = np.random.default_rng(0).standard_normal((terms, 64)).astype(np.float16).astype(np.float32)
    value = next(value for value in model.graph.inputs if value.name == "w")
    model.graph.inputs.remove(value)
    value.const_value = ir.tensor(weight, name="w")
    model.graph.register_initializer(value)
    return with_shapes(model)


def accumulated_in_fp16(x: NDArray[np.float32], w: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """Add up blocks of products exactly, and the blocks one after the other in FP16."""
    total = np.zeros((len(x), w.shape[1]), np.float16)
    for first in range(0, w.shape[0], block):
        total += (x[:, first : first + block] @ w[first : first + block]).astype(np.float16)
    return total.astype(np.float32)


def decibels(signal: NDArray[np.float32], noise: NDArray[np.float32]) -> float:
    return float(10 * np.log10(np.square(signal).sum() / np.square(noise).sum()))


def floor(model: ir.Model, x: NDArray[np.float32]) -> float:
    right = OnnxRuntimeModel(detach(model)).run({"x": x})["y"]
    others = [OnnxRuntimeModel(detach(one)).run({"x": x})["y"] for one in executions(model)]
    return -10 * np.log10(np.mean([10 ** (-decibels(right, one - right) / 10) for one in others]))


@pytest.mark.parametrize("terms", [256, 1024, 4096])
def test_the_floor_is_what_accumulating_in_fp16_costs(terms: int) -> None:
    """Up to 6 dB more than of sums that NumPy really rounds to FP16 after every 16 products.

    With TensorRT-RTX 1.6.1 on an H200, a convolution over 768 was 53 dB from its simulation; see docs/engines.md.
    """
    model = simulated(terms, to=int(ir.DataType.FLOAT16))
    x = np.random.default_rng(1).standard_normal((64, terms)).astype(np.float16).astype(np.float32)
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    exact = x @ weight.numpy()
    found = accumulated_in_fp16(x, weight.numpy(), block=16)
    assert 0 < decibels(exact, found - exact) - floor(model, x) < 6


def test_bf16_accumulates_in_float32() -> None:
    x = np.random.default_rng(1).standard_normal((64, 4096)).astype(np.float32)
    few, many = (floor(simulated(n, to=int(ir.DataType.BFLOAT16)), x[:, :n]) for n in (64, 4096))
    assert few == pytest.approx(many, abs=2)
