"""``python -m calibrate`` as other programs see it: exit codes, the output folder, and what is said when it fails."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest

from calibrate.plan.quantization_plan import QuantizationPlan
from tests.command_line import run_in_process
from tests.conftest import SCHEMA, finished
from validate.results import Results
from validate.results.illustrations import Illustrations
from validate.results.samples import SampleTable

if TYPE_CHECKING:
    from tests.conftest import Job, Run
    from tests.tiny_model import Models

ROOT = Path(__file__).parents[3]
FILES = {
    "evaluations",
    "illustrations.json",
    "model.int8.onnx",
    "plan.json",
    "plans",
    "report.html",
    "results.json",
    "run.log",
    "samples.parquet",
    "statistics.npz",
}

# What the issue promises to other programs, name by name.
CONTRACT = {
    "": {
        "schema_version",
        "model",
        "reference",
        "candidates",
        "selected",
        "verdict",
        "environment",
        "timings",
        "forward_passes",
        "pareto",
        "search",
    },
    "model": {"path", "sha256", "nodes", "parameters"},
    "reference": {"accuracy", "latency"},
    "reference.accuracy": {"metric", "value", "n"},
    "candidates": {
        "name",
        "strategy",
        "plan",
        "accuracy",
        "latency",
        "nodes",
        "size_bytes",
        "tensorrt_build",
    },
    "candidates.accuracy": {"metric", "value", "drop", "ci_low", "ci_high", "n"},
    "candidates.nodes": {"int8", "fp16", "bf16", "fp32"},
    "candidates.tensorrt_build": {"ok", "backend", "version", "message"},
    "verdict": {"decision", "reasons"},
    "forward_passes": {"stage", "passes", "samples"},
}


def accuracy(model: Path, rows: list[dict[str, Any]]) -> float:
    """Top-1 of an ONNX file in float arithmetic, without any of the product's code."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    logits = session.run(None, {"image": np.stack([row["image"] for row in rows])})[0]
    return float(np.mean(logits.argmax(axis=1) == [row["label"] for row in rows]))


# GO


def test_go_exits_0_and_writes_every_file_of_the_contract(go: Run) -> None:
    assert go.code == 0
    assert go.results["verdict"]["decision"] == "GO"
    assert {path.name for path in go.job.output.iterdir()} == FILES
    assert {path.name for path in (go.job.output / "plans").iterdir()} == {"minmax.json", "percentile-99.9.json"}


@pytest.mark.parametrize("section", CONTRACT)
def test_results_have_the_keys_of_the_contract(go: Run, section: str) -> None:
    found: Any = go.results
    for key in filter(None, section.split(".")):
        found = found[0][key] if isinstance(found, list) else found[key]
    for record in found if isinstance(found, list) else [found]:
        assert CONTRACT[section] <= record.keys()


def test_the_schema_file_is_the_schema_of_the_results() -> None:
    assert Results.model_json_schema(mode="serialization") == SCHEMA


def test_results_can_be_read_back_without_loss(go: Run) -> None:
    text = (go.job.output / "results.json").read_text(encoding="utf-8")
    assert json.loads(Results.model_validate_json(text).model_dump_json()) == json.loads(text)


def test_the_report_is_made_again_from_the_files_alone(go: Run, tmp_path: Path) -> None:
    again = tmp_path / "again.html"
    command = ["html", str(go.job.output), "--output", str(again)]
    assert run_in_process("reports", command, tmp_path, go.job.environment).returncode == 0
    assert again.read_bytes() == (go.job.output / "report.html").read_bytes()


def test_what_illustrates_the_report_is_of_this_run(go: Run) -> None:
    shown = Illustrations.read(go.job.output / "illustrations.json")
    assert shown.plan_hash == go.selected["plan_hash"]
    assert {tensor.tensor for tensor in shown.histograms} == {"image", "r1", "r2", "features"}
    for tensor in shown.histograms:
        assert [threshold.candidate for threshold in tensor.thresholds] == ["percentile-99.9", "minmax"]
        assert tensor.thresholds[1].value == pytest.approx(tensor.amax)
    assert [(curve.strategy, [x.samples for x in curve.points]) for curve in shown.convergence] == [
        ("minmax", [8, 16]),
        ("percentile-99.9", [8, 16]),  # of 30
    ]
    samples = SampleTable.read(go.job.output / "samples.parquet")
    lost = samples.reference - samples.candidates[go.selected["name"]] > 0
    assert {x.index for x in shown.worst_samples} <= set(np.flatnonzero(lost))
    assert len(shown.worst_samples) == min(12, lost.sum())
    assert all(x.picture and x.label == samples.labels[x.index] for x in shown.worst_samples)


def test_layers_say_their_scale_and_what_it_clips(go: Run, data_module: dict[str, Any]) -> None:
    scales = QuantizationPlan.read(go.job.output / "plans" / "percentile-99.9.json").scales
    candidate = next(c for c in go.results["candidates"] if c["name"] == "percentile-99.9")
    stem = next(layer for layer in candidate["layers"] if layer["node"] == "stem")
    inputs = ("image", "r1", "r2", "features")
    assert [layer["scale"] for layer in candidate["layers"]] == [np.float32(scales[name]) for name in inputs]
    pixels = np.abs(np.stack([row["image"] for row in data_module["rows"](30, seed=1)]))
    assert stem["clipped_share"] == pytest.approx((pixels > 127.5 * scales["image"]).mean(), abs=1e-4)
    assert stem["clipped_share"] > 0
    assert {layer["latency_ms"] for layer in candidate["layers"]} == {None}  # no engine was timed here


def test_the_model_is_described_as_it_is(go: Run, models: Models) -> None:
    found = go.results["model"]
    assert Path(found["path"]) == models.good
    assert found["sha256"] == hashlib.sha256(models.good.read_bytes()).hexdigest()
    assert found["parameters"] == models.parameters
    # Of the 12 nodes, the two BatchNormalizations are folded into their convolutions.
    assert found["nodes"] == 10


def test_accuracy_is_what_the_files_give_on_the_validation_set(
    go: Run, models: Models, data_module: dict[str, Any]
) -> None:
    rows = list(data_module["rows"](200, seed=2))
    reference, found = go.results["reference"]["accuracy"], go.selected["accuracy"]
    assert reference["n"] == found["n"] == 200
    assert reference["value"] == pytest.approx(accuracy(models.good, rows))
    one_sample = 1.01 / 200  # that another batch size may round to another side
    assert found["value"] == pytest.approx(accuracy(go.job.output / "model.int8.onnx", rows), abs=one_sample)
    assert found["drop"] == pytest.approx(reference["value"] - found["value"])
    assert 0.9 < reference["value"] < 1  # the model can classify, and can be wrong
    assert found["ci_low"] <= found["drop"] <= found["ci_high"] < go.job.config["policy"]["max_drop"]


def test_the_selected_files_belong_together(go: Run) -> None:
    output, selected = go.job.output, go.selected
    assert (output / "plan.json").read_bytes() == (output / selected["plan"]).read_bytes()
    assert (output / "model.int8.onnx").stat().st_size == selected["size_bytes"]
    assert json.loads((output / "plan.json").read_text())["origin"]["model_sha256"] == go.results["model"]["sha256"]
    assert {c["plan"] for c in go.results["candidates"]} == {"plans/minmax.json", "plans/percentile-99.9.json"}


def test_the_int8_model_holds_int8_weights_for_every_layer(go: Run) -> None:
    model = onnx.load(go.job.output / "model.int8.onnx")
    onnx.checker.check_model(model, full_check=True)
    shapes = {tuple(i.dims) for i in model.graph.initializer if i.data_type == onnx.TensorProto.INT8 and i.dims}
    weights = {(8, 3, 3, 3), (8, 8, 3, 3), (16, 8, 3, 3), (16, 5)}
    assert weights <= shapes
    # TensorRT-RTX needs float32 scales, so that the residual Add, which fuses into a convolution, is fp32 as well.
    assert go.selected["nodes"] == {"int8": 4, "fp16": 5, "bf16": 0, "fp32": 1}


def test_tensorrt_builds_every_candidate(go: Run) -> None:
    for candidate in go.results["candidates"]:
        found = candidate["tensorrt_build"]
        assert found["ok"] is True
        assert found["backend"] in {"tensorrt", "tensorrt_rtx"}


def test_passes_over_the_data_are_counted(go: Run) -> None:
    passes = {found["stage"]: (found["passes"], found["samples"]) for found in go.results["forward_passes"]}
    assert passes["reference"] == (1, 200)
    assert passes["observe"] == (1, 30)
    assert passes["evaluate"] == (2, 400)  # two candidates
    assert passes["select"] == (2, 60)
    assert "rank" not in passes  # nothing had to be put back


def test_what_a_run_says_of_its_surroundings(go: Run) -> None:
    environment, timings = go.results["environment"], go.results["timings"]
    assert environment["python"] == sys.version.split()[0]
    assert environment["onnxruntime"] == onnxruntime.__version__
    assert all(seconds >= 0 for seconds in timings.values())
    assert {"load", "reference", "observe", "evaluate"} <= timings.keys()


def test_overrides_are_part_of_the_config_that_is_kept(go: Run) -> None:
    assert go.results["config"]["quantization"]["strategies"] == ["minmax", {"percentile": 99.9}]


# NO-GO, INCONCLUSIVE, and GO by fallback


def test_no_go_exits_1(no_go: Run) -> None:
    assert no_go.code == 1
    verdict = no_go.results["verdict"]
    assert verdict["decision"] == "NO_GO"
    assert verdict["reasons"][0] == "by simulation: no engine was run"
    assert "top1" in verdict["reasons"][1]
    assert no_go.selected["accuracy"]["value"] == pytest.approx(0.2, abs=0.1)  # five classes: it guesses
    assert {path.name for path in no_go.job.output.iterdir()} == FILES


def test_without_trials_no_layer_is_ranked(no_go: Run) -> None:
    assert "rank" not in {found["stage"] for found in no_go.results["forward_passes"]}


def test_an_unreachable_tracking_server_costs_a_warning_and_no_more(no_go: Run) -> None:
    assert no_go.code == 1
    assert "http://127.0.0.1:9 did not take the results" in no_go.stdout
    assert "Traceback" not in no_go.stdout + no_go.stderr


def test_one_sample_is_inconclusive_and_exits_3(inconclusive: Run) -> None:
    assert inconclusive.code == 3
    assert inconclusive.results["verdict"]["decision"] == "INCONCLUSIVE"
    assert inconclusive.results["verdict"]["reasons"]
    found = inconclusive.selected["accuracy"]
    assert (found["n"], found["ci_low"], found["ci_high"]) == (1, "-Infinity", "Infinity")


def test_an_overlap_that_the_config_allows_is_no_error(inconclusive: Run) -> None:
    assert inconclusive.results["config"]["data"]["allow_overlap"] is True
    assert any("1 samples are in both sets" in warning for warning in inconclusive.results["warnings"])


def test_repeats_that_are_allowed_are_named_in_results_and_report(job: Job) -> None:
    """Those of the calibration set are always allowed."""
    for split, seed in (("validation", 2), ("calibration", 1)):
        again = {"callable": "data.py:rows_again", "arguments": {"n": 20, "seed": seed, "times": 2}}
        job.config["data"][split] = again
    run = finished(job, "data.allow_repeats=true", "latency.runs=0", "fallback.evaluations=0")
    (of_validation,) = (x for x in run.results["warnings"] if "20 of 40 validation samples are repeats" in x)
    assert "narrower than 20 independent samples can make them" in of_validation
    assert sum("20 of 40 calibration samples are repeats" in x for x in run.results["warnings"]) == 1
    assert of_validation in (job.output / "report.html").read_text(encoding="utf-8")


def test_a_fallback_that_cannot_help_is_not_tried_and_says_so(inconclusive: Run) -> None:
    assert not any(candidate["float_layers"] for candidate in inconclusive.results["candidates"])
    assert any("no layers were put back to float" in warning for warning in inconclusive.results["warnings"])


def test_the_layer_that_int8_ruins_is_put_back_to_fp16(repaired: Run) -> None:
    assert repaired.code == 0
    plain, mixed = repaired.results["candidates"]
    assert plain["accuracy"]["ci_low"] > 0.1
    assert (plain["nodes"]["int8"], plain["float_layers"]) == (4, [])
    assert mixed["name"] == repaired.results["selected"]
    assert mixed["float_layers"][0] == "block"  # of a model this small, others may be no slower in float
    assert mixed["nodes"]["int8"] == 4 - len(mixed["float_layers"]) >= 1
    assert mixed["nodes"]["fp16"] > plain["nodes"]["fp16"]
    assert mixed["tensorrt_build"]["ok"] is True
    model = onnx.load(repaired.job.output / "model.int8.onnx")
    weights = {tuple(i.dims): i.data_type for i in model.graph.initializer if len(i.dims) >= 2}
    int8, fp16 = onnx.TensorProto.INT8, onnx.TensorProto.FLOAT16
    assert weights[8, 8, 3, 3] == fp16  # the planted layer, known by its shape
    assert list(weights.values()).count(int8) == mixed["nodes"]["int8"]
    assert list(weights.values()).count(fp16) == len(mixed["float_layers"])


# Bad usage


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "absent.yaml"], "absent.yaml cannot be read: No such file or directory"),
        (["run", "typo.yaml"], "typo.yaml, line 3: modle is not a known key; did you mean model?"),
        (["run", "typo.yaml", "--set", "nonsense"], "--set nonsense should be written dotted.key=value"),
        (["run"], "Missing argument"),
        (["walk", "typo.yaml"], "No such command 'walk'"),
    ],
)
def test_bad_usage_exits_2_and_writes_nothing(
    tmp_path: Path, clean_environment: dict[str, str], arguments: list[str], said: str
) -> None:
    (tmp_path / "typo.yaml").write_text("# a comment\nname: tiny\nmodle: {onnx: x.onnx}\n")
    completed = run_in_process("calibrate", arguments, tmp_path, clean_environment)
    assert completed.returncode == 2
    assert said in completed.stderr
    assert "Traceback" not in completed.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["typo.yaml"]


def test_bad_usage_keeps_the_results_of_an_earlier_run(job: Job) -> None:
    job.output.mkdir()
    (job.output / "results.json").write_text("{}")
    assert job.run("policy.max_dorp=0.1").returncode == 2
    assert [path.name for path in job.output.iterdir()] == ["results.json"]


# Failures


def fill_with_stale_files(output: Path) -> None:
    """Leave what an earlier run of the product would have left."""
    (output / "plans").mkdir(parents=True)
    for name in FILES - {"evaluations", "plans"}:
        (output / name).write_text("stale")
    (output / "plans" / "mse.json").write_text("stale")


def assert_failed_cleanly(job: Job, code: int, stderr: str, *said: str) -> None:
    """Exit code 4, one sentence, and nothing in the folder but the log."""
    assert code == 4, stderr
    assert len(stderr.splitlines()) == 1, stderr
    for words in said:
        assert words in stderr
    # What was evaluated stays, for a run that goes on; see test_resume.py.
    assert {path.name for path in job.output.iterdir()} - {"evaluations"} == {"run.log"}
    assert "stale" not in (job.output / "run.log").read_text()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["data.calibration.arguments.nan_at=13"],
            ["activation image, an input of the model, ", "calibration sample 13"],
        ),
        (
            ["data.calibration.arguments={n: 20, seed: 2, first: 190}"],
            ["calibration sample 0 is also validation sample 190", "data.allow_overlap"],
        ),
        (
            ["data.validation={callable: data.py:rows_again, arguments: {n: 20, seed: 2, times: 50}}"],
            ["980 of 1000 validation samples are repeats of others", "data.allow_repeats"],
        ),
        (["data.validation.arguments.n=0"], ["the validation set has no samples"]),
        (["data.validation.arguments.label_offset=1"], ["label 5 is outside the model's 5 classes"]),
        (["model.onnx=junk.onnx"], ["junk.onnx", "ONNX"]),
        (
            ["data.validation.callable=data.py:rows_of_another_seed_on_every_pass"],
            ["sample 0 is another one than on the first pass", "seed them"],
        ),
        (["data.validation.callable=data.py:rows_that_exit"], ["sys.exit(0)"]),
    ],
)
def test_a_job_that_fails_exits_4_with_one_sentence(job: Job, overrides: list[str], said: list[str]) -> None:
    (job.folder / "junk.onnx").write_bytes(bytes(range(256)))
    fill_with_stale_files(job.output)
    completed = job.run(*overrides)
    assert_failed_cleanly(job, completed.returncode, completed.stderr, *said)


def test_an_interrupt_exits_4_with_one_sentence(job: Job) -> None:
    fill_with_stale_files(job.output)
    marker = job.folder / "halfway"
    job.config["data"]["calibration"] = {
        "callable": "data.py:rows_that_hang",
        "arguments": {"n": 30, "seed": 1, "marker": str(marker)},
    }
    process = subprocess.Popen(
        job.command(),
        cwd=job.folder,
        env=job.environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a job of `&` ignores it
    )
    try:
        deadline = time.monotonic() + 60
        while not marker.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "the calibration set was never read"
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert_failed_cleanly(job, process.returncode, stderr, "interrupted", "nothing was decided")


# Imports


def test_help_imports_nothing_heavy(clean_environment: dict[str, str]) -> None:
    completed = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "calibrate", "--help"],
        cwd=ROOT,
        env=clean_environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "run" in completed.stdout
    lines = [line for line in completed.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert "typer" in imported  # the list is of this run
    heavy = {"torch", "onnxruntime", "mlflow", "datasets", "onnx_ir", "onnx", "onnxscript", "numpy", "pydantic"}
    assert not imported & heavy


def test_datasets_is_hugging_faces_inside_the_repository(clean_environment: dict[str, str]) -> None:
    code = "import datasets; print(callable(datasets.load_dataset), datasets.__file__)"
    completed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=clean_environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found, _, path = completed.stdout.strip().partition(" ")
    assert found == "True"
    assert not Path(path).is_relative_to(ROOT / "datasets")
