"""Token classification and masked language models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

from validate.tasks.base import (
    Metric,
    Outputs,
    Records,
    Weights,
    first_output,
    log_probability_error,
    parse_labels,
    ratio_of_sums,
)

__all__ = ["IGNORED", "TokenAccuracy", "TokenLoss"]

IGNORED = -100
"""The label of a token that is not scored; PyTorch's CrossEntropyLoss and Hugging Face have the same."""


def _perplexity(records: Records, weights: Weights) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        return np.exp(ratio_of_sums(records, weights))


_ACCURACY = Metric("token_accuracy", higher_is_better=True, is_rate=True, aggregate=ratio_of_sums)
_LOSSES = {
    "loss": Metric("loss", higher_is_better=False, is_rate=False, aggregate=ratio_of_sums),
    "perplexity": Metric("perplexity", higher_is_better=False, is_rate=False, aggregate=_perplexity),
}


class _Tokens:
    """What the first output, logits of shape (batch, tokens, classes), says of the tokens that have a label.

    A label is an array of shape (tokens,) with the class of each token, or -100 where it is not scored. The metric is
    over all scored tokens together, as a sequence with twice as many says twice as much. Each sequence has a record
    (sum over its scored tokens, their number): tokens of one sequence are not independent, so that sequences are what
    is resampled.
    """

    def __init__(self, name: str, metric: Metric) -> None:
        self.name = name
        self.metric = metric

    def scores(self, outputs: Outputs, labels: Sequence[Any]) -> NDArray[np.float64]:
        """Return sum and number of scored tokens, shape (batch, 2). NaN logits are wrong, and have a NaN loss."""
        logits = _logits(outputs)
        if len(labels) != len(logits):
            raise ValueError(f"{len(labels)} labels cannot be paired with an output of shape {logits.shape}")
        records = np.zeros((len(labels), 2))
        parsed = parse_labels(labels, lambda label: _classes(label, *logits.shape[1:]))
        for record, of_tokens, classes in zip(records, logits, parsed, strict=True):
            scored = classes != IGNORED
            record[:] = self._sum(of_tokens[scored].astype(np.float64), classes[scored]), scored.sum()
        return records

    def errors(self, outputs: Outputs, reference: Outputs) -> NDArray[np.float64]:
        """Return the mean squared error of the log-probabilities per sample, over all tokens."""
        return log_probability_error(log_softmax(_logits(outputs), axis=2), log_softmax(_logits(reference), axis=2))

    def _sum(self, logits: NDArray[np.float64], wanted: NDArray[Any]) -> float:
        """Return the sum over tokens of logits (tokens, classes) and labels (tokens,)."""
        raise NotImplementedError


class TokenAccuracy(_Tokens):
    """The share of the scored tokens whose best class is the label; see the base class.

    Examples:
        >>> task = TokenAccuracy("token_classification")
        >>> logits = np.array([[[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]])  # one sequence of three tokens
        >>> records = task.scores({"logits": logits}, [np.array([0, 0, IGNORED])])
        >>> records.tolist(), task.metric.value(records)
        ([[1.0, 2.0]], 0.5)
    """

    inputs = ("attention_mask",)

    def __init__(self, name: str) -> None:
        super().__init__(name, _ACCURACY)

    def answers(self, outputs: Outputs) -> list[Any]:
        """Return the best class of every token, and -100 where ``attention_mask`` is 0."""
        best = _logits(outputs).argmax(axis=2)
        mask = outputs.get("attention_mask")
        return list(best if mask is None else np.where(np.asarray(mask) > 0, best, IGNORED))

    def _sum(self, logits: NDArray[np.float64], wanted: NDArray[Any]) -> float:
        return float(((logits.argmax(axis=1) == wanted) & ~np.isnan(logits).any(axis=1)).sum())


class TokenLoss(_Tokens):
    """The mean negative log-likelihood of the scored tokens in nats, or its exponential, the perplexity.

    For the latter see Jelinek et al., JASA 62 (1977). It gives no answers, as no model has the least loss against its
    own; see `validate.tasks.base.Answering`.

    Examples:
        >>> task = TokenLoss("masked_lm", "perplexity")
        >>> records = task.scores({"logits": np.zeros((1, 2, 4))}, [np.array([3, IGNORED])])  # all four classes alike
        >>> round(task.metric.value(records), 4)
        4.0
    """

    def __init__(self, name: str, metric: Literal["loss", "perplexity"]) -> None:
        super().__init__(name, _LOSSES[metric])

    def _sum(self, logits: NDArray[np.float64], wanted: NDArray[Any]) -> float:
        return float((logsumexp(logits, axis=1) - logits[np.arange(wanted.size), wanted]).sum())


def _logits(outputs: Outputs) -> NDArray[Any]:
    logits = first_output(outputs)
    if logits.ndim != 3:
        raise ValueError(f"tokens need an output of shape (batch, tokens, classes), but it is {logits.shape}")
    return logits


def _classes(label: Any, tokens: int, classes: int) -> NDArray[Any]:
    found = np.asarray(label)
    if found.shape != (tokens,) or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(
            f"a label must hold {tokens} classes, one for each token of the model's output, with {IGNORED} for those "
            f"that are not scored; this one has shape {found.shape}, {found.dtype}"
        )
    wrong = found[(found != IGNORED) & ((found < 0) | (found >= classes))]
    if wrong.size:
        raise ValueError(f"label {wrong[0]} is outside the model's {classes} classes")
    return found
