"""Operators that a GPU computes inaccurately in FP16 stay FP32, wherever they stand."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from calibrate.observation.fp16_operators import nodes_inaccurate_in_fp16


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ("[a] y = LogSoftmax(x)", {"a"}),
        ("[a] y = Softmax(x)", set()),
        ("[a] y = Log(x)", set()),
        ("[a] p = Softmax(x) [b] y = Log(p)", {"a", "b"}),
        ("[a] p = Softmax(x) [t] q = Transpose(p) [b] y = Log(q)", {"a", "t", "b"}),
        ("[a] p = Softmax(x) [m] q = Mul(p, x) [b] y = Log(q)", set()),
        ("[a] p = Softmax(x) [r] q = Relu(p) [b] z = Log(p) [c] y = Add(z, q)", {"a", "b"}),
        ("[a] y = Mean(x, x, x)", {"a"}),
        ("[a] y = Sum(x, x, x, x)", {"a"}),
        ("[a] y = Mean(x, x)", {"a"}),
        ("[a] y = Sum(x, x)", set()),
        ("[a] y = Elu(x)", {"a"}),
        ("[a] y = LayerNormalization(x, x)", set()),
    ],
)
def test_which_nodes(prepared: Callable[..., ir.Model], nodes: str, found: set[str]) -> None:
    assert nodes_inaccurate_in_fp16(prepared(f"g (float[4, 4] x) => (float[4, 4] y) {{ {nodes} }}")) == found
