"""Text out of a line image, decoded from CTC probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from validate.tasks.base import Metric, Outputs, log_probability_error

__all__ = ["TextRecognition"]

_TINY = 1e-30  # keeps log finite at probability 0


class TextRecognition:
    """Exact match of greedily decoded CTC text (Graves et al. 2006, section 3.2: best path decoding).

    The first output holds probabilities of shape (batch, steps, len(characters)); a label is the text.

    Args:
        characters: the symbol of each class; index `blank` is CTC's blank and is never part of a text.
    """

    def __init__(self, characters: Sequence[str], blank: int = 0) -> None:
        self.name = "text_recognition"
        self.metric = Metric("exact_match", higher_is_better=True, is_rate=True)
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
        """Return 1.0 where the decoded text is the label, else 0.0; 0.0 where any probability is NaN."""
        for label in labels:
            if not isinstance(label, str):
                raise ValueError(f"labels must be texts, but one is {label!r}")
        probabilities = next(iter(outputs.values()))
        matches = [text == label for text, label in zip(self.decode(probabilities), labels, strict=True)]
        finite = ~np.isnan(probabilities).any(axis=(1, 2))
        return (np.array(matches) & finite).astype(np.float64)

    def errors(self, outputs: Outputs, reference: Outputs) -> NDArray[np.float64]:
        """Return the mean squared error of the log-probabilities per sample."""
        p, q = next(iter(outputs.values())), next(iter(reference.values()))
        return log_probability_error(np.log(np.maximum(p, _TINY)), np.log(np.maximum(q, _TINY)))
