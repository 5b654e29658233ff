"""Results -> MLflow: the job is a run, and every candidate and every trial of fallback is a run nested in it.

- `location`: where to (`Destination`), and how to look at it
- `records`: what is logged, as data: a pure function of the results and of the files beside them
- `inputs`: the data sets, as MLflow knows them
- `onnx_model`: the selected candidate as an MLflow model
- `sending`: makes a server hold the records, exactly once, however often it fails in between (`log_results`)

docs/mlflow.md says what is where.
"""

from reports.tracking.location import Destination, default_uri, ui_command
from reports.tracking.sending import RETRY_SECONDS, log_results

__all__ = ["RETRY_SECONDS", "Destination", "default_uri", "log_results", "ui_command"]
