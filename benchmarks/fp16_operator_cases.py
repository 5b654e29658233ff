"""The cases of fp16_operators_gpu.py: an operator or a short chain each, with operands that are hard for FP16."""

# A case is a line, so that the file reads as a table.
# fmt: off
from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_ONNX_NAMES = {"float16": "float16", "bfloat16": "bfloat16", "float": "float", "double": "double"}
_GENERATOR = np.random.default_rng(0)
CASES: dict[str, Case] = {}


@dataclass(frozen=True)
class Case:
    """A graph whose first output is `y`. Arrays of float64 take the type that is tried; others keep theirs."""

    group: str
    body: str
    feeds: dict[str, Any]
    weights: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    opset: int = 21
    reference: Callable[..., Any] | None = None

    def operators(self) -> set[str]:
        """Return the ONNX operators of the graph."""
        return {str(node.op_type) for node in model_of(self, "float16", "float16").graph.node}


def rounded(array: Any, kind: str) -> Any:
    """Round float64 to numbers that a type holds, ties to even; other arrays are returned as they are."""
    import torch

    if array.dtype != np.float64:
        return array
    return torch.from_numpy(np.array(array)).to(getattr(torch, kind)).double().numpy()


@functools.lru_cache(maxsize=4)
def _parsed(text: str) -> Any:
    import onnx.parser

    return onnx.parser.parse_graph(text)


def model_of(case: Case, kind: str, computed_in: str, round_nodes: bool = False) -> Any:
    """Return the ONNX model of a case, with weights that `kind` holds, computed in a type of ONNX's.

    Args:
        case: the graph and its operands.
        kind: float16 or bfloat16.
        computed_in: the type of every float tensor: that, float or double.
        round_nodes: casts what each node gives to `kind` and back.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    computed_in = "float" if computed_in == "float32" else computed_in

    def declared(name: str, array: Any) -> str:
        own = _ONNX_NAMES[computed_in] if array.dtype == np.float64 else {"int64": "int64", "int32": "int32", "bool": "bool"}[array.dtype.name]
        return f"{own}[{','.join(map(str, array.shape))}] {name}"

    inputs = ", ".join(declared(name, array) for name, array in case.feeds.items())
    graph = onnx.GraphProto()
    graph.CopyFrom(_parsed(f"g ({inputs}) => ({_ONNX_NAMES[computed_in]} y) {{ {case.body} }}"))
    graph.output[0].type.tensor_type.ClearField("shape")  # the parser takes none for a scalar's
    for name, array in case.weights.items():
        value = rounded(array, kind)
        if array.dtype != np.float64:
            tensor = numpy_helper.from_array(value, name)
        elif computed_in == "bfloat16":
            bits = (np.ascontiguousarray(value, np.float32).view(np.uint32) >> 16).astype(np.uint16)
            tensor = TensorProto(name=name, data_type=TensorProto.BFLOAT16, dims=value.shape, raw_data=bits.tobytes())
        else:
            numpy_types = {"float16": np.float16, "float": np.float32, "double": np.float64}
            tensor = numpy_helper.from_array(np.ascontiguousarray(value, numpy_types[computed_in]), name)
        graph.initializer.append(tensor)
    if round_nodes:
        kinds = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16, "float32": TensorProto.FLOAT}
        nodes = list(graph.node)
        del graph.node[:]
        for node in nodes:
            graph.node.append(node)
            name = node.output[0]
            node_output = f"{name}_exact"
            graph.node[-1].output[0] = node_output
            graph.node.append(helper.make_node("Cast", [node_output], [f"{name}_low"], to=kinds[kind]))
            graph.node.append(helper.make_node("Cast", [f"{name}_low"], [name], to=TensorProto.FLOAT))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=10)


def not_arithmetic() -> set[str]:
    """Return operators that give no floating-point numbers, none from operands, or random ones."""
    return {"And", "Or", "Xor", "Not", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsNaN", "IsInf", "Shape", "Size", "NonZero", "ArgMax", "ArgMin", "Cast", "CastLike", "Constant", "ConstantOfShape", "EyeLike", "Range", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "If", "Loop", "Scan", "NonMaxSuppression", "OneHot", "QuantizeLinear", "DequantizeLinear", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "BitShift", "Unique", "Compress"}


def _add(group: str, name: str, body: str, x: Any = None, note: str = "", **other: Any) -> None:
    """Register a case; `body` may be only the operator with its attributes, of one operand x."""
    feeds = dict(other.pop("feeds", {}))
    if x is not None:
        feeds = {"x": x, **feeds}
    if "=" not in body.split("<")[0]:
        body = f"y = {body}(x)"
    CASES[name] = Case(group, body, feeds, note=note, **other)


def _uniform(low: float, high: float, *shape: int) -> Any:
    return _GENERATOR.uniform(low, high, shape or (64, 1000))


def _normal(*shape: int, scale: float = 1.0) -> Any:
    return _GENERATOR.normal(0, scale, shape)


def _ints(*values: int) -> Any:
    return np.array(values, np.int64)


def _elementwise() -> None:
    group = "Elementwise functions"
    for name, low, high in (
        ("Abs", -60, 60), ("Neg", -60, 60), ("Ceil", -60, 60), ("Floor", -60, 60), ("Round", -60, 60), ("Sign", -60, 60),
        ("Exp", -9, 11), ("Log", 1e-4, 60000), ("Sqrt", 1e-4, 60000), ("Reciprocal", 2e-3, 10000), ("Erf", -4, 4),
        ("Sigmoid", -9, 12), ("Tanh", -6, 6), ("HardSigmoid", -6, 6), ("HardSwish", -300, 300), ("Mish", -8, 300),
        ("Softplus", -8, 300), ("Softsign", -300, 300), ("Relu", -60, 60), ("LeakyRelu", -300, 300), ("Elu", -8, 60),
        ("Selu", -8, 60), ("Celu", -8, 60), ("ThresholdedRelu", -8, 8), ("Shrink", -8, 8), ("Gelu", -4, 300),
        ("Sin", -3, 3), ("Cos", -3, 3), ("Tan", -1.5, 1.5), ("Asin", -1, 1), ("Acos", -1, 1), ("Atan", -60, 60),
        ("Sinh", -11, 11), ("Cosh", -11, 11), ("Asinh", -3000, 3000), ("Acosh", 1.01, 3000), ("Atanh", -0.999, 0.999),
        ("Identity", -60, 60), ("Dropout", -60, 60),
    ):
        _add(group, name, name, _uniform(low, high), f"{low:g} to {high:g}")
    for name in ("Sin", "Cos", "Tan"):
        _add(group, f"{name}, large phase", name, _uniform(-2000, 2000), "-2000 to 2000")
    _add(group, "Gelu, tanh", 'Gelu<approximate="tanh">', _uniform(-4, 300), "-4 to 300")
    _add(group, "Swish", "Swish", _uniform(-8, 300), "-8 to 300", opset=24)
    _add(group, "Log, near 1", "Log", _uniform(0.9, 1.1), "0.9 to 1.1")
    _add(group, "Exp, small", "Exp", _uniform(-0.1, 0.1), "-0.1 to 0.1")
    _add(group, "Asinh, small", "Asinh", _uniform(-0.1, 0.1), "-0.1 to 0.1")
    _add(group, "Asinh, beyond 256", "Asinh", _uniform(300, 60000), "300 to 60000")
    _add(group, "Acosh, beyond 256", "Acosh", _uniform(300, 60000), "300 to 60000")
    _add(group, "Acosh, near 1", "Acosh", _uniform(1.001, 1.1), "1.001 to 1.1")
    _add(group, "Atanh, small", "Atanh", _uniform(-0.1, 0.1), "-0.1 to 0.1")
    _add(group, "Sinh, small", "Sinh", _uniform(-0.1, 0.1), "-0.1 to 0.1")
    _add(group, "Tanh, small", "Tanh", _uniform(-0.01, 0.01), "-0.01 to 0.01")
    _add(group, "Softplus, negative", "Softplus", _uniform(-9, -4), "-9 to -4")
    _add(group, "Mish, negative", "Mish", _uniform(-9, -4), "-9 to -4")
    _add(group, "Elu, near 0", "Elu", _uniform(-0.05, 0), "-0.05 to 0")
    _add(group, "Selu, near 0", "Selu", _uniform(-0.05, 0), "-0.05 to 0")
    _add(group, "Celu, near 0", "Celu", _uniform(-0.05, 0), "-0.05 to 0")
    _add(group, "Clip", "y = Clip(x, low, high)", _uniform(-60, 60), weights={"low": np.array(-6.0), "high": np.array(6.0)})
    _add(group, "PRelu", "y = PRelu(x, s)", _uniform(-60, 60), weights={"s": _uniform(0, 1, 1000)})

    group = "Elementwise operators of two or more operands"
    a, b = _uniform(-200, 200), _uniform(-200, 200)
    for name in ("Add", "Sub", "Mul", "Max", "Min", "Mean"):
        _add(group, name, f"y = {name}(x, b)", a, "-200 to 200", feeds={"b": b})
    _add(group, "Div", "y = Div(x, b)", a, "by 0.5 to 200", feeds={"b": _uniform(0.5, 200)})
    _add(group, "Div, small by small", "y = Div(x, b)", _uniform(1e-4, 1e-3), "1e-4 to 1e-3", feeds={"b": _uniform(1e-4, 1e-3)})
    _add(group, "Div, large by large", "y = Div(x, b)", _uniform(2e4, 6e4), "2e4 to 6e4", feeds={"b": _uniform(2e4, 6e4)})
    _add(group, "Pow", "y = Pow(x, b)", _uniform(0.1, 10), "0.1 to 10, exponent -3 to 4", feeds={"b": _uniform(-3, 4)})
    _add(group, "Pow, squares", "y = Pow(x, b)", _uniform(-250, 250), "exponent 2", weights={"b": np.array(2.0)})
    _add(group, "Pow, roots", "y = Pow(x, b)", _uniform(1, 60000), "exponent 0.5", weights={"b": np.array(0.5)})
    _add(group, "Mod", "y = Mod<fmod=1>(x, b)", a, "fmod", feeds={"b": _uniform(0.5, 20)})
    terms = {f"t{i}": _uniform(-60, 60) for i in range(8)}
    _add(group, "Sum of 8", f"y = Sum({', '.join(terms)})", feeds=terms, note="-60 to 60")
    large = {f"t{i}": _uniform(2e4, 3e4) * (-1.0 if i % 2 else 1.0) for i in (0, 2, 4, 1, 3, 5)}
    _add(group, "Sum of 6, partial sums beyond FP16", f"y = Sum({', '.join(large)})", feeds=large, note="3 of +2e4 to 3e4, 3 of minus that")
    _add(group, "Mean of 4, sum beyond FP16", "y = Mean(t0, t2, t4, t6)", feeds={f"t{i}": _uniform(2e4, 6e4) for i in (0, 2, 4, 6)}, note="2e4 to 6e4")
    _add(group, "Where", "y = Where(c, x, b)", a, feeds={"c": a > 0, "b": b})


def _reductions() -> None:
    group = "Reductions"
    wide, positive = _uniform(-60, 60, 64, 4096), _uniform(1, 60, 64, 4096)
    for name, x, note in (
        ("ReduceSum", wide, "-60 to 60"), ("ReduceMean", wide, "-60 to 60"), ("ReduceMax", wide, "-60 to 60"),
        ("ReduceMin", wide, "-60 to 60"), ("ReduceL1", _uniform(-15, 15, 64, 4096), "-15 to 15"),
        ("ReduceL2", wide, "-60 to 60, squares sum to 5e6"), ("ReduceSumSquare", _uniform(-6, 6, 64, 4096), "-6 to 6"),
        ("ReduceLogSum", positive, "1 to 60, sum 125,000"), ("ReduceLogSumExp", _uniform(-20, 20, 64, 4096), "-20 to 20"),
        ("ReduceProd", np.exp(_normal(64, 4096, scale=0.02)), "about 1"),
    ):
        _add(group, name, f"y = {name}<keepdims=1>(x, axes)", x, f"4,096 of {note}", weights={"axes": _ints(1)}, opset=18)
    for name, x, note in (
        ("ReduceMean, sum beyond FP16", positive, "4,096 of 1 to 60"),
        ("ReduceSum, positive", _uniform(0, 20, 64, 4096), "4,096 of 0 to 20"),
        ("ReduceLogSumExp, small", _uniform(-1, 1, 64, 64), "64 of -1 to 1"),
        ("ReduceLogSum, small", _uniform(1, 6, 64, 64), "64 of 1 to 6"),
        ("ReduceL2, small values", _uniform(-1e-3, 1e-3, 64, 4096), "4,096 of -1e-3 to 1e-3"),
        ("ReduceL2, 64", _uniform(-20, 20, 64, 64), "64 of -20 to 20"),
    ):
        _add(group, name, f"y = {name.split(',')[0]}<keepdims=1>(x, axes)", x, note, weights={"axes": _ints(1)}, opset=18)
    _add(group, "ReduceProd, running product beyond FP16", "y = ReduceProd<keepdims=1>(x, axes)", np.concatenate([_uniform(20, 40, 64, 8), 1 / _uniform(20, 40, 64, 8)], 1), "8 of 20 to 40, then 8 of 1/40 to 1/20", weights={"axes": _ints(1)}, opset=18)
    image = _uniform(-60, 60, 4, 16, 112, 112)
    _add(group, "ReduceSum over 112x112", "y = ReduceSum(x, axes)", image, weights={"axes": _ints(2, 3)})
    _add(group, "GlobalAveragePool", "GlobalAveragePool", np.abs(image), "112x112 of 0 to 60")
    _add(group, "GlobalMaxPool", "GlobalMaxPool", image, "112x112")
    _add(group, "GlobalLpPool", "GlobalLpPool<p=2>", image, "112x112 of -60 to 60", reference=_l2_over_image)
    _add(group, "AveragePool, whole", "AveragePool<kernel_shape=[112,112]>", np.abs(image[:1, :4]), "112x112 of 0 to 60")
    _add(group, "AveragePool", "AveragePool<kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1]>", image[:1, :4], "3x3")
    _add(group, "MaxPool", "MaxPool<kernel_shape=[3,3],strides=[2,2]>", image[:1, :4], "3x3")
    _add(group, "LpPool", "LpPool<kernel_shape=[8,8],p=2,strides=[8,8]>", _uniform(-300, 300, 1, 4, 112, 112), "8x8 of -300 to 300")
    _add(group, "CumSum", "y = CumSum(x, axis)", _uniform(-30, 30, 16, 4096), "4,096 of -30 to 30", weights={"axis": np.array(1, np.int64)})
    _add(group, "CumSum, positive", "y = CumSum(x, axis)", _uniform(0, 20, 16, 4096), "4,096 of 0 to 20", weights={"axis": np.array(1, np.int64)})
    _add(group, "TopK", "y, i = TopK<axis=1>(x, k)", _uniform(-60, 60), weights={"k": _ints(50)})
    _add(group, "Softmax", "Softmax<axis=1>", _uniform(-4, 4, 64, 1000), "1,000 logits to +-4")
    _add(group, "Softmax, wide", "Softmax<axis=1>", _uniform(-20, 20), "1,000 logits to +-20; small results are rounded away")
    _add(group, "Softmax over channels", "Softmax<axis=1>", _uniform(-6, 6, 2, 64, 32, 32), "axis 1 of 4")
    _add(group, "LogSoftmax", "LogSoftmax<axis=1>", _uniform(-20, 20), "1,000 logits to +-20")
    _add(group, "LogSoftmax, narrow", "LogSoftmax<axis=1>", _uniform(-4, 4), "1,000 logits to +-4")
    _add(group, "LogSoftmax, 10", "LogSoftmax<axis=1>", _uniform(-8, 8, 64, 10), "10 logits to +-8")
    _add(group, "Hardmax", "Hardmax<axis=1>", _uniform(-20, 20))


def _normalizations() -> None:
    group = "Normalizations"
    rows, maps = _uniform(-300, 300, 64, 768), _uniform(-300, 300, 2, 32, 56, 56)
    tiny, far = _uniform(-2e-3, 2e-3, 64, 768), 200 + _uniform(-2, 2, 64, 768)
    affine = {"s": _uniform(0.5, 2, 768), "b": _uniform(-1, 1, 768)}
    channels = {"s": _uniform(0.5, 2, 32), "b": _uniform(-1, 1, 32)}
    for label, x, note in (("", rows, "-300 to 300"), (", small", tiny, "-2e-3 to 2e-3, epsilon 1e-12"), (", far from 0", far, "198 to 202")):
        epsilon = "1e-12" if label == ", small" else "1e-5"
        _add(group, f"LayerNormalization{label}", f"y = LayerNormalization<axis=-1,epsilon={epsilon}>(x, s, b)", x, note, weights=affine)
    _add(group, "RMSNormalization", "y = RMSNormalization<axis=-1>(x, s)", rows, "-300 to 300", weights={"s": affine["s"]}, opset=23)
    _add(group, "InstanceNormalization", "y = InstanceNormalization(x, s, b)", maps, "-300 to 300", weights=channels)
    _add(group, "GroupNormalization", "y = GroupNormalization<num_groups=4>(x, s, b)", maps, "-300 to 300", weights=channels)
    _add(group, "GroupNormalization, opset 18", "y = GroupNormalization<num_groups=4>(x, s, b)", maps, "-300 to 300", weights={"s": channels["s"][:4], "b": channels["b"][:4]}, opset=18)
    _add(group, "BatchNormalization", "y = BatchNormalization(x, s, b, m, v)", maps, "-300 to 300", weights={**channels, "m": _uniform(-5, 5, 32), "v": _uniform(100, 30000, 32)})
    _add(group, "LpNormalization", "LpNormalization<axis=1,p=2>", rows, "-300 to 300")
    _add(group, "LpNormalization, L1", "LpNormalization<axis=1,p=1>", rows[:, :256], "256 of -300 to 300", reference=_over_l1)
    _add(group, "MeanVarianceNormalization", "MeanVarianceNormalization", maps, "-300 to 300", reference=_standardized)
    _add(group, "LRN", "LRN<size=5,alpha=0.0001,beta=0.75>", maps, "-300 to 300", reference=_local_response)


# onnx.reference 1.23 has no GlobalLpPool, refuses float64 in MeanVarianceNormalization, and departs from ONNX's text
# (and from ONNX Runtime) in LRN and in LpNormalization with p=1.
def _l2_over_image(x: Any) -> Any:
    return np.sqrt(np.sum(x**2, (2, 3), keepdims=True))


def _over_l1(x: Any) -> Any:
    return x / np.sum(np.abs(x), 1, keepdims=True)


def _standardized(x: Any) -> Any:
    return (x - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True)


def _local_response(x: Any) -> Any:
    import torch

    return torch.nn.functional.local_response_norm(torch.from_numpy(x), 5, 0.0001, 0.75, 1.0).numpy()


def _products() -> None:
    group = "Products"
    a, b = _normal(64, 4096), _normal(4096, 256)
    _add(group, "MatMul", "y = MatMul(x, w)", a, "K 4,096", weights={"w": b})
    _add(group, "MatMul of activations", "y = MatMul(x, w)", a, "K 4,096", feeds={"w": b})
    beyond = np.concatenate([_uniform(10, 40, 64, 2048), -_uniform(10, 40, 64, 2048)], 1)
    _add(group, "MatMul, partial sums beyond FP16", "y = MatMul(x, w)", beyond, "K 4,096, partial sums to 1e6", weights={"w": _uniform(15, 25, 4096, 256)})
    _add(group, "MatMul, long and positive", "y = MatMul(x, w)", _uniform(0, 4, 64, 4096), "K 4,096, sums to 2e4", weights={"w": _uniform(0, 4, 4096, 256)})
    _add(group, "MatMul, batched", "y = MatMul(x, w)", _normal(8, 128, 64), "as in attention", feeds={"w": _normal(8, 64, 128)})
    _add(group, "Gemm", "y = Gemm<transB=1>(x, w, b)", a, "K 4,096", weights={"w": _normal(256, 4096), "b": _normal(256)})
    _add(group, "Einsum", 'y = Einsum<equation="bhqd,bhkd->bhqk">(x, w)', _normal(2, 4, 64, 64), feeds={"w": _normal(2, 4, 64, 64)})
    _add(group, "Conv 1x1", "y = Conv<kernel_shape=[1,1]>(x, w, b)", _normal(1, 4096, 7, 7), "K 4,096", weights={"w": _normal(64, 4096, 1, 1), "b": _normal(64)}, reference=_conv)
    _add(group, "Conv 3x3", "y = Conv<kernel_shape=[3,3],pads=[1,1,1,1]>(x, w, b)", _normal(1, 456, 14, 14), "K 4,104", weights={"w": _normal(64, 456, 3, 3), "b": _normal(64)}, reference=functools.partial(_conv, padding=1))
    _add(group, "Conv, partial sums beyond FP16", "y = Conv<kernel_shape=[1,1]>(x, w, b)", np.moveaxis(beyond[:49].reshape(1, 7, 7, 4096), 3, 1).copy(), "K 4,096, partial sums to 1e6", weights={"w": _uniform(15, 25, 64, 4096, 1, 1), "b": _normal(64)}, reference=_conv)
    _add(group, "Conv, depthwise 7x7", "y = Conv<kernel_shape=[7,7],pads=[3,3,3,3],group=64>(x, w, b)", _normal(1, 64, 28, 28), weights={"w": _normal(64, 1, 7, 7), "b": _normal(64)}, reference=functools.partial(_conv, padding=3, groups=64))
    _add(group, "Conv 1D", "y = Conv<kernel_shape=[3]>(x, w, b)", _normal(1, 512, 100), weights={"w": _normal(64, 512, 3), "b": _normal(64)}, reference=_conv)
    _add(group, "Conv 3D", "y = Conv<kernel_shape=[3,3,3]>(x, w, b)", _normal(1, 32, 8, 14, 14), weights={"w": _normal(32, 32, 3, 3, 3), "b": _normal(32)}, reference=_conv)
    _add(group, "ConvTranspose", "y = ConvTranspose<kernel_shape=[4,4],strides=[2,2],pads=[1,1,1,1]>(x, w, b)", _normal(1, 512, 7, 7), weights={"w": _normal(512, 32, 4, 4), "b": _normal(32)}, reference=_conv_transpose)
    _add(group, "Attention", "y = Attention(x, k, v)", _normal(2, 4, 64, 64), feeds={"k": _normal(2, 4, 64, 64), "v": _normal(2, 4, 64, 64)}, opset=23)
    for name, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
        weights = {"w": _uniform(-0.3, 0.3, 1, gates * 64, 64), "r": _uniform(-0.2, 0.2, 1, gates * 64, 64), "b": _uniform(-0.1, 0.1, 1, gates * 128)}
        _add(group, name, f"y = {name}<hidden_size=64>(x, w, r, b)", _normal(50, 4, 64), "50 steps", weights=weights)


def _conv(x: Any, w: Any, b: Any, padding: int = 0, groups: int = 1) -> Any:
    import torch

    x, w, b = (torch.from_numpy(np.ascontiguousarray(one)) for one in (x, w, b))
    return torch.convolution(x, w, b, [1] * (x.dim() - 2), [padding] * (x.dim() - 2), [1] * (x.dim() - 2), False, [0] * (x.dim() - 2), groups).numpy()


def _conv_transpose(x: Any, w: Any, b: Any) -> Any:
    import torch

    return torch.nn.functional.conv_transpose2d(*(torch.from_numpy(one) for one in (x, w, b)), stride=2, padding=1).numpy()


def _sampling() -> None:
    group = "Sampling and movement"
    image = _uniform(-60, 60, 1, 8, 32, 32)
    twice = {"z": np.array([1, 1, 2, 2], np.float32)}
    for mode in ("nearest", "linear", "cubic"):
        _add(group, f"Resize, {mode}", f'y = Resize<mode="{mode}">(x, , z)', image, "twice as large", weights=twice)
    _add(group, "GridSample", "y = GridSample<align_corners=0>(x, grid)", image, feeds={"grid": _uniform(-1, 1, 1, 16, 16, 2)}, opset=20)
    rois = np.array([[0, 0, 20, 20], [3, 5, 30, 25]], np.float64)
    _add(group, "RoiAlign", "y = RoiAlign<output_height=7,output_width=7,sampling_ratio=2>(x, rois, i)", image, feeds={"rois": rois, "i": _ints(0, 0)})
    _add(group, "DeformConv", "y = DeformConv<kernel_shape=[3,3],pads=[1,1,1,1]>(x, w, o)", _normal(1, 8, 16, 16), weights={"w": _normal(8, 8, 3, 3)}, feeds={"o": _uniform(-1, 1, 1, 18, 16, 16)})
    x = _uniform(-60, 60, 4, 8, 6, 6)
    index = _ints(3, 0, 1)
    pads = _ints(0, 0, 1, 1, 0, 0, 1, 1)
    for name, body, weights in (
        ("Transpose", "y = Transpose<perm=[0,2,3,1]>(x)", {}), ("Flatten", "y = Flatten(x)", {}),
        ("Reshape", "y = Reshape(x, i)", {"i": _ints(4, 8, 36)}), ("Squeeze", "u = Unsqueeze(x, i)\ny = Squeeze(u, i)", {"i": _ints(0)}),
        ("Concat", "y = Concat<axis=1>(x, x)", {}), ("Split", "y, r = Split<axis=1,num_outputs=2>(x)", {}),
        ("Slice", "y = Slice(x, a, b, c)", {"a": _ints(1), "b": _ints(5), "c": _ints(2)}),
        ("Gather", "y = Gather<axis=1>(x, i)", {"i": index}), ("GatherElements", "y = GatherElements<axis=0>(x, i)", {"i": np.zeros((4, 8, 6, 6), np.int64)}),
        ("GatherND", "y = GatherND(x, i)", {"i": np.array([[0, 1], [3, 2]], np.int64)}),
        ("Pad", "y = Pad(x, i)", {"i": pads}), ("Pad, reflect", 'y = Pad<mode="reflect">(x, i)', {"i": pads}),
        ("Tile", "y = Tile(x, i)", {"i": _ints(1, 2, 1, 1)}), ("Expand", "y = Expand(x, i)", {"i": _ints(2, 4, 8, 6, 6)}),
        ("DepthToSpace", "y = DepthToSpace<blocksize=2>(x)", {}), ("SpaceToDepth", "y = SpaceToDepth<blocksize=2>(x)", {}),
        ("Trilu", "y = Trilu(x)", {}), ("ReverseSequence", "y = ReverseSequence<batch_axis=0,time_axis=1>(x, i)", {"i": _ints(8, 3, 2, 5)}),
    ):
        _add(group, name, body, x, weights=weights)
    where, update = np.array([[0], [2]], np.int64), _uniform(-60, 60, 2, 8, 6, 6)
    for reduction in ("none", "add", "mul", "max"):
        _add(group, f"ScatterND, {reduction}", f'y = ScatterND<reduction="{reduction}">(x, i, u)', x, feeds={"u": update}, weights={"i": where})
        _add(group, f"ScatterElements, {reduction}", f'y = ScatterElements<axis=0,reduction="{reduction}">(x, i, u)', x, feeds={"u": update}, weights={"i": np.zeros((2, 8, 6, 6), np.int64) + np.arange(2)[:, None, None, None]})


def _chains() -> None:
    group = "Chains of nodes"
    axis, rows = {"axes": _ints(-1)}, _uniform(-60, 60, 64, 768)
    half, eps = {"h": np.array(0.5)}, {"e": np.array(1e-3)}
    _add(group, "Softmax, Log", "p = Softmax<axis=1>(x)\ny = Log(p)", _uniform(-20, 20), "1,000 logits to +-20")
    _add(group, "Softmax, Log, narrow", "p = Softmax<axis=1>(x)\ny = Log(p)", _uniform(-2, 2), "1,000 logits to +-2")
    _add(group, "Exp, ReduceSum, Log", "p = Exp(x)\nq = ReduceSum(p, axes)\ny = Log(q)", _uniform(-2, 2), "1,000 of -2 to 2", weights=axis)
    _add(group, "x - max, Exp, Sum, Div", "m = ReduceMax(x, axes)\nd = Sub(x, m)\np = Exp(d)\nq = ReduceSum(p, axes)\ny = Div(p, q)", _uniform(-4, 4), "1,000 of -4 to 4", weights=axis)
    _add(group, "ReduceMean(x * x)", "q = Mul(x, x)\ny = ReduceMean(q, axes)", rows, "-60 to 60", weights=axis)
    _add(group, "ReduceMean(x * x), to 250", "q = Mul(x, x)\ny = ReduceMean(q, axes)", rows * 4, "-240 to 240", weights=axis)
    _add(group, "Sqrt(ReduceSum(x * x))", "q = Mul(x, x)\nt = ReduceSum(q, axes)\ny = Sqrt(t)", rows, "768 of -60 to 60; the sum is 9e5", weights=axis)
    _add(group, "x / Sqrt(ReduceMean(x * x))", "q = Mul(x, x)\nm = ReduceMean(q, axes)\nr = Sqrt(m)\ny = Div(x, r)", rows, "-60 to 60", weights=axis)
    _add(group, "x / Sqrt(ReduceMean(x ^ 2)), to 300", "q = Pow(x, two)\nm = ReduceMean(q, axes)\nr = Sqrt(m)\ny = Div(x, r)", rows * 5, "-300 to 300; squares overflow", weights={**axis, "two": np.array(2.0)})
    _add(group, "LayerNormalization in pieces", "m = ReduceMean(x, axes)\nd = Sub(x, m)\nq = Mul(d, d)\nv = ReduceMean(q, axes)\nw = Add(v, e)\nr = Sqrt(w)\ny = Div(d, r)", rows, "-60 to 60", weights={**axis, **eps})
    _add(group, "LayerNormalization in pieces, far from 0", "m = ReduceMean(x, axes)\nd = Sub(x, m)\nq = Mul(d, d)\nv = ReduceMean(q, axes)\nw = Add(v, e)\nr = Sqrt(w)\ny = Div(d, r)", 200 + rows / 30, "198 to 202", weights={**axis, **eps})
    _add(group, "Gelu in pieces", "a = Mul(x, c)\nf = Erf(a)\ng = Add(f, one)\nk = Mul(x, g)\ny = Mul(k, h)", _uniform(-4, 300), "-4 to 300", weights={**half, "c": np.array(0.7071), "one": np.array(1.0)})
    _add(group, "Swish in pieces", "s = Sigmoid(x)\ny = Mul(x, s)", _uniform(-8, 300), "-8 to 300")
    chain = {f"t{i}": _uniform(-60, 60) for i in range(4)}
    _add(group, "chain of Sum", "a = Sum(t0, t1, t2)\nb = Sum(a, t3, t0)\nc = Sum(b, t2, t1)\ny = Sum(c, a, b)", feeds=chain, note="-60 to 60")
    _add(group, "chain of Mean", "a = Mean(t0, t1, t2)\nb = Mean(a, t3, t0)\nc = Mean(b, t2, t1)\ny = Mean(c, a, b)", feeds=chain, note="-60 to 60")
    _add(group, "chain of Mean and Sum", "a = Mean(t0, t1, t2)\nb = Sum(a, t3, t0)\nc = Mean(b, t2, t1)\ny = Sum(c, a, b)", feeds=chain, note="-60 to 60")
    _add(group, "chain of Add", "a = Add(t0, t1)\nb = Add(a, t2)\nc = Add(b, t3)\nd = Add(c, a)\ny = Add(d, b)", feeds=chain, note="-60 to 60")
    _add(group, "Mul after Mul", "a = Mul(x, c)\ny = Mul(a, d)", _uniform(20, 200), "times 400, then times 1/512; between them beyond FP16", weights={"c": np.array(400.0), "d": np.array(1 / 512)})
    _add(group, "attention in pieces", "s = MatMul(x, k)\nz = Mul(s, c)\np = Softmax<axis=-1>(z)\ny = MatMul(p, v)", _normal(2, 4, 64, 64), feeds={"k": _normal(2, 4, 64, 64), "v": _normal(2, 4, 64, 64)}, weights={"c": np.array(0.125)})
    _add(group, "attention in pieces, scores beyond FP16", "s = MatMul(x, k)\nz = Mul(s, c)\np = Softmax<axis=-1>(z)\ny = MatMul(p, v)", _normal(2, 4, 64, 64, scale=120), "scores to 5e5, then times 1/16384", feeds={"k": _normal(2, 4, 64, 64, scale=120), "v": _normal(2, 4, 64, 64)}, weights={"c": np.array(2.0**-14)})
    _add(group, "Conv, HardSwish", "a = Conv<kernel_shape=[1,1]>(x, w)\ny = HardSwish(a)", _normal(1, 256, 14, 14), weights={"w": _normal(64, 256, 1, 1)})
    _add(group, "MatMul, Add, Gelu", "a = MatMul(x, w)\nc = Add(a, b)\ny = Gelu(c)", _normal(64, 768), weights={"w": _normal(768, 256), "b": _normal(256)})


_elementwise()
_reductions()
_normalizations()
_products()
_sampling()
_chains()
