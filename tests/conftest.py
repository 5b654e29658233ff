"""Jobs that are tiny but real, finished ones of each verdict, and what a release needs besides.

That is the gate's command, and a tracking server.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from filelock import FileLock

from tests.command_line import run_in_process
from tests.tiny_model import DATA, Models, data_of_every_job, write_models
from tests.tracking_servers import TrackingServer, Wire, free_port, snapshot_of

ROOT = Path(__file__).parents[1]
SCHEMA = json.loads((ROOT / "validate" / "results" / "results.schema.json").read_text(encoding="utf-8"))
Completed = subprocess.CompletedProcess[str]
Gate = Callable[..., Completed]
Exported = Callable[..., Path]
Snapshot = Callable[[str, str], dict[str, Any]]


QUIET = {"HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
"""What libraries read when they are imported, which is once for all jobs in this process."""


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the environment of the workers, which start after this and import NumPy and PyTorch then."""
    os.environ |= QUIET
    if getattr(config.option, "numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker has a core, and must not compete for the others'


@pytest.fixture(scope="session")
def data_module() -> dict[str, Any]:
    """Return what the data file of every job defines."""
    return data_of_every_job()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return write_models(tmp_path_factory.mktemp("models"))


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

    def run(self, *overrides: str, **environment: str) -> Completed:
        """Do the job in this process."""
        _, _, program, *arguments = self.command(*overrides)
        return run_in_process(program, arguments, self.folder, self.environment | environment)


@dataclass(frozen=True)
class Run:
    """A finished run that wrote results. Several tests read one: who changes a file of it, copies the folder first."""

    job: Job
    code: int
    stdout: str
    stderr: str
    results: dict[str, Any]

    @property
    def selected(self) -> dict[str, Any]:
        return next(c for c in self.results["candidates"] if c["name"] == self.results["selected"])


def finished(job: Job, *overrides: str) -> Run:
    """Do a job that writes results; return them, held against their schema."""
    completed = job.run(*overrides)
    path = job.output / "results.json"
    assert path.exists(), completed.stderr
    results = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.validate(results, SCHEMA)
    return Run(job, completed.returncode, completed.stdout, completed.stderr, results)


@pytest.fixture(scope="session")
def clean_environment() -> dict[str, str]:
    """Return an environment in which the packages of this checkout are found, and nothing steers MLflow."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return kept | QUIET | {"PYTHONPATH": path, "COLUMNS": "160"}


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of the session: the first worker that asks for it fills it, and all read it."""
    base = tmp_path_factory.getbasetemp()  # of a worker, in that of the session
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            try:
                folder.mkdir()
                make(folder)
            except BaseException:
                shutil.rmtree(folder)
                raise
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Return what gives the ONNX file of a model of tests/exported_models.py, whose images have `side` pixels."""

    def path_of(name: str, side: int = 64) -> Path:
        from tests.exported_models import export

        folder = made_once(tmp_path_factory, f"{name}-{side}", lambda made: export(name, side, made / "model.onnx"))
        return folder / "model.onnx"

    return path_of


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an MLflow database with its tables made, which takes as long as all else in a run."""
    from mlflow import MlflowClient

    def make(folder: Path) -> None:
        with contextlib.chdir(folder):  # under which MLflow notes that artifacts go
            MlflowClient("sqlite:///mlflow.db").search_experiments()

    return made_once(tmp_path_factory, "store", make) / "mlflow.db"


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
            "policy": {"max_drop": 0.1, "optional": ["engine"]},  # no GPU is needed for a test
            "quantization": {"strategies": ["minmax"]},
            "latency": {"runs": 2},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        }
        return Job(folder, config, clean_environment)

    return make


@pytest.fixture
def job(new_job: Callable[[], Job]) -> Job:
    return new_job()


@pytest.fixture(scope="session")
def go(new_job: Callable[[], Job]) -> Run:
    """Two strategies, and nothing that has to be put back."""
    return finished(new_job(), "quantization.strategies=[minmax, {percentile: 99.9}]")


@pytest.fixture(scope="session")
def no_go(new_job: Callable[[], Job]) -> Run:
    """One calibration sample holds 1e5, so minmax leaves all others one step of the scale; no server listens."""
    overrides = ["data.calibration.arguments.outlier_at=4", "fallback.evaluations=0", "tracking.uri=http://127.0.0.1:9"]
    return finished(new_job(), *overrides, "tracking.retry_seconds=0")


@pytest.fixture(scope="session")
def inconclusive(new_job: Callable[[], Job]) -> Run:
    """One validation sample, which is a calibration sample too."""
    overrides = ["data.validation.arguments={n: 1, seed: 1}", "data.allow_overlap=true", "fallback.evaluations=2"]
    return finished(new_job(), *overrides)


@pytest.fixture(scope="session")
def repaired(new_job: Callable[[], Job], models: Models) -> Run:
    """GO after the layer that int8 ruins was put back to float."""
    return finished(new_job(), f"model.onnx={models.planted}")


@pytest.fixture
def gate(clean_environment: dict[str, str], tmp_path: Path) -> Gate:
    """Return what runs ``python -m validate gate`` in a folder of its own, with a policy.

    The policy leaves it at a simulation, since no engine was run where there is no GPU.
    """

    def run(policy: dict[str, Any], *arguments: str | Path, **environment: str) -> Completed:
        waived = {**policy, "optional": [*policy.get("optional", []), "engine"]}
        (tmp_path / "policy.yaml").write_text(yaml.safe_dump(waived), encoding="utf-8")
        command = ["gate", "--policy", "policy.yaml", *map(str, arguments)]
        return run_in_process("validate", command, tmp_path, clean_environment | environment)

    return run


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
    return snapshot_of


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command line that runs in this process sets up logging for the whole of it: not for the tests that follow."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
