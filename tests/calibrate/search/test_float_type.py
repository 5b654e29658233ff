"""FP16 is judged before INT8: nodes that it cannot compute go to FP32, and INT8 stays."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper
from rich.console import Console

from calibrate import pipeline
from calibrate.config import Config
from calibrate.journal import Journal
from calibrate.plan import QuantizationPlan
from calibrate.search import sufficient_sets
from tests.tiny_model import Models
from validate.results import Results

FEATURES = 32
GRAPH = """<ir_version: 9, opset_import: ["": 19]> g (float[N, 32] x) => (float[N, 5] logits) {
    [encode] e = MatMul(x, we)
    [squash] t = Tanh(e)
    [phase] p = Mul(x, omega)
    [sin] s = Sin(p)
    [join] j = Concat <axis = 1> (s, t)
    [first] h = MatMul(j, w1)
    [act] r = Relu(h)
    [second] k = MatMul(r, w2)
    [act2] q = Relu(k)
    [head] l = MatMul(q, w3)
    [centre] logits = Add(l, b3)
}"""
LAYERS = {"encode", "first", "second", "head"}
DATA = """
import numpy as np
import onnxruntime

def rows(n, seed, model):
    session, random = onnxruntime.InferenceSession(model), np.random.default_rng(seed)
    given = 0
    while given < n:
        x = random.uniform(0, 1, (256, 32)).astype(np.float32)
        logits = session.run(None, {"x": x})[0]
        best = np.sort(logits, axis=1)
        for one, answer, sure in zip(x, logits.argmax(axis=1), best[:, -1] - best[:, -2] > 0.3):
            if sure and given < n:
                given += 1
                yield {"x": one, "label": int(answer)}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sines of phases up to 1,600, where FP16's numbers are 1 apart: with them in FP16, nothing is left."""
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {
        "we": rng.normal(0, 0.3, (FEATURES, 32)),
        "omega": rng.uniform(800, 1600, FEATURES),
        "w1": rng.normal(0, 0.3, (FEATURES + 32, 64)),
        "w2": rng.normal(0, 0.2, (64, 64)),
        "w3": rng.normal(0, 0.3, (64, 5)),
        "b3": np.zeros(5),
    }
    path = tmp_path_factory.mktemp("sin") / "model.onnx"
    for _ in range(2):  # the second time with a bias that makes all classes about as frequent
        made = onnx.parser.parse_model(GRAPH)
        made.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items())
        onnx.save(made, path)
        x = np.random.default_rng(9).uniform(0, 1, (2000, FEATURES)).astype(np.float32)
        weights["b3"] = -onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0].mean(axis=0)
    path.with_name("data.py").write_text(DATA, encoding="utf-8")
    return path


def run(model: Path, output: Path, label: str | None = "label", float_precision: str = "fp16") -> Results:
    def rows(n: int, seed: int) -> dict[str, Any]:
        arguments = {"n": n, "seed": seed, "model": str(model)}
        return {"callable": f"{model.parent}/data.py:rows", "arguments": arguments}

    config = Config.model_validate(
        {
            "model": {"onnx": str(model)},
            "data": {"calibration": rows(128, 1), "validation": rows(600, 2), "label": label, "batch_size": 32},
            "task": {"type": "classification"},
            "policy": {"max_drop": 0.03},
            "quantization": {"strategies": ["minmax"], "float_precision": float_precision},
            "latency": {"runs": 0},
        },
        context={"base": model.parent},
    )
    output.mkdir(exist_ok=True)
    with Journal(Console(quiet=True), progress=False) as journal:
        return pipeline.run(config, output, "a test", journal)


@pytest.fixture(scope="module")
def output(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fp16")
    run(model, folder)
    return folder


@pytest.fixture(scope="module")
def results(output: Path) -> Results:
    return Results.read(output)


def passes(results: Results) -> int:
    return sum(stage.samples for stage in results.forward_passes if stage.stage == "fp16")


def test_what_fp16_loses_is_found_and_int8_stays(results: Results) -> None:
    found = results.fp16
    assert found is not None
    assert (found.precision, found.metric, found.samples) == ("fp16", "top1", 128)
    assert found.drop > 0.1 > 0.015 >= found.drop_after
    assert set(found.fp32_nodes) == {"phase", "sin"}
    assert not found.misses
    assert found.message in results.warnings
    assert "2 more nodes in FP32 (phase, sin)" in found.message
    selected = results.selected_candidate
    assert selected is not None
    assert selected.nodes.int8 == len(LAYERS)
    assert selected.accuracy.drop < 0.02
    assert {rule.outcome for rule in results.verdict.rules if rule.name == "accuracy"} == {"pass"}
    # Few samples while it searches: fewer than as many runs over all of them.
    assert 128 < passes(results) < found.evaluations * 128


def test_the_file_computes_these_nodes_in_float32(output: Path) -> None:
    plan = QuantizationPlan.read(output / "plan.json")
    assert plan.wide_nodes == {"phase", "sin"}
    assert plan.int8_layers == LAYERS
    graph = onnx.shape_inference.infer_shapes(onnx.load(output / "model.int8.onnx"), strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}
    kinds = {node.name: types[node.output[0]] for node in graph.node if node.output[0] in types}
    assert (kinds["phase"], kinds["sin"], kinds["act"]) == (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT16)


def test_a_run_that_goes_on_takes_its_evaluations_from_the_cache(model: Path, output: Path, results: Results) -> None:
    again = run(model, output)
    assert again.fp16 == results.fp16
    assert passes(again) == 0


def test_without_labels_it_is_agreement_with_the_float_model(model: Path, tmp_path: Path) -> None:
    found = run(model, tmp_path, label=None).fp16
    assert found is not None
    assert found.metric == "agreement_top1"
    assert set(found.fp32_nodes) == {"phase", "sin"}


def test_bf16_is_measured_and_the_way_out_is_said(model: Path, tmp_path: Path) -> None:
    results = run(model, tmp_path, float_precision="bf16")
    assert results.fp16 is not None
    assert results.fp16.misses
    assert results.fp16.fp32_nodes == []
    assert results.fp16.message in results.warnings
    assert "take quantization.float_precision fp16 or fp32" in results.fp16.message


def test_fp32_is_not_measured(model: Path, tmp_path: Path) -> None:
    assert run(model, tmp_path, float_precision="fp32").fp16 is None


def test_a_model_that_fp16_holds_is_run_once(go: Any, models: Models) -> None:
    assert go.results["fp16"]["fp32_nodes"] == []
    assert go.results["fp16"]["evaluations"] == 1
    assert abs(go.results["fp16"]["drop"]) <= 1 / go.results["fp16"]["samples"] + 1e-9


@pytest.mark.parametrize("seed", range(40))
def test_sets_end_with_what_is_needed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    nodes = [f"n{i}" for i in range(int(rng.integers(2, 200)))]
    needed = frozenset(rng.choice(nodes, min(len(nodes), int(rng.integers(1, 5))), replace=False).tolist())
    tried: list[frozenset[str]] = []

    def meets(kept: frozenset[str]) -> bool:
        tried.append(kept)
        return kept >= needed

    sets = sufficient_sets(nodes, meets, most=1000)
    assert sets[0] == frozenset(nodes)
    assert sets[-1] == needed
    assert all(later < earlier for earlier, later in pairwise(sets))
    assert len(tried) <= 3 * len(needed) * (np.log2(len(nodes)) + 1)

    tried.clear()
    short = sufficient_sets(nodes, meets, most=5)
    assert len(tried) <= 5
    assert short[-1] >= needed


def test_where_nothing_can_be_left_out_all_stay() -> None:
    sets: list[frozenset[str]] = sufficient_sets(["a", "b", "c"], lambda kept: len(kept) == 3, most=100)
    assert sets == [frozenset({"a", "b", "c"})]
