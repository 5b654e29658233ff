"""On-disk cache of evaluations; lets an interrupted run resume."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from pydantic import BaseModel

from calibrate.loading import SplitFingerprint, task_hash
from calibrate.plan import Origin
from validate.backends import cpu_name
from validate.records import write_text

__all__ = ["EvaluationCache", "TimedScores", "evaluation_context"]


@dataclass(frozen=True)
class TimedScores:
    """Scores, or records, of samples, shape (n,) or (n, k), and the seconds that they took when they were computed."""

    values: NDArray[np.float64]
    seconds: float


class EvaluationCache:
    """On-disk cache of evaluations, each a small JSON file named by all that it depends on.

    Args:
        folder: of the files; made when the first is written.
        context: all that every evaluation of this run depends on: hashes of the model, the data, the task and the code
            that prepares inputs, and versions. Evaluations that were stored with another context are not found.
    """

    def __init__(self, folder: Path, context: Mapping[str, str]) -> None:
        self._folder, self._context = folder, dict(context)

    def get(self, what: str, compute: Callable[[], NDArray[np.float64]], **key: Any) -> TimedScores:
        """Return the stored evaluation, or compute and store it.

        Args:
            what: kind of evaluation.
            compute: computes it.
            key: all else that it depends on, such as a plan's hash; JSON values.
        """
        content = json.dumps({"what": what, **key, **self._context}, sort_keys=True)
        path = self._folder / f"{hashlib.sha256(content.encode()).hexdigest()}.json"
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            evaluated = TimedScores(np.array(stored["values"], np.float64), float(stored["seconds"]))
        except (OSError, ValueError, KeyError, TypeError):  # not there, or not one of ours: it is computed
            started = time.perf_counter()
            evaluated = TimedScores(np.asarray(compute(), np.float64), time.perf_counter() - started)
            self._folder.mkdir(parents=True, exist_ok=True)
            stored = {"key": json.loads(content), "values": evaluated.values.tolist(), "seconds": evaluated.seconds}
            write_text(json.dumps(stored), path)
        return evaluated


def evaluation_context(
    task: BaseModel, origin: Origin, validation: SplitFingerprint, calibration: SplitFingerprint
) -> Mapping[str, str]:
    """Return all that evaluations depend on besides the plan: the cache's context.

    Args:
        task: settings of the task.
        origin: of the plans.
        validation, calibration: the samples of both sets.
    """
    return {
        **origin.model_dump(mode="json"),
        "validation_sha256": validation.digest(),
        "task": task.model_dump_json(),
        "labels_sha256": f"{validation.labels_digest()} {calibration.labels_digest()}",
        "task_sha256": task_hash(task),
        "runtime": f"{onnxruntime.__version__} on {cpu_name()}",
    }
