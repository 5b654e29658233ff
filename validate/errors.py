"""How far is one tensor from another?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SignalNoise"]


class SignalNoise:
    """Signal-to-quantization-noise ratio, accumulated over batches in constant memory.

    ``SQNR = 10 log10(sum r^2 / sum (r - x)^2)`` in dB, with the reference r as the signal, sums in float64.
    inf where the two are equal (two all-zero tensors too), -inf where only the reference is zero, NaN where
    either holds a NaN or an infinity, or nothing was added.
    """

    def __init__(self) -> None:
        self._signal = 0.0
        self._noise = 0.0
        self._elements = 0

    def add(self, reference: NDArray[Any], value: NDArray[Any]) -> None:
        """Add one batch; both arrays have the same shape, ValueError otherwise."""
        if reference.shape != value.shape:
            raise ValueError(f"shapes differ: {reference.shape} and {value.shape}")
        r = reference.astype(np.float64).ravel()
        difference = r - value.astype(np.float64).ravel()
        self._signal += float(r @ r)
        self._noise += float(difference @ difference)
        self._elements += r.size

    @property
    def db(self) -> float:
        """The ratio so far, in dB."""
        if self._elements == 0 or not (math.isfinite(self._signal) and math.isfinite(self._noise)):
            return math.nan
        if self._noise == 0:
            return math.inf
        return 10 * math.log10(self._signal / self._noise) if self._signal else -math.inf
