"""The recovery steps on small models: what they promise of the float model, the scales, the means and the file."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.graph import apply, apply_checked, edited, place
from calibrate.loading import FloatModel
from calibrate.observation import observable, observe
from calibrate.plan import Origin, QuantizationPlan, QuantizationRules
from calibrate.recovery import RecoveryInputs, recover
from calibrate.strategies import QuantizationConfig, make_plan
from tests.calibrate.recovery.random_graphs import CHANNELS, SIDE, STEPS, Graph, random_graph
from validate.backends import OnnxRuntimeModel, detach, expose
from validate.backends.onnx_files import serialize
from validate.data import Batch
from validate.results import ModelInfo

Arrays = dict[str, np.ndarray]
ORIGIN = Origin(model_sha256="0" * 64)
RNG = np.random.default_rng(0)
BATCHES = [
    Batch({"x": RNG.normal(size=(4, CHANNELS, SIDE, SIDE)).astype(np.float32)}, [None] * 4, [b""] * 4, first)
    for first in (0, 4, 8)
]
X = np.concatenate([batch.inputs["x"] for batch in BATCHES])


def planned(prepared: ir.Model, **rules: str) -> tuple[QuantizationPlan, RecoveryInputs]:
    """Return the plan of a model by minmax, with all layers in INT8, and what a recovery step gets."""
    placement = place(prepared)
    info = ModelInfo(path="random", sha256="0" * 64, nodes=prepared.graph.num_nodes(), parameters=0)
    model = FloatModel(info, Path("random.onnx"), prepared, placement)
    statistics = observe(observable(prepared, placement.tensors()), BATCHES, lambda batch, outputs: None).statistics
    plan = make_plan("minmax", statistics, placement, ORIGIN, QuantizationRules.model_validate(rules))

    def batches() -> Iterator[Batch]:
        yield from BATCHES

    return plan, RecoveryInputs(model, statistics, batches, lambda found: found.amax)


def outputs(model: ir.Model, tensors: list[str]) -> Arrays:
    return OnnxRuntimeModel(detach(expose(model, tensors))).run({"x": X})


def error(plan: QuantizationPlan, inputs: RecoveryInputs) -> float:
    """Return the error of the quantized model's outputs, relative to their power."""
    expected = outputs(inputs.model.prepared, [])
    found = outputs(apply(plan, inputs.model.prepared, inputs.model.placement, simulate=True), [])
    return max(float(np.square(found[n] - v).mean() / np.square(v).mean()) for n, v in expected.items())


def uneven(seed: int) -> ir.Model:
    """Return a model whose depthwise and dense layers read channels with ranges from 1 to 200."""
    graph = Graph(np.random.default_rng(seed))
    ranges = np.geomspace(1, 200, CHANNELS)
    for groups in (CHANNELS, 1):
        first = graph.rng.normal(size=(CHANNELS, CHANNELS, 1, 1)) * ranges[:, None, None, None]
        graph.made(graph.add("Relu", graph.add("Conv", graph.last, graph.constant(first))))
        second = graph.rng.normal(size=(CHANNELS, CHANNELS // groups, 3, 3))
        second /= (ranges if groups == CHANNELS else np.ones(CHANNELS))[:, None, None, None]
        second /= (np.ones(CHANNELS) if groups == CHANNELS else ranges)[: second.shape[1], None, None]
        graph.made(
            graph.add("Conv", graph.last, graph.constant(second), graph.random(CHANNELS), pads=[1] * 4, group=groups)
        )
    return graph.model()


@pytest.mark.parametrize("weights", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("seed", range(3))
def test_equalization_makes_layers_more_exact_whose_channels_have_different_ranges(weights: str, seed: int) -> None:
    plan, inputs = planned(uneven(seed), weights=weights)
    equalized = recover(plan, ["equalize"], inputs)
    assert error(equalized, inputs) < error(plan, inputs) / 4
    assert equalized.layers == plan.layers


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=6), st.integers(0, 2**31))
def test_the_equalized_float_model_is_the_original_and_the_scales_are_of_it(steps: list[str], seed: int) -> None:
    plan, inputs = planned(random_graph(steps, seed))
    equalized = recover(plan, ["equalize"], inputs)
    apply_checked(equalized, inputs.model.prepared, inputs.model.placement, "equalized")
    model = edited(inputs.model.prepared, equalized)
    before, after = outputs(inputs.model.prepared, []), outputs(model, list(plan.scales))
    for name, expected in before.items():
        np.testing.assert_allclose(after[name], expected, rtol=0, atol=1e-4 * max(1e-3, np.abs(expected).max()))
    shared = {name for group in inputs.model.placement.scale_groups() for name in group}
    for name in plan.scales.keys() - shared:
        assert equalized.scales[name] == pytest.approx(np.abs({**after, "x": X}[name]).max() / 127, rel=1e-4)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=6), st.integers(0, 2**31))
def test_every_corrected_layer_has_the_mean_output_that_it_has_in_float(steps: list[str], seed: int) -> None:
    """In the whole file, not layer by layer; against ONNX Runtime on the float model."""
    plan, inputs = planned(random_graph(steps, seed))
    corrected = recover(plan, ["bias_correction"], inputs)
    apply_checked(corrected, inputs.model.prepared, inputs.model.placement, "corrected")
    biased = {edit.node for edit in corrected.weight_edits}
    axes = {}
    for node in inputs.model.prepared.graph:
        if node.name in biased:  # what the layer gives, with its bias
            axes[str(node.outputs[0].name)] = 1 if node.op_type in {"Conv", "ConvTranspose", "Gemm"} else -1
    assert axes
    before = outputs(inputs.model.prepared, list(axes))
    after = outputs(apply(corrected, inputs.model.prepared, inputs.model.placement, simulate=True), list(axes))
    for name, axis in axes.items():
        others = tuple(i for i in range(before[name].ndim) if i != axis % before[name].ndim)
        spread = max(float(before[name].std()), 1e-3)
        difference = after[name].mean(axis=others, dtype=np.float64) - before[name].mean(axis=others, dtype=np.float64)
        assert np.abs(difference).max() < 2e-3 * spread


def test_layers_in_float_keep_their_bias_and_those_without_one_get_one() -> None:
    plan, inputs = planned(uneven(0))
    first, second, *_ = plan.layers
    partly = plan.with_layers(frozenset({first}), "fp32", name="partly")
    edits = {edit.node: edit for edit in recover(partly, ["bias_correction"], inputs).weight_edits}
    assert first not in edits
    assert {edit.input for edit in edits.values()} == {2}
    (without,) = [
        n.name for n in inputs.model.prepared.graph if n.op_type == "Conv" and len(n.inputs) == 2 and n.name != first
    ]
    assert edits[without].values.shape == (CHANNELS,)
    assert second in edits


def test_a_plan_is_corrected_again_after_layers_of_it_went_back_to_float() -> None:
    plan, inputs = planned(uneven(0))
    first, *_ = plan.layers
    corrected = recover(plan, ["equalize", "bias_correction"], inputs)
    assert recover(corrected, ["bias_correction"], inputs).hash == corrected.hash
    partly = recover(corrected.with_layers(frozenset({first}), "fp32", "partly"), ["bias_correction"], inputs)
    at_once = recover(
        recover(plan, ["equalize"], inputs).with_layers(frozenset({first}), "fp32", "partly"),
        ["bias_correction"],
        inputs,
    )
    assert partly.hash == at_once.hash


def test_both_steps_together_are_better_than_either_and_the_plan_survives_its_file(tmp_path: Path) -> None:
    plan, inputs = planned(uneven(4))
    errors = [
        error(recover(plan, steps, inputs), inputs) for steps in ([], ["equalize"], ["equalize", "bias_correction"])
    ]
    assert errors[2] <= errors[1] < errors[0]
    settings = QuantizationConfig.model_validate({"recovery": ["equalize", "bias_correction"]})
    recovered = recover(plan, settings.recovery, inputs)
    recovered.write(tmp_path / "plan.json")
    assert QuantizationPlan.read(tmp_path / "plan.json").hash == recovered.hash != plan.hash
    assert recover(plan, settings.recovery, inputs).hash == recovered.hash  # the same every time


@pytest.mark.parametrize(
    "steps", [["conv", "hardswish", "affine", "conv"], ["conv", "swish", "squeezed", "residual"], ["tokens"]]
)
def test_tensorrt_builds_a_recovered_file(steps: list[str], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    from validate.backends.tensorrt import build

    plan, inputs = planned(random_graph(steps, seed=5), float_precision="fp16")
    recovered = recover(plan, ["equalize", "bias_correction"], inputs)
    assert recovered.weight_edits
    deployed = apply_checked(recovered, inputs.model.prepared, inputs.model.placement, "recovered")
    (tmp_path / "model.onnx").write_bytes(serialize(deployed))
    shape = (4, CHANNELS, SIDE, SIDE)
    built = build(tmp_path / "model.onnx", {"x": (shape, shape, shape)}, "8.9")
    assert built.ok, built.message
