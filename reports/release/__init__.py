"""Release checks for pipelines: judge results again, show the verdict, register the model.

JUnit XML and Markdown are written here; the registry is MLflow's.
"""

from __future__ import annotations

from reports.release.workflow import ReleaseRequest, release

__all__ = [
    "ReleaseRequest",
    "release",
]
