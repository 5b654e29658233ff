"""SQNR against its definition in numpy, and at every edge of it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from validate.errors import SignalNoise

relaxed = settings(deadline=None, max_examples=200)

_floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
pairs = st.lists(st.tuples(_floats, _floats), min_size=1, max_size=50)


def sqnr(reference: Any, value: Any) -> float:
    error = SignalNoise()
    error.add(np.asarray(reference), np.asarray(value))
    return error.db


def noisy(shape: tuple[int, ...], db: float, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a unit Gaussian and the same with independent noise of `db` below it."""
    random = np.random.default_rng(seed)
    r = random.normal(size=shape)
    return r.astype(np.float32), (r + random.normal(size=shape) * 10 ** (-db / 20)).astype(np.float32)


@given(pairs)
@example([(1e-45, 1e38)])
@relaxed
def test_sqnr_is_its_definition(numbers: list[tuple[float, float]]) -> None:
    r, x = np.array(numbers, np.float32).astype(np.longdouble).T
    signal, noise = np.sum(r**2), np.sum((r - x) ** 2)
    assume(signal > 0 and noise > 0)
    expected = 10 * np.log10(signal / noise)
    assert sqnr(r.astype(np.float32), x.astype(np.float32)) == pytest.approx(float(expected), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("db", [-10.0, 0.0, 20.0, 45.0])
def test_sqnr_measures_the_noise_that_was_added(db: float) -> None:
    assert sqnr(*noisy((50, 40, 30), db)) == pytest.approx(db, abs=0.1)


def test_a_known_number() -> None:
    """Ten times as much in amplitude is 20 dB; the mean plays no part."""
    assert sqnr([[10.0, 0.0]], [[9.0, 0.0]]) == pytest.approx(20.0)
    assert sqnr([3.0, 4.0], [3.0, 9.0]) == pytest.approx(0.0)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
@relaxed
def test_streaming_is_the_same_as_whole(sizes: list[int]) -> None:
    """Sums, not a mean of each batch's ratio: batches of any size count by what they hold."""
    r, x = noisy((sum(sizes), 7), 12.0)
    r *= np.arange(1, len(r) + 1, dtype=np.float32)[:, None]
    streamed = SignalNoise()
    for start, stop in itertools.pairwise(np.cumsum([0, *sizes])):
        streamed.add(r[start:stop], x[start:stop])
    assert streamed.db == pytest.approx(sqnr(r, x), rel=1e-12)


def test_half_precision_is_summed_in_double() -> None:
    """In float16 the squares overflow; in float32 a million equal terms lose digits."""
    r = np.full(1_000_000, 300.0, np.float16)
    assert sqnr(r, r - np.float16(30)) == pytest.approx(20.0, abs=1e-9)


def test_integers_do_not_wrap() -> None:
    assert sqnr(np.array([100, 0], np.uint8), np.array([110, 0], np.uint8)) == pytest.approx(20.0)


@pytest.mark.parametrize("value", [0.0, 1.0, -1e38, 1e-45])
def test_equal_is_infinite(value: float) -> None:
    x = np.full((2, 3), value, np.float32)
    assert sqnr(x, x.copy()) == math.inf


def test_zero_and_minus_zero_are_equal() -> None:
    assert sqnr([0.0], [-0.0]) == math.inf


def test_a_zero_reference_that_is_missed_is_minus_infinite() -> None:
    assert sqnr(np.zeros(3, np.float32), np.array([0, 1e-30, 0], np.float32)) == -math.inf


def test_a_zero_batch_is_not_a_zero_reference() -> None:
    error = SignalNoise()
    error.add(np.zeros(2), np.zeros(2))
    assert error.db == math.inf
    error.add(np.zeros(2), np.array([1.0, 0.0]))
    assert error.db == -math.inf
    error.add(np.array([10.0]), np.array([10.0]))
    assert error.db == pytest.approx(20.0)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["reference", "value", "both"])
@pytest.mark.filterwarnings("ignore:invalid value")  # inf - inf
def test_what_is_not_finite_is_nan_forever(poison: float, where: str) -> None:
    good, bad = np.ones(4), np.array([1.0, poison, 1.0, 1.0])
    error = SignalNoise()
    error.add(bad if where != "value" else good, bad if where != "reference" else good)
    assert math.isnan(error.db)
    error.add(good, good)
    assert math.isnan(error.db)


def test_nothing_added_is_nan() -> None:
    assert math.isnan(SignalNoise().db)
    assert math.isnan(sqnr(np.empty((0, 3)), np.empty((0, 3))))


@pytest.mark.parametrize("shapes", [((2, 3), (3, 2)), ((4,), (4, 1)), ((1, 3), (2, 3)), ((), (1,)), ((0,), (0, 1))])
def test_shapes_that_differ_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """Also where numpy would broadcast, or the number of elements is the same."""
    error = SignalNoise()
    error.add(np.ones(2), np.array([1.0, 2.0]))
    before = error.db
    with pytest.raises(ValueError, match="shapes differ"):
        error.add(np.zeros(shapes[0]), np.ones(shapes[1]))
    assert error.db == before
