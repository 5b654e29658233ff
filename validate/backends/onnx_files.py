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
    """A model whose large weights are outside of the ONNX bytes, so that protobuf's limit of 2 GB does not apply.

    Attributes:
        graph: the bytes of an ONNX file in which the weights are external data.
        weights: by initializer name; a session reads them where they are, and they must live as long as it does.
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
    """Infer types and shapes and return the model that has them; do not use the given model afterwards.

    Examples:
        >>> model = ir.from_onnx_text(
        ...     '<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] x) => (float[N, 2] y) {r = Relu(x) y = Neg(r)}'
        ... )
        >>> shaped = with_shapes(model)
        >>> [str(node.outputs[0].shape) for node in shaped.graph]
        ['[N,2]', '[N,2]']
    """
    return ShapeInferencePass()(model).model


def expose(model: ir.Model, tensors: Sequence[str]) -> ir.Model:
    """Return a copy of a model that has `tensors` as outputs too, after its own.

    Examples:
        >>> model = ir.from_onnx_text(
        ...     '<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] x) => (float[N, 2] y) {r = Relu(x) y = Neg(r)}'
        ... )
        >>> [value.name for value in expose(model, ["r"]).graph.outputs]
        ['y', 'r']
    """
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

    The tensors that the model itself computes are renamed; the new names are returned by the old ones.

    Examples:
        >>> model = ir.from_onnx_text(
        ...     '<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] x) => (float[N, 2] y) {r = Relu(x) y = Neg(r)}'
        ... )
        >>> forced, computed = force(model, ["r"])
        >>> [value.name for value in forced.graph.inputs], computed
        (['x', 'r'], {'r': 'r/computed'})
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
    """Return a copy of a model that rounds its quantized activations differently.

    Before it is quantized, an activation is multiplied by random factors in [1 - `size`, 1 + `size`], one per element.

    Examples:
        >>> model = ir.from_onnx_text(
        ...     '<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] x) => (int8[N, 2] q) '
        ...     "<float s = {0.5}, int8 z = {0}> {q = QuantizeLinear(x, s, z)}"
        ... )
        >>> [node.op_type for node in roundings(model, size=2.0**-19, seed=0).graph]
        ['RandomUniformLike', 'Mul', 'QuantizeLinear']
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
    """Return a model that a session can load, which shares the memory of the given model's weights.

    Examples:
        >>> weight = ir.tensor(np.ones((64, 64), np.float32), name="w")  # 16 KiB; small weights stay in the graph
        >>> value = ir.Value(name="w", const_value=weight)
        >>> graph = ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 17})
        >>> {name: array.shape for name, array in detach(ir.Model(graph, ir_version=8)).weights.items()}
        {'w': (64, 64)}
    """
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
    """Return the model as the bytes of an ONNX file (at most 2 GB), with external data included.

    Examples:
        >>> model = ir.from_onnx_text(
        ...     '<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] x) => (float[N, 2] y) {r = Relu(x) y = Neg(r)}'
        ... )
        >>> import onnx
        >>> onnx.load_from_string(serialize(model)).graph.node[1].op_type
        'Neg'
    """
    return _bytes(ir.external_data.load_to_model(model.clone()))


def write_onnx(model: ir.Model, path: Path) -> None:
    """Write an ONNX file; the weights of a model that is too large for protobuf go into ``NAME.data`` beside it."""
    if weight_bytes(model) < _LARGE:
        path.write_bytes(serialize(model))
    else:
        ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=_SMALL)


def weight_bytes(model: ir.Model) -> int:
    """Return the size of all initializers in bytes.

    Examples:
        >>> model = ir.from_onnx_text(
        ...     '<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] x) => (float[N, 2] y) '
        ...     "<float[2] w = {1.0, 2.0}> {y = Mul(x, w)}"
        ... )
        >>> weight_bytes(model)
        8
    """
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def _bytes(model: ir.Model) -> bytes:
    return bytes(ir.to_proto(model).SerializeToString())
