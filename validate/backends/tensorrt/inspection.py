"""Layers of an engine, by the JSON of EngineInspector.

The schema of TensorRT 11 differs from that of 10 in that a tensor's ``Format/Datatype`` became two fields ("Migrating
IEngineInspector Usage from TensorRT 10.x to 11.x" in TensorRT's documentation); both are read. An engine has to be
deserialized before it can be inspected, and that needs a GPU, also for engines that were built ahead of time
(tensorrt_rtx 1.7 without one: "cudaError 35" and no engine).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from validate.exceptions import JobError

__all__ = ["Layer", "parse_layers", "producers"]

_ONNX = "[ONNX Layer: "
_TYPE_KEYS = ("DataType", "Datatype", "Format/Datatype")
_SEPARATORS = re.compile("[\x1e\x1f]")
"""Between the ONNX nodes of a fused layer: the unit separator within a group, the record separator between groups."""


@dataclass(frozen=True)
class Layer:
    """A layer of an engine, which may be many nodes of the ONNX graph.

    Attributes:
        nodes: names of the ONNX nodes that are fused in it; empty where it has none, as with a reformat.
        outputs: names of its output tensors, which are the engine's own inside of fused regions.
        types: of each output, as TensorRT writes it, e.g. ``Half``, ``Int8``; with TensorRT 10 format and all.
        formats: memory layout of each output; empty strings with TensorRT 10.
        input_types: of each input, as `types`.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: tuple[str, ...]
    formats: tuple[str, ...]
    input_types: tuple[str, ...] = ()


def parse_layers(information: str) -> list[Layer]:
    """Return the layers in the order in which they run.

    Args:
        information: what `EngineInspector.get_engine_information` returns as JSON.

    Raises:
        JobError: the engine was built without detailed profiling verbosity, so that only names are known.

    Examples:
        >>> conv = {"Name": "conv1 + relu1", "LayerType": "gemm", "Outputs": [{"Name": "r1", "DataType": "Int8"}]}
        >>> (layer,) = parse_layers(json.dumps({"Layers": [conv]}))
        >>> layer.kind, layer.outputs, layer.types
        ('gemm', ('r1',), ('Int8',))
    """
    records = json.loads(information).get("Layers", [])
    if not all(isinstance(record, Mapping) for record in records):
        raise JobError("the engine tells no more than the names of its layers; build it with detailed verbosity")
    return [_layer(record) for record in records]


def producers(layers: Sequence[Layer]) -> dict[str, Layer]:
    """Return the layer that computes each tensor. A tensor that several layers write has no single one and is left out.

    Examples:
        >>> conv = {"Name": "conv1", "Outputs": [{"Name": "c1"}]}
        >>> producers(parse_layers(json.dumps({"Layers": [conv]})))["c1"].name
        'conv1'
    """
    written = [(name, layer) for layer in layers for name in layer.outputs]
    times = Counter(name for name, _ in written)
    return {name: layer for name, layer in written if times[name] == 1}


def _layer(record: Mapping[str, Any]) -> Layer:
    outputs = record.get("Outputs", [])
    return Layer(
        name=record["Name"],
        kind=record.get("LayerType", ""),
        nodes=_onnx_nodes(record.get("Metadata", "")),
        inputs=tuple(tensor["Name"] for tensor in record.get("Inputs", [])),
        outputs=tuple(tensor["Name"] for tensor in outputs),
        types=tuple(map(_type, outputs)),
        formats=tuple(tensor.get("Format", "") for tensor in outputs),
        input_types=tuple(map(_type, record.get("Inputs", []))),
    )


def _type(tensor: Mapping[str, Any]) -> str:
    return next((tensor[key] for key in _TYPE_KEYS if key in tensor), "")


def _onnx_nodes(metadata: str) -> tuple[str, ...]:
    parts = [part.strip() for part in _SEPARATORS.split(metadata)]
    return tuple(part.removeprefix(_ONNX).removesuffix("]") for part in parts if part.startswith(_ONNX))
