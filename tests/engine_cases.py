"""The small models of `benchmarks/record_engines.py`, and what they gave on an H200.

The models are the same wherever they are made: weights and samples are by seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import numpy_helper

from calibrate import quantize
from calibrate.graph import apply
from validate.backends.tensorrt import parse_layers
from validate.data import Batch

__all__ = ["CASES", "Case", "Models", "Recording", "models_of"]

DATA = Path(__file__).parent / "data" / "engines"
SAMPLES, BATCH = 16, 8
Arrays = dict[str, NDArray[np.float32]]

ENCODER = """ (float[N, 4, 32] x) => (float[N, 10] logits) {
    [q] q = MatMul(x, wq)
    [k] k = MatMul(x, wk)
    [v] v = MatMul(x, wv)
    [q_heads] qh = Reshape(q, heads)
    [k_heads] kh = Reshape(k, heads)
    [v_heads] vh = Reshape(v, heads)
    [q_t] qt = Transpose<perm = [0, 2, 1, 3]>(qh)
    [k_t] kt = Transpose<perm = [0, 2, 3, 1]>(kh)
    [v_t] vt = Transpose<perm = [0, 2, 1, 3]>(vh)
    [scores] scores = MatMul(qt, kt)
    [scale] scaled = Mul(scores, quarter)
    [softmax] weights = Softmax<axis = -1>(scaled)
    [mix] mixed = MatMul(weights, vt)
    [mix_t] back = Transpose<perm = [0, 2, 1, 3]>(mixed)
    [mix_flat] flat = Reshape(back, joined)
    [o] o = MatMul(flat, wo)
    [add1] r1 = Add(o, x)
    [norm1] n1 = LayerNormalization<axis = -1>(r1, gain, offset)
    [up] up = MatMul(n1, w1)
    [up_bias] biased = Add(up, b1)
    [relu] h = Relu(biased)
    [down] down = MatMul(h, w2)
    [add2] r2 = Add(down, n1)
    [norm2] n2 = LayerNormalization<axis = -1>(r2, gain, offset)
    [pool] pooled = ReduceMean<axes = [1], keepdims = 0>(n2)
    [head] logits = MatMul(pooled, w3)
}"""
CNN = """ (float[N, 3, 12, 12] x) => (float[N, 6] logits, int64[N] label) {
    [conv1] a = Conv<pads = [1, 1, 1, 1]>(x, w0)
    [relu1] b = Relu(a)
    [conv2] c = Conv<pads = [1, 1, 1, 1]>(b, w1)
    [add] d = Add(c, b)
    [relu2] e = Relu(d)
    [pool] p = GlobalAveragePool(e)
    [flat] f = Flatten(p)
    [fc] logits = Gemm(f, w2, b2)
    [label] label = ArgMax<axis = 1, keepdims = 0>(logits)
}"""
LOG_SOFTMAX = """ (float[N, 64] x) => (float[N, 1000] y) {
    [dense] z = MatMul(x, w)
    [head] y = LogSoftmax<axis = -1>(z)
}"""


@dataclass(frozen=True)
class Case:
    """An engine to build.

    Attributes:
        model: of `MODELS`.
        plan: ``fp32`` and ``fp16`` are the float model; ``int8`` its quantizable layers in INT8 and the rest in FP16,
            ``int8-fp32-scales`` the same with FP32 scales and a Cast behind each, ``int8-fp32`` with the rest in FP32.
        tf32: whether the engine may use TF32.
    """

    model: str
    plan: Literal["fp32", "fp16", "int8", "int8-fp32-scales", "int8-fp32"]
    tf32: bool = True


CASES = {
    "encoder-int8": Case("encoder", "int8"),
    "encoder-int8-fp32-scales": Case("encoder", "int8-fp32-scales"),
    "encoder-int8-fp32": Case("encoder", "int8-fp32"),
    "encoder-fp16": Case("encoder", "fp16"),
    "encoder-fp32": Case("encoder", "fp32", tf32=False),
    "encoder-tf32": Case("encoder", "fp32"),
    "cnn-fp16": Case("cnn", "fp16"),
    "cnn-tf32": Case("cnn", "fp32"),
    "cnn-int8": Case("cnn", "int8"),
    "logsoftmax-fp16": Case("logsoftmax", "fp16"),
    "logsoftmax-tf32": Case("logsoftmax", "fp32"),
}


@dataclass(frozen=True)
class Models:
    """The float model, what is deployed, and what computes the same in float32; `planned` is in INT8."""

    reference: ir.Model
    simulated: ir.Model
    deployed: ir.Model
    planned: frozenset[str]
    batches: list[Batch]


def models_of(case: Case) -> Models:
    """Make the models of a case."""
    model, samples = MODELS[case.model]()
    scales: Literal["always", "never"] = "always" if case.plan == "int8-fp32-scales" else "never"
    quantized = quantize(model, samples[:64], "minmax", fp32_scales=scales, progress=False)
    plan = quantized.plan
    if case.plan in {"fp16", "fp32"}:
        plan = plan.in_float(case.plan, case.plan)
    elif case.plan == "int8-fp32":
        plan = plan.model_copy(update={"float_precision": "fp32"})
    plan = plan.model_copy(update={"wide_nodes": frozenset()})
    prepared, placement = quantized.model.prepared, quantized.model.placement
    return Models(
        prepared,
        apply(plan, prepared, placement, simulate=True),
        apply(plan, prepared, placement),
        plan.int8_layers,
        list(_batches(samples[:SAMPLES])),
    )


def _batches(samples: NDArray[np.float32]) -> Iterator[Batch]:
    for first in range(0, len(samples), BATCH):
        rows = samples[first : first + BATCH]
        yield Batch({"x": rows}, [None] * len(rows), [row.tobytes() for row in rows], first)


def _encoder() -> tuple[onnx.ModelProto, NDArray[np.float32]]:
    """One block, whose Q, K and V TensorRT merges. Uniform values and 256 products: FP16 does not hold their sum."""
    rng = np.random.default_rng(5)

    def uniform(*shape: int, size: float) -> NDArray[np.float32]:
        return rng.uniform(-size, size, shape).astype(np.float32)

    weights: dict[str, NDArray[Any]] = {name: uniform(32, 32, size=0.4) for name in ("wq", "wk", "wv", "wo")}
    weights |= {"w1": uniform(32, 256, size=0.4), "b1": uniform(256, size=1), "w2": uniform(256, 32, size=0.2)}
    weights |= {"w3": uniform(32, 10, size=1), "gain": uniform(32, size=1) + 1.5, "offset": uniform(32, size=0.5)}
    weights |= {"heads": np.array([0, 4, 2, 16]), "joined": np.array([0, 4, 32]), "quarter": np.float32(0.25)}
    return _model(ENCODER, weights), uniform(64, 4, 32, size=1.5)


def _cnn() -> tuple[onnx.ModelProto, NDArray[np.float32]]:
    rng = np.random.default_rng(6)
    shapes = {"w0": (16, 3, 3, 3), "w1": (16, 16, 3, 3), "w2": (16, 6), "b2": (6,)}
    weights: Arrays = {name: (rng.standard_normal(s) / 4).astype(np.float32) for name, s in shapes.items()}
    return _model(CNN, weights), rng.standard_normal((64, 3, 12, 12)).astype(np.float32)


def _log_softmax() -> tuple[onnx.ModelProto, NDArray[np.float32]]:
    """Logits to +-20."""
    rng = np.random.default_rng(7)
    weights = {"w": (rng.standard_normal((64, 1000)) * 0.75).astype(np.float32)}
    return _model(LOG_SOFTMAX, weights), rng.standard_normal((64, 64)).astype(np.float32)


MODELS: dict[str, Callable[[], tuple[onnx.ModelProto, NDArray[np.float32]]]] = {
    "encoder": _encoder,
    "cnn": _cnn,
    "logsoftmax": _log_softmax,
}


def _model(nodes: str, weights: dict[str, NDArray[Any]]) -> onnx.ModelProto:
    made = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> net {nodes}')
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items())
    return made


class Recording:
    """A recorded engine as a `Backend`: gives what the GPU gave, for the samples of its case.

    Tensors of which no more is recorded than that they are finite come back as zeros.
    """

    def __init__(self, name: str, kind: Literal["plain", "unfused"]) -> None:
        self.facts = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))[kind]
        with np.load(DATA / f"{name}.npz") as stored:
            self.values = {key.removeprefix(f"{kind}/"): stored[key] for key in stored if key.startswith(kind)}
        self.layers = parse_layers(json.dumps(self.facts["inspection"]))
        self.tensors: dict[str, str] = self.facts["tensors"]
        self.input_names, self.output_names = ("x",), tuple(self.facts["outputs"])
        self._samples = MODELS[CASES[name].model]()[1]

    def load(self, outputs: Sequence[str] | None = None, forced: Sequence[str] = ()) -> _Player:
        """See `Backend`."""
        return _Player(self, tuple(outputs or self.output_names))

    def give(self, tensor: str, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Return the part of a recorded tensor that is of these samples."""
        samples = len(inputs["x"])
        first = next(i for i, sample in enumerate(self._samples) if np.array_equal(sample, inputs["x"][0]))
        values = self.values.get(tensor)
        if values is None:
            assert tensor in self.facts["finite"]
            return np.zeros(samples, np.float32)
        each = len(values) // SAMPLES
        return values[first * each : (first + samples) * each]


@dataclass(frozen=True)
class _Player:
    recording: Recording
    output_names: tuple[str, ...]
    input_names: tuple[str, ...] = ("x",)
    runtime: str = "recorded"
    device: str = "NVIDIA H200"

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {name: self.recording.give(name, inputs) for name in self.output_names}
