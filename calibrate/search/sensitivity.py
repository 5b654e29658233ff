"""Sensitivity of layers: the task error that each makes alone in INT8."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["effects_of_layers", "ranking_samples"]

_LEAST = 1e-12
"""Task errors below this count as this, so that their logarithm is finite."""


_PASSES = 4.0
"""Runs over the pool that the ranking of all layers may take; a whole search takes six at most."""
_MOST_SAMPLES = 4


def ranking_samples(layers: int, pool: int) -> list[int]:
    """Return the indices of the samples that rank the layers, evenly spread over the pool.

    There are four, or fewer where so many layers would take more than four runs over the pool; one at least.

    Args:
        layers: how many layers are ranked.
        pool: how many samples there are to pick from.

    Examples:
        >>> ranking_samples(layers=50, pool=64)
        [0, 21, 42, 63]
        >>> ranking_samples(layers=100, pool=64)
        [0, 63]
    """
    each = int(np.clip(_PASSES * pool // (layers + 1), 1, min(_MOST_SAMPLES, pool)))
    found: list[int] = np.unique(np.linspace(0, pool - 1, each).round().astype(int)).tolist()
    return found


def effects_of_layers(
    layers: Sequence[str], error_alone: Callable[[str, int], float], samples: Sequence[int]
) -> dict[str, float]:
    """Return the effect of every layer on the task's error, worst first; ties keep their order.

    The effect is the error of the model with that layer **alone** in int8: a layer's own error is a far cleaner signal
    than the small change that one layer makes among all others. It is the **geometric** mean over a few samples, the
    same for every layer: task errors of one layer spread over decades from sample to sample, and an arithmetic mean is
    one sample's. Measured (`benchmarks/fallback.py`, PP-OCRv4): two to four samples rank as well as 64, and better than
    regressions on random masks or one layer back to float at a time, which take all samples.

    Args:
        layers: to rank, each once.
        error_alone: task error, >= 0, of a sample with only this layer in int8.
        samples: which ranking samples to try, by index.

    Examples:
        >>> errors = {"a": [0.1, 0.1], "b": [0.2, 0.8]}
        >>> effects = effects_of_layers(["a", "b"], lambda layer, sample: errors[layer][sample], samples=[0, 1])
        >>> {layer: round(effect, 6) for layer, effect in effects.items()}
        {'b': 0.4, 'a': 0.1}
    """
    errors = np.array([[error_alone(layer, sample) for sample in samples] for layer in layers], np.float64)
    return dict(sorted(zip(layers, _geometric_mean(errors), strict=True), key=lambda item: -item[1]))


def _geometric_mean(errors: NDArray[np.float64]) -> list[float]:
    """Return the geometric means over the last axis; NaN counts as infinite, so that a broken layer comes first."""
    finite = np.where(np.isnan(errors), np.inf, np.maximum(errors, _LEAST))
    means: list[float] = np.exp(np.log(finite).mean(axis=-1)).tolist()
    return means
