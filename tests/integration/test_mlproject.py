"""``mlflow run .`` does a job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from tests.conftest import Job

ROOT = Path(__file__).parents[2]


def test_mlflow_run_does_the_job_in_its_own_run(job: Job) -> None:
    from mlflow import MlflowClient

    del job.config["tracking"]  # MLflow says where
    job.command()
    uri = f"sqlite:///{job.folder}/mlflow.db"
    python = str(Path(sys.executable).parent)  # env-manager local: the entry point's python is the first of PATH
    completed = subprocess.run(
        [
            sys.executable,
            "-m",
            "mlflow",
            "run",
            str(ROOT),
            "--env-manager",
            "local",
            "-P",
            f"config={job.folder}/config.yaml",
            "-P",
            f"output={job.output}",
        ],
        cwd=job.folder,
        env=job.environment | {"PATH": os.pathsep.join([python, os.environ["PATH"]]), "MLFLOW_TRACKING_URI": uri},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert (job.output / "results.json").exists()
    client = MlflowClient(uri)
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in found if "mlflow.parentRunId" in run.data.tags]
    assert len(parents) == 1
    assert parents[0].data.params["config"] == f"{job.folder}/config.yaml"  # what mlflow run logs
    assert parents[0].data.tags["gate.decision"] == "GO"  # what we log
    assert (parents[0].info.run_name, parents[0].info.status) == ("tiny", "FINISHED")
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert "minmax" in {run.info.run_name for run in children}


def test_the_environment_of_the_project_is_that_of_the_package() -> None:
    project = yaml.safe_load((ROOT / "MLproject").read_text(encoding="utf-8"))
    environment = yaml.safe_load((ROOT / project["python_env"]).read_text(encoding="utf-8"))
    assert environment["dependencies"] == [".[quickstart]"]
    assert (ROOT / project["entry_points"]["main"]["parameters"]["config"]["default"]).is_file()
