"""Results whose files are on disk, and all that a tracking server holds of them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest

from reports.tracking import Destination, log_results
from validate.results import Results

if TYPE_CHECKING:
    from mlflow.entities import Run

    from tests.conftest import Models

Snapshot = Callable[[str, str], dict[str, Any]]

SPLITS = {
    "calibration": {"source": {"callable": "data.py:rows", "arguments": {"n": 30}}, "samples": 30, "digest": "a1" * 32},
    "validation": {"source": {"parquet": "/data/validation.parquet"}, "samples": 200, "digest": "c3" * 32},
}
CONFIG = {
    "name": "job", "tracking": {"uri": None, "experiment": "from-a-test", "retry_seconds": 5.0},
    "target": {"device": "gpu", "compute_capability": "8.9", "gpu": "NVIDIA L4"},
    "policy": {"max_drop": 0.01}, "quantization": {"strategies": ["minmax", {"percentile": 99.9}]},
}  # fmt: skip


@pytest.fixture(scope="session")
def stored(
    build_results: Callable[..., Results], models: Models, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Results, Path]:
    """Return results and the folder that they are in, with all files of a run: three candidates and two trials."""
    complete = build_results(layers=40)
    results = build_results(layers=40, data=SPLITS, config=CONFIG, candidates=complete.candidates[:3])
    folder = tmp_path_factory.mktemp("stored") / "out"
    (folder / "plans").mkdir(parents=True)
    for candidate in results.candidates:
        plan = json.dumps({"name": candidate.name, "scales": {"image": 0.02, "<script>": 1.5}})
        (folder / candidate.plan).write_text(plan, encoding="utf-8")
    assert results.selected_candidate is not None
    shutil.copyfile(folder / results.selected_candidate.plan, folder / "plan.json")
    shutil.copyfile(models.good, folder / "model.int8.onnx")
    for name in ("statistics.npz", "samples.parquet", "report.html"):
        (folder / name).write_bytes(name.encode() * 1000)
    results.write(folder / "results.json")
    return results, folder


@pytest.fixture(autouse=True)
def _nothing_stays_set(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget where a test has told MLflow to look, which is an environment variable too."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield
    mlflow.set_tracking_uri("")
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="session")
def new_database(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """Return what makes an empty database of its own, beside which artifacts go, and returns its URI."""

    def make() -> str:
        place = tmp_path_factory.mktemp("mlflow")
        shutil.copyfile(empty_store, place / "mlflow.db")
        uri = f"sqlite:///{place}/mlflow.db"
        with contextlib.chdir(place):
            mlflow.MlflowClient(uri).create_experiment("from-a-test")
        return uri

    return make


@pytest.fixture
def database(new_database: Callable[[], str]) -> str:
    return new_database()


@pytest.fixture(scope="session")
def undisturbed(stored: tuple[Results, Path], new_database: Callable[[], str], snapshot: Snapshot) -> dict[str, Any]:
    """Return what is held of the stored results where nothing fails."""
    results, folder = stored
    uri = new_database()
    assert log_results(results, folder, Destination.of(results, uri))
    return snapshot(uri, "from-a-test")


@pytest.fixture(scope="session")
def snapshot() -> Snapshot:
    """Return what reads all that is held of an experiment, without what differs each time: identities and paths."""

    def taken(uri: str, experiment: str) -> dict[str, Any]:
        client = mlflow.MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        assert found is not None
        runs = client.search_runs([found.experiment_id], max_results=50_000)
        names = {run.info.run_id: run.info.run_name for run in runs}
        models = [
            {
                "name": model.name,
                "status": model.status,
                "tags": model.tags,
                "run": names[model.source_run_id],
                "files": _files(client.list_logged_model_artifacts, model.model_id),
            }
            for model in client.search_logged_models([found.experiment_id])
        ]
        return {"runs": sorted((_run(client, run, names) for run in runs), key=repr), "models": models}

    return taken


def _run(client: Any, run: Run, names: dict[str, str]) -> dict[str, Any]:
    tags = dict(run.data.tags)
    if parent := tags.get("mlflow.parentRunId"):
        tags["mlflow.parentRunId"] = names[parent]
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "times": (run.info.start_time, run.info.end_time),
        "tags": dict(sorted(tags.items())),
        "params": dict(sorted(run.data.params.items())),
        "metrics": {
            key: sorted((p.step, p.value, p.timestamp) for p in client.get_metric_history(run.info.run_id, key))
            for key in sorted(run.data.metrics)
        },
        "inputs": sorted(
            (x.dataset.name, x.dataset.digest, x.dataset.source, x.dataset.profile, [(t.key, t.value) for t in x.tags])
            for x in run.inputs.dataset_inputs
        ),
        "outputs": len(run.outputs.model_outputs) if run.outputs else 0,
        "artifacts": _files(client.list_artifacts, run.info.run_id),
    }


def _files(listed: Callable[..., Any], identity: str) -> dict[str, int]:
    """Return the size of every file; that of MLmodel differs by the digits of a time."""
    files: dict[str, int] = {}
    folders: list[str | None] = [None]
    while folders:
        for file in listed(identity, folders.pop()):
            if file.is_dir:
                folders.append(file.path)
            else:
                files[file.path] = 0 if file.path.endswith("MLmodel") else file.file_size
    return files
