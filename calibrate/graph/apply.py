"""A plan and a prepared model in, a new model out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calibrate.graph.placement import Placement
from calibrate.graph.precision import assign_precision, float_precision
from calibrate.graph.qdq import insert_qdq
from calibrate.plan import QuantizationPlan
from validate.backends.onnxruntime import DetachedModel
from validate.results import NodeCounts

__all__ = ["apply", "count_nodes", "detach", "expose", "serialize", "weight_bytes", "write"]

_SMALL = 1024
"""Bytes up to which a tensor stays in the graph, as its shape may decide shapes."""
_LARGE = 1 << 30
"""Bytes of weights from which a file has them beside it; protobuf ends at 2 GB."""
_SHAREABLE = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT8})


def apply(plan: QuantizationPlan, model: ir.Model, placement: Placement, simulate: bool = False) -> ir.Model:
    """Return a copy of a prepared model with the plan written into it; the model is not changed.

    Args:
        simulate: write the float32 model that computes what the deployed one computes, for judging accuracy
            where there is no GPU. The default is the model to deploy, strongly typed.
    """
    result = model.clone()
    insert_qdq(result, placement, plan)
    assign_precision(result, plan, simulate)
    result.metadata_props["plan_sha256"] = plan.hash
    return result


def count_nodes(plan: QuantizationPlan, model: ir.Model) -> NodeCounts:
    """Return how many of the prepared model's nodes the plan computes in which precision.

    Nodes without a float tensor (shape arithmetic) are counted with fp32, as what they are in the float model.
    """
    counts: Counter[str] = Counter()
    for node in model.graph:
        if plan.layers.get(str(node.name)) == "int8":
            counts["int8"] += 1
        elif any(value.dtype == ir.DataType.FLOAT for value in (*node.inputs, *node.outputs) if value is not None):
            counts[float_precision(node, plan)] += 1
        else:
            counts["fp32"] += 1
    return NodeCounts(int8=counts["int8"], fp16=counts["fp16"], fp32=counts["fp32"])


def expose(model: ir.Model, tensors: tuple[str, ...]) -> ir.Model:
    """Return a copy of a model with inner tensors among its outputs."""
    result = model.clone()
    values = {value.name: value for node in result.graph for value in node.outputs}
    values |= {value.name: value for value in result.graph.inputs}
    outputs = [value.name for value in result.graph.outputs]
    wanted = [values[name] for name in dict.fromkeys([*outputs, *tensors])]
    result.graph.outputs.clear()
    result.graph.outputs.extend(wanted)
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
            )  # fmt: skip
    return DetachedModel(_bytes(light), weights)


def serialize(model: ir.Model) -> bytes:
    """Return the model as the bytes of an ONNX file, which may have 2 GB at most; external data are taken in."""
    return _bytes(ir.external_data.load_to_model(model.clone()))


def write(model: ir.Model, path: Path) -> None:
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
