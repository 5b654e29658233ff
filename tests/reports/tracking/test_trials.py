"""What is logged of cost and of fallback's trials, read back from a real MLflow database."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import pytest

from reports.tracking import Destination, log_results
from validate.results import Results

if TYPE_CHECKING:
    from mlflow.entities import Run


@pytest.fixture(scope="module")
def runs(stored: tuple[Results, Path], new_database: Callable[[], str]) -> dict[str, Run]:
    """Log the run; return every run of the database by its name, the job as "job"."""
    results, folder = stored
    uri = new_database()
    log_results(results, folder, Destination.of(results, uri))
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("from-a-test")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def test_every_plan_is_one_run(stored: tuple[Results, Path], runs: dict[str, Run]) -> None:
    results, _ = stored
    assert results.search is not None
    tried = {trial.name for trial in results.search.trials}
    assert set(runs) == {"job", *tried, *(candidate.name for candidate in results.candidates)}
    assert {name for name, run in runs.items() if run.data.tags.get("trial") == "true"} == tried
    parents = {run.data.tags.get("mlflow.parentRunId") for name, run in runs.items() if name != "job"}
    assert parents == {runs["job"].info.run_id}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_a_trial_carries_what_came_of_it(runs: dict[str, Run]) -> None:
    data = runs["percentile-99.99+1fp16"].data
    assert (data.tags["stopped_early"], data.tags["meets_target"]) == ("true", "false")
    assert (data.tags["cost.basis"], data.tags["cost.unit"]) == ("estimate", "ms")
    expected = {"plan.hash": "trial-1", "fallback.layers": "1", "fallback.precision": "fp16", "calib.samples": "30"}
    assert data.params.items() >= (expected | {"calib.strategy": "percentile"}).items()
    assert data.metrics == pytest.approx(
        {
            "eval/exact_match": 0.9025,
            "eval/exact_match_drop": 0.04,
            "eval/exact_match_drop_ci_low": 0.01,
            "eval/exact_match_drop_ci_high": 0.07,
            "eval/samples": 120,
            "perf/cost": 0.442,
        }
    )


def test_a_candidate_that_was_a_trial_says_so_beside_its_own_numbers(
    stored: tuple[Results, Path], runs: dict[str, Run]
) -> None:
    selected = stored[0].selected
    assert selected is not None
    data = runs[selected].data
    assert (data.tags["trial"], data.tags["stopped_early"], data.tags["meets_target"]) == ("true", "false", "true")
    assert data.tags["selected"] == "true"
    assert data.tags["cost.source"].startswith("roofline of an NVIDIA L4")
    assert data.metrics["perf/cost"] == pytest.approx(0.472)
    assert data.metrics["perf/int8_mac_share"] == pytest.approx(0.85)
    assert "eval/selection_error" not in data.metrics
    assert "eval/selection_error" in runs["minmax"].data.metrics
    assert runs["minmax"].data.tags["trial"] == "false"


def test_the_front_is_an_artifact_of_the_job(
    stored: tuple[Results, Path], runs: dict[str, Run], tmp_path: Path
) -> None:
    path = mlflow.artifacts.download_artifacts(
        artifact_uri=f"{runs['job'].info.artifact_uri}/pareto.json", dst_path=str(tmp_path)
    )
    points = json.loads(Path(path).read_text(encoding="utf-8"))["pareto"]
    assert points == [point.model_dump(mode="json") for point in stored[0].pareto]
