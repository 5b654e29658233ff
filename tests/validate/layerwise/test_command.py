"""``python -m validate compare`` as a user has it: files in, a verdict in the exit code out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from tests.command_line import run_in_process

if TYPE_CHECKING:
    from tests.conftest import Completed

Run = Callable[..., "Completed"]
GRAPH = """g (float[N, 16] x) => (float[N, 4] y) {
    [first] a = MatMul(x, w0) [relu] r = Relu(a) [second] b = MatMul(r, w1) [last] y = MatMul(b, w2)
}"""
QUANTIZED = """g (float[N, 16] x) => (float[N, 4] y) {
    [first] a = MatMul(x, w0) [relu] r = Relu(a)
    q = QuantizeLinear(r, scale, zero) d = DequantizeLinear(q, scale, zero)
    [second] b = MatMul(d, w1) [last] y = MatMul(b, w2)
}"""


def write(path: Path, graph: str, **initializers: NDArray[Any]) -> None:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 19]> {graph}')
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in initializers.items())
    onnx.save(model, path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a float model, good and bad candidates, a PyTorch module, and data."""
    folder, rng = tmp_path_factory.mktemp("compare"), np.random.default_rng(0)
    shapes = {"w0": (16, 16), "w1": (16, 16), "w2": (16, 4)}
    weights = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    zero = np.int8(0)
    write(folder / "float.onnx", GRAPH, **weights)
    write(folder / "good.onnx", QUANTIZED, **weights, scale=np.float32(0.03), zero=np.array(zero))
    write(folder / "bad.onnx", QUANTIZED, **weights, scale=np.float32(0.002), zero=np.array(zero))
    write(folder / "nan.onnx", GRAPH, **weights | {"w1": np.where(np.eye(16) > 0, np.nan, weights["w1"]).astype("f4")})
    renamed = GRAPH.replace(" a ", " a2 ").replace("(a)", "(a2)").replace(" r ", " r2 ").replace("(r,", "(r2,")
    renamed = renamed.replace(" b ", " b2 ").replace("(b,", "(b2,").replace(" y)", " y2)").replace(" y =", " y2 =")
    write(folder / "renamed.onnx", renamed, **weights)
    np.savez(folder / "data.npz", x=rng.standard_normal((24, 16)).astype(np.float32))
    (folder / "rows.py").write_text(
        "import numpy as np\n\n\ndef rows(seed):\n    for x in np.random.default_rng(seed).normal(size=(24, 16)):\n"
        "        yield {'x': x.astype('f4'), 'label': 0}\n"
    )
    sources = {
        name: {"callable": "rows.py:rows", "arguments": {"seed": i}}
        for i, name in enumerate(("calibration", "validation"))
    }
    (folder / "config.yaml").write_text(json.dumps({"name": "a job", "data": sources}))
    return folder


@pytest.fixture
def run(folder: Path, clean_environment: dict[str, str]) -> Run:
    def run(*arguments: str, command: str = "compare") -> Completed:
        return run_in_process("validate", [command, *arguments], folder, clean_environment)

    return run


def test_a_good_candidate_passes_and_leaves_all_files(run: Run, folder: Path) -> None:
    done = run("float.onnx", "good.onnx", "--data", "data.npz", "--runtime", "integer", "--output", "good")
    assert done.returncode == 0, done.stderr
    assert "PASS" in done.stdout and "none was left out" in done.stdout
    comparison = json.loads((folder / "good/comparison.json").read_text())
    rows = pq.read_table(folder / "good/layers.parquet").to_pylist()
    assert [row["node"] for row in rows] == ["first", "relu", "second", "last"]
    for row, layer in zip(rows, comparison["layers"], strict=True):
        for view in ("accumulated", "isolated"):
            assert row[f"{view}_sqnr_db"] == float(layer[view]["sqnr_db"])
        assert layer["runtime"] is not None
    assert comparison["layers"][2]["quantized_inputs"][0]["tensor"] == "r"
    assert "second" in (folder / "good/comparison.html").read_text()
    assert json.loads((folder / "good/judgement.json").read_text())["passed"]


def test_the_layer_that_breaks_it_is_named(run: Run, folder: Path) -> None:
    done = run("float.onnx", "bad.onnx", "--data", "config.yaml", "--output", "bad")
    assert done.returncode == 1 and "FAIL" in done.stdout
    judgement = json.loads((folder / "bad/judgement.json").read_text())
    assert {judgement[key] for key in ("first", "worst_isolated", "worst_accumulated")} == {"b"}
    assert "most error is made by second (MatMul)" in done.stdout


def test_a_nan_fails_and_is_said(run: Run, folder: Path) -> None:
    done = run("float.onnx", "nan.onnx", "--data", "data.npz", "--output", "nan")
    assert done.returncode == 1
    judgement = json.loads((folder / "nan/judgement.json").read_text())
    assert judgement["first"] == "b" and "NaN or infinity" in judgement["layers"][0]["failures"][0]


def test_other_thresholds_judge_again_without_the_models(run: Run, folder: Path, tmp_path: Path) -> None:
    assert run("float.onnx", "good.onnx", "--data", "data.npz", "--output", str(tmp_path / "out")).returncode == 0
    strict = tmp_path / "strict.yaml"
    strict.write_text("isolated: {min_sqnr_db: 90}\n")
    comparison = (tmp_path / "out/comparison.json").read_text()
    (tmp_path / "out/comparison.json").write_text(comparison.replace("float.onnx", "gone.onnx"))
    again = run("--rejudge", str(tmp_path / "out"), "--thresholds", str(strict))
    assert again.returncode == 1 and "isolated SQNR" in again.stdout
    strict.write_text("isolated: {min_sqnr: 90}\n")
    typo = run("--rejudge", str(tmp_path / "out"), "--thresholds", str(strict))
    assert (
        typo.returncode == 2
        and "strict.yaml, line 1: isolated.min_sqnr is not a known key; did you mean" in typo.stderr
    )


def test_names_that_differ_are_not_guessed_but_can_be_mapped(run: Run, folder: Path) -> None:
    nothing = run("float.onnx", "renamed.onnx", "--data", "data.npz", "--output", "unmapped")
    assert nothing.returncode == 1 and "no tensor of the reference could be paired" in nothing.stdout
    assert not (folder / "unmapped").exists()
    (folder / "map.yaml").write_text("a: a2\nb: b2\n")
    partly = run("float.onnx", "renamed.onnx", "--data", "data.npz", "--map", "map.yaml", "--output", "partly")
    assert partly.returncode == 1 and "output y of the reference was compared with nothing" in partly.stdout
    (folder / "map.yaml").write_text("a: a2\nb: b2\ny: y2\n")
    mapped = run("float.onnx", "renamed.onnx", "--data", "data.npz", "--map", "map.yaml", "--output", "mapped")
    assert mapped.returncode == 0, mapped.stderr
    comparison = json.loads((folder / "mapped/comparison.json").read_text())
    assert [(x["tensor"], x["candidate_tensor"]) for x in comparison["layers"]] == [
        ("a", "a2"),
        ("b", "b2"),
        ("y", "y2"),
    ]
    assert {(x["side"], x["tensor"]) for x in comparison["unpaired"]} == {
        ("reference", "r"),
        ("candidate", "r2"),
    }
    assert all(math.isinf(float(x["isolated"]["sqnr_db"])) for x in comparison["layers"])


def test_against_a_pytorch_module(run: Run, folder: Path) -> None:
    torch = pytest.importorskip("torch", reason="runs a PyTorch module")
    (folder / "net.py").write_text(
        "import torch\n\n\ndef make():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))\n"
    )
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval()
    example, shapes = (torch.zeros(2, 16),), ({0: torch.export.Dim("n", min=1)},)
    names = ["x"]
    torch.onnx.export(net, example, dynamo=True, dynamic_shapes=shapes, input_names=names, verbose=False).save(
        folder / "net.onnx"
    )
    done = run("net.onnx", "net.py:make", "--data", "data.npz", "--output", "torch")
    assert done.returncode == 0, done.stdout + done.stderr
    comparison = json.loads((folder / "torch/comparison.json").read_text())
    assert len(comparison["layers"]) == 3
    assert all(float(layer["accumulated"]["sqnr_db"]) > 90 for layer in comparison["layers"])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["float.onnx", "good.onnx"], 2, "compare needs two models and --data"),
        (["float.onnx", "absent.onnx", "--data", "data.npz"], 2, "there is no file absent.onnx"),
        (["float.onnx", "good", "--data", "data.npz"], 2, "good is no model that can be opened"),
        (["rows.py:rows", "rows.py:rows", "--data", "data.npz"], 2, "one of the two models must be an ONNX file"),
        (["float.onnx", "good.onnx", "--data", "absent.npz"], 2, "absent.npz cannot be read"),
        (["float.onnx", "good.onnx", "--data", "absent.yaml"], 2, "absent.yaml cannot be read"),
        (["float.onnx", "rows.py:rows", "--data", "data.npz"], 4, "rows.py:rows cannot be loaded"),
        (["float.onnx", "good.onnx", "--data", "data.npz", "--runtime", "gpu"], 2, "gpu is no model"),
        (["float.onnx", "good.onnx", "--data", "data.npz", "--device", "cuda"], 4, "has no CUDA"),
        (["--rejudge", "absent"], 4, "comparison absent cannot be read"),
        (["--rejudge", "data.npz"], 4, "data.npz is not a comparison"),
    ],
)
def test_a_mistake_is_one_sentence(run: Run, arguments: list[str], code: int, said: str) -> None:
    done = run(*arguments, "--output", "mistake")
    assert done.returncode == code, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_engine_is_built_and_refused_where_there_is_no_gpu(run: Run, folder: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="builds an engine; pip install tensorrt-rtx")
    built = run("float.onnx", "--output", "m.engine", "--shapes", "x=1x16:4x16:8x16", command="build")
    assert built.returncode == 0, built.stderr
    assert json.loads((folder / "m.engine.json").read_text())["flavour"] == "tensorrt_rtx"
    unshaped = run("float.onnx", "--output", "n.engine", command="build")
    assert unshaped.returncode == 4 and "gives no shapes for input x" in unshaped.stderr
    try:
        import torch

        if torch.cuda.is_available():
            pytest.skip("the refusal below is of a machine without a GPU")
    except ModuleNotFoundError:
        pass
    for arguments, command in ((["float.onnx", "m.engine", "--data", "data.npz"], "compare"), (["m.engine"], "adopt")):
        refused = run(*arguments, command=command)
        assert refused.returncode == 4 and "no GPU is found here" in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1
