"""Results whose files are on disk, databases to send them to, and what one holds of them where nothing fails."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import onnx
import pytest

from reports.tracking import Destination, log_results
from validate.results import Results

if TYPE_CHECKING:
    from tests.conftest import Snapshot
    from tests.tiny_model import Models

SPLITS = {
    "calibration": {"source": {"callable": "data.py:rows", "arguments": {"n": 30}}, "samples": 30, "digest": "a1" * 32},
    "validation": {"source": {"parquet": "/data/validation.parquet"}, "samples": 200, "digest": "c3" * 32},
}
CONFIG = {
    "name": "job",
    "tracking": {"uri": None, "experiment": "from-a-test", "retry_seconds": 5.0},
    "target": {"device": "gpu", "compute_capability": "8.9", "gpu": "NVIDIA L4"},
    "policy": {"max_drop": 0.01},
    "quantization": {"strategies": ["minmax", {"percentile": 99.9}]},
}


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
    model = onnx.load(models.good)
    onnx.helper.set_model_props(model, {"plan_sha256": results.selected_candidate.plan_hash})
    onnx.save(model, folder / "model.int8.onnx")
    for name in ("statistics.npz", "samples.parquet", "illustrations.json", "report.html"):
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
