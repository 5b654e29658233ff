"""ONNX files and graphs: reading, writing, hashing, and what a session loads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ShapeInferencePass

from validate.exceptions import JobError

__all__ = [
    "PLAN_KEY",
    "DetachedModel",
    "detach",
    "expose",
    "file_hash",
    "files_of",
    "force",
    "read_onnx",
    "roundings",
    "serialize",
    "weight_bytes",
    "with_shapes",
    "write_onnx",
]

PLAN_KEY = "plan_sha256"
"""Metadata of an ONNX file: the hash of the quantization plan that made it."""
_SMALL = 1024
"""Bytes up to which a tensor stays in the graph, as its shape may decide shapes."""
_LARGE = 1 << 30
"""Bytes of weights from which a file has them beside it; protobuf ends at 2 GB."""
_SHAREABLE = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT8})


@dataclass(frozen=True)
class DetachedModel:
    """A model whose large weights stay where they are: a session reads them there, and no size limit holds.

    Attributes:
        graph: the bytes of an ONNX file in which the weights are external data.
        weights: by initializer name.
    """

    graph: bytes
    weights: Mapping[str, NDArray[Any]]


def read_onnx(path: Path) -> ir.Model:
    """Read an ONNX file. Raises JobError where it is not one."""
    try:
        return ir.load(path)
    except (OSError, ValueError) as error:
        raise JobError(f"{path} cannot be read as ONNX: {' '.join(str(error).split())}") from error
    except Exception as error:
        if type(error).__name__ != "DecodeError":  # protobuf's, from whichever implementation is installed
            raise
        raise JobError(f"{path} is not an ONNX file") from error


def file_hash(path: Path, model: ir.Model) -> str:
    """Return the SHA-256 of an ONNX file and of the external data that it refers to, in name order."""
    digest = hashlib.sha256()
    for file in files_of(path, model):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def files_of(path: Path, model: ir.Model) -> list[Path]:
    """Return an ONNX file, and after it the external data that it refers to, in name order."""
    external = {
        Path(value.const_value.path)
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    return [path, *sorted(external)]


def with_shapes(model: ir.Model) -> ir.Model:
    """Return the model with the types and shapes that ONNX infers; the given one is used up."""
    return ShapeInferencePass()(model).model


def expose(model: ir.Model, tensors: Sequence[str]) -> ir.Model:
    """Return a copy of a model with inner tensors among its outputs."""
    result = model.clone()
    values = {value.name: value for node in result.graph for value in node.outputs}
    values |= {value.name: value for value in result.graph.inputs}
    outputs = [value.name for value in result.graph.outputs]
    wanted = [values[name] for name in dict.fromkeys([*outputs, *tensors])]
    result.graph.outputs.clear()
    result.graph.outputs.extend(wanted)
    return result


def force(model: ir.Model, tensors: Sequence[str]) -> tuple[ir.Model, dict[str, str]]:
    """Return a copy of a model in which the readers of `tensors` read graph inputs of these names instead.

    What the model computes itself gets another name: returned by the name of each tensor.
    """
    result = model.clone()
    values = {value.name: value for node in result.graph for value in node.outputs}
    computed = {}
    for name in tensors:
        value = values[name]
        given = ir.Value(name=name, type=value.type)  # of any shape: it says nothing of the batch
        for use in value.uses():
            use.node.replace_input_with(use.idx, given)
        value.name = computed[name] = f"{name}/computed"
        result.graph.inputs.append(given)
    return result, computed


def roundings(model: ir.Model, size: float, seed: int) -> ir.Model:
    """Return a copy of a model that rounds differently: every activation that is quantized is first multiplied by
    random factors in 1 - `size` .. 1 + `size`, one per element.
    """
    result = model.clone()
    graph = result.graph
    for index, node in enumerate(list(graph)):
        value = node.inputs[0] if node.op_type == "QuantizeLinear" else None
        if value is None or value.const_value is not None:
            continue
        low, high = 1 - size, 1 + size
        attributes = {"low": low, "high": high, "seed": float(seed * 1009 + index)}
        factors = ir.node("RandomUniformLike", [value], attributes, name=f"{node.name}/factors")
        product = ir.node("Mul", [value, factors.outputs[0]], name=f"{node.name}/rounding")
        factors.outputs[0].name, product.outputs[0].name = f"{node.name}/factors", f"{node.name}/rounded"
        graph.insert_before(node, [factors, product])
        node.replace_input_with(0, product.outputs[0])
    return result


def detach(model: ir.Model) -> DetachedModel:
    """Return a model to run, which shares its weights' memory with the one given."""
    light, weights = model.clone(), {}
    for name, value in light.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > _SMALL and tensor.dtype in _SHAREABLE:
            weights[name] = np.ascontiguousarray(tensor.numpy())
            value.const_value = ir.ExternalTensor(
                "in memory", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.numpy().shape), name=name
            )
    return DetachedModel(_bytes(light), weights)


def serialize(model: ir.Model) -> bytes:
    """Return the model as the bytes of an ONNX file, which may have 2 GB at most; external data are taken in."""
    return _bytes(ir.external_data.load_to_model(model.clone()))


def write_onnx(model: ir.Model, path: Path) -> None:
    """Write an ONNX file; one that is too large for protobuf has its weights beside it, in ``NAME.data``."""
    if weight_bytes(model) < _LARGE:
        path.write_bytes(serialize(model))
    else:
        ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=_SMALL)


def weight_bytes(model: ir.Model) -> int:
    """Return how much memory all initializers take."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def _bytes(model: ir.Model) -> bytes:
    return bytes(ir.to_proto(model).SerializeToString())
