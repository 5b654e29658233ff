"""The rounding floor: how far two correct runtimes may differ, to tell a wrong one from one that rounds.

Two correct executions of one Q/DQ graph differ: a sum that is rounded differently may tip a value over into the next
integer, and later layers carry that on. What rounding alone does (the floor) is measured on simulations that differ in
nothing else, sample by sample, and the runtime's noise is compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from validate.layerwise.comparison import RuntimeDifference, TensorDifference
from validate.layerwise.tensor_errors import TensorErrors

__all__ = ["ROUNDING", "RuntimeErrors"]

ROUNDING = 2.0**-19
"""Relative size of what float32 may lose in a dot product: about sqrt(k) * 2^-24 for k = 1000 products (Higham,
*Accuracy and Stability of Numerical Algorithms*, 2nd ed., section 2.8, probabilistic bound)."""

_CONFIDENCE = 0.999


@dataclass
class RuntimeErrors:
    """Accumulated errors of one tensor: runtime against simulation, and simulations against each other.

    The excess of a sample is ``10 log10((noise + c) / (floor + c))`` in dB, with the floor's noise as the mean over the
    simulations and ``c = ROUNDING^2 * signal``, below which noise says nothing. Mean and variance over samples by
    Welford's update.

    Examples:
        >>> simulated = np.full((4, 8), 1.0, np.float32)
        >>> errors = RuntimeErrors()
        >>> errors.add(simulated, executed=simulated + 2e-3, again=[simulated + 1e-3], first=0)
        >>> round(errors.difference().excess_db, 1)  # twice the difference, four times the noise
        6.0
    """

    samples: int = 0
    errors: TensorErrors = field(default_factory=TensorErrors)
    floor_noise: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    problem: str | None = None

    def add(self, simulated: NDArray[Any], executed: NDArray[Any], again: Sequence[NDArray[Any]], first: int) -> None:
        """Add one batch: the tensor as simulated, as the runtime gives it, and as simulated once more per floor."""
        try:
            noise, signal = self.errors.add(simulated, executed, first).T
        except ValueError as error:
            self.problem = str(error)
            self.samples += 1
            return
        floors = [TensorErrors().add(simulated, other, first)[:, 0] for other in again]
        floor = np.mean(floors, axis=0) if floors else np.zeros_like(noise)
        self.floor_noise += float(floor.sum())
        least = ROUNDING**2 * signal + np.finfo(np.float64).tiny
        for excess in 10 * np.log10((noise + least) / (floor + least)):
            self.samples += 1
            step = float(excess) - self.mean
            self.mean += step / self.samples
            self.squares += step * (float(excess) - self.mean)

    def difference(self) -> RuntimeDifference:
        """Return the metrics of the accumulated errors."""
        low = math.nan
        if self.samples > 1 and self.problem is None:
            error = math.sqrt(self.squares / (self.samples - 1) / self.samples)
            low = self.mean - float(stats.t.ppf(_CONFIDENCE, self.samples - 1)) * error
        signal = self.errors.signal
        floor = (
            math.inf if self.floor_noise == 0 else 10 * math.log10(signal / self.floor_noise) if signal else -math.inf
        )
        return RuntimeDifference(
            difference=TensorDifference.of(self.errors, self.problem, ("simulation", "runtime")),
            floor_db=floor,
            excess_db=self.mean,
            excess_low_db=low,
        )
