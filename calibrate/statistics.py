"""What one streaming pass remembers of a tensor: exact min, max and counts, and a mergeable histogram of |x|.

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
_EMPTY_EXPONENT = -1000  # narrower than any float32 needs; merging with it changes nothing
_LEAST_EXPONENT = -126  # float32 subnormals would need a scale factor beyond float32; this keeps 1 / width finite


class NonFiniteError(ValueError):
    """A tensor held a NaN or an infinity. `row` is the first one's index on axis 0."""

    def __init__(self, row: int) -> None:
        super().__init__(f"not finite at index {row} of axis 0")
        self.row = row


@dataclass
class Statistics:
    """Statistics of all values seen of one tensor.

    Attributes:
        minimum, maximum: exact; inf and -inf before the first value.
        count: values seen.
        zeros: values that were exactly 0 (they are exact in any symmetric quantization).
        exponent: the bin width is ``2**exponent``.
        bins: int64 counts, shape (MAX_BINS,); bin i holds i * width <= |x| < (i + 1) * width. Zeros are in bin 0.
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
            flat = np.ascontiguousarray(values, np.float32).ravel()
        if flat.size == 0:
            return
        low, high = _extremes(flat)
        if not (math.isfinite(low) and math.isfinite(high)):
            rows = np.isfinite(flat).reshape(len(values), -1).all(axis=1) if values.ndim else np.array([False])
            raise NonFiniteError(int(np.argmin(rows)))
        # Adding 0.0 makes -0.0 positive: which of the two min() keeps depends on their order.
        self.minimum, self.maximum = min(self.minimum, low + 0.0), max(self.maximum, high + 0.0)
        self.count += flat.size
        self._grow(_exponent(self.amax))
        per_width = np.float32(math.ldexp(1.0, -max(self.exponent, _LEAST_EXPONENT)))  # only zeros: any will do
        self.zeros += int(_count(flat, per_width, self.bins))

    def merge(self, other: Statistics) -> Statistics:
        """Return the statistics of the values of both; neither is changed."""
        merged = Statistics(
            min(self.minimum, other.minimum), max(self.maximum, other.maximum), self.count + other.count,
            self.zeros + other.zeros, self.exponent, self.bins.copy(),
        )  # fmt: skip
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
    return max(math.frexp(amax)[1] - (MAX_BINS.bit_length() - 1), _LEAST_EXPONENT)


@numba.njit(cache=True, nogil=True, fastmath=False)
def _extremes(values: NDArray[np.float32]) -> tuple[float, float]:
    """Return (min, max) of a non-empty array; NaN for both where there is one."""
    low = high = values[0]
    for value in values:
        if value != value:
            return value, value
        low = min(low, value)
        high = max(high, value)
    return low, high


@numba.njit(cache=True, nogil=True)
def _count(values: NDArray[np.float32], per_width: np.float32, bins: NDArray[np.int64]) -> int:
    """Count |value| into bins (multiplying by a power of two is exact) and return how many are exactly 0."""
    zeros = 0
    for value in values:
        bins[int(abs(value) * per_width)] += 1
        zeros += value == 0
    return zeros
