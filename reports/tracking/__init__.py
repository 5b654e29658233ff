"""Logs results to MLflow: a job is a run, and every candidate and trial is a run nested in it.

- `location`: where to (`Destination`), and how to look at it
- `records`: what is logged, as data: a pure function of the results and of the files beside them
- `inputs`: the data sets, as MLflow knows them
- `onnx_model`: the selected candidate as an MLflow model
- `sending`: makes a server hold the records, exactly once, however often it fails in between (`log_results`)

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
