"""Error metrics of a tensor against a reference: from sums, in one pass, in constant memory.

Definitions, with the reference r as the signal, the other tensor x, and sums over all elements in float64:

- ``SQNR = 10 log10(sum r^2 / sum (r - x)^2)`` in dB: inf where the two are equal, -inf where only r is zero.
- ``cosine = sum r x / sqrt(sum r^2 sum x^2)``: 1 where both are zero, 0 where one is.
- ``relative L2 = sqrt(sum (r - x)^2 / sum r^2)``: 0 where both are equal, inf where only r is zero.

An infinity that both hold at the same place (a mask of attention) is an exact match and in no sum. Any other
value that is not finite makes these NaN, as do tensors without elements: they could not be computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["TensorErrors"]

_WIDE = frozenset("dlqLQ")  # types whose values float32 may not hold


@dataclass
class TensorErrors:
    """Accumulated errors of a tensor against its reference, over batches.

    Attributes:
        elements: compared so far.
        signal, energy, product, noise: sums of r^2, x^2, r x and (r - x)^2.
        absolute, maximum: sum and maximum of |r - x|, in the tensor's unit.
        matches: elements that are equal.
        reference_not_finite, other_not_finite: NaNs and infinities; those that match are not counted.
        first_not_finite: where the first one is: (sample, index of the element within it), both from 0.

    Examples:
        >>> errors = TensorErrors()
        >>> _ = errors.add(np.array([[3.0, 4.0]], np.float32), np.array([[3.0, 3.5]], np.float32))
        >>> errors.sqnr_db, errors.relative_l2, float(errors.max_abs), errors.match_share
        (20.0, 0.1, 0.5, 0.5)
    """

    elements: int = 0
    signal: float = 0.0
    energy: float = 0.0
    product: float = 0.0
    noise: float = 0.0
    absolute: float = 0.0
    maximum: float = 0.0
    matches: int = 0
    reference_not_finite: int = 0
    other_not_finite: int = 0
    first_not_finite: tuple[int, int] | None = None

    def add(self, reference: NDArray[Any], other: NDArray[Any], first: int = 0) -> NDArray[np.float64]:
        """Add one batch.

        Args:
            reference: of any real or boolean type; the batch is axis 0.
            other: of the same shape.
            first: index of the batch's first sample.

        Returns:
            the noise and the signal of every sample, shape (n, 2); a tensor without axes counts as one sample.

        Raises:
            ValueError: the shapes differ.
        """
        if reference.shape != other.shape:
            raise ValueError(f"shapes differ: {reference.shape} and {other.shape}")
        r, x = _rows(reference, other)
        sums, counts = _compare(r, x)
        totals = sums.sum(axis=0)
        self.signal += totals[0]
        self.energy += totals[1]
        self.product += totals[2]
        self.noise += totals[3]
        self.absolute += totals[4]
        self.maximum = max(self.maximum, sums[:, 5].max(initial=0.0))
        self.matches += int(counts[:, 0].sum())
        self.reference_not_finite += int(counts[:, 1].sum())
        self.other_not_finite += int(counts[:, 2].sum())
        self.elements += r.size
        if self.first_not_finite is None and (counts[:, 3] >= 0).any():
            row = int(np.argmax(counts[:, 3] >= 0))
            self.first_not_finite = first + row, int(counts[row, 3])
        return np.where((counts[:, 3] >= 0)[:, None], np.nan, sums[:, [3, 0]])

    @property
    def defined(self) -> bool:
        """Whether the metrics could be computed."""
        return self.elements > 0 and self.first_not_finite is None

    @property
    def sqnr_db(self) -> float:
        """Signal-to-quantization-noise ratio, in dB."""
        if not self.defined:
            return math.nan
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf

    @property
    def cosine(self) -> float:
        """Cosine similarity, in [-1, 1]."""
        if not self.defined:
            return math.nan
        if self.signal == 0 or self.energy == 0:
            return float(self.signal == self.energy)
        return min(1.0, max(-1.0, self.product / math.sqrt(self.signal) / math.sqrt(self.energy)))

    @property
    def relative_l2(self) -> float:
        """Norm of the difference over the norm of the reference."""
        if not self.defined:
            return math.nan
        if self.noise == 0:
            return 0.0
        return math.sqrt(self.noise / self.signal) if self.signal else math.inf

    @property
    def max_abs(self) -> float:
        """Largest |r - x|, in the tensor's unit."""
        return self.maximum if self.defined else math.nan

    @property
    def mean_abs(self) -> float:
        """Mean of |r - x|, in the tensor's unit."""
        return self.absolute / self.elements if self.defined else math.nan

    @property
    def match_share(self) -> float:
        """Share of elements that are equal, in [0, 1]."""
        return self.matches / self.elements if self.elements else math.nan


def _rows(reference: NDArray[Any], other: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return both as float arrays of one type, shape (samples, elements of each)."""
    wide = {reference.dtype.char, other.dtype.char} & _WIDE
    dtype = np.float64 if wide else np.float32
    samples = reference.shape[0] if reference.ndim else 1
    width = reference.size // samples if samples else 0
    r, x = (np.ascontiguousarray(a, dtype).reshape(samples, width) for a in (reference, other))
    return r, x


def _compare(r: NDArray[Any], x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return per sample six sums (see `_sums`) and four counts (see `_sums_of_finite`)."""
    sums, matches = np.empty((len(r), 6)), np.empty(len(r), np.int64)
    _sums(r, x, sums, matches)
    counts = np.zeros((len(r), 4), np.int64)
    counts[:, 0], counts[:, 3] = matches, -1
    for row in np.flatnonzero(~np.isfinite(sums).all(axis=1)):  # rare, and float64 sums of float32 do not overflow
        _sums_of_finite(r[row], x[row], sums[row], counts[row])
    return sums, counts


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _sums(r, x, sums, matches):  # type: ignore[no-untyped-def] # pragma: no cover
    """Add up r^2, x^2, r x, (r - x)^2, |r - x|, the largest |r - x|, and the matches, of every row."""
    for row in range(r.shape[0]):
        signal = energy = product = noise = absolute = 0.0
        largest = r.dtype.type(0)
        equal = 0
        for i in range(r.shape[1]):
            a, b = np.float64(r[row, i]), np.float64(x[row, i])
            difference = a - b
            distance = abs(difference)
            signal += a * a
            energy += b * b
            product += a * b
            noise += difference * difference
            absolute += distance
            largest = max(largest, abs(r[row, i] - x[row, i]))
            equal += a == b
        sums[row, 0], sums[row, 1], sums[row, 2] = signal, energy, product
        sums[row, 3], sums[row, 4], sums[row, 5] = noise, absolute, largest
        matches[row] = equal


@numba.njit(cache=True, nogil=True)
def _sums_of_finite(r, x, sums, counts):  # type: ignore[no-untyped-def] # pragma: no cover
    """Do the same for one row that holds something not finite, without it.

    Count the matches, what is not finite in the reference, and in the other, and say where the first is, or -1.
    """
    sums[:] = 0
    counts[:] = 0
    counts[3] = -1
    for i in range(r.size):
        a, b = np.float64(r[i]), np.float64(x[i])
        if np.isfinite(a) and np.isfinite(b):
            sums[0] += a * a
            sums[1] += b * b
            sums[2] += a * b
            sums[3] += (a - b) * (a - b)
            sums[4] += abs(a - b)
            sums[5] = max(sums[5], abs(a - b))
            counts[0] += a == b
        elif a == b:
            counts[0] += 1
        else:
            counts[1] += not np.isfinite(a)
            counts[2] += not np.isfinite(b)
            if counts[3] < 0:
                counts[3] = i
