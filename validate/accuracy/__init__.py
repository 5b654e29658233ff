"""The accuracy of a model on samples: scores, the metric and its paired drop.

Sanity checks of the reference's answers, the evaluate command and its report are here too.
"""

from __future__ import annotations

from validate.accuracy.command import EvaluateRequest, evaluate_files
from validate.accuracy.report import Evaluation, ModelEvaluation
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
    "Evaluation",
    "ModelEvaluation",
    "OutputStore",
    "accuracy",
    "batch_scores",
    "candidate_accuracy",
    "evaluate",
    "evaluate_files",
    "reference_errors",
    "sanity_warnings",
    "stored_scores",
]
