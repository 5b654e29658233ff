"""A job that is tiny but real: a small CNN that does classify, synthetic data, and a config to run it with.

And what a release needs besides: the gate's command, and a tracking server that can be killed or cut off.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from mlflow.entities import Run

ROOT = Path(__file__).parents[1]
CLASSES, SIDE, FEATURES = 5, 16, 16

Arrays = dict[str, NDArray[np.float32]]
Gate = Callable[..., subprocess.CompletedProcess[str]]
Snapshot = Callable[[str, str], dict[str, Any]]

DATA = '''
"""Gratings in noise; the class is the orientation. The other callables have something wrong with them."""

import time
from pathlib import Path

import numpy as np


def rows(n, seed, first=0, outlier_at=None, nan_at=None, label_offset=0):
    y, x = np.mgrid[:16, :16]
    for i in range(first, first + n):
        rng = np.random.default_rng([seed, i])
        angle = np.pi * (i % 5) / 5
        wave = np.sin(1.3 * (np.cos(angle) * x + np.sin(angle) * y) + rng.uniform(0, 2 * np.pi))
        image = (wave + rng.normal(0, 0.9, (3, 16, 16))).astype(np.float32)
        if i == outlier_at:
            image[0, 0, 0] = 1e5
        if i == nan_at:
            image[1, 2, 3] = np.nan
        yield {"image": image, "label": i % 5 + label_offset}


def rows_that_hang(n, seed, marker):
    for i, row in enumerate(rows(n, seed)):
        if i == n // 2:
            Path(marker).touch()
            time.sleep(600)
        yield row


def rows_of_another_seed_on_every_pass(n, seed, passes=[]):
    passes.append(None)
    yield from rows(n, seed + len(passes))


def rows_that_exit(n, seed):
    yield from rows(n, seed)
    raise SystemExit(0)
'''


def _weights() -> Arrays:
    """Return the weights of everything before the classifier: random, and fixed."""
    rng = np.random.default_rng(0)
    weights = {
        "stem.weight": rng.normal(0, 0.35, (8, 3, 3, 3)),
        "block.weight": rng.normal(0, 0.2, (8, 8, 3, 3)),
        "last.weight": rng.normal(0, 0.2, (FEATURES, 8, 3, 3)),
    }
    for name in ("stem", "block"):
        weights |= {
            f"{name}_bn.scale": rng.uniform(0.8, 1.2, 8),
            f"{name}_bn.bias": rng.uniform(-0.2, 0.2, 8),
            f"{name}_bn.mean": rng.uniform(-0.1, 0.1, 8),
            f"{name}_bn.var": rng.uniform(0.7, 1.3, 8),
        }
    return {name: array.astype(np.float32) for name, array in weights.items()}


def _model(weights: Arrays) -> onnx.ModelProto:
    """Conv + BN + Relu, a residual block of Conv + BN and Add, Conv + Relu, pooling, Gemm."""
    statistics = ("scale", "bias", "mean", "var")
    pad = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "stem.weight"], ["c1"], name="stem", **pad),
        helper.make_node("BatchNormalization", ["c1", *(f"stem_bn.{s}" for s in statistics)], ["b1"], name="stem_bn"),
        helper.make_node("Relu", ["b1"], ["r1"], name="stem_relu"),
        helper.make_node("Conv", ["r1", "block.weight"], ["c2"], name="block", **pad),
        helper.make_node("BatchNormalization", ["c2", *(f"block_bn.{s}" for s in statistics)], ["b2"], name="block_bn"),
        helper.make_node("Add", ["b2", "r1"], ["sum"], name="residual"),
        helper.make_node("Relu", ["sum"], ["r2"], name="block_relu"),
        helper.make_node("Conv", ["r2", "last.weight"], ["c3"], name="last", **pad),
        helper.make_node("Relu", ["c3"], ["r3"], name="last_relu"),
        helper.make_node("GlobalAveragePool", ["r3"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["features"], name="flatten"),
        helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["logits"], name="head"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "tiny", [image], [logits], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _fitted(weights: Arrays, rows: list[dict[str, Any]]) -> Arrays:
    """Return the weights with a classifier that is a ridge regression on the features: closed form, no training."""
    blank = {"head.weight": np.zeros((FEATURES, CLASSES), np.float32), "head.bias": np.zeros(CLASSES, np.float32)}
    model = _model(weights | blank)
    model.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", FEATURES]))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    features = session.run(["features"], {"image": np.stack([row["image"] for row in rows])})[0]
    mean, std = features.mean(axis=0), features.std(axis=0)
    design = np.c_[(features - mean) / std, np.ones(len(features))]
    targets = np.eye(CLASSES)[[row["label"] for row in rows]]
    solution = np.linalg.solve(design.T @ design + 0.01 * np.eye(FEATURES + 1), design.T @ targets)
    weight = solution[:-1] / std[:, None]
    bias = solution[-1] - mean @ weight
    return weights | {"head.weight": (10 * weight).astype(np.float32), "head.bias": (10 * bias).astype(np.float32)}


@dataclass(frozen=True)
class Models:
    """Files of the tiny model, and what is known of it without the product.

    Attributes:
        good: quantizes well.
        planted: computes the same kind of thing, but in layer ``block`` the weights of an input channel that is
            always 0 are huge. Scales per output channel drown all its other weights: int8 ruins that one layer.
        parameters: elements of the weights of either, each BatchNorm folded into a bias per channel.
    """

    good: Path
    planted: Path
    parameters: int


@pytest.fixture(scope="session")
def data_module() -> dict[str, Any]:
    """Return what the data file of every job defines."""
    names: dict[str, Any] = {}
    exec(DATA, names)
    return names


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, data_module: dict[str, Any]) -> Models:
    folder = tmp_path_factory.mktemp("models")
    training = list(data_module["rows"](600, seed=99))
    good = _weights()
    planted = {name: array.copy() for name, array in good.items()}
    planted["stem_bn.bias"][0] = -1000
    planted["block.weight"][:, 0] = 3000
    for name, weights in {"good": good, "planted": planted}.items():
        onnx.save(_model(_fitted(weights, training)), folder / f"{name}.onnx")
    folded = sum(array.size for name, array in good.items() if name.endswith(".weight")) + 8 + 8
    parameters = folded + FEATURES * CLASSES + CLASSES
    return Models(folder / "good.onnx", folder / "planted.onnx", parameters)


@dataclass
class Job:
    """A config in its own folder, ready to be run through the command line."""

    folder: Path
    config: dict[str, Any]
    environment: dict[str, str]

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def command(self, *overrides: str) -> list[str]:
        """Write the config; return the command that runs it, with a ``--set`` for each override."""
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(self.config, sort_keys=False), encoding="utf-8")
        sets = [argument for override in overrides for argument in ("--set", override)]
        return [sys.executable, "-m", "calibrate", "run", str(path), "--output", str(self.output), *sets]

    def run(self, *overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*overrides),
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )


@pytest.fixture(scope="session")
def clean_environment() -> dict[str, str]:
    """Return an environment in which the packages of this checkout are found, and nothing steers MLflow."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return kept | {"PYTHONPATH": path, "MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory, clean_environment: dict[str, str]) -> Path:
    """Return an MLflow database with its tables made, which takes as long as all else in a run."""
    folder = tmp_path_factory.mktemp("store")
    code = "import mlflow; mlflow.MlflowClient('sqlite:///mlflow.db').search_experiments()"
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=clean_environment, capture_output=True, check=True)
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def new_job(
    tmp_path_factory: pytest.TempPathFactory, models: Models, clean_environment: dict[str, str], empty_store: Path
) -> Callable[[], Job]:
    """Return what makes a job, in a folder of its own, that ends in GO as it stands."""

    def make() -> Job:
        folder = tmp_path_factory.mktemp("job")
        (folder / "data.py").write_text(DATA, encoding="utf-8")
        shutil.copyfile(empty_store, folder / "mlflow.db")
        config = {
            "name": "tiny",
            "model": {"onnx": str(models.good)},
            "data": {
                "calibration": {"callable": "data.py:rows", "arguments": {"n": 30, "seed": 1}},
                "validation": {"callable": "data.py:rows", "arguments": {"n": 200, "seed": 2}},
                "batch_size": 8,
            },
            "task": {"type": "classification"},
            "policy": {"max_drop": 0.1},
            "quantization": {"strategies": ["minmax"]},
            "latency": {"runs": 2},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        }
        return Job(folder, config, clean_environment)

    return make


@pytest.fixture
def job(new_job: Callable[[], Job]) -> Job:
    return new_job()


@pytest.fixture
def gate(clean_environment: dict[str, str], tmp_path: Path) -> Gate:
    """Return what runs ``python -m validate gate`` in a folder of its own, with a policy."""

    def run(policy: dict[str, Any], *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "policy.yaml").write_text(yaml.safe_dump(policy), encoding="utf-8")
        command = [sys.executable, "-m", "validate", "gate", "--policy", "policy.yaml", *map(str, arguments)]
        return subprocess.run(
            command, cwd=tmp_path, env=clean_environment | environment, capture_output=True, text=True, timeout=600,
            check=False,
        )  # fmt: skip

    return run


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
                    sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
                    "--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db",
                    "--artifacts-destination", str(self.folder / "files"),
                ],
                cwd=self.folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
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


@pytest.fixture(scope="session")
def new_server(
    tmp_path_factory: pytest.TempPathFactory, clean_environment: dict[str, str], empty_store: Path
) -> Iterator[Callable[[], TrackingServer]]:
    """Return what makes a tracking server that is not yet started."""
    servers: list[TrackingServer] = []

    def make() -> TrackingServer:
        folder = tmp_path_factory.mktemp("server")
        (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
        servers.append(TrackingServer(folder, clean_environment, free_port()))
        return servers[-1]

    yield make
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def server(new_server: Callable[[], TrackingServer]) -> str:
    """Start a tracking server; return its address."""
    made = new_server()
    made.start()
    return made.address


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


@pytest.fixture(scope="session")
def snapshot() -> Snapshot:
    """Return what reads all that is held of an experiment, without what differs each time: identities and paths."""

    def taken(uri: str, experiment: str) -> dict[str, Any]:
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
