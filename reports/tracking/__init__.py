"""Logs results to MLflow: a job is a run, and every candidate and trial is a run nested in it.

- `location`: the tracking server (`Destination`), and the command that opens its user interface
- `records`: the runs as data, a pure function of the results and of the files beside them
- `inputs`: the data sets, as MLflow's dataset inputs
- `onnx_model`: the selected candidate as an MLflow model
- `sending`: sends the records, each exactly once, also where attempts fail and are repeated (`log_results`)

docs/mlflow.md says what is where.
"""

from __future__ import annotations

from reports.tracking.location import Destination, default_uri, ui_command
from reports.tracking.records import job_record
from reports.tracking.sending import KEY, PLAN, RETRY_SECONDS, log_results
from reports.tracking.settings import TrackingConfig

__all__ = [
    "KEY",
    "PLAN",
    "RETRY_SECONDS",
    "Destination",
    "TrackingConfig",
    "default_uri",
    "job_record",
    "log_results",
    "ui_command",
]
