"""What is logged, read back from MLflow by its own means."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.external_data_helper import convert_model_to_external_data

from reports.tracking import Destination, log_results
from validate.results import Decision, Results

if TYPE_CHECKING:
    from mlflow.entities import Run

    from tests.tiny_model import Models

EXPERIMENT = "from-a-test"


@pytest.fixture(scope="module")
def uri(stored: tuple[Results, Path], new_database: Callable[[], str]) -> str:
    results, folder = stored
    uri = new_database()
    assert log_results(results, folder, Destination.of(results, uri))
    return uri


@pytest.fixture
def job(uri: str) -> Run:
    [job] = runs(uri, "tags.`job.plan` = ''")
    return job


def runs(uri: str, condition: str = "") -> list[Run]:
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], condition))


def test_runs_are_found_by_what_their_model_and_data_are(stored: tuple[Results, Path], uri: str) -> None:
    best = runs(uri, "params.`calib.strategy` = 'percentile' AND metrics.`eval/exact_match_drop` < 0.002")
    assert [run.info.run_name for run in best] == ["percentile-99.99+5fp16"]
    assert len(runs(uri, "tags.`target.gpu` = 'NVIDIA L4'")) == 6
    digest = "c3" * 18
    assert len(runs(uri, f"dataset.digest = '{digest}' AND dataset.context = 'validation'")) == 6
    assert [run.info.run_name for run in runs(uri, "tags.`gate.decision` = 'GO'")] == ["job"]


def test_the_data_sets_say_where_they_are_from_and_how_large_they_are(job: Run) -> None:
    held = {x.tags[0].value: x.dataset for x in job.inputs.dataset_inputs}
    calibration, validation = held["calibration"], held["validation"]
    assert (calibration.name, calibration.source_type) == ("data.py:rows", "code")
    assert json.loads(calibration.source)["tags"] == {"callable": "data.py:rows", "arguments": '{"n": 30}'}
    assert json.loads(validation.profile) == {"num_rows": 200}
    source = mlflow.data.get_source(validation)
    assert source.uri == "/data/validation.parquet"


def test_the_layers_are_a_table_that_mlflow_reads_across_runs(stored: tuple[Results, Path], uri: str) -> None:
    mlflow.set_tracking_uri(uri)
    candidates = [run for run in runs(uri, "tags.trial = 'false'") if run.data.tags["job.plan"]]
    identities = [run.info.run_id for run in candidates]
    client = mlflow.MlflowClient(uri)
    experiment = candidates[0].info.experiment_id
    table = client.load_table(experiment, "layers.json", run_ids=identities, extra_columns=["run_id"])
    assert len(table) == 40 * len(candidates) > 0
    scales = client.load_table(experiment, "scales.json", run_ids=identities[:1])
    assert scales.to_dict("list") == {"tensor": ["image", "<script>"], "scale": [0.02, 1.5]}


def test_the_model_is_loaded_and_computes_what_was_judged(job: Run, uri: str, models: Models) -> None:
    mlflow.set_tracking_uri(uri)
    loaded = mlflow.pyfunc.load_model(f"runs:/{job.info.run_id}/model")
    image = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    expected = onnxruntime.InferenceSession(models.good).run(None, {"image": image})[0]
    np.testing.assert_array_equal(loaded.predict({"image": image})["logits"], expected)
    signature = loaded.metadata.signature
    assert [(x.name, x.type, x.shape) for x in signature.inputs] == [("image", np.float32, (-1, 3, 16, 16))]
    assert [(x.name, x.type, x.shape) for x in signature.outputs] == [("logits", np.float32, (-1, 5))]
    requirements = mlflow.artifacts.download_artifacts(f"runs:/{job.info.run_id}/model/requirements.txt")
    packages = {line.partition("==")[0] for line in Path(requirements).read_text().splitlines()}
    assert packages == {"mlflow", "onnx", "onnxruntime"}


def test_a_model_with_its_weights_beside_it(
    stored: tuple[Results, Path], models: Models, database: str, tmp_path: Path
) -> None:
    results, folder = stored
    shutil.copytree(folder, tmp_path / "large")
    model = onnx.load(folder / "model.int8.onnx")
    convert_model_to_external_data(model, location="model.int8.onnx.data", size_threshold=0)
    onnx.save(model, tmp_path / "large/model.int8.onnx")
    assert log_results(results, tmp_path / "large", Destination.of(results, database))
    [job] = runs(database, "tags.`job.plan` = ''")
    mlflow.set_tracking_uri(database)
    loaded = mlflow.pyfunc.load_model(f"runs:/{job.info.run_id}/model")
    image = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    expected = onnxruntime.InferenceSession(models.good).run(None, {"image": image})[0]
    np.testing.assert_allclose(loaded.predict({"image": image})["logits"], expected, rtol=1e-5)
    size = sum((tmp_path / "large" / name).stat().st_size for name in ("model.int8.onnx", "model.int8.onnx.data"))
    assert loaded.metadata.model_size_bytes > size


def test_results_that_are_judged_again_take_the_place_of_those_before(
    stored: tuple[Results, Path], database: str
) -> None:
    results, folder = stored
    destination = Destination.of(results, database)
    log_results(results, folder, destination)
    before = {run.info.run_id for run in runs(database)}
    verdict = results.verdict.model_copy(update={"decision": Decision.NO_GO, "reasons": ["The margin is another."]})
    assert log_results(results.model_copy(update={"verdict": verdict}), folder, destination)
    assert {run.info.run_id for run in runs(database)} == before
    [job] = runs(database, "tags.`job.plan` = ''")
    assert job.data.tags["gate.decision"] == "NO_GO"
    assert "The margin is another." in job.data.tags["mlflow.note.content"]


def test_the_run_that_mlflow_has_started_is_that_of_the_job(
    stored: tuple[Results, Path], database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    results, folder = stored
    monkeypatch.chdir(tmp_path)  # artifacts of a new experiment go here
    client = mlflow.MlflowClient(database)
    given = client.create_run(client.create_experiment("of-mlflow-run"), run_name="bold-fox-12")
    monkeypatch.setenv("MLFLOW_RUN_ID", given.info.run_id)
    assert log_results(results, folder, Destination.of(results, database))
    monkeypatch.delenv("MLFLOW_RUN_ID")
    assert not log_results(results, folder, Destination.of(results, database))
    assert runs(database) == []
    held = client.search_runs([given.info.experiment_id])
    parents: list[Any] = [run for run in held if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.run_id for run in parents] == [given.info.run_id]
    assert (parents[0].info.run_name, len(held)) == ("job", 6)
