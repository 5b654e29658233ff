"""A run that is killed at any moment goes on where it stopped, and ends as one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from calibrate.measurement.evaluation_cache import EvaluationCache

if TYPE_CHECKING:
    from tests.conftest import Job
    from tests.tiny_model import Models

Overrides = list[str]


@pytest.fixture(scope="module")
def overrides(models: Models) -> Overrides:
    """A job whose search ranks, screens and judges: a ruined layer has to be found."""
    return [f"model.onnx={models.planted}", "data.calibration.arguments={n: 120, seed: 1}", "latency.runs=0"]


def search_of(job: Job) -> dict[str, Any]:
    results = json.loads((job.output / "results.json").read_text(encoding="utf-8"))
    return {
        "search": results["search"],
        "selected": results["selected"],
        "verdict": results["verdict"]["decision"],
        "plan": json.loads((job.output / "plan.json").read_text(encoding="utf-8"))["layers"],
    }


@pytest.fixture(scope="module")
def undisturbed(new_job: Callable[[], Job], overrides: Overrides) -> dict[str, Any]:
    job = new_job()
    assert job.run(*overrides).returncode == 0
    return search_of(job)


@pytest.mark.parametrize("evaluations", [2, 5, 8])
def test_a_run_that_was_killed_ends_with_the_same_plan(
    job: Job, overrides: Overrides, undisturbed: dict[str, Any], evaluations: int
) -> None:
    folder = job.output / "evaluations"
    process = subprocess.Popen(
        job.command(*overrides),
        cwd=job.folder,
        env=job.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not folder.is_dir() or len(list(folder.glob("*.json"))) < evaluations:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    stored = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert not (job.output / "results.json").exists()
    assert job.run(*overrides).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in stored} == stored  # nothing was evaluated twice
    assert search_of(job) == undisturbed


def test_trials_of_a_metric_that_is_no_mean_are_found_again_too(job: Job, models: Models) -> None:
    """Its function is at another address in every process."""
    (job.folder / "regression.py").write_text(
        "from data import rows\n\n\ndef vectors(n, seed):\n    for row in rows(n, seed):\n"
        "        yield {**row, 'label': [10.0 * (k == row['label']) for k in range(5)]}\n",
        encoding="utf-8",
    )
    job.config["task"] = {"type": "regression", "metric": "rmse"}
    for split, arguments in (("calibration", {"n": 120, "seed": 1}), ("validation", {"n": 200, "seed": 2})):
        job.config["data"][split] = {"callable": "regression.py:vectors", "arguments": arguments}
    overrides = [f"model.onnx={models.planted}", "policy.max_drop=0.3", "latency.runs=0"]
    job.run(*overrides)
    evaluations = job.output / "evaluations"
    stored = {path: path.stat().st_mtime_ns for path in evaluations.iterdir()}
    trials = [path for path in stored if json.loads(path.read_text())["key"]["what"] == "trial"]
    first = search_of(job)
    assert trials and first["search"]["trials"]
    job.run(*overrides)
    assert {path: path.stat().st_mtime_ns for path in evaluations.iterdir()} == stored
    assert search_of(job) == first


def test_evaluations_of_another_job_are_not_taken(job: Job, overrides: Overrides) -> None:
    assert job.run(*overrides).returncode == 0
    before = set((job.output / "evaluations").iterdir())
    assert job.run(*overrides, "data.validation.arguments.seed=3").returncode in {0, 1, 3}
    assert before < set((job.output / "evaluations").iterdir())


def test_an_evaluation_is_known_by_all_that_it_depends_on(tmp_path: Path) -> None:
    def evaluations(**context: str) -> EvaluationCache:
        return EvaluationCache(tmp_path, {"model": "m", **context})

    def fails() -> np.ndarray[Any, np.dtype[np.float64]]:
        raise AssertionError("computed again")

    values = np.array([0.1, np.nan, np.inf, -0.0])
    first = evaluations().get("trial", lambda: values, plan="p", samples=[1, 2])
    again = evaluations().get("trial", fails, plan="p", samples=[1, 2])
    np.testing.assert_array_equal(again.values, values)
    assert again.seconds == first.seconds
    for other, what, key in [
        (evaluations(model="n"), "trial", {"plan": "p", "samples": [1, 2]}),
        (evaluations(labels="l"), "trial", {"plan": "p", "samples": [1, 2]}),
        (evaluations(), "screen", {"plan": "p", "samples": [1, 2]}),
        (evaluations(), "trial", {"plan": "q", "samples": [1, 2]}),
        (evaluations(), "trial", {"plan": "p", "samples": [2, 1]}),
    ]:
        with pytest.raises(AssertionError, match="computed again"):
            other.get(what, fails, **key)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"values": "many", "seconds": 1}', b'{"seconds": 1}'])
def test_a_damaged_evaluation_is_computed_again(tmp_path: Path, damage: bytes) -> None:
    evaluations = EvaluationCache(tmp_path, {})
    evaluations.get("trial", lambda: np.ones(3), plan="p")
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage)
    found = evaluations.get("trial", lambda: np.zeros(3), plan="p")
    np.testing.assert_array_equal(found.values, np.zeros(3))
    assert json.loads(path.read_text())["values"] == [0.0, 0.0, 0.0]
