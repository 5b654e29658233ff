"""Concrete shapes of all tensors of a model, for given shapes of its inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from validate.backends import OnnxRuntimeModel, detach, with_shapes
from validate.exceptions import JobError

__all__ = ["multiply_accumulates_of", "tensor_shapes"]

Shape = tuple[int, ...]


def tensor_shapes(model: ir.Model, inputs: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the shapes of all tensors outside of subgraphs, by name; constants included.

    ONNX's shape inference gives most of them once the inputs are known. The rest, behind operators that it does not
    know, comes from one run of the model on zeros. Where values decide a shape (as after NonZero), it may be another
    one with real data.

    Args:
        model: is not changed.
        inputs: the shape of every input of the model, batch included.

    Raises:
        JobError: an input's shape is missing or does not fit, or the model cannot be run.

    Examples:
        >>> import onnx_ir as ir
        >>> model = ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 19]>
        ...     net (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }''')
        >>> shapes = tensor_shapes(model, {"x": (4, 2)})
        >>> shapes["w"], shapes["y"]
        ((2, 2), (4, 2))
    """
    wanted = {str(value.name) for value in model.graph.inputs}
    if wanted != inputs.keys():
        raise JobError(f"shapes are given of {sorted(inputs)}, and the model's inputs are {sorted(wanted)}")
    fixed = model.clone()
    for node in fixed.graph:
        for output in node.outputs:
            output.shape = None  # or inference would keep the dimensions that were unknown before
    for value in fixed.graph.inputs:
        given = inputs[str(value.name)]
        if value.shape is not None and not _fits(value.shape, given):
            raise JobError(f"model input {value.name} is {value.shape}, and its shape cannot be {list(given)}")
        value.shape = ir.Shape(given)
    inferred = with_shapes(fixed)
    shapes: dict[str, Shape] = dict(inputs)
    unknown = []
    for value in [*inferred.graph.initializers.values(), *(v for n in inferred.graph for v in n.outputs if v.name)]:
        shape = value.shape if value.const_value is None else value.const_value.shape
        sizes = None if shape is None else tuple(size for size in shape if isinstance(size, int))
        if shape is not None and sizes is not None and len(sizes) == len(shape):
            shapes[str(value.name)] = sizes
        else:
            unknown.append(value)
    return shapes | (_measured(inferred, unknown, inputs) if unknown else {})


def multiply_accumulates_of(node: ir.Node, shapes: Mapping[str, Shape]) -> int:
    """Return the multiply-accumulates of a Conv, ConvTranspose, Gemm or MatMul; 0 of any other node.

    The bias is not counted, and products with padding are, as in fvcore and torchvision's ``_ops``.

    Args:
        node: of the model.
        shapes: of its tensors; see `tensor_shapes`.

    Examples:
        >>> import onnx_ir as ir
        >>> x, w, y = (ir.Value(name=name) for name in "xwy")
        >>> node = ir.Node("", "MatMul", [x, w], outputs=[y])
        >>> multiply_accumulates_of(node, {"x": (4, 2), "w": (2, 3), "y": (4, 3)})
        24
    """
    if node.domain != "" or node.op_type not in {"Conv", "ConvTranspose", "Gemm", "MatMul"}:
        return 0
    first, second = (shapes[str(value.name)] for value in node.inputs[:2] if value is not None)
    output = shapes[str(node.outputs[0].name)]
    if node.op_type == "Conv":  # weight: (out, in / groups, *kernel)
        return math.prod(output) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":  # weight: (in, out / groups, *kernel)
        return math.prod(first) * math.prod(second[1:])
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transA", 0) != 0
    return math.prod(output) * first[0 if transposed else -1]


def _fits(declared: ir.Shape, given: Shape) -> bool:
    return len(declared) == len(given) and all(
        size == wanted for size, wanted in zip(given, declared, strict=True) if isinstance(wanted, int)
    )


def _measured(model: ir.Model, unknown: list[ir.Value], inputs: Mapping[str, Shape]) -> dict[str, Shape]:
    """Run the model once with a Shape node behind every tensor of unknown shape."""
    graph = model.graph
    names = {}
    for index, value in enumerate(unknown):
        node = ir.node("Shape", [value], name=f"shape_of/{value.name}")
        node.outputs[0].name, node.outputs[0].dtype = f"shape_of/{index}", ir.DataType.INT64
        graph.append(node)
        names[f"shape_of/{index}"] = str(value.name)
    outputs = [node.outputs[0] for node in graph if node.outputs[0].name in names]
    zeros = {
        str(value.name): np.zeros(inputs[str(value.name)], (value.dtype or ir.DataType.FLOAT).numpy())
        for value in graph.inputs
    }
    graph.outputs.clear()
    graph.outputs.extend(outputs)
    found = OnnxRuntimeModel(detach(model), threads=1).run(zeros)
    return {names[name]: tuple(int(size) for size in shape) for name, shape in found.items()}
