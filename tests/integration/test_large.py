"""A model beyond protobuf's 2 GB goes through observe, plan and apply, and is never held twice in memory."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

SIDE, LAYERS = 8192, 9
BYTES = LAYERS * SIDE * SIDE * 4

DATA = f"""
import numpy as np

def rows():
    rng = np.random.default_rng(0)
    for _ in range(2):
        yield {{"x": rng.standard_normal({SIDE}).astype(np.float32), "label": 0}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model of 2.4 GB, its data and a config."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    nodes, initializers = [], []
    with (folder / "model.onnx.data").open("wb") as file:
        for i in range(LAYERS):
            weight = helper.make_tensor(f"w{i}", TensorProto.FLOAT, [0], [])
            weight.dims[:] = [SIDE, SIDE]
            weight.data_location = TensorProto.EXTERNAL
            where = {"location": "model.onnx.data", "offset": file.tell(), "length": SIDE * SIDE * 4}
            weight.external_data.extend(onnx.StringStringEntryProto(key=k, value=str(v)) for k, v in where.items())
            rows = (rng.standard_normal((64, SIDE)) / np.sqrt(SIDE)).astype(np.float32)
            for shift in range(SIDE // 64):
                file.write(np.roll(rows, shift, axis=1).tobytes())
            initializers.append(weight)
            nodes.append(helper.make_node("MatMul", ["x" if i == 0 else f"h{i - 1}", f"w{i}"], [f"h{i}"], name=f"m{i}"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", SIDE])
    y = helper.make_tensor_value_info(f"h{LAYERS - 1}", TensorProto.FLOAT, ["N", SIDE])
    graph = helper.make_graph(nodes, "large", [x], [y], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "data.py").write_text(DATA)
    (folder / "config.yaml").write_text(
        "name: large\nmodel: {onnx: model.onnx}\n"
        "data: {calibration: {callable: data.py:rows}, validation: {callable: data.py:rows}, batch_size: 1}\n"
        "task: {type: classification}\npolicy: {max_drop: 0.01}\nquantization: {strategies: [minmax]}\n"
    )
    return folder


def _peak(folder: Path, *arguments: str) -> int:
    """Run a command; return the most anonymous memory that it held, in bytes. Mapped files are not copies."""
    process = subprocess.Popen(
        [sys.executable, "-m", "calibrate", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"},
    )
    most, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.02):
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            most = max([most, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))])

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate(timeout=500)
    ended.set()
    watcher.join()
    assert process.returncode == 0, output
    assert most > 0
    return most * 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to measure memory")
def test_a_model_over_2_gb(folder: Path) -> None:
    assert BYTES > 2**31
    peaks = {
        "observe": _peak(folder, "observe", "config.yaml"),
        "plan": _peak(folder, "plan", "config.yaml", "statistics.npz"),
        "apply": _peak(folder, "apply", "plans/minmax.json", "model.onnx"),
    }
    assert max(peaks.values()) < 1.5 * BYTES, peaks
    written = ir.load(folder / "model.int8.onnx")
    weights = [
        v.const_value for v in written.graph.initializers.values() if v.const_value and v.const_value.size > SIDE
    ]
    assert len(weights) == LAYERS
    assert {weight.dtype for weight in weights} == {ir.DataType.INT8}
