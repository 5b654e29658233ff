"""Statistics are a commutative monoid: how the values arrive never shows, and every count is exact."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from validate.stats.histograms import MAX_BINS, NonFiniteError, Statistics

Float32 = NDArray[np.float32]

# The first example of a process compiles.
exhaustive = settings(deadline=None, max_examples=150)

SMALLEST = float(np.finfo(np.float32).smallest_subnormal)
LARGEST = float(np.finfo(np.float32).max)

_any = st.floats(width=32, allow_nan=False, allow_infinity=False)
_near_one = st.floats(-8, 8, width=32)
_octaves = st.builds(
    lambda sign, mantissa, exponent: float(np.float32(sign * math.ldexp(mantissa, exponent))),
    st.sampled_from([-1.0, 1.0]),
    st.floats(0.5, 1, exclude_max=True, width=16),
    st.integers(-149, 127),
)
_special = st.sampled_from(
    [0.0, -0.0, SMALLEST, -SMALLEST, LARGEST, -LARGEST, float(np.float32(1e38)), 1.0, math.ldexp(1.0, -126)]
)
values = st.one_of(*(st.lists(kind | _special, max_size=40) for kind in (_any, _near_one, _octaves)))


def of(*batches: Any) -> Statistics:
    statistics = Statistics()
    for batch in batches:
        statistics.update(np.asarray(batch, np.float32))
    return statistics


def bits(statistics: Statistics) -> tuple[Any, ...]:
    """Return everything that a Statistics holds, such that -0.0 differs from 0.0."""
    return (
        struct.pack("<2d", statistics.minimum, statistics.maximum),
        statistics.count,
        statistics.zeros,
        statistics.exponent,
        statistics.bins.dtype,
        statistics.bins.tobytes(),
    )


def expected(numbers: Sequence[float]) -> Statistics:
    """Return what the statistics must be, by definition and in float64."""
    x = np.abs(np.array(numbers, np.float64))
    if not x.size or not x.any():
        exponent, bins = Statistics().exponent, np.zeros(MAX_BINS, np.int64)
        bins[0] = x.size
    else:
        exponent = next(e for e in itertools.count(-126) if x.max() < MAX_BINS * 2.0**e)
        bins = np.bincount(np.floor(x / 2.0**exponent).astype(np.int64), minlength=MAX_BINS).astype(np.int64)
    return Statistics(
        min(numbers, default=math.inf) + 0.0,
        max(numbers, default=-math.inf) + 0.0,
        x.size,
        int((x == 0).sum()),
        exponent,
        bins,
    )


@given(values)
@example([0.0])
@example([-0.0, 0.0])
@example([SMALLEST])
@example([SMALLEST, LARGEST])
@example([-LARGEST])
@exhaustive
def test_one_batch_is_counted_exactly(numbers: list[float]) -> None:
    assert bits(of(numbers)) == bits(expected(numbers))


@given(values, st.randoms(use_true_random=False), st.data())
@example([0.0, -0.0], None, None)
@example([0.0, 1.0, 0.0], None, None)
@exhaustive
def test_split_order_and_sharding_never_show(numbers: list[float], random: Any, data: st.DataObject | None) -> None:
    if data is None:
        for order in itertools.permutations(numbers):
            assert bits(of(*([v] for v in order))) == bits(expected(numbers))
        return
    order = list(numbers)
    random.shuffle(order)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=8), "cuts"))
    batches = [order[i:j] for i, j in itertools.pairwise([0, *cuts, len(order)])]
    workers = data.draw(st.integers(1, 4), "workers")
    shards = [Statistics() for _ in range(workers)]
    for batch in batches:
        random.choice(shards).update(np.array(batch, np.float32))
    while len(shards) > 1:
        random.shuffle(shards)
        shards.append(shards.pop().merge(shards.pop()))
    assert bits(shards[0]) == bits(expected(numbers))


@given(values, values, values)
@exhaustive
def test_merge_is_a_commutative_monoid(first: list[float], second: list[float], third: list[float]) -> None:
    a, b, c = of(first), of(second), of(third)
    before = [bits(s) for s in (a, b, c)]
    assert bits(a.merge(b)) == bits(b.merge(a))
    assert bits(a.merge(b).merge(c)) == bits(a.merge(b.merge(c)))
    assert bits(a.merge(Statistics())) == bits(Statistics().merge(a)) == bits(a)
    assert bits(a.merge(b)) == bits(expected(first + second))
    assert [bits(s) for s in (a, b, c)] == before, "merge changed an operand"


@given(values, values)
@exhaustive
def test_a_merged_statistics_can_be_updated_further(first: list[float], second: list[float]) -> None:
    merged = of(first).merge(Statistics())
    merged.update(np.array(second, np.float32))
    assert bits(merged) == bits(expected(first + second))


@pytest.mark.parametrize("step", [1, 7, 12, 13, 14, 30, 60, 61, 70, 276])
def test_growth_by_many_octaves(step: int) -> None:
    numbers = [math.ldexp(1.0, e) for e in range(-149, 128, step)] * 3
    numbers += [-1.5 * v for v in numbers if 1e-37 < v < 1e37]
    ascending = sorted(numbers, key=abs)
    assert bits(of(*([v] for v in ascending))) == bits(expected(numbers))
    assert bits(of(*([v] for v in reversed(ascending)))) == bits(expected(numbers))


def test_ten_thousand_values_over_sixty_octaves() -> None:
    random = np.random.default_rng(0)
    x = (random.normal(size=10_000) * 2.0 ** random.integers(-40, 20, 10_000)).astype(np.float32)
    statistics = of(*np.array_split(x, 37))
    assert bits(statistics) == bits(expected(x.tolist()))
    assert np.count_nonzero(statistics.bins[1:]) > 100  # the comparison was of more than one bin


@given(values)
@exhaustive
def test_every_bin_holds_what_it_says(numbers: list[float]) -> None:
    statistics = of(numbers)
    histogram = statistics.histogram()
    assert int(histogram.sum()) == int(statistics.bins.sum()) == statistics.count == len(numbers)
    assert statistics.amax == max(map(abs, numbers), default=0.0)
    if statistics.amax:
        assert histogram[-1] > 0
        assert (histogram.size - 1) * statistics.width <= statistics.amax < histogram.size * statistics.width
        if statistics.amax >= math.ldexp(1.0, -113):  # below, subnormals bound the width
            assert histogram.size > MAX_BINS // 2
    else:
        assert histogram.size == 1


@pytest.mark.parametrize(
    "batches", [[[0.0] * 5], [[0.0], [-0.0]], [[-0.0] * 3, []], [[0.0] * 5, [1.0]], [[1.0], [0.0] * 5]]
)
def test_zeros_are_counted_and_binned(batches: list[list[float]]) -> None:
    numbers = list(itertools.chain(*batches))
    statistics = of(*batches)
    assert statistics.zeros == numbers.count(0.0)
    assert int(statistics.bins[0]) == numbers.count(0.0)
    assert int(statistics.bins.sum()) == len(numbers)
    assert bits(statistics) == bits(expected(numbers))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 5)])
def test_an_empty_array_changes_nothing(shape: tuple[int, ...]) -> None:
    statistics = of([1.0, -2.0, 0.0])
    before = bits(statistics)
    statistics.update(np.empty(shape, np.float32))
    assert bits(statistics) == before
    assert bits(of(np.empty(shape, np.float32))) == bits(Statistics())


def test_nothing_seen() -> None:
    nothing = Statistics()
    assert (nothing.amax, nothing.count, nothing.minimum, nothing.maximum) == (0.0, 0, math.inf, -math.inf)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, ">f4"])
def test_shape_layout_and_type_do_not_matter(dtype: Any) -> None:
    numbers = np.arange(-30, 30, dtype=np.float32)
    as_given = numbers.reshape(3, 4, 5).astype(dtype)
    before = as_given.copy()
    statistics = Statistics()
    statistics.update(as_given.transpose(2, 0, 1)[::-1])
    assert bits(statistics) == bits(expected(numbers.tolist()))
    assert np.array_equal(as_given, before)


def test_a_scalar_is_one_value() -> None:
    assert bits(of(np.float32(-3.25))) == bits(expected([-3.25]))


@given(
    values,
    st.integers(1, 5),
    st.integers(1, 4),
    st.data(),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.sampled_from([np.float16, np.float32, np.float64]),
)
@exhaustive
def test_what_is_not_finite_is_refused_whole(
    numbers: list[float], rows: int, columns: int, data: st.DataObject, poison: float, dtype: type
) -> None:
    statistics = of(numbers)
    before = bits(statistics)
    batch = np.ones((rows, columns, 2), dtype)
    places = data.draw(st.lists(st.tuples(st.integers(0, rows - 1), st.integers(0, columns - 1)), min_size=1))
    for row, column in places:
        batch[row, column, 1] = poison
    with pytest.raises(NonFiniteError) as error:
        statistics.update(batch)
    assert error.value.row == min(row for row, _ in places)
    assert bits(statistics) == before


def test_a_number_beyond_float32_is_not_finite() -> None:
    statistics = Statistics()
    with pytest.raises(NonFiniteError) as error:
        statistics.update(np.array([[1.0], [2.0], [1e300]]))
    assert error.value.row == 2
    assert bits(statistics) == bits(Statistics())


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_scalar_that_is_not_finite(poison: float) -> None:
    with pytest.raises(NonFiniteError) as error:
        of(np.float32(poison))
    assert error.value.row == 0
