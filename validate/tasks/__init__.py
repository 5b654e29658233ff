"""Tasks of models: outputs and labels in, a score for each sample out; one task a file.

`TaskSpec` is the `task` section of a config. No model is run here.
"""

from __future__ import annotations

from validate.tasks.agreement import Agreement, outputs_for, with_or_without_labels
from validate.tasks.base import Answering, CountsLabels, LabelError, Metric, Outputs, Records, Task, Weights
from validate.tasks.classification import Classification
from validate.tasks.detection import Detection
from validate.tasks.embedding import SentenceEmbedding
from validate.tasks.regression import Regression
from validate.tasks.segmentation import Segmentation
from validate.tasks.settings import TASKS, TaskSettings, TaskSpec, metric_of
from validate.tasks.text_recognition import TextRecognition
from validate.tasks.tokens import TokenAccuracy, TokenLoss

__all__ = [
    "TASKS",
    "Agreement",
    "Answering",
    "Classification",
    "CountsLabels",
    "Detection",
    "LabelError",
    "Metric",
    "Outputs",
    "Records",
    "Regression",
    "Segmentation",
    "SentenceEmbedding",
    "Task",
    "TaskSettings",
    "TaskSpec",
    "TextRecognition",
    "TokenAccuracy",
    "TokenLoss",
    "Weights",
    "metric_of",
    "outputs_for",
    "with_or_without_labels",
]
