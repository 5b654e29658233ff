"""Sensitivity of layers: the task error that each makes alone in INT8."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["effects_of_layers", "ranking_samples"]

_LEAST = 1e-12
"""A task error that is as good as none."""


_PASSES = 4.0
"""Runs over the ranking samples that all layers may take together, of the six that a search may cost with all else."""
_MOST_SAMPLES = 4


def ranking_samples(layers: int, pool: int) -> list[int]:
    """Return the indices of the samples that rank so many layers, spread over `pool` samples.

    There are `_MOST_SAMPLES`, or fewer where there are so many layers that these would take more than `_PASSES` runs
    over the pool; one at least.
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
    """
    errors = np.array([[error_alone(layer, sample) for sample in samples] for layer in layers], np.float64)
    return dict(sorted(zip(layers, _geometric_mean(errors), strict=True), key=lambda item: -item[1]))


def _geometric_mean(errors: NDArray[np.float64]) -> list[float]:
    """Return the geometric means over the last axis; NaN counts as infinite, so that a broken layer comes first."""
    finite = np.where(np.isnan(errors), np.inf, np.maximum(errors, _LEAST))
    means: list[float] = np.exp(np.log(finite).mean(axis=-1)).tolist()
    return means
