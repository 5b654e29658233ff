"""Real models, all the way to a file that TensorRT builds an engine from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from calibrate.graph.application import apply, count_nodes
from calibrate.graph.checker import check
from calibrate.graph.placement import Placement, place
from calibrate.graph.preparation import prepare
from calibrate.graph.torch_export import export_torch
from calibrate.observation.streaming import observable, observe
from calibrate.plan.origin import Origin
from calibrate.plan.quantization_plan import QuantizationRules
from calibrate.strategies.planning import make_plan
from tests.conftest import Exported
from tests.exported_models import inputs_of, mobilenet_v3_small, resnet18
from validate.backends.onnx_files import read_onnx, serialize, write_onnx
from validate.backends.onnxruntime import OnnxRuntimeModel
from validate.backends.tensorrt import build
from validate.data.stream import Batch
from validate.exceptions import JobError
from validate.references import load_object, resolve_path
from validate.stats.histograms import Statistics

torch = pytest.importorskip("torch", reason="exports PyTorch models")
torchvision = pytest.importorskip("torchvision", reason="exports torchvision's models")

Inputs = dict[str, NDArray[Any]]
ROOT = Path(__file__).parents[3]


class Broken(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        raise ValueError("the third wheel\nis missing")


@dataclass
class Case:
    """A model as it was exported, and as it was prepared, placed and observed."""

    name: str
    exported: Path
    prepared: Any
    placement: Placement
    statistics: dict[str, Statistics]
    inputs: Inputs


def _text_lines(n: int) -> Inputs:
    """Return real input for the OCR model, which makes nothing of noise."""
    recipe = f"{ROOT}/datasets/rendered_text/lines.py"
    lines, to_input = load_object(f"{recipe}:lines", ROOT), load_object(f"{recipe}:to_input", ROOT)
    return {"x": np.stack([to_input(row)["x"] for row in lines(n=n, seed=1)])}


MODELS = ["resnet18", "mobilenet_v3_small", "encoder", "ocr"]


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, exported: Exported) -> Case:
    name = request.param
    if name == "ocr":
        pytest.importorskip("rapidocr", reason="carries the OCR model")
        path = resolve_path("package:rapidocr/models/ch_PP-OCRv4_rec_mobile.onnx", ROOT)
        inputs = _text_lines(2)
    else:
        path, inputs = exported(name), inputs_of(name, side=64)
    prepared = prepare(read_onnx(path))
    placement = place(prepared)
    batch = Batch(inputs, [None, None], [b"0", b"1"], 0)
    statistics = observe(observable(prepared, placement.tensors()), [batch], lambda batch, outputs: None).statistics
    return Case(name, path, prepared, placement, statistics, inputs)


def _constant_weights(graph: onnx.GraphProto) -> int:
    """Count the products with a constant, in a file, by following constants from where they are stored."""
    constants = {i.name for i in graph.initializer}
    count = 0
    for node in graph.node:
        if all(name in constants for name in node.input if name):
            constants.update(node.output)
        elif node.op_type in {"Conv", "ConvTranspose", "Gemm", "MatMul"}:
            count += node.input[1] in constants
    return count


def test_a_module_that_cannot_be_exported_says_why(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"cannot export .*test_models\.py:Broken to ONNX: the third wheel$"):
        export_torch(f"{__file__}:Broken", {"x": np.ones((2, 3), np.float32)}, tmp_path / "model.onnx")


def test_prepared_model_computes_the_same(case: Case) -> None:
    before = OnnxRuntimeModel(case.exported, threads=1).run(case.inputs)
    after = OnnxRuntimeModel(serialize(case.prepared), threads=1).run(case.inputs)
    assert before.keys() == after.keys()
    for name, expected in before.items():
        np.testing.assert_allclose(after[name], expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert not [node for node in case.prepared.graph if node.op_type == "BatchNormalization"]


def test_nearly_every_layer_with_a_constant_weight_is_quantizable(case: Case) -> None:
    total = _constant_weights(onnx.load(case.exported).graph)
    assert total >= 9
    assert len(case.placement.layers) >= 0.9 * total
    reasons = case.placement.left_in_float.values()
    assert all(reason.startswith("both its inputs are computed, as in attention") for reason in reasons)


def test_every_residual_connection_is_found(case: Case) -> None:
    """Counted on the PyTorch module."""
    modules = {"resnet18": resnet18, "mobilenet_v3_small": mobilenet_v3_small}
    if case.name not in modules:
        assert not case.placement.residuals, "no convolution adds up with anything there"
        return
    wanted = 0
    for module in modules[case.name]().modules():
        wanted += isinstance(module, torchvision.models.resnet.BasicBlock)
        wanted += getattr(module, "use_res_connect", False)
    assert wanted in (6, 8)
    everything = {layer.node for layer in case.placement.layers}
    assert len(case.placement.residual_inputs(everything)) == wanted


@pytest.mark.parametrize("float_precision", ["fp32", "fp16"])
@pytest.mark.parametrize("mixed", [False, True], ids=["minmax", "mixed"])
def test_tensorrt_builds_what_the_plan_becomes(case: Case, tmp_path: Path, mixed: bool, float_precision: Any) -> None:
    """All layers in int8, and with every third back in fp16; for any batch size."""
    pytest.importorskip("tensorrt_rtx", reason="asks TensorRT's own builder; pip install tensorrt-rtx")
    plan = make_plan(
        "minmax",
        case.statistics,
        case.placement,
        Origin(model_sha256="0"),
        QuantizationRules(float_precision=float_precision),
    )
    assert set(plan.layers.values()) == {"int8"}
    if mixed:
        plan = plan.with_layers(frozenset(list(plan.layers)[::3]), "fp16", "mixed")
    before = serialize(case.prepared)
    deployed = apply(plan, case.prepared, case.placement)
    assert serialize(case.prepared) == before
    assert check(deployed) == []
    path = tmp_path / "model.onnx"
    write_onnx(deployed, path)
    onnx.checker.check_model(str(path), full_check=True)
    nodes = count_nodes(plan, case.prepared)
    assert nodes.int8 == len(plan.int8_layers) > 0
    assert nodes.int8 + nodes.fp16 + nodes.fp32 == len(case.prepared.graph)
    if float_precision == "fp32":
        assert nodes.fp16 == (len(plan.layers) - nodes.int8 if mixed else 0)
    else:
        assert nodes.fp16 > nodes.fp32

    profile = {name: ((1, *a.shape[1:]), a.shape, (4, *a.shape[1:])) for name, a in case.inputs.items()}
    result = build(path, profile, "8.9")
    assert result.ok, result.message


@pytest.mark.parametrize("float_precision", ["fp32", "fp16"])
def test_quantization_costs_little(case: Case, float_precision: Any) -> None:
    """With every scale at its tensor, int8 is near the float model; the OCR model is known to suffer."""
    plan = make_plan(
        "minmax",
        case.statistics,
        case.placement,
        Origin(model_sha256="0"),
        QuantizationRules(float_precision=float_precision),
    )
    simulated = OnnxRuntimeModel(serialize(apply(plan, case.prepared, case.placement, simulate=True)), threads=1)
    expected = OnnxRuntimeModel(case.exported, threads=1).run(case.inputs)
    for name, actual in simulated.run(case.inputs).items():
        error = np.linalg.norm(actual - expected[name]) / np.linalg.norm(expected[name])
        assert 0 < error < (0.6 if case.name == "ocr" else 0.05)
