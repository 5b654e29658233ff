"""What a run logs, read back from a real MLflow server on sqlite."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from rich.console import Console

from calibrate.api import _track
from calibrate.journal import Journal
from reports.tracking import Destination
from tests.command_line import run_in_process
from validate.results import Results

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from tests.conftest import Completed, Job
    from tests.tiny_model import Models
    from tests.tracking_servers import Wire


@dataclass(frozen=True)
class Logged:
    """A run's results, and what the server holds of it."""

    results: dict[str, Any]
    output: Path
    client: MlflowClient
    parent: Run
    children: dict[str, Run]

    def candidate(self, name: str) -> dict[str, Any]:
        return next(c for c in self.results["candidates"] if c["name"] == name)

    @property
    def candidates(self) -> dict[str, Run]:
        return {candidate["name"]: self.children[candidate["name"]] for candidate in self.results["candidates"]}

    def artifacts(self, run: Run) -> dict[str, int]:
        return {file.path: file.file_size for file in self.client.list_artifacts(run.info.run_id)}


@pytest.fixture(scope="module")
def logged(server: str, new_job: Callable[[], Job], models: Models) -> Logged:
    """Run the job whose layer has to be put back, so that three candidates are logged."""
    from mlflow import MlflowClient

    job = new_job()
    completed = job.run(
        f"model.onnx={models.planted}",
        "quantization.strategies=[minmax, mse]",
        "tracking.experiment=of-a-job",
        f"tracking.uri={server}",
    )
    assert completed.returncode == 0, completed.stderr
    client = MlflowClient(tracking_uri=server)
    experiment = client.get_experiment_by_name("of-a-job")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert len(children) == len(runs) - 1
    results = json.loads((job.output / "results.json").read_text(encoding="utf-8"))
    return Logged(results, job.output, client, parents[0], {run.info.run_name: run for run in children})


def test_every_candidate_and_every_trial_is_a_run_nested_in_the_job(logged: Logged) -> None:
    candidates = {candidate["name"] for candidate in logged.results["candidates"]}
    trials = {trial["name"] for trial in logged.results["search"]["trials"]}
    assert len(candidates) >= 3 and trials
    assert set(logged.children) == candidates | trials
    assert logged.parent.info.run_name == "tiny"


def test_every_run_is_finished(logged: Logged) -> None:
    assert {run.info.status for run in (logged.parent, *logged.children.values())} == {"FINISHED"}


def test_the_job_carries_the_decision_and_what_was_judged(logged: Logged) -> None:
    results = logged.results
    tags, params = logged.parent.data.tags, logged.parent.data.params
    assert tags["gate.decision"] == results["verdict"]["decision"] == "GO"
    assert tags["selected"] == results["selected"]
    assert params["model.sha256"] == results["model"]["sha256"]
    assert params["model.parameters"] == str(results["model"]["parameters"])
    assert params["task"] == "classification"
    assert (params["calib.samples"], params["validation.samples"]) == ("30", "200")
    assert params["calib.digest"] != params["validation.digest"]


def test_the_job_carries_the_metrics_of_the_reference_and_of_the_selected(logged: Logged) -> None:
    metrics = logged.parent.data.metrics
    selected = logged.candidate(logged.results["selected"])["accuracy"]
    assert metrics["eval/top1_float"] == pytest.approx(logged.results["reference"]["accuracy"]["value"])
    assert metrics["eval/top1"] == pytest.approx(selected["value"])
    assert metrics["eval/top1_drop_ci_high"] == pytest.approx(selected["ci_high"])
    assert metrics["perf/float_latency_p50_ms"] > 0


def test_every_candidate_carries_its_own_numbers(logged: Logged) -> None:
    for name, run in logged.candidates.items():
        candidate, metrics, params = logged.candidate(name), run.data.metrics, run.data.params
        accuracy = candidate["accuracy"]
        assert metrics["eval/top1"] == pytest.approx(accuracy["value"])
        assert metrics["eval/top1_drop"] == pytest.approx(accuracy["drop"])
        assert metrics["eval/top1_drop_ci_low"] == pytest.approx(accuracy["ci_low"])
        assert metrics["size_bytes"] == candidate["size_bytes"]
        assert metrics["perf/latency_p50_ms"] == pytest.approx(candidate["latency"]["p50_ms"])
        assert params["calib.strategy"] == candidate["strategy"]
        assert params["plan.hash"] == candidate["plan_hash"]
        assert {key: int(metrics[f"nodes/{key}"]) for key in candidate["nodes"]} == candidate["nodes"]
        assert int(params["fallback.layers"]) == len(candidate["float_layers"])
        assert run.data.tags["tensorrt_build"] == "true"


def test_one_candidate_is_tagged_as_selected(logged: Logged) -> None:
    tagged = [name for name, run in logged.children.items() if run.data.tags["selected"] == "true"]
    assert tagged == [logged.results["selected"]]


def test_the_error_of_every_layer_is_logged_over_its_depth(logged: Logged) -> None:
    for name, run in logged.candidates.items():
        history = logged.client.get_metric_history(run.info.run_id, "layer_sqnr_db")
        finite = {
            layer["depth"]: layer["sqnr_db"]
            for layer in logged.candidate(name)["layers"]
            if isinstance(layer["sqnr_db"], float)
        }
        assert len(finite) >= 3
        assert {point.step: point.value for point in history} == pytest.approx(finite)


def test_the_files_are_artifacts(logged: Logged) -> None:
    files = logged.artifacts(logged.parent)
    for name in ("results.json", "plan.json", "report.html", "statistics.npz"):
        assert files[name] == (logged.output / name).stat().st_size
    for name, run in logged.candidates.items():
        held = logged.artifacts(run)
        assert set(held) == {"plan.json", "scales.json", "layers.json"}
        assert held["plan.json"] == (logged.output / "plans" / f"{name}.json").stat().st_size


def test_the_model_that_is_logged_is_the_one_that_was_judged(logged: Logged) -> None:
    [model] = logged.client.search_logged_models([logged.parent.info.experiment_id])
    assert model.source_run_id == logged.parent.info.run_id
    files = {file.path: file.file_size for file in logged.client.list_logged_model_artifacts(model.model_id)}
    judged = onnx.load(logged.output / "model.int8.onnx")
    assert files["model.onnx"] == len(judged.SerializeToString())


def test_the_data_sets_are_those_of_the_config(logged: Logged) -> None:
    for run in (logged.parent, *logged.children.values()):
        held = {x.tags[0].value: x.dataset for x in run.inputs.dataset_inputs}
        for split, description in logged.results["data"].items():
            assert held[split].digest == description["digest"][:36]
            assert json.loads(held[split].profile) == {"num_rows": description["samples"]}
            assert held[split].name.endswith("data.py:rows")


def test_a_failure_that_says_nothing_is_named_in_the_warning(
    logged: Logged, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("mlflow.MlflowClient.search_experiments", fail)
    journal = Journal(Console(quiet=True))
    assert _track(Results.read(logged.output), logged.output, Destination(server, "x", "x"), 0, journal) is None
    (warning,) = journal.warnings
    assert warning == f"RuntimeError; nothing is lost: python -m reports log {logged.output} sends them"


def test_a_password_reaches_the_server_and_no_file(
    job: Job, server: str, wire_to: Callable[[str], Wire], clean_environment: dict[str, str]
) -> None:
    def send_again(*options: str) -> Completed:
        return run_in_process("reports", ["log", str(job.output), *options], job.folder, clean_environment)

    wire = wire_to(server)
    wire.authorization = f"Basic {base64.b64encode(b'bob:S3cretPW').decode()}"
    uri = wire.address.replace("http://", "http://bob:S3cretPW@")
    shown = uri.replace("S3cretPW", "***")
    source = {"callable": "data.py:rows_of", "arguments": {"n": 200, "seed": 2, "database": "mysql://eve:S3cretPW@db/"}}
    (job.folder / "data.py").open("a").write("\ndef rows_of(n, seed, database):\n    return rows(n, seed)\n")
    job.config["data"]["validation"] = source
    completed = job.run(f"tracking.uri={uri}", "fallback.evaluations=0")
    assert completed.returncode == 0, completed.stderr
    assert wire.requests > 10 and "MLflow at" not in completed.stdout

    assert "S3cretPW" not in completed.stdout + completed.stderr
    assert [path for path in job.output.rglob("*") if path.is_file() and b"S3cretPW" in path.read_bytes()] == []
    results = json.loads((job.output / "results.json").read_text(encoding="utf-8"))
    assert results["config"]["tracking"]["uri"] == shown
    assert f"--set tracking.uri={shown} " in results["command"].replace("'", "") + " "
    assert results["data"]["validation"]["source"]["arguments"]["database"] == "mysql://eve:***@db/"

    refused = send_again()
    assert (refused.returncode, refused.stdout) == (2, "")
    assert (
        f"the results do not hold the password of {shown}; name the server whole, with --tracking-uri" in refused.stderr
    )
    assert send_again("--tracking-uri", uri).stdout == f"everything was there already: {shown}\n"
