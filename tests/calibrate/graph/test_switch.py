"""One graph with a switch per layer computes what the file of each plan computes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest

from calibrate.graph.application import apply
from calibrate.graph.placement import Placement, place
from calibrate.graph.preparation import prepare
from calibrate.graph.switch import SWITCHES, switchable
from calibrate.observation.streaming import observable, observe
from calibrate.plan.origin import Origin
from calibrate.plan.quantization_plan import QuantizationPlan, QuantizationRules
from calibrate.strategies.planning import make_plan
from validate.backends.onnx_files import detach, read_onnx
from validate.backends.onnxruntime import OnnxRuntimeModel
from validate.data.stream import Batch

if TYPE_CHECKING:
    from tests.calibrate.conftest import MakePlan, Parse
    from tests.tiny_model import Models

IMAGES = np.random.default_rng(0).normal(0, 1, (8, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def prepared(models: Models) -> tuple[ir.Model, Placement, QuantizationPlan]:
    model = prepare(read_onnx(Path(models.good)))
    placement = place(model)
    batch = Batch({"image": IMAGES}, [None] * 8, [b""] * 8, 0)
    observation = observe(observable(model, placement.tensors()), [batch], lambda batch, outputs: None)
    plan = make_plan("minmax", observation.statistics, placement, Origin(model_sha256="0"), QuantizationRules())
    return model, placement, plan


@pytest.mark.parametrize("mask", range(16))
def test_every_mask_is_the_plan_with_these_layers_in_int8(
    prepared: tuple[ir.Model, Placement, QuantizationPlan], mask: int
) -> None:
    model, placement, plan = prepared
    names = [layer.node for layer in placement.layers]
    on = np.array([bool(mask >> i & 1) for i in range(len(names))])
    off = frozenset(name for name, is_on in zip(names, on, strict=True) if not is_on)
    expected = OnnxRuntimeModel(detach(apply(plan.with_layers(off, "fp32", "mixed"), model, placement, simulate=True)))
    switched = OnnxRuntimeModel(detach(switchable(model, placement, plan)))
    (want,) = expected.run({"image": IMAGES}).values()
    (got,) = switched.run({"image": IMAGES, SWITCHES: on}).values()
    if mask == 0:
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        return
    # Sums in another order tip a value over to the next step now and then; that is little beside what int8 does.
    (whole,) = switched.run({"image": IMAGES, SWITCHES: np.zeros_like(on)}).values()
    effect = np.sqrt(np.square(whole - want).mean())
    assert effect > 1e-4
    assert np.sqrt(np.square(got - want).mean()) < 0.05 * effect


def test_layers_that_the_plan_has_in_float_have_no_switch(
    prepared: tuple[ir.Model, Placement, QuantizationPlan],
) -> None:
    model, placement, plan = prepared
    first = placement.layers[0].node
    switched = OnnxRuntimeModel(detach(switchable(model, placement, plan.with_layers({first}, "fp32", "mixed"))))
    on = np.zeros(len(placement.layers), bool)
    (off,) = switched.run({"image": IMAGES, SWITCHES: on}).values()
    on[0] = True
    (still_off,) = switched.run({"image": IMAGES, SWITCHES: on}).values()
    np.testing.assert_array_equal(off, still_off)


def test_the_model_itself_is_not_changed(prepared: tuple[ir.Model, Placement, QuantizationPlan]) -> None:
    model, placement, plan = prepared
    before = [(node.name, node.op_type, [v.name for v in node.inputs if v]) for node in model.graph]
    switchable(model, placement, plan)
    assert [(node.name, node.op_type, [v.name for v in node.inputs if v]) for node in model.graph] == before


@pytest.mark.parametrize("second", ["r", "q"])
def test_a_product_of_two_activations_is_switched_also_where_they_are_one(
    parse: Parse, make_plan: MakePlan, second: str
) -> None:
    graph = f"g (float[N, 4, 4] x) => (float[N, 4, 4] y) {{ r = Relu(x) q = Neg(x) [gram] y = MatMul(r, {second}) }}"
    model = prepare(ir.from_proto(parse(graph)))
    placement = place(model, QuantizationRules(attention=True))
    plan = make_plan(placement, scales=0.05)
    x = np.random.default_rng(1).normal(0, 1, (3, 4, 4)).astype(np.float32)
    left, right = (np.maximum(x, 0), {"r": np.maximum(x, 0), "q": -x}[second])
    rounded = [np.clip(np.round(array / 0.05), -128, 127) * 0.05 for array in (left, right)]
    switched = OnnxRuntimeModel(detach(switchable(model, placement, plan)))
    for on, expected in ((False, left @ right), (True, rounded[0] @ rounded[1])):
        (y,) = switched.run({"x": x, SWITCHES: np.array([on])}).values()
        np.testing.assert_allclose(y, expected, atol=1e-4)
