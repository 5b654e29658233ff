"""Text recognition: text of a line image, decoded from CTC probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from validate.tasks.base import (
    Metric,
    Outputs,
    first_output,
    log_probability_error,
    parse_labels,
    ratio_of_sums,
    shown,
)

__all__ = ["TextRecognition"]

_TINY = 1e-30  # keeps log finite at probability 0


_METRICS = {
    "exact_match": Metric("exact_match", higher_is_better=True, is_rate=True),
    "character_error_rate": Metric(
        "character_error_rate", higher_is_better=False, is_rate=True, aggregate=ratio_of_sums
    ),
}


class TextRecognition:
    """Greedily decoded CTC text (Graves et al. 2006, section 3.2: best path decoding), compared with a label.

    The first output holds probabilities of shape (batch, steps, len(characters)); a label is the text. The metric is
    the share of lines that match exactly, or the character error rate: edits over characters of the labels, over all
    lines together (Graves et al. 2006, equation 2, there called label error rate, with sums in place of a mean of
    ratios), as a mean of rates per line would weigh a character of a short line more. An edit is an insertion, a
    deletion or a substitution of a code point. It has a record (edits,
    characters) per line.

    Args:
        characters: the symbol of each class; index `blank` is CTC's blank and is never part of a text.

    Examples:
        >>> task = TextRecognition(["", "a", "b"], metric="character_error_rate")
        >>> probabilities = np.eye(3)[[[1, 1, 0, 2]]]  # best classes a, a, blank, b of one line
        >>> task.decode(probabilities)
        ['ab']
        >>> task.scores({"probabilities": probabilities}, labels=["abb"]).tolist()  # edits, characters
        [[1.0, 3.0]]
    """

    def __init__(
        self,
        characters: Sequence[str],
        blank: int = 0,
        metric: Literal["exact_match", "character_error_rate"] = "exact_match",
    ) -> None:
        self.name = "text_recognition"
        self.metric = _METRICS[metric]
        self.characters = list(characters)
        self.blank = blank

    def decode(self, probabilities: NDArray[Any]) -> list[str]:
        """Return the text of each line: best class per step, repeats merged, blanks dropped."""
        if probabilities.ndim != 3 or probabilities.shape[2] != len(self.characters):
            raise ValueError(
                f"text recognition needs an output of shape (batch, steps, {len(self.characters)}), "
                f"but it is {probabilities.shape}"
            )
        texts = []
        for path in probabilities.argmax(axis=2):
            first_of_run = np.append(True, path[1:] != path[:-1])
            texts.append("".join(self.characters[i] for i in path[first_of_run & (path != self.blank)]))
        return texts

    def scores(self, outputs: Outputs, labels: Sequence[Any]) -> NDArray[np.float64]:
        """Return 1.0 where the text is the label, else 0.0; or edits and characters, shape (batch, 2).

        A line with a NaN is wrong, and counts as empty text.
        """
        probabilities = first_output(outputs)
        pairs = list(zip(self.decode(probabilities), parse_labels(labels, _text), strict=True))
        finite = ~np.isnan(probabilities).any(axis=(1, 2))
        if self.metric.is_mean:
            matches: NDArray[np.bool_] = np.array([text == label for text, label in pairs]) & finite
            return matches.astype(np.float64)
        counted = [
            (Levenshtein.distance(text, label) if ok else len(label), len(label))
            for (text, label), ok in zip(pairs, finite, strict=True)
        ]
        return np.array(counted, np.float64)

    def errors(self, outputs: Outputs, reference: Outputs) -> NDArray[np.float64]:
        """Return the mean squared error of the log-probabilities per sample."""
        p, q = first_output(outputs), first_output(reference)
        return log_probability_error(np.log(np.maximum(p, _TINY)), np.log(np.maximum(q, _TINY)))

    def answers(self, outputs: Outputs) -> list[Any]:
        """Return the text of each line."""
        return list(self.decode(first_output(outputs)))


def _text(label: Any) -> str:
    if not isinstance(label, str):
        raise ValueError(f"labels must be texts, but this one is {shown(label)}")
    return label
