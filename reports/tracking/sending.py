"""Sends records to a tracking server, each exactly once, also where attempts fail and are repeated.

Every run is tagged with the job's key, so that a second attempt finds the runs of the first and completes them. A
complete run is tagged with the version of the results; that tag is set last.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential
from tenacity.stop import stop_base

from reports.tracking.location import Destination
from reports.tracking.records import JobRecord, Measurement, RunRecord, job_record
from validate.exceptions import JobError, first_line
from validate.passwords import without_passwords
from validate.results import Results

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = ["RETRY_SECONDS", "log_results"]

RETRY_SECONDS = 20.0
"""How long a server that fails is tried again by default; `python -m reports log` is there for what is down longer."""

KEY = "job.key"
VERSION = "job.version"
PLAN = "job.plan"
"""Tags: of which job, about which plan (empty: the job itself), and once it is complete, which version of it."""
_MODEL_NAME = "model"
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # it would repeat what was done and whose answer was lost; we look first
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_REQUEST_SECONDS, _FILE_SECONDS = "20", "120"  # a server answers when it has stored the whole of a file
_METRICS, _PARAMS = 1000, 100  # that a server takes in one request
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 5.0  # seconds
_HTTP_TOO_MANY_REQUESTS, _HTTP_SERVER_ERRORS = 429, 500


def log_results(results: Results, folder: Path, destination: Destination, retry_seconds: float = RETRY_SECONDS) -> bool:
    """Log the results of a job to MLflow; what an earlier attempt has sent is completed.

    Args:
        results: of the job.
        folder: with its files; those that are missing are not logged.
        destination: server, experiment and name.
        retry_seconds: how long to try again after the first failure. A request without an answer adds at most
            MLFLOW_HTTP_REQUEST_TIMEOUT; where that is not set, 20 seconds, and 120 for a file.

    Returns:
        False where everything was there already, so that nothing was sent.

    Raises:
        JobError: the server cannot be reached, or refuses.
    """
    from mlflow.exceptions import MlflowException

    for chatty in ("alembic", "mlflow"):  # they announce every table of a new sqlite file on the terminal
        logging.getLogger(chatty).setLevel(logging.WARNING)
    record = job_record(results, folder)
    asked = os.environ.get(_TIMEOUT)

    def attempt() -> bool:
        with _environment(_SETTINGS | {_TIMEOUT: asked or _REQUEST_SECONDS}):
            return _Sending(record, destination, asked or _FILE_SECONDS).send()

    attempts = Retrying(
        retry=retry_if_exception(_may_pass),
        wait=wait_exponential(multiplier=_FIRST_PAUSE, max=_LONGEST_PAUSE),
        stop=_StopAfterFirstFailure(retry_seconds),
        before_sleep=_tell,
        reraise=True,
    )
    try:
        return attempts(attempt)
    except (MlflowException, OSError) as error:
        sentence = f"MLflow at {destination.uri} did not take the results: {first_line(error)}"
        raise JobError(without_passwords(sentence)) from error


class _StopAfterFirstFailure(stop_base):
    """Ends the attempts where the next one would begin later than so many seconds after the first failure."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._give_up = seconds, math.inf

    def __call__(self, state: RetryCallState) -> bool:
        assert state.outcome_timestamp is not None
        if state.attempt_number == 1:
            self._give_up = state.outcome_timestamp + self._seconds
        return state.outcome_timestamp + state.upcoming_sleep > self._give_up


def _tell(state: RetryCallState) -> None:
    assert state.outcome is not None
    log = logging.getLogger(__name__)
    log.warning("MLflow failed and is tried again in %.1f s: %s", state.upcoming_sleep, state.outcome.exception())


def _may_pass(error: BaseException) -> bool:
    """Return whether a failure is transient, so that a retry may succeed."""
    import requests
    from mlflow.exceptions import MlflowException

    status: int
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()  # type: ignore[no-untyped-call]
    elif isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
    else:
        return isinstance(error, requests.RequestException | ConnectionError | TimeoutError)
    return status == _HTTP_TOO_MANY_REQUESTS or status >= _HTTP_SERVER_ERRORS


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, which is how MLflow takes its settings, for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclass
class _Sending:
    """One attempt.

    Attributes:
        record: what to log.
        destination: where to.
        file_seconds: how long the server may take to answer to a file.
    """

    record: JobRecord
    destination: Destination
    file_seconds: str

    @cached_property
    def client(self) -> MlflowClient:
        from mlflow import MlflowClient

        return MlflowClient(self.destination.uri)

    def send(self) -> bool:
        runs = self._known_runs()
        job = runs.get(self.record.job.plan) or self._started_by_mlflow() or self._new_job()
        if self._complete(job):
            return False
        self.client.update_run(job.info.run_id, name=self.destination.name)
        for plan in self.record.plans:
            run = runs.get(plan.plan) or self._new_run(job.info.experiment_id, plan.name, plan.plan, job.info.run_id)
            if not self._complete(run):
                self._fill(run, plan)
                self._finish(run)
        self._fill(job, self.record.job)
        with _environment({_TIMEOUT: self.file_seconds}):
            for path in self.record.files:
                self.client.log_artifact(job.info.run_id, str(path))
        if self.record.model:
            self._log_model(job, self.record.model)
        self._finish(job)
        return True

    def _known_runs(self) -> dict[str, Run]:
        """Return the job's runs on the server, of any experiment, by their plan's hash."""
        page = self.client.search_experiments()
        experiments = list(page)
        while page.token:
            page = self.client.search_experiments(page_token=page.token)
            experiments += page
        where = [experiment.experiment_id for experiment in experiments]
        found = self.client.search_runs(where, f"tags.`{KEY}` = '{self.record.key}'", max_results=50_000)
        return {run.data.tags[PLAN]: run for run in found}

    def _started_by_mlflow(self) -> Run | None:
        """Return the run that ``mlflow run`` has made for this process, now that of the job."""
        from mlflow.exceptions import MlflowException

        if not (run_id := os.environ.get("MLFLOW_RUN_ID")):
            return None
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if _may_pass(error):
                raise
            return None  # the config names another server
        if KEY in run.data.tags:  # this process has done a job before
            return None
        for name, value in self._identity(self.record.job.plan).items():
            self.client.set_tag(run_id, name, value)
        return run

    def _new_job(self) -> Run:
        from mlflow.exceptions import MlflowException

        name = self.destination.experiment
        if self.client.get_experiment_by_name(name) is None:
            try:
                self.client.create_experiment(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another job was faster
                    raise
        experiment = self.client.get_experiment_by_name(name)
        assert experiment is not None
        return self._new_run(experiment.experiment_id, self.destination.name, self.record.job.plan, None)

    def _new_run(self, experiment: str, name: str, plan: str, parent: str | None) -> Run:
        from mlflow.tracking.context.git_context import GitRunContext
        from mlflow.tracking.context.registry import resolve_tags
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        tags = self._identity(plan) | ({MLFLOW_PARENT_RUN_ID: parent} if parent else {})
        tags = resolve_tags(tags, ignore=[GitRunContext])  # type: ignore[list-item]  # git is about our code, not the model
        return self.client.create_run(experiment, self.record.started_ms, tags, name)

    def _identity(self, plan: str) -> dict[str, str]:
        return {KEY: self.record.key, PLAN: plan}

    def _complete(self, run: Run) -> bool:
        return run.data.tags.get(VERSION) == self.record.version

    def _fill(self, run: Run, record: RunRecord) -> None:
        """Add what the run lacks of its record."""
        from mlflow.entities import Metric, Param, RunTag

        from reports.tracking.inputs import dataset_inputs

        run_id, client = run.info.run_id, self.client
        params = [Param(key, value) for key, value in record.params.items() if key not in run.data.params]
        tags = [RunTag(key, value) for key, value in record.tags.items()]
        known = {
            Measurement(key, point.value, point.step)
            for key in run.data.metrics
            for point in client.get_metric_history(run_id, key)
        }
        metrics = [
            Metric(key, value, self.record.ended_ms, step)
            for key, value, step in record.metrics
            if Measurement(key, value, step) not in known
        ]
        for first in range(0, len(params), _PARAMS):
            client.log_batch(run_id, params=params[first : first + _PARAMS])
        for first in range(0, len(metrics), _METRICS):
            client.log_batch(run_id, metrics=metrics[first : first + _METRICS])
        client.log_batch(run_id, tags=tags)
        client.log_inputs(run_id, dataset_inputs(self.record.data))
        with _environment({_TIMEOUT: self.file_seconds}):
            for name, text in record.texts.items():
                client.log_text(run_id, text, name)

    def _finish(self, run: Run) -> None:
        self.client.set_terminated(run.info.run_id, end_time=self.record.ended_ms)
        self.client.set_tag(run.info.run_id, VERSION, self.record.version)

    def _log_model(self, job: Run, file: Path) -> None:
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus
        from mlflow.models import Model

        from reports.tracking import onnx_model

        run_id, client = job.info.run_id, self.client
        mine = f"source_run_id = '{run_id}' AND name = '{_MODEL_NAME}'"
        found = client.search_logged_models([job.info.experiment_id], mine)
        if found:
            model = found[0]
        else:
            identity = self._identity(self.record.job.plan)
            model = client.create_logged_model(job.info.experiment_id, _MODEL_NAME, run_id, identity)
        outputs = client.get_run(run_id).outputs
        if model.model_id not in {output.model_id for output in (outputs.model_outputs if outputs else [])}:
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        if model.status != LoggedModelStatus.READY:
            with tempfile.TemporaryDirectory() as temporary, _environment({_TIMEOUT: self.file_seconds}):
                folder = Path(temporary) / _MODEL_NAME
                described = Model(
                    artifact_path=model.artifact_location,
                    run_id=run_id,
                    model_id=model.model_id,
                    model_uuid=model.model_id,
                )
                onnx_model.save(file, folder, described)
                client.log_model_artifacts(model.model_id, str(folder))
            client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
