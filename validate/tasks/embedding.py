"""Sentence embeddings: rank correlation of similarities with people's ratings."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from validate.tasks.base import (
    Metric,
    Outputs,
    Records,
    Weights,
    first_output,
    parse_labels,
    shown,
)

__all__ = ["Pooling", "SentenceEmbedding"]

Pooling = Literal["none", "mean", "cls"]

_ROWS = 2  # of the model, for each pair
_CONSTANT = 1e-6  # sum of squares of ranks below which it is rounding that varies; two distinct ranks have 0.5


class SentenceEmbedding:
    """Spearman's rank correlation of cosine similarities with human scores, by dataset.

    A sample is a pair of sentences, two rows of the model's batch, one after the other. The first output holds vectors
    of shape (2 pairs, dimensions), or with `pooling` those of tokens, shape (2 pairs, tokens, dimensions). A label is
    the human score, or a mapping with ``score`` and ``dataset``.

    The metric is the mean over datasets of each one's correlation, as the STS tasks report it (Reimers and Gurevych
    2019, section 4.1): scales and difficulty differ between datasets, so that pairs of two do not compare. Each pair
    has a record (similarity, human score, dataset). A rank correlation is a function of all pairs, hence an aggregate.

    Args:
        pooling: ``mean`` over the tokens of which the input ``attention_mask`` is not 0, or ``cls``, the first token.

    Examples:
        >>> task = SentenceEmbedding()
        >>> vectors = np.array([[1, 0], [1, 0], [1, 0], [1, 1], [1, 0], [0, 1]], np.float32)  # three pairs
        >>> records = task.scores({"embedding": vectors}, labels=[5.0, 3.0, 1.0])
        >>> records[:, 0].round(2).tolist()
        [1.0, 0.71, 0.0]
        >>> round(task.metric.value(records), 4)
        1.0
    """

    def __init__(self, pooling: Pooling = "none") -> None:
        self.name = "sentence_embedding"
        self.metric = Metric("spearman", higher_is_better=True, is_rate=False, aggregate=_spearman)
        self.pooling = pooling
        self.inputs = ("attention_mask",) if pooling == "mean" else ()

    def scores(self, outputs: Outputs, labels: Sequence[Any]) -> NDArray[np.float64]:
        """Return similarity, human score and a number that stands for the dataset of each pair, shape (pairs, 3)."""
        if self.pooling == "mean" and "attention_mask" not in outputs:
            raise ValueError("pooling: mean needs a model with an input attention_mask, to leave padding out")
        similarities = _similarities(self._pooled(outputs))
        if len(similarities) != len(labels):
            raise ValueError(f"{len(labels)} pairs need {_ROWS * len(labels)} vectors, not {_ROWS * len(similarities)}")
        return np.column_stack([similarities, parse_labels(labels, _parsed)])

    def errors(self, outputs: Outputs, reference: Outputs) -> NDArray[np.float64]:
        """Return one minus the cosine between a vector and the reference's, the mean of both sentences of a pair."""
        vectors, wanted = (
            np.asarray(first_output(x), np.float64).reshape(len(first_output(x)), -1) for x in (outputs, reference)
        )
        return np.asarray((1 - _cosine(vectors, wanted)).reshape(-1, _ROWS).mean(axis=1))

    def answers(self, outputs: Outputs) -> list[Any]:
        """Return the similarity of each pair."""
        return [float(s) for s in _similarities(self._pooled(outputs))]

    def _pooled(self, outputs: Outputs) -> NDArray[np.float64]:
        vectors = first_output(outputs).astype(np.float64)
        if vectors.ndim != (2 if self.pooling == "none" else 3):
            shape = "(rows, dimensions); set task.pooling" if self.pooling == "none" else "(rows, tokens, dimensions)"
            raise ValueError(
                f"with pooling: {self.pooling} the output must have shape {shape}, but it is {vectors.shape}"
            )
        if self.pooling == "none":
            return vectors
        if self.pooling == "cls":
            return np.asarray(vectors[:, 0])
        mask = np.asarray(outputs["attention_mask"], np.float64)[..., None]
        return np.asarray((vectors * mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1e-9))


def _similarities(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(vectors) % _ROWS:
        raise ValueError(f"{len(vectors)} vectors are no pairs; the preprocessing must give two rows for each sample")
    return _cosine(vectors[::_ROWS], vectors[1::_ROWS])


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / np.maximum(lengths, 1e-30))


def _parsed(label: Any) -> tuple[float, float]:
    """Return the human score, and the dataset as a number: a checksum, which is the same in every batch and run."""
    score, dataset = (label.get("score"), label.get("dataset")) if isinstance(label, Mapping) else (label, "")
    if isinstance(score, bool) or not isinstance(score, int | float | np.number) or not np.isfinite(score):
        raise ValueError(
            f"a label must be a number, or a mapping with score and dataset, but this one is {shown(label)}"
        )
    return float(score), float(zlib.crc32(str(dataset).encode()))


def _spearman(records: Records, weights: Weights) -> NDArray[np.float64]:
    """Return the mean over datasets of Spearman's correlation. A dataset of which no pair was drawn is left out."""
    if np.isnan(records).any():
        return np.full(len(weights), np.nan)
    total, present = np.zeros(len(weights)), np.zeros(len(weights))
    for dataset in np.unique(records[:, 2]):
        of = records[:, 2] == dataset
        drawn = weights[:, of]
        there = drawn.sum(axis=1) > 0
        similarity, human = _ranks(records[of, 0], drawn), _ranks(records[of, 1], drawn)
        total += np.where(there, _pearson(similarity, human, drawn), 0.0)
        present += there
    return np.asarray(total / present)


def _ranks(values: NDArray[np.float64], weights: Weights) -> NDArray[np.float64]:
    """Return the mid-ranks, shape (b, n), of values that are there as often as the weights say."""
    order = np.argsort(values, kind="stable")
    distinct, starts = np.unique(values[order], return_index=True)
    times = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks = np.cumsum(times, axis=1) - (times - 1) / 2
    return np.asarray(ranks[:, np.searchsorted(distinct, values)])


def _pearson(x: NDArray[np.float64], y: NDArray[np.float64], weights: Weights) -> NDArray[np.float64]:
    """Return the weighted correlation of each row; NaN where one side does not vary."""
    with np.errstate(divide="ignore", invalid="ignore"):
        n = weights.sum(axis=1, keepdims=True)
        dx, dy = x - (weights * x).sum(axis=1, keepdims=True) / n, y - (weights * y).sum(axis=1, keepdims=True) / n
        both, xx, yy = ((weights * a * b).sum(axis=1) for a, b in ((dx, dy), (dx, dx), (dy, dy)))
        return np.where(np.minimum(xx, yy) > _CONSTANT, both / np.sqrt(xx * yy), np.nan)
