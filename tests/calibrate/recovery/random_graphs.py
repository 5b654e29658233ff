"""Random graphs of all operators that equalization knows, and of some that it must leave alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from calibrate.graph import prepare

CHANNELS, SIDE = 4, 6


class Graph:
    """A graph that grows at its end, with what it computed before at hand; NCHW, always of `CHANNELS` channels."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.nodes: list[object] = []
        self.constants: list[object] = []
        self.outputs: list[str] = []
        self.before = ["x"]
        self.last = "x"
        self.shared = self.constant(rng.normal(size=(CHANNELS, CHANNELS, 1, 1)))
        self.three, self.six, self.two = (self.constant(np.array([v])) for v in (3.0, 6.0, 2.0))

    def constant(self, values: object, dtype: type = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def add(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def random(self, *shape: int) -> str:
        return self.constant(self.rng.normal(size=shape) + 0.1)

    def earlier(self) -> str:
        return str(self.rng.choice(self.before))

    def made(self, name: str) -> None:
        self.before.append(name)
        self.last = name

    def model(self) -> ir.Model:
        """Return the graph, prepared, with a layer behind all that is left over."""
        head = self.add("Conv", self.last, self.random(3, CHANNELS, 3, 3), self.random(3), pads=[1] * 4)
        flat = self.add("Flatten", self.add("GlobalAveragePool", head))
        logits = self.add("Gemm", flat, self.random(5, 3), self.random(5), transB=1)
        names = dict.fromkeys([logits, *self.outputs])
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
        shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", CHANNELS, SIDE, SIDE])
        graph = helper.make_graph(self.nodes, "random", [shape], outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
        return prepare(ir.from_proto(model))


def conv(g: Graph) -> str:
    size = int(g.rng.choice([1, 3]))
    groups = int(g.rng.choice([1, 2, CHANNELS]))
    weight = g.random(CHANNELS, CHANNELS // groups, size, size)
    bias = [g.random(CHANNELS)] * int(g.rng.integers(2))
    return g.add("Conv", g.last, weight, *bias, pads=[size // 2] * 4, group=groups)


def conv_of_shared_weight(g: Graph) -> str:
    return g.add("Conv", g.last, g.shared)


def transposed(g: Graph) -> str:
    groups = int(g.rng.choice([1, 2]))
    weight = g.random(CHANNELS, CHANNELS // groups, 3, 3)
    return g.add("ConvTranspose", g.last, weight, g.random(CHANNELS), pads=[1] * 4, group=groups)


def hardswish(g: Graph) -> str:
    gate = g.add("Clip", g.add("Add", g.last, g.three), g.constant(0), g.constant(6))
    return g.add("Div", g.add("Mul", g.last, gate), g.six)


def swish(g: Graph) -> str:
    return g.add("Mul", g.last, g.add("Sigmoid", g.add("Mul", g.two, g.last)))


def plain_swish(g: Graph) -> str:
    return g.add("Mul", g.add("Sigmoid", g.last), g.last)


def affine(g: Graph) -> str:
    return g.add("Add", g.add("Mul", g.two, g.last), g.three)


def affine_by_channel(g: Graph) -> str:
    product = g.add("Div", g.last, g.constant(np.exp(g.rng.normal(size=(CHANNELS, 1, 1)))))
    return g.add("Sub", g.random(1, CHANNELS, 1, 1), product)


def normalized(g: Graph) -> str:
    variance = g.constant(np.exp(g.rng.normal(size=CHANNELS)))
    product = g.add("Mul", g.last, g.six)  # or it would be folded into a convolution
    return g.add("BatchNormalization", product, *(g.random(CHANNELS) for _ in range(3)), variance)


def squeezed(g: Graph) -> str:
    pooled = g.add("GlobalAveragePool", g.last)
    first = g.add("Relu", g.add("Conv", pooled, g.random(2, CHANNELS, 1, 1), g.random(2)))
    gate = g.add("HardSigmoid", g.add("Conv", first, g.random(CHANNELS, 2, 1, 1)))
    return g.add("Mul", g.last, gate)


def residual(g: Graph) -> str:
    return g.add("Add", g.last, g.earlier())


def joined(g: Graph) -> str:
    both = g.add("Concat", g.last, g.earlier(), axis=1)
    return g.add("Conv", both, g.random(CHANNELS, 2 * CHANNELS, 1, 1))


def larger(g: Graph) -> str:
    return g.add("Max", g.last, g.earlier())


def tokens(g: Graph) -> str:
    """NCHW to tokens, a norm and a product of matrices, and back."""
    rows = g.add("Reshape", g.last, g.constant([0, CHANNELS, -1], np.int64))
    rows = g.add("Transpose", rows, perm=[0, 2, 1])
    if g.rng.integers(2):
        rows = g.add("LayerNormalization", rows, g.random(CHANNELS), g.random(CHANNELS), axis=-1)
    else:
        power = g.add("ReduceMean", g.add("Mul", rows, rows), g.constant([-1], np.int64))
        rows = g.add("Div", rows, g.add("Sqrt", g.add("Add", power, g.constant(0.1))))
        rows = g.add("Mul", rows, g.random(CHANNELS))
    rows = g.add("Add", g.add("MatMul", rows, g.random(CHANNELS, CHANNELS)), g.random(CHANNELS))
    rows = g.add("Transpose", rows, perm=[0, 2, 1])
    return g.add("Reshape", rows, g.constant([0, CHANNELS, SIDE, SIDE], np.int64))


def an_output(g: Graph) -> str:
    g.outputs.append(g.last if g.last != "x" else g.add("Relu", "x"))
    return g.add("Relu", g.last)


def reduced(g: Graph) -> str:
    return g.add("Add", g.last, g.add("ReduceMean", g.last, g.constant([2, 3], np.int64), keepdims=1))


def unary(op: str, **attributes: object) -> Callable[[Graph], str]:
    return lambda g: g.add(op, g.last, **attributes)


STEPS: dict[str, Callable[[Graph], str]] = {
    "conv": conv,
    "shared": conv_of_shared_weight,
    "transposed": transposed,
    "hardswish": hardswish,
    "swish": swish,
    "plain_swish": plain_swish,
    "affine": affine,
    "affine_by_channel": affine_by_channel,
    "batch_norm": normalized,
    "squeezed": squeezed,
    "residual": residual,
    "joined": joined,
    "larger": larger,
    "tokens": tokens,
    "output": an_output,
    "reduced": reduced,
    "relu": unary("Relu"),
    "leaky": unary("LeakyRelu", alpha=0.1),
    "prelu": lambda g: g.add("PRelu", g.last, g.random(CHANNELS, 1, 1)),
    "relu6": lambda g: g.add("Clip", g.last, g.constant(0), g.constant(6)),
    "clip": lambda g: g.add("Clip", g.last, g.constant(0)),
    "max_pool": unary("MaxPool", kernel_shape=[3, 3], pads=[1] * 4),
    "mean_pool": unary("AveragePool", kernel_shape=[3, 3], pads=[1] * 4),
    "tanh": unary("Tanh"),
    "softmax": unary("Softmax", axis=1),
    "upsampled": lambda g: g.add(
        "MaxPool", g.add("Resize", g.last, "", g.constant([1, 1, 2, 2])), kernel_shape=[2, 2], strides=[2, 2]
    ),
}


def random_graph(steps: Sequence[str], seed: int) -> ir.Model:
    """Return a graph of those steps, with random weights."""
    graph = Graph(np.random.default_rng(seed))
    for step in steps:
        graph.made(STEPS[step](graph))
    return graph.model()
