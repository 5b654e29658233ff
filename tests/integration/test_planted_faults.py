"""A fault that is planted anywhere in a real model is the first and the worst layer of the comparison, in both views.

The reference is the correct Q/DQ graph, so that the fault is all that differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from calibrate.graph.application import apply
from calibrate.graph.placement import Layer, place
from calibrate.graph.preparation import prepare
from calibrate.graph.torch_export import export_torch
from calibrate.observation.streaming import observable, observe
from calibrate.plan.origin import Origin
from calibrate.plan.quantization_plan import QuantizationRules
from calibrate.strategies.planning import make_plan
from tests.conftest import Exported
from tests.exported_models import inputs_of
from validate.backends.onnx_files import read_onnx
from validate.backends.onnxruntime import OnnxRuntimeBackend
from validate.data.stream import Batch
from validate.layerwise.comparator import Findings, compare, subjects_of
from validate.layerwise.comparison import Comparison, Execution
from validate.layerwise.thresholds import Thresholds, judge
from validate.references import load_object, resolve_path

pytest.importorskip("torch", reason="exports PyTorch models")

ROOT = Path(__file__).parents[2]
LITE0 = f"{ROOT}/datasets/imagenet_sample/efficientnet_lite0.py:model"
OCR = "package:rapidocr/models/ch_PP-OCRv4_rec_mobile.onnx"


@dataclass
class Case:
    """A model in correct Q/DQ, and the batch that it was calibrated on."""

    graph: ir.Model = field(repr=False)
    layers: list[Layer] = field(repr=False)
    batch: Batch = field(repr=False)
    tensors: int


def _inputs(name: str) -> dict[str, NDArray[Any]]:
    if name == "ocr":  # makes nothing of noise
        recipe = f"{ROOT}/datasets/rendered_text/lines.py"
        lines, to_input = load_object(f"{recipe}:lines", ROOT), load_object(f"{recipe}:to_input", ROOT)
        return {"x": np.stack([to_input(row)["x"] for row in lines(n=2, seed=1)])}
    return inputs_of(name, side=64, batch=4)


@pytest.fixture(
    scope="module",
    params=["resnet18", "encoder", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lite0", "ocr"))],
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, exported: Exported) -> Case:
    name, inputs = request.param, _inputs(request.param)
    if name == "ocr":
        pytest.importorskip("rapidocr", reason="carries the OCR model")
        path = resolve_path(OCR, ROOT)
    elif name == "lite0":
        pytest.importorskip("efficientnet_lite_pytorch", reason="carries EfficientNet-Lite0")
        path = tmp_path_factory.mktemp("exported") / "model.onnx"
        export_torch(LITE0, inputs, path)
    else:
        path = exported(name)
    prepared = prepare(read_onnx(path))
    placement = place(prepared)
    samples = len(next(iter(inputs.values())))
    batch = Batch(inputs, [None] * samples, [b""] * samples, 0)
    statistics = observe(observable(prepared, placement.tensors()), [batch], lambda *_: None).statistics
    plan = make_plan("mse", statistics, placement, Origin(model_sha256="0"), QuantizationRules())
    graph = apply(plan, prepared, placement, simulate=True)
    layers = [layer for layer in placement.layers if plan.layers[layer.node] == "int8"]
    return Case(graph, layers, batch, len(OnnxRuntimeBackend(graph).tensors))


def _node(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == name)


def _producer(value: ir.Value | None) -> ir.Node:
    assert value is not None
    producer = value.producer()
    assert producer is not None
    return producer


def _array(node: ir.Node, index: int) -> NDArray[Any]:
    value = node.inputs[index]
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def _copy(before: ir.Node, node: ir.Node, changed: dict[int, Any], **attributes: Any) -> ir.Value:
    """Insert a copy of a Q or DQ node with other inputs and attributes, for one consumer alone."""
    inputs = list(node.inputs)
    for index, value in changed.items():
        if isinstance(value, ir.Value):
            inputs[index] = value
        else:
            constant = ir.Value(name=f"{inputs[index].name}/{node.name}/planted", const_value=ir.tensor(value))  # type: ignore[union-attr]
            before.graph.register_initializer(constant)  # type: ignore[union-attr]
            inputs[index] = constant
    kept = {key: attribute.value for key, attribute in node.attributes.items()} | attributes
    copy = ir.node(node.op_type, inputs, kept, name=f"{node.name}/planted/{before.name}")
    copy.outputs[0].name = f"{copy.name}/out"
    copy.outputs[0].dtype, copy.outputs[0].shape = node.outputs[0].dtype, node.outputs[0].shape
    before.graph.insert_before(before, copy)  # type: ignore[union-attr]
    return copy.outputs[0]


def _scale(model: ir.Model, layer: Layer, other: Layer) -> None:
    """The layer's activation scale is 8 times too small."""
    node = _node(model, layer.node)
    dequantize = _producer(node.inputs[0])
    small = _array(dequantize, 1) / np.float32(8)
    quantized = _copy(node, _producer(dequantize.inputs[0]), {1: small})
    node.replace_input_with(0, _copy(node, dequantize, {0: quantized, 1: small}))


def _axis(model: ir.Model, layer: Layer, other: Layer) -> None:
    """The weight's scales are laid along another axis, which fits where the weight is square."""
    node = _node(model, layer.node)
    node.replace_input_with(1, _copy(node, _producer(node.inputs[1]), {}, axis=1 - (layer.axis or 0)))


def _nan(model: ir.Model, layer: Layer, other: Layer) -> None:
    """One of the weight's scales is NaN."""
    node = _node(model, layer.node)
    dequantize = _producer(node.inputs[1])
    scales = _array(dequantize, 1).copy()
    scales.flat[scales.size // 2] = np.nan
    node.replace_input_with(1, _copy(node, dequantize, {1: scales}))


def _swap(model: ir.Model, layer: Layer, other: Layer) -> None:
    """Two layers have each other's weights."""
    first, second = _node(model, layer.node), _node(model, other.node)
    a, b = _producer(first.inputs[1]), _producer(second.inputs[1])
    first.replace_input_with(1, _copy(first, b, {}))
    second.replace_input_with(1, _copy(second, a, {}))


FAULTS: list[Callable[[ir.Model, Layer, Layer], None]] = [_scale, _axis, _nan, _swap]


def _targets(case: Case, fault: Any) -> list[tuple[Layer, Layer]]:
    """Return the layers in which the fault is one, each with the layer that it is swapped with."""
    weights = {layer.node: _producer(_node(case.graph, layer.node).inputs[1]) for layer in case.layers}
    if fault is _axis:  # nearly equal scales may lie along any axis
        square = [x for x in case.layers if x.axis in (0, 1) and len({*_array(weights[x.node], 0).shape[:2]}) == 1]
        scales = {layer.node: _array(weights[layer.node], 1) for layer in square}
        return [(x, x) for x in square if scales[x.node].max() > 2 * scales[x.node].min()]
    if fault is _swap:
        arrays = {name: _array(node, 0) for name, node in weights.items()}
        return [
            (x, y)
            for x, y in combinations(case.layers, 2)
            if x.axis == y.axis
            and arrays[x.node].shape == arrays[y.node].shape
            and not np.array_equal(arrays[x.node], arrays[y.node])
        ]
    return [(layer, layer) for layer in case.layers]


@pytest.mark.slow
@settings(max_examples=3, deadline=None, derandomize=True, print_blob=False)
@given(data=st.data())
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.strip("_"))
def test_a_planted_fault_is_the_first_and_worst_layer_in_both_views(case: Case, fault: Any, data: Any) -> None:
    if not (targets := _targets(case, fault)):
        pytest.skip("the model has no weight with which this goes wrong")
    layer, other = data.draw(st.sampled_from(targets), label="layers")
    broken = case.graph.clone()
    fault(broken, layer, other)
    judgement = judge(_comparison(case, broken), Thresholds())
    assert not judgement.passed
    found = {judgement.first, judgement.worst_isolated, judgement.worst_accumulated}
    assert found <= {layer.output, other.output}


def test_without_a_fault_nothing_differs(case: Case) -> None:
    assert case.tensors >= 49
    judgement = judge(comparison := _comparison(case, case.graph.clone()), Thresholds())
    assert judgement.passed and len(comparison.layers) == case.tensors
    assert comparison.passes <= 3
    assert all(layer.isolated and layer.isolated.sqnr_db > 90 for layer in comparison.layers)


def _comparison(case: Case, graph: ir.Model) -> Comparison:
    reference, candidate = OnnxRuntimeBackend(case.graph), OnnxRuntimeBackend(graph)
    pairs = {name: name for name in reference.tensors if name in candidate.tensors}
    found: Findings = compare(subjects_of(reference, candidate, pairs), [case.batch], lambda _: None)
    where = Execution(model="", runtime="", device="")
    return Comparison(
        created="",
        command="",
        reference=where,
        candidate=where,
        samples=found.samples,
        passes=found.passes,
        layers=found.layers,
        unpaired=[],
        environment={},
    )
