"""Statistics of a tensor over a stream: exact minimum, maximum and counts, and a mergeable histogram of |x|.

The histogram's bin width is a power of two, fixed by the largest |x| alone: `MAX_BINS / 2` to `MAX_BINS` bins
cover the range. When the range grows, neighbouring bins are added in pairs, which is exact because
``floor(floor(x / w) / 2) == floor(x / 2w)``. So statistics are a commutative monoid: any batching, order or
sharding of the same values gives bit-identical statistics, and `merge` is associative and commutative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_BINS", "NonFiniteError", "Statistics"]

MAX_BINS = 8192
_LOG_BINS = 13
_EMPTY_EXPONENT = -1000  # narrower than any float32 needs; merging with it changes nothing
_LEAST_EXPONENT = -126  # float32 subnormals would need a scale factor beyond float32; this keeps 1 / width finite
_INFINITY = 0x7F800000  # its bits
_CHUNK = 1 << 16  # values at a time: their indices stay in the second-level cache
_ZERO_BINS = 64


class NonFiniteError(ValueError):
    """A tensor held a NaN or an infinity. `row` is the first one's index on axis 0."""

    def __init__(self, row: int) -> None:
        super().__init__(f"not finite at index {row} of axis 0")
        self.row = row


@dataclass(eq=False)
class Statistics:
    """Statistics of all values seen of one tensor.

    Attributes:
        minimum, maximum: exact; inf and -inf before the first value.
        count: values seen.
        zeros: values that were exactly 0 (they are exact in any symmetric quantization).
        exponent: the bin width is ``2**exponent``.
        bins: int64 counts, shape (MAX_BINS,); bin i holds i * width <= |x| < (i + 1) * width. Zeros are in bin 0.

    Examples:
        >>> first, second = Statistics(), Statistics()
        >>> first.update(np.array([0.0, 1.5, -3.0]))
        >>> second.update(np.array([[8.0]]))
        >>> merged = first.merge(second)
        >>> merged.minimum, merged.maximum, merged.count, merged.zeros
        (-3.0, 8.0, 4, 1)
        >>> merged.width * MAX_BINS  # the bins cover the power of two above the largest |x|
        16.0
    """

    minimum: float = math.inf
    maximum: float = -math.inf
    count: int = 0
    zeros: int = 0
    exponent: int = _EMPTY_EXPONENT
    bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(MAX_BINS, np.int64))

    @property
    def amax(self) -> float:
        """The largest |x|; 0.0 where nothing or only zeros were seen."""
        return max(abs(self.minimum), abs(self.maximum)) if self.count else 0.0

    @property
    def width(self) -> float:
        """Width of a bin, in the tensor's unit."""
        return math.ldexp(1.0, self.exponent)

    def histogram(self) -> NDArray[np.int64]:
        """Return the counts up to the last bin in use, shape (n,); the zeros are among bin 0's."""
        used = int(self.amax / self.width) + 1 if self.amax else 1
        return self.bins[:used]

    def update(self, values: NDArray[Any]) -> None:
        """Add the values of a float array. Raises NonFiniteError, and adds nothing, where one is not finite.

        Values are taken as float32; one that is beyond its range is not finite.
        """
        with np.errstate(over="ignore"):
            flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        if flat.size == 0:
            return
        bits = flat.view(np.int32)
        low, high, zeros = _count(flat, bits, *self._grid(), self.bins)
        if zeros < 0:  # beyond the bins: look at all values before anything changes, then widen
            low, high = _extremes(bits)
            if low < -_INFINITY or high >= _INFINITY:
                rows = np.isfinite(flat).reshape(len(values), -1).all(axis=1) if values.ndim else np.array([False])
                raise NonFiniteError(int(np.argmin(rows)))
            self._grow(_exponent(max(abs(_value(low)), abs(_value(high)))))
            low, high, zeros = _count(flat, bits, *self._grid(), self.bins)
        # Adding 0.0 makes -0.0 positive: which of the two min() keeps depends on their order.
        self.minimum, self.maximum = min(self.minimum, _value(low) + 0.0), max(self.maximum, _value(high) + 0.0)
        self.count += flat.size
        self.zeros += zeros

    def _grid(self) -> tuple[np.float32, np.int32]:
        """Return 1 / width, and the bits of the least |x| that is beyond the bins (empty: any but zero)."""
        if self.exponent == _EMPTY_EXPONENT:
            return np.float32(1), np.int32(1)
        return np.float32(math.ldexp(1.0, -self.exponent)), np.int32(self.exponent + _LOG_BINS + 127 << 23)

    def merge(self, other: Statistics) -> Statistics:
        """Return the statistics of the values of both; neither is changed."""
        merged = Statistics(
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
            self.count + other.count,
            self.zeros + other.zeros,
            self.exponent,
            self.bins.copy(),
        )
        merged._grow(other.exponent)
        grown = Statistics(exponent=other.exponent, bins=other.bins.copy())
        grown._grow(merged.exponent)
        merged.bins += grown.bins
        return merged

    def _grow(self, exponent: int) -> None:
        """Widen the bins to ``2**exponent``, adding neighbours; narrower is left as it is."""
        steps = exponent - self.exponent
        if steps <= 0:
            return
        self.exponent = exponent
        per_new_bin = min(1 << min(steps, 60), MAX_BINS)
        wider = self.bins.reshape(-1, per_new_bin).sum(axis=1)
        self.bins[:] = 0
        self.bins[: wider.size] = wider


def _exponent(amax: float) -> int:
    """Return the smallest e with ``amax < MAX_BINS * 2**e``, so that amax falls into the upper half of the bins."""
    if amax == 0:
        return _EMPTY_EXPONENT
    return max(math.frexp(amax)[1] - _LOG_BINS, _LEAST_EXPONENT)


def _value(key: int) -> float:
    """Return the float32 of a key; see `_extremes`."""
    return float(np.int32(key if key >= 0 else key ^ 0x7FFFFFFF).view(np.float32))


@numba.njit(cache=True, nogil=True)
def _extremes(bits: NDArray[np.int32]) -> tuple[int, int]:
    """Return the keys of the least and of the largest of some float32 values, which are given by their bits.

    A key is an integer that sorts as its float does: -inf < -1.0 < -0.0 < 0.0 < 1.0 < inf, NaN at either end.
    The key of -x is -1 - the key of x. Unlike that of floats, the minimum of integers is vectorized.
    """
    low, high = np.int32(2**31 - 1), np.int32(-(2**31))
    for b in bits:
        key = b ^ ((b >> np.int32(31)) & np.int32(0x7FFFFFFF))
        low, high = min(low, key), max(high, key)
    return int(low), int(high)


@numba.njit(cache=True, nogil=True)
def _count(
    values: NDArray[np.float32],
    bits: NDArray[np.int32],
    per_width: np.float32,
    limit: np.int32,
    bins: NDArray[np.int64],
) -> tuple[int, int, int]:
    """Count |values| into bins; return the extremes' keys and how many are exactly 0.

    Where one is at or beyond `limit` (bits of a positive float), nothing is counted and -1 zeros are returned.
    """
    low, high, zeros = 2**31 - 1, -(2**31), 0
    counts = np.zeros(bins.size + _ZERO_BINS, np.uint32)
    indices = np.empty(min(values.size, _CHUNK), np.uint16)
    for start in range(0, values.size, _CHUNK):
        stop = min(start + _CHUNK, values.size)
        least, most, nothing = _index(values[start:stop], bits[start:stop], per_width, bins.size, indices)
        if most >= limit or least < -limit:
            return low, high, -1
        low, high, zeros = min(low, least), max(high, most), zeros + nothing
        _increment(indices[: stop - start], counts)
    for i in range(bins.size):
        bins[i] += np.int64(counts[i])
    bins[0] += zeros
    return low, high, zeros


@numba.njit(cache=True, nogil=True)
def _index(
    values: NDArray[np.float32],
    bits: NDArray[np.int32],
    per_width: np.float32,
    first_zero_bin: int,
    indices: NDArray[np.uint16],
) -> tuple[int, int, int]:
    """Write the bin of every value (multiplying by a power of two is exact); return as `_count` does. Vectorized.

    Increments of one counter wait for each other, so zeros, of which ReLU makes runs, take turns among many.
    """
    low, high, zeros = np.int32(2**31 - 1), np.int32(-(2**31)), np.int32(0)
    for i in range(values.size):
        b = bits[i]
        key = b ^ ((b >> np.int32(31)) & np.int32(0x7FFFFFFF))
        low, high = min(low, key), max(high, key)
        is_zero = (b & np.int32(0x7FFFFFFF)) == 0
        zeros += np.int32(is_zero)
        zero_bin = np.int32(first_zero_bin) + (np.int32(i) & np.int32(_ZERO_BINS - 1))
        indices[i] = np.uint16(zero_bin if is_zero else np.int32(abs(values[i]) * per_width))
    return int(low), int(high), int(zeros)


@numba.njit(cache=True, nogil=True)
def _increment(indices: NDArray[np.uint16], counts: NDArray[np.uint32]) -> None:
    """Count indices, eight to a turn of the loop. Unsigned positions spare the test for negative ones."""
    one, unrolled = np.uint32(1), indices.size // 8
    for j in range(unrolled):
        i = np.uint64(8) * np.uint64(j)
        counts[np.uint64(indices[i])] += one
        counts[np.uint64(indices[i + np.uint64(1)])] += one
        counts[np.uint64(indices[i + np.uint64(2)])] += one
        counts[np.uint64(indices[i + np.uint64(3)])] += one
        counts[np.uint64(indices[i + np.uint64(4)])] += one
        counts[np.uint64(indices[i + np.uint64(5)])] += one
        counts[np.uint64(indices[i + np.uint64(6)])] += one
        counts[np.uint64(indices[i + np.uint64(7)])] += one
    for j in range(8 * unrolled, indices.size):
        counts[np.uint64(indices[np.uint64(j)])] += one
