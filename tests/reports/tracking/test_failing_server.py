"""A tracking server that fails, is killed or hangs costs nothing but time: what is sent again is there once."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from reports.tracking import Destination, log_results
from tests.command_line import run_in_process
from validate.exceptions import JobError
from validate.results import Results

if TYPE_CHECKING:
    from tests.conftest import Completed, Snapshot
    from tests.tracking_servers import TrackingServer, Wire

EXPERIMENT = "from-a-test"


def test_whatever_answer_is_lost_all_is_there_once(
    stored: tuple[Results, Path],
    undisturbed: dict[str, Any],
    server: str,
    wire_to: Callable[[str], Wire],
    snapshot: Snapshot,
) -> None:
    """The first attempt loses the answer to its first request, the second to its second, until one loses none."""
    results, folder = stored
    wire = wire_to(server)
    attempts = 0
    while True:
        attempts += 1
        wire.requests, wire.lost = 0, attempts
        try:
            log_results(results, folder, Destination.of(results, wire.address), retry_seconds=0)
            break
        except JobError as error:
            assert "did not take the results" in str(error)
    assert attempts > 30
    assert snapshot(server, EXPERIMENT) == undisturbed


KILLS: dict[str, Callable[[int, str], bool]] = {
    "among the candidates": lambda number, path: number == 12,
    "at the model": lambda number, path: path.endswith("/model.onnx"),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", KILLS)
def test_a_server_that_is_killed_while_it_is_sent_to(
    moment: str,
    stored: tuple[Results, Path],
    undisturbed: dict[str, Any],
    new_server: Callable[[], TrackingServer],
    wire_to: Callable[[str], Wire],
    snapshot: Snapshot,
    clean_environment: dict[str, str],
) -> None:
    results, folder = stored
    server = new_server()
    server.start()
    wire = wire_to(server.address)
    wire.before = lambda number, path: server.kill() if KILLS[moment](number, path) else None

    def log() -> Completed:
        command = ["log", str(folder), "--tracking-uri", wire.address, "--retry-seconds", "0"]
        return run_in_process("reports", command, folder, clean_environment)

    failed = log()
    assert failed.returncode == 4
    assert f"MLflow at {wire.address} did not take the results" in failed.stderr
    assert "Traceback" not in failed.stdout + failed.stderr
    wire.before = lambda number, path: None
    server.start()
    assert snapshot(server.address, EXPERIMENT) != undisturbed
    done = log()
    assert (done.returncode, done.stdout) == (0, f"logged: {wire.address}\n"), done.stderr
    assert snapshot(server.address, EXPERIMENT) == undisturbed
    assert not log_results(results, folder, Destination.of(results, wire.address))
    assert snapshot(server.address, EXPERIMENT) == undisturbed


@pytest.mark.slow
def test_a_server_that_comes_back_in_time_is_no_failure(
    stored: tuple[Results, Path],
    undisturbed: dict[str, Any],
    new_server: Callable[[], TrackingServer],
    wire_to: Callable[[str], Wire],
    snapshot: Snapshot,
) -> None:
    results, folder = stored
    server = new_server()
    server.start()
    wire = wire_to(server.address)
    restart = threading.Thread(target=server.start)

    def kill_and_restart(number: int, path: str) -> None:
        if number == 20:
            server.kill()
            restart.start()

    wire.before = kill_and_restart
    assert log_results(results, folder, Destination.of(results, wire.address), retry_seconds=90)
    restart.join()
    assert snapshot(server.address, EXPERIMENT) == undisturbed


def test_a_server_that_never_answers_is_given_up(stored: tuple[Results, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    results, folder = stored
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    before = dict(os.environ)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(JobError, match=r"did not take the results.*timed out"):
            log_results(results, folder, Destination.of(results, address), retry_seconds=1)
    assert dict(os.environ) == before


def test_a_failure_that_says_nothing_is_named(
    stored: tuple[Results, Path], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TimeoutError

    results, folder = stored
    monkeypatch.setattr("mlflow.MlflowClient.search_experiments", fail)
    with pytest.raises(JobError, match=r"did not take the results: TimeoutError$"):
        log_results(results, folder, Destination.of(results, database), retry_seconds=0)


def test_what_cannot_pass_is_not_tried_again(
    stored: tuple[Results, Path], server: str, wire_to: Callable[[str], Wire]
) -> None:
    results, folder = stored
    results = results.model_copy(update={"created": "2026-11-24T00:00:00Z"})  # a job that the server does not know
    wire = wire_to(server)
    with pytest.raises(JobError, match="did not take the results"):
        log_results(results, folder, Destination.of(results, wire.address, "x" * 600), retry_seconds=60)
    assert wire.requests < 8
