"""The `tracking` section of a config."""

from __future__ import annotations

from pydantic import Field

from validate.settings import Section

__all__ = ["TrackingConfig"]


class TrackingConfig(Section):
    """Settings of logging to MLflow."""

    uri: str | None = Field(
        default=None, description="tracking server; default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db"
    )
    experiment: str = "calibrate"
    retry_seconds: float = Field(
        default=20, ge=0, description="how long a server that fails is tried again; python -m reports log sends later"
    )
