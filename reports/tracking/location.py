"""The tracking server of a run, and the command that opens its user interface."""

from __future__ import annotations

import os
from dataclasses import dataclass

from validate.exceptions import UsageError
from validate.passwords import is_without_password, without_passwords
from validate.results import Results

__all__ = ["Destination", "default_uri", "ui_command"]

DEFAULT_URI = "sqlite:///mlflow.db"
DEFAULT_EXPERIMENT = "calibrate"


@dataclass(frozen=True)
class Destination:
    """Where the runs of a job are logged.

    Attributes:
        uri: of the tracking server or its database.
        experiment: by name; it is made where there is none.
        name: of the job's run.
    """

    uri: str
    experiment: str
    name: str

    @classmethod
    def of(
        cls, results: Results, uri: str | None = None, experiment: str | None = None, name: str | None = None
    ) -> Destination:
        """Return the destination that the job's config names; arguments take precedence.

        Raises:
            UsageError: only the config names the server, with a password, which results do not hold.
        """
        tracking = results.config.get("tracking") or {}
        configured = tracking.get("uri")
        if configured and is_without_password(configured):
            uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
            if not uri:
                raise UsageError(
                    f"the results do not hold the password of {configured}; name the server whole, with --tracking-uri "
                    "or in MLFLOW_TRACKING_URI"
                )
        return cls(
            uri=default_uri(uri or configured),
            experiment=experiment or tracking.get("experiment") or DEFAULT_EXPERIMENT,
            name=name or results.config.get("name") or "run",
        )


def default_uri(configured: str | None) -> str:
    """Return the tracking URI: the config's, else MLFLOW_TRACKING_URI, else a SQLite file in the working directory.

    Examples:
        >>> default_uri("http://mlflow:5000")
        'http://mlflow:5000'
    """
    return configured or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def ui_command(uri: str) -> str:
    """Return the command that opens MLflow's user interface, or the address of a server that has one.

    Examples:
        >>> ui_command("sqlite:///mlflow.db")
        'mlflow ui --backend-store-uri sqlite:///mlflow.db'
        >>> ui_command("http://mlflow:5000")
        'http://mlflow:5000'
    """
    shown: str = without_passwords(uri)
    return shown if uri.startswith(("http://", "https://")) else f"mlflow ui --backend-store-uri {shown}"
