"""Entropy calibration: the threshold whose quantized distribution has the least Kullback-Leibler divergence."""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

from validate.number_formats import INT8, NumberFormat
from validate.stats import Statistics

__all__ = ["entropy"]

BINS = 2048
"""TensorRT's number of histogram bins; ours are between half of it and all of it, their width a power of two."""


def entropy(statistics: Statistics, number_format: NumberFormat = INT8) -> float:
    """Return the threshold that minimises ``KL(P || Q)``, in the tensor's unit.

    Migacz, "8-bit Inference with TensorRT" (GTC 2017, slides 28-40): for every candidate of i bins, from 128 to
    all, P is the histogram's first i bins with all outliers added to the last; Q are the same bins without the
    outliers, averaged to 128 levels and expanded in float over the bins that are not empty in P. A candidate
    where Q is 0 and P is not has infinite divergence. Of equal ones the widest wins.

    Differs from the slides in one point: exact zeros are left out, because every symmetric scale represents
    them exactly, and a ReLU's spike at zero would otherwise decide the threshold.

    Args:
        statistics: of the tensor.

    Examples:
        >>> import numpy as np
        >>> from validate.stats import Statistics
        >>> statistics = Statistics()
        >>> statistics.update(np.append(np.linspace(-1, 1, 100_001), 4.0))  # one outlier
        >>> entropy(statistics)
        1.0
    """
    levels = int(number_format.largest) + 1  # magnitudes, with zero: 128 of int8, as in TensorRT's calibrator
    counts, width = _coarsen(statistics)
    if counts.size <= levels or not counts.any():
        return statistics.amax
    best: int = _best_candidate(counts.astype(np.float64), levels)
    return min(best * width, statistics.amax)


def _coarsen(statistics: Statistics) -> tuple[NDArray[np.int64], float]:
    """Return at most `BINS` counts without the exact zeros, and their bin width."""
    counts = statistics.histogram().copy()
    counts[0] -= statistics.zeros
    factor = 1
    while counts.size > BINS * factor:
        factor *= 2
    counts.resize(math.ceil(counts.size / factor) * factor, refcheck=False)
    return counts.reshape(-1, factor).sum(axis=1), statistics.width * factor


@numba.njit(cache=True)
def _best_candidate(counts: NDArray[np.float64], levels: int) -> int:
    """Return the number of bins whose KL divergence is least."""
    n = counts.size
    total = counts.sum()
    filled = np.zeros(n + 1, np.int64)  # bins that are not empty, before index
    mass = np.zeros(n + 1)
    entropy_of = np.zeros(n + 1)  # sum of c log c, before index
    for i in range(n):
        c = counts[i]
        filled[i + 1] = filled[i] + (c > 0)
        mass[i + 1] = mass[i] + c
        entropy_of[i + 1] = entropy_of[i] + (c * math.log(c) if c > 0 else 0.0)
    best, best_divergence = n, np.inf
    for i in range(n, levels - 1, -1):
        outliers = total - mass[i]
        last = counts[i - 1]
        if mass[i] <= 0:
            continue
        # sum P log P with the outliers in the last bin; P and Q are normalised by `total` and `mass[i]`.
        p_last = last + outliers
        p_log_p = entropy_of[i - 1] + (p_last * math.log(p_last) if p_last > 0 else 0.0)
        p_log_q = 0.0
        possible = True
        for level in range(levels):
            start, stop = level * i // levels, (level + 1) * i // levels
            q_mass = mass[stop] - mass[start]
            q_filled = filled[stop] - filled[start]
            p_mass = q_mass
            if stop == i:
                p_mass += outliers
                q_filled += last == 0 and outliers > 0
            if p_mass <= 0:
                continue
            if q_mass <= 0:
                possible = False
                break
            p_log_q += p_mass * math.log(q_mass / q_filled)
        if not possible:
            continue
        divergence = (p_log_p - p_log_q) / total + math.log(mass[i] / total)
        if divergence < best_divergence - 1e-12:
            best, best_divergence = i, divergence
    return best
