"""Small graphs, written in ONNX's text format, and what it takes to quantize and run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from calibrate.graph.placement import Placement
from calibrate.graph.preparation import prepare
from calibrate.plan.origin import Origin
from calibrate.plan.quantization_plan import QuantizationPlan
from validate.backends.onnx_files import serialize
from validate.number_formats import FloatPrecision, Precision

Array = NDArray[Any]
Parse = Callable[..., onnx.ModelProto]
Prepared = Callable[..., ir.Model]
Run = Callable[..., dict[str, Array]]
MakePlan = Callable[..., QuantizationPlan]


@pytest.fixture
def parse() -> Parse:
    """Return a function from a graph's text, its opset and its initializers to a valid model."""

    def parse(graph: str, opset: int = 19, ir_version: int = 9, **initializers: Array) -> onnx.ModelProto:
        model = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["": {opset}]> {graph}')
        model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in initializers.items())
        if ir_version < 4:  # before it, every initializer had to be an input too
            model.graph.input.extend(
                onnx.helper.make_tensor_value_info(i.name, i.data_type, i.dims) for i in model.graph.initializer
            )
        onnx.checker.check_model(model, full_check=True)
        return model

    return parse


@pytest.fixture
def prepared(parse: Parse) -> Prepared:
    """Return a function like `parse` that gives the prepared model."""
    return lambda graph, **arguments: prepare(ir.from_proto(parse(graph, **arguments)))


@pytest.fixture
def run() -> Run:
    """Return a function that runs a model in ONNX Runtime as it is written: no optimization at all."""

    def run(model: ir.Model | onnx.ModelProto, **inputs: Array) -> dict[str, Array]:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        data = model.SerializeToString() if isinstance(model, onnx.ModelProto) else serialize(model)
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True))

    return run


@pytest.fixture
def make_plan() -> MakePlan:
    """Return a function that makes a plan with everything in int8, but for the layers named in `layers`."""

    def make_plan(
        placement: Placement,
        scales: float | Mapping[str, float] = 0.05,
        layers: Mapping[str, Precision] | None = None,
        float_precision: FloatPrecision = "fp32",
    ) -> QuantizationPlan:
        if not isinstance(scales, Mapping):
            scales = dict.fromkeys(placement.tensors(), scales)
        precisions: dict[str, Precision] = {layer.node: "int8" for layer in placement.layers}
        return QuantizationPlan(
            name="plan",
            strategy="by hand",
            origin=Origin(model_sha256="0"),
            scales=dict(scales),
            layers=precisions | dict(layers or {}),
            float_precision=float_precision,
        )

    return make_plan


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def normal(rng: np.random.Generator) -> Callable[..., NDArray[np.float32]]:
    """Return a function that draws a float32 array of the given shape."""
    return lambda *shape: rng.standard_normal(shape).astype(np.float32)
