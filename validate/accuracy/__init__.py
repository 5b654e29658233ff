"""The accuracy of a model on samples: scores, the metric and its paired drop.

Sanity checks of the reference's answers and the evaluate command are here too.
"""

from __future__ import annotations

from validate.accuracy.command import EvaluateRequest, evaluate_files
from validate.accuracy.evaluation import evaluate_models
from validate.accuracy.sanity import sanity_warnings
from validate.accuracy.scoring import (
    OutputStore,
    accuracy,
    batch_scores,
    candidate_accuracy,
    evaluate,
    reference_errors,
    stored_scores,
)

__all__ = [
    "EvaluateRequest",
    "OutputStore",
    "accuracy",
    "batch_scores",
    "candidate_accuracy",
    "evaluate",
    "evaluate_files",
    "evaluate_models",
    "reference_errors",
    "sanity_warnings",
    "stored_scores",
]
