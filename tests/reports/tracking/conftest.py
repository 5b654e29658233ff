"""Results whose files are on disk, all that a tracking server holds of them, and a wire to it that can be cut."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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


class Wire(ThreadingHTTPServer):
    """Stands between a client and the tracking server, counts requests, and may fail at one of them.

    Attributes:
        upstream: host and port of the server.
        requests: how many were seen.
        before: called with number and path of a request before it is passed on.
        lost: number of the request that is answered, but whose answer never arrives.
    """

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = upstream.removeprefix("http://")
        self.requests = 0
        self.before: Callable[[int, str], None] = lambda number, path: None
        self.lost: int | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: that a connection breaks is the point."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def forward(self) -> None:
        wire = self.server
        assert isinstance(wire, Wire)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        wire.requests += 1
        number = wire.requests
        wire.before(number, self.path)
        upstream = http.client.HTTPConnection(wire.upstream, timeout=30)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "content-length")}
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        if number == wire.lost:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def wire_to() -> Iterator[Callable[[str], Wire]]:
    """Return what puts a wire before a server."""
    wires: list[Wire] = []

    def put(upstream: str) -> Wire:
        wire = Wire(upstream)
        threading.Thread(target=wire.serve_forever, daemon=True).start()
        wires.append(wire)
        return wire

    yield put
    for wire in wires:
        wire.shutdown()
        wire.server_close()


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
