"""Noise of one tensor of an engine, held against the noise of other right executions of the same graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from validate.layerwise import ROUNDING, TensorErrors

__all__ = ["Excess", "TensorNoise"]

_CONFIDENCE = 0.999


@dataclass(frozen=True)
class Excess:
    """Noise of the engine over the floor's, in dB, and its one-sided lower confidence bound; NaN of one sample."""

    db: float
    low_db: float


@dataclass
class TensorNoise:
    """Noise per sample of one tensor: the engine against the simulation, and other executions against it.

    The excess is ``10 log10(sum noise / sum floor)`` over all samples, with the floor's noise as the mean over the
    executions, and the bound is by the jackknife over samples. It is a ratio of sums, and no mean of ratios: where a
    value tips over into the next integer in few samples, the ratio of a sample is 0 or infinite.

    Attributes:
        errors: of the engine, with the simulation as the reference.
        not_finite: values of the engine that are NaN or infinite, and finite in simulation.

    Examples:
        >>> simulated = np.ones((4, 8), np.float32)
        >>> noise = TensorNoise()
        >>> noise.add(simulated, simulated + 2e-3, others=[simulated + 1e-3], first=0)
        >>> round(noise.excess().db, 1)  # twice the difference, four times the noise
        6.0
    """

    errors: TensorErrors = field(default_factory=TensorErrors)
    not_finite: int = 0
    _noise: list[float] = field(default_factory=list)
    _floor: list[float] = field(default_factory=list)
    _signal: list[float] = field(default_factory=list)

    def add(self, simulated: NDArray[Any], found: NDArray[Any], others: Sequence[NDArray[Any]], first: int) -> None:
        """Add one batch: the tensor as simulated, as the engine gives it, and as the other executions do.

        Raises:
            ValueError: the shapes differ.
        """
        noise, signal = self.errors.add(simulated, found, first).T
        floors = [TensorErrors().add(simulated, other)[:, 0] for other in others]
        self._noise += noise.tolist()
        self._signal += signal.tolist()
        self._floor += np.mean(floors, axis=0).tolist()
        if found.dtype.kind == "f":
            self.not_finite += int(np.count_nonzero(np.isfinite(simulated) & ~np.isfinite(found)))

    @property
    def floor_db(self) -> float:
        """SQNR of the other executions against the simulation; inf where they are equal."""
        floor, signal = sum(self._floor), sum(self._signal)
        if floor == 0:
            return math.inf
        return 10 * math.log10(signal / floor) if signal else -math.inf

    def excess(self) -> Excess:
        """Return the engine's noise over the floor's; NaN where one of them is not finite."""
        least = ROUNDING**2 * np.array(self._signal) + np.finfo(np.float64).tiny  # below it, noise says nothing
        noise, floor = np.array(self._noise) + least, np.array(self._floor) + least
        samples = len(noise)
        db = float(10 * np.log10(noise.sum() / floor.sum()))
        if samples < 2:
            return Excess(db, math.nan)
        left_out = 10 * np.log10((noise.sum() - noise) / (floor.sum() - floor))
        error = math.sqrt((samples - 1) * float(np.var(left_out)))
        return Excess(db, db - float(stats.t.ppf(_CONFIDENCE, samples - 1)) * error)
