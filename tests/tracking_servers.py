"""A tracking server that can be killed, a wire to it that can be cut, and what it holds in the end."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.entities import Run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@dataclass
class TrackingServer:
    """An MLflow server on a database and files of its own, which outlive it."""

    folder: Path
    environment: dict[str, str]
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, or start it again; return when it answers."""
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "mlflow",
                    "server",
                    "--host",
                    "127.0.0.1",
                    "--port",
                    str(self.port),
                    "--workers",
                    "1",
                    "--backend-store-uri",
                    f"sqlite:///{self.folder}/mlflow.db",
                    "--artifacts-destination",
                    str(self.folder / "files"),
                ],
                cwd=self.folder,
                # Eight processes that consume jobs would take five times as long to start as the server itself.
                env=self.environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + 180
        while not answers(f"{self.address}/health"):
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        """End it and its workers at once."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # its workers are in its session
            self.process.wait()


class Wire(ThreadingHTTPServer):
    """Stands between a client and the tracking server, counts requests, and may fail at one of them.

    Attributes:
        upstream: host and port of the server.
        requests: how many were seen.
        before: called with number and path of a request before it is passed on.
        lost: number of the request that is answered, but whose answer never arrives.
        authorization: the header without which a request is refused.
    """

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = upstream.removeprefix("http://")
        self.requests = 0
        self.before: Callable[[int, str], None] = lambda number, path: None
        self.lost: int | None = None
        self.authorization: str | None = None

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
        if wire.authorization not in (None, self.headers.get("Authorization")):
            self.send_error(401)
            return
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


def snapshot_of(uri: str, experiment: str) -> dict[str, Any]:
    """Return all that is held of an experiment, without what differs each time: identities and paths."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
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
