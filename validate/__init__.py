"""Runs models and judges them. Knows nothing of calibration, plans or reports, and imports neither.

    from validate import Classification, Policy, compare, evaluate, gate

    evaluation = evaluate([model, candidate], rows, Classification())
    verdict = gate(evaluation, Policy(max_drop=0.01, optional=["engine"]))  # by simulation: no engine has to be run

Names are imported when they are first asked for.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from validate.accuracy import evaluate_models as evaluate
    from validate.backends import Options, Runnable
    from validate.data import Samples
    from validate.exceptions import JobError, NothingComparedError, UsageError
    from validate.layerwise import Comparison, Thresholds, judge
    from validate.layerwise import compare_models as compare
    from validate.results import Decision, Evaluation, Results, Verdict
    from validate.tasks import (
        Classification,
        Detection,
        Metric,
        Regression,
        Segmentation,
        SentenceEmbedding,
        Task,
        TextRecognition,
        TokenAccuracy,
        TokenLoss,
    )
    from validate.verdict import Policy, gate

__all__ = [
    "Classification",
    "Comparison",
    "Decision",
    "Detection",
    "Evaluation",
    "JobError",
    "Metric",
    "NothingComparedError",
    "Options",
    "Policy",
    "Regression",
    "Results",
    "Runnable",
    "Samples",
    "Segmentation",
    "SentenceEmbedding",
    "Task",
    "TextRecognition",
    "Thresholds",
    "TokenAccuracy",
    "TokenLoss",
    "UsageError",
    "Verdict",
    "compare",
    "evaluate",
    "gate",
    "judge",
]

__version__ = "0.1.0"

_ROOMS = {
    "accuracy": ("evaluate",),
    "backends": ("Options", "Runnable"),
    "data": ("Samples",),
    "exceptions": ("JobError", "NothingComparedError", "UsageError"),
    "layerwise": ("Comparison", "Thresholds", "compare", "judge"),
    "results": ("Decision", "Evaluation", "Results", "Verdict"),
    "tasks": (
        "Classification",
        "Detection",
        "Metric",
        "Regression",
        "Segmentation",
        "SentenceEmbedding",
        "Task",
        "TextRecognition",
        "TokenAccuracy",
        "TokenLoss",
    ),
    "verdict": ("Policy", "gate"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}
_CALLED_THERE = {"compare": "compare_models", "evaluate": "evaluate_models"}
"""In their rooms, these names are those of the functions on opened models."""

logging.getLogger(__name__).addHandler(logging.NullHandler())  # what is logged is for those who configure logging


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), _CALLED_THERE.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
