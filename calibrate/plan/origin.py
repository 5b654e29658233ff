"""Provenance of statistics, plans and caches: hashes of model, data and preprocessing, and our version."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from validate import __version__
from validate.exceptions import JobError

__all__ = ["Origin"]


class Origin(BaseModel):
    """Hashes of all that scales depend on. None where a hash is not known, as for a cache that TensorRT wrote."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_sha256: str = Field(description="of the float model's file and its external data")
    data_sha256: str | None = Field(default=None, description="of all calibration samples, preprocessed, in order")
    preprocessing_sha256: str | None = Field(default=None, description="of the preprocessing's settings or source")
    version: str = Field(default=__version__, description="of this package")

    def require_version(self, what: str) -> None:
        """Raise JobError where `what` was made by another version of this package."""
        if self.version != __version__:
            raise JobError(f"{what} was made by version {self.version} and this is {__version__}; make it again")

    def require_model(self, what: str, sha256: str, model: str) -> None:
        """Raise JobError where `what` is for another model than the one with this hash."""
        if self.model_sha256 != sha256:
            raise JobError(
                f"{what} is for another model than {model} (SHA-256 {self.model_sha256[:12]}... is not "
                f"{sha256[:12]}...); make it again from this model"
            )
