"""The excess of a runtime's noise over the noise that rounding alone makes, on noise of known size."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from validate.layerwise.rounding_floor import RuntimeErrors

SAMPLES, SIZE = 64, 4000
Array = NDArray[np.float32]


def noisy(signal: Array, size: float, seed: int) -> Array:
    noise = np.random.default_rng(seed).normal(0, size, signal.shape)
    return (signal + noise).astype(np.float32)


@pytest.fixture(scope="module")
def signal() -> Array:
    return np.random.default_rng(0).normal(size=(SAMPLES, SIZE)).astype(np.float32)


@pytest.mark.parametrize(("times", "excess_db"), [(1.0, 0.0), (10**0.5, 10.0), (10.0, 20.0)])
def test_the_excess_is_the_ratio_of_the_noises(signal: Array, times: float, excess_db: float) -> None:
    errors = RuntimeErrors()
    for first in range(0, SAMPLES, 16):
        batch = signal[first : first + 16]
        floors = [noisy(batch, 1e-3, 100 + first), noisy(batch, 1e-3, 200 + first)]
        errors.add(batch, noisy(batch, times * 1e-3, first), floors, first)
    found = errors.difference()
    assert found.floor_db == pytest.approx(60, abs=0.1)
    assert found.difference.sqnr_db == pytest.approx(60 - excess_db, abs=0.1)
    assert found.excess_db == pytest.approx(excess_db, abs=0.1)
    assert excess_db - 0.2 < found.excess_low_db < found.excess_db


def test_noise_below_rounding_is_no_excess(signal: Array) -> None:
    """Two simulations that agree to the bit do not make one that rounds once differently look wrong."""
    errors = RuntimeErrors()
    errors.add(signal, noisy(signal, 2.0**-24, 1), [signal, signal], 0)
    found = errors.difference()
    assert found.floor_db == math.inf
    assert found.excess_db < 0.01


def test_one_sample_has_no_bound_and_another_shape_is_named(signal: Array) -> None:
    one = RuntimeErrors()
    one.add(signal[:1], noisy(signal[:1], 1.0, 1), [noisy(signal[:1], 1e-3, 2)], 0)
    assert one.difference().excess_db > 50 and math.isnan(one.difference().excess_low_db)
    other = RuntimeErrors()
    other.add(signal, signal[:, :-1], [signal], 0)
    problem = other.difference().difference.problem
    assert problem is not None and str(SIZE - 1) in problem
    assert math.isnan(other.difference().excess_low_db)
