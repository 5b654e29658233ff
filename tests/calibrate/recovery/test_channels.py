"""Factors of channels: whatever they are, the float model computes what it did."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.graph import edited
from calibrate.plan import Origin, QuantizationPlan
from calibrate.recovery.channels import Channels, find_channels
from calibrate.recovery.hosts import edits_of
from calibrate.recovery.samples import observed_shapes
from tests.calibrate.recovery.random_graphs import CHANNELS, SIDE, STEPS, random_graph
from validate.backends import OnnxRuntimeModel, detach, expose

PLAN = QuantizationPlan(name="none", strategy="none", origin=Origin(model_sha256="0" * 64), scales={}, layers={})
X = np.random.default_rng(0).normal(size=(3, CHANNELS, SIDE, SIDE)).astype(np.float32)


def found_in(model: ir.Model) -> Channels:
    return find_channels(model, observed_shapes(model, {"x": X}))


def run(model: ir.Model, tensors: list[str]) -> dict[str, np.ndarray]:
    return OnnxRuntimeModel(detach(expose(model, tensors)), optimize=False).run({"x": X})


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=9), st.integers(0, 2**31))
def test_any_factors_leave_the_float_model_as_it_was(steps: list[str], seed: int) -> None:
    """Against ONNX Runtime on the unedited graph: outputs are as they were, scaled tensors divided by the factors."""
    model = random_graph(steps, seed)
    shapes = observed_shapes(model, {"x": X})
    channels = find_channels(model, shapes)
    factors = np.exp(np.random.default_rng(seed).normal(size=channels.count))
    factors[0] = 1
    plan = PLAN.with_weight_edits(edits_of(model, channels, factors, shapes))
    before, after = run(model, list(channels.axes)), run(edited(model, plan), list(channels.axes))
    for name, expected in before.items():
        found, factor = after[name].astype(np.float64), channels.factors_of(name, factors)
        if factor is not None:
            found *= factor.reshape(-1, *[1] * (expected.ndim - 1 - channels.axes[name]))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(np.abs(expected).max(), 1e-3))


@pytest.mark.parametrize(
    ("steps", "free"),
    [
        (["conv"], True),
        (["conv", "relu"], True),
        (["conv", "leaky", "max_pool", "mean_pool", "prelu"], True),
        (["conv", "clip"], True),
        (["conv", "hardswish"], True),
        (["conv", "swish"], True),
        (["conv", "squeezed"], True),
        (["tanh", "affine"], True),
        (["tanh", "affine_by_channel"], True),
        (["tanh", "batch_norm"], True),
        (["tokens"], True),
        (["transposed", "upsampled"], True),
        (["conv", "reduced"], True),
        (["shared"], True),
        (["conv", "conv", "residual"], None),
        (["conv", "relu6"], False),
        (["conv", "tanh"], False),
        (["conv", "softmax"], False),
        (["conv", "plain_swish"], False),
        (["relu"], False),
    ],
)
def test_what_the_last_layer_reads_can_be_scaled_where_a_constant_before_it_can_take_it(
    steps: list[str], free: bool | None
) -> None:
    model = random_graph(steps, seed=1)
    head = next(node for node in reversed(model.graph) if node.op_type == "Conv")
    classes = found_in(model).classes[str(head.inputs[0].name)]  # type: ignore[union-attr]
    if free is not None:
        assert (classes > 0).all() == free
        assert len(set(classes.tolist())) == (CHANNELS if free else 1)


def test_the_halves_of_a_concat_have_factors_of_their_own_and_terms_of_a_sum_have_the_same() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 19]>
        net (float[N, 2] x) => (float[N, 2] y) <float[2, 2] v = {1, 2, 3, 4}, float[2, 2] w = {1, 2, 3, 4},
            float[4, 2] u = {1, 2, 3, 4, 5, 6, 7, 8}> {
            a = MatMul(x, v)
            b = MatMul(x, w)
            c = Concat <axis = -1> (a, b)
            y = MatMul(c, u)
        }"""
    )
    shapes = {"x": (8, 2), "a": (8, 2), "b": (8, 2), "c": (8, 4), "y": (8, 2)}
    classes = find_channels(model, shapes).classes
    assert classes["c"].tolist() == [*classes["a"].tolist(), *classes["b"].tolist()]
    assert len(set(classes["c"].tolist())) == 4
    model.graph[2].op_type = "Add"
    model.graph[2].attributes.clear()
    model.graph[3].replace_input_with(1, model.graph.initializers["w"])
    classes = find_channels(model, shapes | {"c": (8, 2)}).classes
    assert classes["a"].tolist() == classes["b"].tolist() == classes["c"].tolist()


def test_what_a_subgraph_reads_stays_as_it_is() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 19]>
        net (float[N, 2] x, bool b) => (float[N, 2] y, float[N, 2] z) <float[2, 2] w = {1, 2, 3, 4}> {
            h = MatMul(x, w)
            y = MatMul(h, w)
            z = If(b) <
                then_branch = yes () => (float[N, 2] p) { p = Relu(h) },
                else_branch = no () => (float[N, 2] q) { q = Identity(x) }
            >
        }"""
    )
    assert not find_channels(model, dict.fromkeys("xhyz", (8, 2))).classes["h"].any()
