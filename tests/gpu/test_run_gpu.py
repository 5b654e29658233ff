"""Whole jobs whose verdict is about an engine that ran, on a GPU; elsewhere skipped, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import yaml
from onnx import numpy_helper
from rich.console import Console

from calibrate import pipeline
from calibrate.config import load
from calibrate.cost import TargetConfig
from calibrate.journal import Journal
from calibrate.measurement import why_no_engine
from validate.backends import local_gpu
from validate.backends.tensorrt.fingerprint import sha256
from validate.results import Decision, Results
from validate.verdict import Policy, gate

GPU = local_gpu()
CAPABILITY = GPU.compute_capability if GPU else "8.9"
WHY_NOT = why_no_engine(TargetConfig(compute_capability=CAPABILITY))
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

WIDTH, CLASSES = 512, 8
NODES = """ (float[N, 32] x) => (float[N, 8] y) {
    [first] a = MatMul(x, w0)
    b = Relu(a)
    [second] c = MatMul(b, w1)
    d = Relu(c)
    [head] y = MatMul(d, w2)
}"""
DATA = """
import numpy as np

def rows(n, seed):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((8, 32)).astype(np.float32)
    for i in range(n):
        label = int(rng.integers(8))
        yield {"x": centres[label] * 3 + rng.standard_normal(32).astype(np.float32), "label": label}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a perceptron of products of matrices, which sorts points to the nearest of 8 centres."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 19]> g {NODES}')
    rng, centres = np.random.default_rng(1), np.random.default_rng(0).standard_normal((CLASSES, 32))
    first = rng.standard_normal((32, WIDTH)) / 6
    second = rng.standard_normal((WIDTH, WIDTH)) / 23
    features = np.maximum(np.maximum(3 * centres @ first, 0) @ second, 0)
    head = np.linalg.pinv(features - features.mean(0))
    head += np.abs(head).max()  # the same for all classes, and integer sums that leave FP16
    for name, array in {"w0": first, "w1": second, "w2": head}.items():
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "data.py").write_text(DATA, encoding="utf-8")
    return tmp_path


def run(folder: Path, **quantization: Any) -> Results:
    config = {
        "model": {"onnx": "model.onnx"},
        "data": {
            "calibration": {"callable": "data.py:rows", "arguments": {"n": 64, "seed": 3}},
            "validation": {"callable": "data.py:rows", "arguments": {"n": 400, "seed": 4}},
            "batch_size": 16,
        },
        "task": {"type": "classification"},
        "policy": {"max_drop": 0.05},
        "quantization": {"strategies": ["minmax"], **quantization},
        "target": {"compute_capability": CAPABILITY},
        "latency": {"runs": 20, "batch_size": 16},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    output = folder / "out"
    output.mkdir()
    with Journal(Console(), progress=False) as journal:
        return pipeline.run(load(folder / "config.yaml"), output, "pytest", journal)


def test_what_is_judged_is_what_ships(folder: Path) -> None:
    results = run(folder)
    selected = results.selected_candidate
    assert selected is not None
    assert selected.engine is not None, selected.engine_reason
    assert results.verdict.decision is Decision.GO, results.verdict.reasons
    assert (results.verdict.basis, selected.accuracy.basis) == ("engine", "engine")
    assert selected.simulated is not None
    assert selected.engine.agreement == pytest.approx(1, abs=0.01)
    assert selected.engine.int8 is not None
    assert selected.engine.int8.share == 1
    engine = folder / "out" / "model.engine"
    assert selected.engine.file.sha256 == sha256(engine)
    assert gate(folder / "out", Policy(max_drop=0.05)).decision is Decision.GO
    engine.write_bytes(engine.read_bytes() + b"\0")
    assert gate(folder / "out", Policy(max_drop=0.05)).decision is Decision.NO_GO


def test_the_float_model_is_run_and_all_are_timed(folder: Path) -> None:
    results = run(folder)
    names = ["TensorRT FP32", "TensorRT TF32", "TensorRT FP16", "TensorRT BF16"]
    assert [baseline.name for baseline in results.baselines] == names
    for baseline in results.baselines:
        assert baseline.engine is not None, baseline.reason
        assert baseline.engine.departure is None
        assert baseline.latency is not None
    (candidate,) = results.candidates
    assert candidate.cost.basis == "measured"
    assert {s.against for s in candidate.speedups if s.basis == "measured" and s.ci_low is not None} == set(names)


def test_scales_that_the_engine_cannot_hold(folder: Path) -> None:
    """Its products turn the sum into FP16 before they scale it, and that is infinite here."""
    results = run(folder, fp32_scales="never")
    (candidate,) = results.candidates
    assert candidate.simulated is not None
    assert candidate.simulated.drop < 0.02
    assert candidate.engine is not None
    assert candidate.engine.departure is not None
    assert results.verdict.decision is Decision.NO_GO
    said = " ".join(results.verdict.reasons)
    assert any(node in said for node in ("first", "second", "head"))
