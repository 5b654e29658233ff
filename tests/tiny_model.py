"""A CNN so small that a job takes a second, which does classify: its data, and its ONNX files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CLASSES, SIDE, FEATURES = 5, 16, 16

Arrays = dict[str, NDArray[np.float32]]

DATA = '''
"""Gratings in noise; the class is the orientation. The other callables have something wrong with them."""

import time
from pathlib import Path

import numpy as np


def rows(n, seed, first=0, outlier_at=None, nan_at=None, label_offset=0):
    y, x = np.mgrid[:16, :16]
    for i in range(first, first + n):
        rng = np.random.default_rng([seed, i])
        angle = np.pi * (i % 5) / 5
        wave = np.sin(1.3 * (np.cos(angle) * x + np.sin(angle) * y) + rng.uniform(0, 2 * np.pi))
        image = (wave + rng.normal(0, 0.9, (3, 16, 16))).astype(np.float32)
        if i == outlier_at:
            image[0, 0, 0] = 1e5
        if i == nan_at:
            image[1, 2, 3] = np.nan
        yield {"image": image, "label": i % 5 + label_offset}


def rows_again(n, seed, times):
    for _ in range(times):
        yield from rows(n, seed)


def rows_that_hang(n, seed, marker):
    for i, row in enumerate(rows(n, seed)):
        if i == n // 2:
            Path(marker).touch()
            time.sleep(600)
        yield row


def rows_of_another_seed_on_every_pass(n, seed, passes=[]):
    passes.append(None)
    yield from rows(n, seed + len(passes))


def rows_that_exit(n, seed):
    yield from rows(n, seed)
    raise SystemExit(0)
'''


def _weights() -> Arrays:
    """Return the weights of everything before the classifier: random, and fixed."""
    rng = np.random.default_rng(0)
    weights = {
        "stem.weight": rng.normal(0, 0.35, (8, 3, 3, 3)),
        "block.weight": rng.normal(0, 0.2, (8, 8, 3, 3)),
        "last.weight": rng.normal(0, 0.2, (FEATURES, 8, 3, 3)),
    }
    for name in ("stem", "block"):
        weights |= {
            f"{name}_bn.scale": rng.uniform(0.8, 1.2, 8),
            f"{name}_bn.bias": rng.uniform(-0.2, 0.2, 8),
            f"{name}_bn.mean": rng.uniform(-0.1, 0.1, 8),
            f"{name}_bn.var": rng.uniform(0.7, 1.3, 8),
        }
    return {name: array.astype(np.float32) for name, array in weights.items()}


def _model(weights: Arrays) -> onnx.ModelProto:
    """Conv + BN + Relu, a residual block of Conv + BN and Add, Conv + Relu, pooling, Gemm."""
    statistics = ("scale", "bias", "mean", "var")
    pad = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "stem.weight"], ["c1"], name="stem", **pad),
        helper.make_node("BatchNormalization", ["c1", *(f"stem_bn.{s}" for s in statistics)], ["b1"], name="stem_bn"),
        helper.make_node("Relu", ["b1"], ["r1"], name="stem_relu"),
        helper.make_node("Conv", ["r1", "block.weight"], ["c2"], name="block", **pad),
        helper.make_node("BatchNormalization", ["c2", *(f"block_bn.{s}" for s in statistics)], ["b2"], name="block_bn"),
        helper.make_node("Add", ["b2", "r1"], ["sum"], name="residual"),
        helper.make_node("Relu", ["sum"], ["r2"], name="block_relu"),
        helper.make_node("Conv", ["r2", "last.weight"], ["c3"], name="last", **pad),
        helper.make_node("Relu", ["c3"], ["r3"], name="last_relu"),
        helper.make_node("GlobalAveragePool", ["r3"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["features"], name="flatten"),
        helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["logits"], name="head"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "tiny", [image], [logits], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _fitted(weights: Arrays, rows: list[dict[str, Any]]) -> Arrays:
    """Return the weights with a classifier that is a ridge regression on the features: closed form, no training."""
    blank = {"head.weight": np.zeros((FEATURES, CLASSES), np.float32), "head.bias": np.zeros(CLASSES, np.float32)}
    model = _model(weights | blank)
    model.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", FEATURES]))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    features = session.run(["features"], {"image": np.stack([row["image"] for row in rows])})[0]
    mean, std = features.mean(axis=0), features.std(axis=0)
    design = np.c_[(features - mean) / std, np.ones(len(features))]
    targets = np.eye(CLASSES)[[row["label"] for row in rows]]
    solution = np.linalg.solve(design.T @ design + 0.01 * np.eye(FEATURES + 1), design.T @ targets)
    weight = solution[:-1] / std[:, None]
    bias = solution[-1] - mean @ weight
    return weights | {"head.weight": (10 * weight).astype(np.float32), "head.bias": (10 * bias).astype(np.float32)}


@dataclass(frozen=True)
class Models:
    """Files of the tiny model, and what is known of it without the product.

    Attributes:
        good: quantizes well.
        planted: computes the same kind of thing, but in layer ``block`` the weights of an input channel that is
            always 0 are huge. Scales per output channel drown all its other weights: int8 ruins that one layer.
        parameters: elements of the weights of either, each BatchNorm folded into a bias per channel.
    """

    good: Path
    planted: Path
    parameters: int


def data_of_every_job() -> dict[str, Any]:
    """Return what the data file of every job defines."""
    names: dict[str, Any] = {}
    exec(DATA, names)
    return names


def write_models(folder: Path) -> Models:
    """Write both files."""
    training = list(data_of_every_job()["rows"](600, seed=99))
    good = _weights()
    planted = {name: array.copy() for name, array in good.items()}
    planted["stem_bn.bias"][0] = -1000
    planted["block.weight"][:, 0] = 3000
    for name, weights in {"good": good, "planted": planted}.items():
        onnx.save(_model(_fitted(weights, training)), folder / f"{name}.onnx")
    folded = sum(array.size for name, array in good.items() if name.endswith(".weight")) + 8 + 8
    parameters = folded + FEATURES * CLASSES + CLASSES
    return Models(folder / "good.onnx", folder / "planted.onnx", parameters)
