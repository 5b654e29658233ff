"""Times of engine layers, shared out to ONNX nodes. The layers are those that TensorRT's documentation shows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from validate.backends.tensorrt.inspection import parse_layers
from validate.engines.layer_times import node_times
from validate.exceptions import JobError


def record(name: str, kind: str, *nodes: str, separator: str = "\u001f") -> dict[str, Any]:
    metadata = separator.join(f"[ONNX Layer: {node}]" for node in nodes)
    return {"Name": name, "LayerType": kind, "Inputs": [], "Outputs": [], "Metadata": metadata}


RECORDS = [
    record("x/QuantizeLinear", "Scale", "x/QuantizeLinear"),
    record("Reformatting CopyNode for Input Tensor 0 to /a/Conv", "Reformat"),
    record("/a/Conv + /a/Relu", "CaskConvolution", "/a/Conv", "x/DequantizeLinear//a/Conv", "/a/Relu"),
    record("{ForeignNode[/q/MatMul.../o/MatMul]}", "Myelin", "/q/MatMul", "/softmax", "/o/MatMul", separator="\u001e"),
    record("/pool", "Pooling", "/pool"),
    record("/a/Conv again", "CaskConvolution", "/a/Conv"),
]
TIMES = dict(zip([record["Name"] for record in RECORDS], [1.0, 2.0, 4.0, 8.0, 16.0, 32.0], strict=True))
LAYERS = parse_layers(json.dumps({"Layers": RECORDS}))
MACS = {"/a/Conv": 10, "/q/MatMul": 1, "/o/MatMul": 3, "/elsewhere/Conv": 5}
QDQ = {"x/QuantizeLinear", "x/DequantizeLinear//a/Conv"}


def test_every_millisecond_goes_somewhere_once():
    found = node_times(LAYERS, TIMES, MACS, QDQ)
    assert found.nodes == {"/a/Conv": 4 + 32, "/q/MatMul": 2, "/o/MatMul": 6}, "fused matrix products by their MACs"
    assert found.reformat_ms == 1 + 2
    assert found.rest_ms == 16
    assert sum(found.nodes.values()) + found.reformat_ms + found.rest_ms == sum(TIMES.values())


def test_quantization_is_no_reformat_unless_it_is_said_to_be():
    found = node_times(LAYERS, TIMES, MACS)
    assert (found.reformat_ms, found.rest_ms) == (2, 17)


def test_names_are_whole_names():
    found = node_times(parse_layers(json.dumps({"Layers": [record("L", "k", "/a/Conv_1")]})), {"L": 1.0}, MACS)
    assert found.nodes == {}


@pytest.mark.parametrize("name", ["0", "/a/Conv"])
def test_times_of_another_engine_are_refused(name):
    with pytest.raises(JobError, match=f"layer {name} was timed, and the engine shows no layer of that name"):
        node_times(LAYERS, {name: 1.0}, MACS)
