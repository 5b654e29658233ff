"""Scales that FP16 cannot hold stay float32: in the deployed file, in its simulation, and where clipping is counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from calibrate.graph import SWITCHES, apply, check, nodes_with_fp32_scales, place, scales_in_file, switchable
from calibrate.graph.precision import float_precision
from calibrate.plan import QuantizationPlan, WeightEdit
from validate.backends import OnnxRuntimeModel, detach, write_onnx
from validate.backends.onnx_files import serialize
from validate.backends.tensorrt import build

Array = NDArray[Any]
Prepared = Callable[..., ir.Model]
MakePlan = Callable[..., QuantizationPlan]
Normal = Callable[..., NDArray[np.float32]]

PAD = "<pads = [1, 1, 1, 1]>"
TWO = """g (float[N, 32] x) => (float[N, 8] y) {
    [first] h = MatMul(x, w)
    [act] r = Relu(h)
    [second] y = MatMul(r, v)
}"""
CNN = f"""g (float[N, 3, 8, 8] x) => (float[N, 5] y) {{
    [stem] c1 = Conv {PAD} (x, stem_w, stem_b)
    [relu] r1 = Relu(c1)
    [block] c2 = Conv {PAD} (r1, block_w)
    [add] s = Add(c2, r1)
    [relu2] r2 = Relu(s)
    [up] u = ConvTranspose (r2, up_w)
    [mean] m = GlobalAveragePool(u)
    [flat] f = Flatten(m)
    [mid] d = MatMul(f, mid_w)
    [head] y = Gemm <transB = 1> (d, head_w, head_b)
}}"""
CNN_SHAPES = {
    "stem_w": (8, 3, 3, 3),
    "stem_b": (8,),
    "block_w": (8, 8, 3, 3),
    "up_w": (8, 8, 2, 2),
    "mid_w": (8, 8),
    "head_w": (5, 8),
    "head_b": (5,),
}
ALL = frozenset({"stem", "block", "add", "up", "mid", "head"})


def sqnr(right: Array, found: Array) -> float:
    noise = np.square(right.astype(np.float64) - found).sum()
    return float(10 * np.log10(np.square(right.astype(np.float64)).sum() / noise))


def with_scales(plan: QuantizationPlan, model: ir.Model, everywhere: bool = False) -> QuantizationPlan:
    nodes = nodes_with_fp32_scales(plan, model, place(model), everywhere)
    return plan.model_copy(update={"fp32_scales": nodes})


class Small:
    """A product of inputs or weights so small that the scale of its values is near FP16's smallest number, 6e-8."""

    def __init__(self, prepared: Prepared, make_plan: MakePlan, inputs: float, weights: float) -> None:
        rng = np.random.default_rng(0)
        w = rng.choice([-1.0, 0.25, 0.5, 1.0], (32, 16)).astype(np.float32) * np.float32(weights)
        v = rng.normal(size=(16, 8)).astype(np.float32)
        self.x = rng.choice([0.3, 0.6, 1.0], (64, 32)).astype(np.float32) * np.float32(inputs)
        hidden = np.maximum(self.x @ w, 0)
        self.right = hidden @ v
        self.model = prepared(TWO, w=w, v=v)
        scales = {"x": float(self.x.max()) / 127, "r": float(hidden.max()) / 127}
        self.plan = make_plan(place(self.model), scales=scales, float_precision="fp16")

    def sqnr(self, plan: QuantizationPlan, simulate: bool) -> float:
        return sqnr(self.right, self.run(apply(plan, self.model, place(self.model), simulate=simulate)))

    def run(self, written: ir.Model) -> Array:
        return OnnxRuntimeModel(onnx.load_from_string(serialize(written)).SerializeToString()).run({"x": self.x})["y"]


@pytest.mark.parametrize(("inputs", "weights"), [(1.1e-5, 1.0), (1.0, 1.1e-5)])
@pytest.mark.parametrize("simulate", [True, False])
def test_small_inputs_and_weights_keep_their_precision(
    prepared: Prepared, make_plan: MakePlan, inputs: float, weights: float, simulate: bool
) -> None:
    """In FP16, 1.1e-5 / 127 = 8.7e-8 becomes 6e-8, and a third of the range is clipped."""
    small = Small(prepared, make_plan, inputs, weights)
    exact = small.sqnr(small.plan.model_copy(update={"float_precision": "fp32"}), simulate)
    kept = with_scales(small.plan, small.model)
    assert "first" in kept.fp32_scales
    assert small.sqnr(kept, simulate) > exact - 3 > 30
    assert small.sqnr(small.plan, simulate) < exact - 20


def test_scales_that_fp16_holds_are_fp16(prepared: Prepared, make_plan: MakePlan) -> None:
    small = Small(prepared, make_plan, 1.0, 1.0)
    assert nodes_with_fp32_scales(small.plan, small.model, place(small.model), everywhere=False) == frozenset()
    assert with_scales(small.plan, small.model, everywhere=True).fp32_scales == {"first", "second"}
    float32 = small.plan.model_copy(update={"float_precision": "fp32"})
    assert with_scales(float32, small.model, everywhere=True) == float32


def test_one_channel_is_enough_and_so_is_an_edit(prepared: Prepared, make_plan: MakePlan, normal: Normal) -> None:
    w = 1e-3 * normal(32, 16)
    model = prepared(TWO, w=w, v=normal(16, 8))
    plan = make_plan(place(model), float_precision="fp16")
    assert with_scales(plan, model).fp32_scales == frozenset()
    factors = np.ones((1, 16), np.float32)
    factors[0, 3] = 0.004
    edited = plan.with_weight_edits([WeightEdit("first", 1, "multiply", factors)])
    assert with_scales(edited, model).fp32_scales == {"first"}
    by_tensor = edited.model_copy(update={"weights": "per_tensor"})
    assert with_scales(by_tensor, model).fp32_scales == frozenset()
    dead = plan.with_weight_edits([WeightEdit("first", 1, "multiply", np.where(factors < 1, 1e-5, factors))])
    assert with_scales(dead, model).fp32_scales == frozenset()  # beside the others, it is nothing
    with_zeros = plan.with_weight_edits([WeightEdit("first", 1, "multiply", np.where(factors < 1, 0, 1e-4))])
    assert with_scales(with_zeros, model).fp32_scales == {"first"}
    itself = prepared(TWO, w=w * factors, v=normal(16, 8))
    assert with_scales(plan, itself).fp32_scales == {"first"}


@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_a_residual_scale_widens_the_convolution_and_its_add(
    prepared: Prepared, make_plan: MakePlan, normal: Normal, scale: float
) -> None:
    graph = f"""g (float[N, 8, 8, 8] x, float[N, 8, 8, 8] z) => (float[N, 8, 8, 8] y) {{
        [conv] c = Conv {PAD} (x, w)
        [add] y = Add(c, z)
    }}"""
    model = prepared(graph, w=normal(8, 8, 3, 3))
    plan = make_plan(place(model), scales={"x": 0.05, "z": scale}, float_precision="fp16")
    kept = with_scales(plan, model)
    assert kept.fp32_scales == {"conv", "add"}
    assert scales_in_file(kept, model, place(model)) == {"x": np.float32(0.05), "z": np.float32(scale)}
    assert scales_in_file(plan, model, place(model))["z"] == (2**-24 if scale < 1 else 65504)


def test_layers_and_their_adds_that_go_back_are_fp16_again(
    prepared: Prepared, make_plan: MakePlan, normal: Normal
) -> None:
    model = prepared(CNN, **{name: normal(*shape) for name, shape in CNN_SHAPES.items()})
    plan = with_scales(make_plan(place(model), float_precision="fp16"), model, everywhere=True)
    assert plan.fp32_scales == ALL
    kinds = {node.name: float_precision(node, plan) for node in model.graph}
    assert {name for name, kind in kinds.items() if kind == "fp32"} == ALL
    back = plan.with_layers(frozenset({"block", "mid"}), "fp16", "back")
    kinds = {node.name: float_precision(node, back) for node in model.graph}
    assert {name for name, kind in kinds.items() if kind == "fp32"} == ALL - {"block", "add", "mid"}
    whole = plan.in_float("fp16", "fp16")
    assert whole.hash == make_plan(place(model)).in_float("fp16", "fp16").hash
    assert {float_precision(node, whole) for node in model.graph} == {"fp16"}


@pytest.mark.parametrize("float_precision", ["fp16", "bf16"])
def test_the_written_file_has_float32_scales_and_casts_behind(
    prepared: Prepared, make_plan: MakePlan, normal: Normal, tmp_path: Path, float_precision: str
) -> None:
    """Conv, ConvTranspose, Gemm, MatMul and a residual Add: a real builder takes them."""
    model = prepared(CNN, **{name: normal(*shape) for name, shape in CNN_SHAPES.items()})
    plan = make_plan(place(model), float_precision=float_precision)
    kept = with_scales(plan, model, everywhere=True)
    written = apply(kept, model, place(model))
    assert check(written) == []
    path = tmp_path / "model.onnx"
    write_onnx(written, path)
    proto = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    constants = {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer}
    quantizers = [node for node in proto.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    assert {constants[node.input[1]].dtype for node in quantizers} == {np.dtype(np.float32)}
    types = {value.name: value.type.tensor_type.elem_type for value in proto.graph.value_info}
    half = onnx.TensorProto.FLOAT16 if float_precision == "fp16" else onnx.TensorProto.BFLOAT16
    outputs = {node.name: types.get(node.output[0], onnx.TensorProto.FLOAT) for node in proto.graph.node}
    assert {outputs[name] for name in ALL} == {onnx.TensorProto.FLOAT}
    assert {outputs[name] for name in ("relu", "relu2", "mean")} == {half}
    shapes = {"x": ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))}
    built = build(path, shapes, "8.9")
    if built.ok is None:
        pytest.skip(built.message)
    assert built.ok, built.message


@pytest.mark.parametrize("mask", range(0, 32, 5))
def test_a_switched_layer_has_the_scales_of_the_file(
    prepared: Prepared, make_plan: MakePlan, normal: Normal, mask: int
) -> None:
    """Scales of 1e-6 lose 10 % in FP16. What differs else is that float layers are float32 there."""
    tiny = {"stem_w", "block_w", "up_w"}
    weights = {name: normal(*shape) * (1e-6 if name in tiny else 1) for name, shape in CNN_SHAPES.items()}
    model = prepared(CNN, **{name: array.astype(np.float32) for name, array in weights.items()})
    placement = place(model)
    scales = {"x": 0.03, "r1": 1e-6, "r2": 1e-6, "f": 1e-8, "d": 1e-8}
    plan = with_scales(make_plan(placement, scales=scales, float_precision="fp16"), model)
    assert plan.fp32_scales == ALL
    names = [layer.node for layer in placement.layers]
    on = np.array([bool(mask >> i & 1) for i in range(len(names))])
    off = frozenset(name for name, is_on in zip(names, on, strict=True) if not is_on)
    in_fp32 = plan.with_layers(off, "fp32", "mixed").model_copy(update={"float_precision": "fp32"})
    x = normal(4, 3, 8, 8)
    (want,) = OnnxRuntimeModel(detach(apply(in_fp32, model, placement, simulate=True))).run({"x": x}).values()
    switched = OnnxRuntimeModel(detach(switchable(model, placement, plan)))
    (got,) = switched.run({"x": x, SWITCHES: on}).values()
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())


def test_plans_without_them_keep_their_hash_and_file(
    prepared: Prepared, make_plan: MakePlan, normal: Normal, tmp_path: Path
) -> None:
    model = prepared(TWO, w=normal(32, 16), v=normal(16, 8))
    plan = make_plan(place(model), float_precision="fp16")
    assert "fp32_scales" not in plan.model_dump_json()
    kept = plan.model_copy(update={"fp32_scales": frozenset({"second", "first"})})
    assert kept.hash != plan.hash
    kept.write(tmp_path / "plan.json")
    assert QuantizationPlan.read(tmp_path / "plan.json") == kept
    assert QuantizationPlan.read(tmp_path / "plan.json").hash == kept.hash
