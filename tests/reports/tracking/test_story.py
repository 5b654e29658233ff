"""A tracking server is killed in the middle of a run: the verdict stands, and what is missing is sent later."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from reports.tracking import Destination, log_results
from validate.results import Results

if TYPE_CHECKING:
    from tests.conftest import Job, TrackingServer
    from tests.reports.tracking.conftest import Wire


@pytest.mark.slow
def test_a_run_whose_tracking_server_is_killed(
    job: Job, new_server: Callable[[], TrackingServer], wire_to: Callable[[str], Wire], new_database: Callable[[], str],
    snapshot: Callable[[str, str], dict[str, Any]],
) -> None:  # fmt: skip
    server = new_server()
    server.start()
    wire = wire_to(server.address)
    wire.before = lambda number, path: server.kill() if number == 12 else None
    job.config["tracking"] = {"uri": wire.address, "experiment": "from-a-test", "retry_seconds": 0}
    completed = job.run()
    assert completed.returncode == 0, completed.stderr  # GO
    said = " ".join(completed.stdout.split())
    assert f"MLflow at {wire.address} did not take the results" in said
    assert f"nothing is lost: python -m reports log {job.output} sends them" in said
    results = Results.read(job.output)
    assert results.verdict.decision == "GO"

    wire.before = lambda number, path: None
    server.start()
    command = [sys.executable, "-m", "reports", "log", str(job.output)]
    for expected in ("logged", "everything was there already"):
        sent = subprocess.run(command, env=job.environment, capture_output=True, text=True, check=True)
        assert sent.stdout == f"{expected}: {wire.address}\n"
    undisturbed = new_database()
    log_results(results, job.output, Destination.of(results, undisturbed))
    assert snapshot(server.address, "from-a-test") == snapshot(undisturbed, "from-a-test")
