"""A label for every token, or for some of them: token classification and masked language models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

from validate.tasks.base import Metric, Outputs, Records, Weights, first_output, log_probability_error, ratio_of_sums

__all__ = ["IGNORED", "TokenMetric", "Tokens"]

IGNORED = -100
"""The label of a token that is not scored; PyTorch's CrossEntropyLoss and Hugging Face have the same."""

TokenMetric = Literal["accuracy", "loss", "perplexity"]


def _perplexity(records: Records, weights: Weights) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        return np.exp(ratio_of_sums(records, weights))


_METRICS: dict[str, Metric] = {
    "accuracy": Metric("token_accuracy", higher_is_better=True, is_rate=True, aggregate=ratio_of_sums),
    "loss": Metric("loss", higher_is_better=False, is_rate=False, aggregate=ratio_of_sums),
    "perplexity": Metric("perplexity", higher_is_better=False, is_rate=False, aggregate=_perplexity),
}


class Tokens:
    """What the first output, logits of shape (batch, tokens, classes), says of the tokens that have a label.

    A label is an array of shape (tokens,) with the class of each token, or -100 where it is not scored. The metric is
    over all scored tokens together, as a sequence with twice as many says twice as much: their accuracy, their mean
    negative log-likelihood in nats (loss), or its exponential (perplexity; Jelinek et al., JASA 62 (1977)). Each
    sequence has a record (sum over its scored tokens, their number): tokens of one sequence are not independent, so
    that sequences are what is resampled.
    """

    inputs = ("attention_mask",)

    def __init__(self, name: str, metric: TokenMetric) -> None:
        self.name = name
        self.metric = _METRICS[metric]
        self._counts_hits = metric == "accuracy"

    def scores(self, outputs: Outputs, labels: Sequence[Any]) -> NDArray[np.float64]:
        """Return sum and number of scored tokens, shape (batch, 2). NaN logits are wrong, and have a NaN loss."""
        logits = _logits(outputs)
        if len(labels) != len(logits):
            raise ValueError(f"{len(labels)} labels cannot be paired with an output of shape {logits.shape}")
        records = np.zeros((len(labels), 2))
        for record, of_tokens, label in zip(records, logits, labels, strict=True):
            classes = np.asarray(label)
            if classes.shape != of_tokens.shape[:1] or not np.issubdtype(classes.dtype, np.integer):
                raise ValueError(
                    f"a label must hold {len(of_tokens)} classes, one for each token of the model's output, with "
                    f"{IGNORED} for those that are not scored; this one has shape {classes.shape}, {classes.dtype}"
                )
            scored = classes != IGNORED
            wanted, rows = classes[scored], of_tokens[scored].astype(np.float64)
            if wanted.size and (wanted.min() < 0 or wanted.max() >= rows.shape[1]):
                raise ValueError(f"label {int(wanted.max())} is outside the model's {rows.shape[1]} classes")
            if self._counts_hits:
                hits = (rows.argmax(axis=1) == wanted) & ~np.isnan(rows).any(axis=1)
                record[:] = hits.sum(), wanted.size
            else:
                likelihoods = rows[np.arange(wanted.size), wanted] - logsumexp(rows, axis=1)
                record[:] = -likelihoods.sum(), wanted.size
        return records

    def errors(self, outputs: Outputs, reference: Outputs) -> NDArray[np.float64]:
        """Return the mean squared error of the log-probabilities per sample, over all tokens."""
        return log_probability_error(log_softmax(_logits(outputs), axis=2), log_softmax(_logits(reference), axis=2))

    def answers(self, outputs: Outputs) -> list[Any]:
        """Return the best class of every token, and -100 where ``attention_mask`` is 0."""
        best = _logits(outputs).argmax(axis=2)
        mask = outputs.get("attention_mask")
        return list(best if mask is None else np.where(np.asarray(mask) > 0, best, IGNORED))


def _logits(outputs: Outputs) -> NDArray[Any]:
    logits = first_output(outputs)
    if logits.ndim != 3:
        raise ValueError(f"tokens need an output of shape (batch, tokens, classes), but it is {logits.shape}")
    return logits
