"""A run of a model that FP16 cannot hold: what is said of layers, and what they are said to cost, is as in the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from calibrate.cost.gpus import gpu_named
from calibrate.cost.kernels import kernels_of
from calibrate.cost.roofline import Roofline
from calibrate.graph.placement import place
from calibrate.graph.preparation import prepare
from calibrate.plan.quantization_plan import QuantizationPlan
from validate.backends.onnx_files import read_onnx
from validate.results import Results

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Job

CHANNELS = 16
GRAPH = """<ir_version: 8, opset_import: ["": 17]> g (float[N, 3, 16, 16] image) => (float[N, 5] logits) {
    [stem] c = Conv <pads = [1, 1, 1, 1]> (image, w0, b0)
    [stem_relu] r = Relu(c)
    [big] a = Conv <pads = [1, 1, 1, 1]> (r, w1)
    [big_relu] s = Relu(a)
    [down] d = Conv <pads = [1, 1, 1, 1]> (s, w2)
    [down_relu] e = Relu(d)
    [mean] p = ReduceMean <axes = [2, 3], keepdims = 0> (e)
    [head] logits = Gemm(p, w3)
}"""
TYPES = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    shapes = {"w0": (CHANNELS, 3, 3, 3), "w1": (CHANNELS, CHANNELS, 3, 3), "w2": (CHANNELS, CHANNELS, 3, 3)}
    weights = {name: rng.normal(0, 0.3, shape) for name, shape in (shapes | {"w3": (CHANNELS, 5)}).items()}
    weights["b0"] = np.where(np.arange(CHANNELS), 0, -1000)  # so that channel 0 is 0 behind the Relu,
    weights["w1"][:, 0] *= 3e3  # and int8 ruins the layer whose scales its weights decide
    weights["w1"] *= 3e3
    weights["w2"] *= 1e-4
    made = onnx.parser.parse_model(GRAPH)
    made.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items())
    path = tmp_path_factory.mktemp("wide") / "wide.onnx"
    onnx.save(made, path)
    return path


@pytest.fixture(scope="module")
def job(new_job: Callable[[], Job], model: Path) -> Job:
    """One in which a layer beyond FP16 has to go back."""
    job = new_job()
    job.config["data"] |= {"label": None}  # agreement with the float model
    job.config["data"]["calibration"]["arguments"]["n"] = 60
    done = job.run(f"model.onnx={model}", "latency.runs=0")
    assert (job.output / "results.json").is_file(), done.stdout + done.stderr
    return job


@pytest.fixture(scope="module")
def results(job: Job) -> Results:
    return Results.read(job.output)


def types_in(file: Path) -> dict[str, str]:
    """Return what the layers of a deployed file compute in: int8 where what they read was dequantized."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(file), strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output, *graph.input)}
    producers = {name: node.op_type for node in graph.node for name in node.output}
    return {
        node.name: "int8" if producers.get(node.input[0]) == "DequantizeLinear" else TYPES[types[node.output[0]]]
        for node in graph.node
        if node.op_type in {"Conv", "Gemm"}
    }


def costs(model: Path) -> Callable[[Any], float]:
    prepared = prepare(read_onnx(model))
    kernels = kernels_of(prepared, place(prepared), {"image": (1, 3, 16, 16)})
    estimate = Roofline(kernels, gpu_named("L4"), "fp16")
    return lambda precisions: estimate.cost(precisions).value


def test_a_layer_is_said_to_be_what_the_file_has(job: Job, results: Results) -> None:
    selected = results.selected_candidate
    assert selected is not None
    assert {"big", "down"} & set(selected.float_layers)
    written = types_in(job.output / "model.int8.onnx")
    assert {layer.node: layer.precision for layer in selected.layers} == written
    assert "fp32" in written.values()


def test_a_plan_costs_what_its_file_costs(job: Job, results: Results, model: Path) -> None:
    cost = costs(model)
    for candidate in results.candidates:
        plan = QuantizationPlan.read(job.output / candidate.plan)
        assert plan.wide_nodes >= {"big", "down"}
        fp32 = {node: "fp32" for node in ("big", "down") if plan.layers[node] != "int8"}
        assert candidate.cost.value == pytest.approx(cost({**plan.layers, **fp32}))
    assert results.search is not None
    assert any({"big", "down"} & set(trial.float_layers) for trial in results.search.trials)
    for trial in results.search.trials:
        layers = {n: "fp16" if n in trial.float_layers else "int8" for n in ("stem", "big", "down", "head")}
        fp32 = {n: "fp32" for n in ("big", "down") if n in trial.float_layers}
        assert trial.cost.value == pytest.approx(cost(layers | fp32))


def test_int8_is_held_against_the_fp16_model_that_there_can_be(results: Results, model: Path) -> None:
    cost = costs(model)
    whole = cost({"stem": "fp16", "big": "fp32", "down": "fp32", "head": "fp16"})
    speedups = {s.against: s.value for s in results.candidates[0].speedups}
    assert speedups["FP16"] == pytest.approx(whole / results.candidates[0].cost.value)
