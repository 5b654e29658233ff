"""MLflow's model registry: registers versions, and moves the alias of the champion on GO."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reports.tracking import KEY, PLAN, job_record
from validate.exceptions import JobError, first_line
from validate.passwords import without_passwords
from validate.results import SAMPLES_FILE, Decision, Results, Verdict

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

__all__ = ["CHAMPION", "RegisteredVersion", "Registry"]

CHAMPION = "champion"
"""Alias of the registered version that is in production."""
_RESULTS = "results.json"
_LONGEST_TAG = 5000  # that every store takes


@dataclass(frozen=True)
class RegisteredVersion:
    """A registered version: its label for people, and the run that it came from; None where it came from none."""

    label: str
    run_id: str | None


class Registry:
    """A tracking server's runs and registered models.

    All methods raise JobError where the server cannot be reached or refuses.

    Args:
        uri: of the tracking server or its database.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        for chatty in ("alembic", "mlflow"):  # they announce every table of a new sqlite file on the terminal
            logging.getLogger(chatty).setLevel(logging.WARNING)

    def download(self, run_id: str, folder: Path) -> bool:
        """Download the results of a job's run, and its samples where it has them; return whether it has results.

        The run of a candidate, or one that was not completed, has none.

        Args:
            run_id: of the job's run.
            folder: to write to.
        """
        with self._client() as client:
            present = {file.path for file in client.list_artifacts(run_id)}
            if _RESULTS not in present:
                return False
            for name in (_RESULTS, SAMPLES_FILE):
                if name in present:
                    client.download_artifacts(run_id, name, str(folder))
        return True

    def run_of(self, results: Results, folder: Path) -> str:
        """Return the id of the run of a job that was logged; see `reports.tracking.log_results`.

        Args:
            results: of the job.
            folder: with their files.
        """
        key = job_record(results, folder).key
        with self._client() as client:
            page = client.search_experiments()
            experiments = [experiment.experiment_id for experiment in page]
            while page.token:
                page = client.search_experiments(page_token=page.token)
                experiments += [experiment.experiment_id for experiment in page]
            found = client.search_runs(experiments, f"tags.`{KEY}` = '{key}'", max_results=1000)
        jobs = [run.info.run_id for run in found if not run.data.tags.get(PLAN)]
        if not jobs:
            raise JobError(
                f"MLflow at {without_passwords(self._uri)} has no run of these results; run python -m reports log"
            )
        return str(jobs[0])

    def version_with_alias(self, name: str, alias: str = CHAMPION) -> RegisteredVersion | None:
        """Return the version of a registered model that has an alias; None where none has."""
        from mlflow.exceptions import MlflowException

        with self._client() as client:
            try:
                version = client.get_model_version_by_alias(name, alias)
            except MlflowException as error:
                if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                    return None
                raise
            return RegisteredVersion(f"{name} version {version.version} ({alias})", version.run_id or None)

    def register(self, name: str, results: Results, run_id: str, verdict: Verdict) -> str:
        """Register the model of a job's run as a version, tag it with the verdict, and on GO move the alias to it.

        A run's model becomes one version, however often it is judged.

        Args:
            name: of the registered model; made where there is none.
            results: of the job.
            run_id: of the job's run.
            verdict: on the selected candidate.

        Returns:
            A sentence that says what was done.
        """
        from mlflow.exceptions import MlflowException

        with self._client() as client:
            try:
                client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            version = self._version(client, name, run_id)
            selected = results.selected_candidate
            tags = {
                "gate.decision": verdict.decision.value,
                "gate.reasons": "\n".join(verdict.reasons)[:_LONGEST_TAG],
                "gate.candidate": selected.name if selected else "none",
                "plan.hash": selected.plan_hash if selected else "none",
            }
            for key, value in tags.items():
                client.set_model_version_tag(name, version.version, key, value)
            if verdict.decision is not Decision.GO:
                live = client.get_registered_model(name).aliases.get(CHAMPION)
                if str(live) == str(version.version):
                    return (
                        f"version {version.version} of {name} is tagged {verdict.decision.value} now and is still "
                        f"{CHAMPION}: only a GO of another version moves the alias; move it yourself where this one "
                        "must not be live"
                    )
                return f"registered as version {version.version} of {name}, which does not become {CHAMPION}"
            client.set_registered_model_alias(name, CHAMPION, version.version)
        return f"registered as version {version.version} of {name}, which is {CHAMPION} now"

    def _version(self, client: MlflowClient, name: str, run_id: str) -> ModelVersion:
        """Return the version made of a run's model, or make it."""
        outputs = client.get_run(run_id).outputs
        if outputs is None or not outputs.model_outputs:
            raise JobError(f"run {run_id} holds no model to register; complete it with python -m reports log")
        model_id = outputs.model_outputs[0].model_id
        known = client.search_model_versions(f"name = '{name}'", max_results=1000)
        for version in known:
            if version.run_id == run_id:
                return version
        with self._as_global_tracking_uri():
            return client.create_model_version(name, f"models:/{model_id}", run_id, model_id=model_id)

    @contextmanager
    def _as_global_tracking_uri(self) -> Iterator[None]:
        """Set MLflow's global tracking URI to this server's during the block.

        A local store looks up models:/ID at the global URI, and not in itself. The version's source has to be
        models:/ID, as a database keeps nothing else that leads from a version to its model.
        """
        import mlflow

        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(self._uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(before)

    @contextmanager
    def _client(self) -> Iterator[MlflowClient]:
        """Yield a client; its errors become a JobError of one sentence."""
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            yield MlflowClient(self._uri, registry_uri=self._uri)
        except (MlflowException, OSError) as error:
            raise JobError(without_passwords(f"MLflow at {self._uri} failed: {first_line(error)}")) from error
