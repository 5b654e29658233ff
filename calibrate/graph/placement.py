"""Placement of Q/DQ by TensorRT's rules: which layers can be quantized, and why the others cannot.

The rules are those of NVIDIA's "Working with Quantized Types" (TensorRT documentation): the
inputs of Conv, ConvTranspose, Gemm and MatMul are quantized and their outputs are not; the residual input of an
Add whose other input is a convolution is quantized too; a Concat and its inputs share one scale.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from calibrate.plan import Exclusion, QuantizationRules
from validate.exceptions import JobError

__all__ = ["COMPUTE_OPS", "CONVOLUTIONS", "Layer", "Placement", "ResidualInput", "is_residual", "place", "weight_axis"]

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
COMPUTE_OPS = CONVOLUTIONS | {"Gemm", "MatMul"}
_DEFAULT_RULES = QuantizationRules()


@dataclass(frozen=True)
class Layer:
    """A node whose inputs can be int8.

    Attributes:
        node, op_type: name and operator of the node.
        activation: name of input 0.
        weight: name of input 1: a constant, or where `axis` is None, an activation too (attention).
        axis: of the weight, along which it has one scale per output channel.
        output: name of the output.
    """

    node: str
    op_type: str
    activation: str
    weight: str
    axis: int | None
    output: str

    @property
    def activations(self) -> tuple[str, ...]:
        """Names of the inputs that are activations."""
        return (self.activation,) if self.axis is not None else (self.activation, self.weight)


@dataclass(frozen=True)
class ResidualInput:
    """An input of a residual Add, to be quantized where the Add fuses into an int8 convolution.

    Attributes:
        node: name of the Add.
        index: of the input.
        tensor: name of the input.
        fused_into: name of the convolution that makes the other input, and that the Add fuses into.
    """

    node: str
    index: int
    tensor: str
    fused_into: str


@dataclass(frozen=True)
class Placement:
    """Where Q/DQ can go in a model.

    Attributes:
        layers: nodes that can be int8, in topological order.
        residuals: inputs of residual Adds. An Add of two convolutions is there twice, in order of preference; see
            `residual_inputs`.
        concats: of every Concat, the names of its output and of its inputs.
        left_in_float: why a Conv, ConvTranspose, Gemm or MatMul cannot be int8, by node name.
        excluded: names of all nodes, of any operator, that the user excluded.
    """

    layers: tuple[Layer, ...]
    residuals: tuple[ResidualInput, ...]
    concats: tuple[tuple[str, ...], ...]
    left_in_float: dict[str, str]
    excluded: frozenset[str]

    def tensors(self, int8_layers: Collection[str] | None = None) -> tuple[str, ...]:
        """Return the names of the activations that get Q/DQ where those layers are int8 (default: all), each once."""
        layers = [layer for layer in self.layers if int8_layers is None or layer.node in int8_layers]
        residuals = self.residuals if int8_layers is None else self.residual_inputs(int8_layers)
        names = [
            *(name for layer in layers for name in layer.activations),
            *(residual.tensor for residual in residuals),
        ]
        return tuple(dict.fromkeys(names))

    def residual_inputs(self, int8_layers: Collection[str]) -> list[ResidualInput]:
        """Return the residual inputs to quantize where those layers are int8: at most one of each Add."""
        chosen: dict[str, ResidualInput] = {}
        for residual in self.residuals:
            if residual.fused_into in int8_layers:
                chosen.setdefault(residual.node, residual)
        return list(chosen.values())

    def scale_groups(self) -> list[frozenset[str]]:
        """Return the sets of quantized tensors that must share one scale because a Concat joins them."""
        groups: list[frozenset[str]] = []
        quantized = set(self.tensors())
        for concat in self.concats:
            group = frozenset(concat) & quantized
            if concat[0] not in quantized or len(group) < 2:
                continue
            touching = [other for other in groups if other & group]
            groups = [other for other in groups if other not in touching] + [group.union(*touching)]
        return groups

    def with_shared_scales(self, scales: Mapping[str, float]) -> dict[str, float]:
        """Return scales of which those that a Concat joins are the widest of them."""
        shared = dict(scales)
        for group in self.scale_groups():
            members = group & shared.keys()
            shared |= dict.fromkeys(members, max((shared[name] for name in members), default=0.0))
        return shared


def place(model: ir.Model, rules: QuantizationRules = _DEFAULT_RULES) -> Placement:
    """Return where Q/DQ can go in a prepared model. Subgraphs (If, Loop, Scan) are left alone.

    Args:
        model: what `prepare` returned; not changed.
        rules: settings that the user chose.

    Raises:
        JobError: the rules exclude a node that is not there.

    Examples:
        >>> import onnx_ir as ir
        >>> model = ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 19]>
        ...     net (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { [product] y = MatMul(x, w) }''')
        >>> place(model).layers
        (Layer(node='product', op_type='MatMul', activation='x', weight='w', axis=1, output='y'),)
    """
    layers: list[Layer] = []
    left: dict[str, str] = {}
    excluded = _excluded(model, rules.exclude)
    for node in model.graph:
        if node.domain == "" and node.op_type in COMPUTE_OPS:
            layer = "excluded by quantization.exclude" if node.name in excluded else _layer(node, rules.attention)
            if isinstance(layer, Layer):
                layers.append(layer)
            else:
                left[_name(node)] = layer
    quantizable = {layer.node for layer in layers}
    others = [node for node in model.graph if node.name not in excluded]
    residuals = [residual for node in others for residual in _residual_inputs(node, quantizable)]
    concats = [
        (_output(node), *(value.name for value in node.inputs if value is not None and value.name))
        for node in others
        if node.domain == "" and node.op_type == "Concat"
    ]
    return Placement(tuple(layers), tuple(residuals), tuple(concats), left, excluded)


def _excluded(model: ir.Model, exclude: Exclusion) -> frozenset[str]:
    """Return the names of the excluded nodes; JobError where a rule matches none, as that is a mistake."""
    nodes = list(model.graph)
    names = [_name(node) for node in nodes]
    matches = {
        f"names: no node is called {name!r}{_suggestion(name, names)}": {name} & set(names) for name in exclude.names
    }
    for pattern in exclude.patterns:
        matches[f"patterns: {pattern!r} is in no node's name"] = set(filter(re.compile(pattern).search, names))
    for op_type in exclude.op_types:
        matches[f"op_types: the model has no {op_type}"] = {_name(n) for n in nodes if n.op_type == op_type}
    for mistake, found in matches.items():
        if not found:
            raise JobError(f"quantization.exclude.{mistake} (python -m calibrate inspect lists the nodes)")
    return frozenset().union(*matches.values())


def _suggestion(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def weight_axis(node: ir.Node) -> int:
    """Return the axis of the weight that is the layer's output channel or feature.

    Examples:
        >>> [weight_axis(ir.node(op_type, [None, None])) for op_type in ("Conv", "ConvTranspose", "MatMul")]
        [0, 1, 1]
    """
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return 1  # ConvTranspose (in, out / group, ...) and MatMul (in, out)


def _layer(node: ir.Node, attention: bool) -> Layer | str:
    """Return the layer, or the reason why the node stays in float."""
    activation, weight = node.inputs[0], node.inputs[1]
    if activation is None or weight is None:
        return "an input is missing"
    if activation.const_value is not None:
        return "its first input is a constant"
    if weight.const_value is None or not weight.is_initializer():
        if node.op_type != "MatMul":
            return "its second input is computed, not a constant weight"
        if not attention:
            return "both its inputs are computed, as in attention; quantization.attention: true quantizes it"
        if activation.dtype != ir.DataType.FLOAT or weight.dtype != ir.DataType.FLOAT:
            return f"its inputs are {activation.dtype} and {weight.dtype}, not float32"
        return Layer(_name(node), node.op_type, str(activation.name), str(weight.name), None, _output(node))
    if weight.dtype != ir.DataType.FLOAT:
        return f"its weight is {weight.dtype}, not float32"
    if node.op_type == "MatMul" and len(weight.const_value.shape) != 2:
        return "its weight is not a matrix"
    if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) != 0:
        return "its activation is transposed"
    if not np.isfinite(weight.const_value.numpy()).all():
        return "its weight holds a NaN or an infinity"
    return Layer(_name(node), node.op_type, str(activation.name), str(weight.name), weight_axis(node), _output(node))


def is_residual(node: ir.Node) -> bool:
    """Return whether the node adds two computed tensors of one shape, so that it can fuse into a convolution.

    An Add of a constant is a bias, and one that broadcasts does not fuse. Dimensions that are not known are taken to be
    equal.

    Examples:
        >>> x, y = (ir.Value(name=name, shape=ir.Shape(["N", 8])) for name in "xy")
        >>> is_residual(ir.node("Add", [x, y])), is_residual(ir.node("Mul", [x, y]))
        (True, False)
    """
    if node.domain != "" or node.op_type != "Add":
        return False
    first, second = node.inputs
    if first is None or second is None or first is second:
        return False
    if first.const_value is not None or second.const_value is not None:
        return False
    if first.shape is None or second.shape is None:
        return True
    return len(first.shape) == len(second.shape) and all(
        a == b for a, b in zip(first.shape, second.shape, strict=True) if isinstance(a, int) and isinstance(b, int)
    )


def _residual_inputs(node: ir.Node, quantizable: Collection[str]) -> list[ResidualInput]:
    """Return the inputs of a residual Add, one of which must be quantized so that the other's conv can fuse.

    Where both come from convolutions, the one computed last is preferred, and the other takes its place where
    a plan leaves that one in float.
    """
    if not is_residual(node):
        return []
    first, second = node.inputs
    assert first is not None and second is not None
    fusable = [
        (producer, index)
        for index, value in enumerate((first, second))
        if (producer := value.producer()) is not None
        and producer.op_type in CONVOLUTIONS
        and _name(producer) in quantizable
        and len(value.uses()) == 1
        and not value.is_graph_output()
    ]
    fusable.sort(key=lambda pair: -_position(pair[0]))
    others = (second, first)
    return [ResidualInput(_name(node), 1 - index, str(others[index].name), _name(conv)) for conv, index in fusable]


def _position(node: ir.Node) -> int:
    assert isinstance(node.graph, ir.Graph)
    return node.graph.index(node)


def _name(node: ir.Node) -> str:
    assert node.name, "prepare() names every node"
    return node.name


def _output(node: ir.Node) -> str:
    return str(node.outputs[0].name)
