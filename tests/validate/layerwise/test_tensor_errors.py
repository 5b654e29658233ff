"""The metrics of two tensors against their definitions in plain numpy, and where they have none."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from validate.layerwise.tensor_errors import TensorErrors

TYPES = [np.float16, np.float32, np.float64, np.int8, np.uint8, np.int32, np.int64, np.bool_]


def of(reference: NDArray[Any], other: NDArray[Any], parts: int = 1) -> TensorErrors:
    errors, first = TensorErrors(), 0
    for r, x in zip(np.array_split(reference, parts), np.array_split(other, parts), strict=True):
        errors.add(r, x, first)
        first += len(r)
    return errors


def drawn(dtype: Any, seed: int) -> NDArray[Any]:
    values = np.random.default_rng(seed).normal(0, 40, (7, 3, 50))
    return (values > 0) if dtype is np.bool_ else np.abs(values).astype(dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_every_metric_is_its_definition(dtype: Any) -> None:
    reference, other = drawn(dtype, 0), drawn(dtype, 1)
    found = of(reference, other)
    r, x = reference.astype(np.float64), other.astype(np.float64)
    d = r - x
    assert found.elements == r.size
    assert found.sqnr_db == pytest.approx(10 * np.log10((r**2).sum() / (d**2).sum()), abs=1e-9)
    assert found.cosine == pytest.approx((r * x).sum() / np.linalg.norm(r) / np.linalg.norm(x), rel=1e-12)
    assert found.relative_l2 == pytest.approx(np.linalg.norm(d) / np.linalg.norm(r), rel=1e-12)
    assert found.max_abs == pytest.approx(np.abs(d).max(), rel=1e-6)
    assert found.mean_abs == pytest.approx(np.abs(d).mean(), rel=1e-12)
    assert found.match_share == (r == x).mean()


@given(parts=st.integers(1, 9), seed=st.integers(0, 5))
def test_batches_do_not_matter(parts: int, seed: int) -> None:
    reference, other = drawn(np.float32, seed), drawn(np.float32, seed + 1)
    whole, split = of(reference, other), of(reference, other, parts)
    assert (split.elements, split.matches, split.maximum) == (whole.elements, whole.matches, whole.maximum)
    for name in ("sqnr_db", "cosine", "relative_l2", "mean_abs"):
        assert getattr(split, name) == pytest.approx(getattr(whole, name), rel=1e-12)


def test_the_noise_and_signal_of_each_sample_are_returned() -> None:
    reference, other = drawn(np.float32, 0), drawn(np.float32, 1)
    found = TensorErrors().add(reference, other)
    r, x = reference.astype(np.float64), other.astype(np.float64)
    np.testing.assert_allclose(found[:, 0], ((r - x) ** 2).sum(axis=(1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found[:, 1], (r**2).sum(axis=(1, 2)), rtol=1e-12)


ONES, ZEROS = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("reference", "other", "sqnr_db", "cosine", "relative_l2", "max_abs"),
    [
        (ONES, ONES, math.inf, 1, 0, 0),
        (ZEROS, ZEROS, math.inf, 1, 0, 0),
        (ZEROS, ONES, -math.inf, 0, math.inf, 1),
        (ONES, ZEROS, 0, 0, 1, 1),
        (ONES, -ONES, 10 * math.log10(1 / 4), -1, 2, 2),
        (ONES, 1.5 * ONES, 10 * math.log10(4), 1, 0.5, 0.5),
    ],
)
def test_zero_and_constant_tensors_have_defined_results(
    reference: Any, other: Any, sqnr_db: float, cosine: float, relative_l2: float, max_abs: float
) -> None:
    found = of(reference, other)
    assert (found.sqnr_db, found.relative_l2, found.max_abs) == pytest.approx((sqnr_db, relative_l2, max_abs))
    assert found.cosine == pytest.approx(cosine) and -1 <= found.cosine <= 1


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,)])
def test_a_tensor_without_elements_was_not_compared(shape: tuple[int, ...]) -> None:
    found = of(np.empty(shape, np.float32), np.empty(shape, np.float32))
    assert not found.defined
    assert all(math.isnan(getattr(found, name)) for name in ("sqnr_db", "cosine", "relative_l2", "max_abs", "mean_abs"))


def test_a_tensor_without_axes() -> None:
    errors = TensorErrors()
    errors.add(np.float32(2), np.float32(1))  # type: ignore[arg-type]
    assert (errors.elements, errors.max_abs) == (1, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["reference", "other"])
def test_what_is_not_finite_is_counted_and_found(bad: float, side: str) -> None:
    arrays = {"reference": drawn(np.float32, 0), "other": drawn(np.float32, 1)}
    arrays[side][4, 1, 7] = arrays[side][5, 2, 9] = bad
    found = of(arrays["reference"], arrays["other"], parts=3)
    assert found.first_not_finite == (4, 57)
    assert (found.reference_not_finite, found.other_not_finite) == ((2, 0) if side == "reference" else (0, 2))
    assert math.isnan(found.sqnr_db) and math.isnan(found.cosine) and math.isnan(found.max_abs)


def test_infinities_that_match_are_in_no_sum() -> None:
    reference, other = drawn(np.float32, 0), drawn(np.float32, 1)
    wanted = of(reference, other)
    mask = np.full((7, 3, 1), -np.inf, np.float32)
    found = of(np.concatenate([reference, mask], axis=2), np.concatenate([other, mask], axis=2))
    assert found.defined and found.sqnr_db == pytest.approx(wanted.sqnr_db, abs=1e-9)
    assert found.matches == wanted.matches + 21


def test_nans_at_the_same_place_are_no_match() -> None:
    values = np.array([[1, np.nan]], np.float32)
    found = of(values, values)
    assert not found.defined and (found.reference_not_finite, found.other_not_finite) == (1, 1)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_unit_does_not_matter(size: float) -> None:
    reference, other = drawn(np.float32, 0), drawn(np.float32, 1)
    wanted, found = of(reference, other), of(reference * np.float32(size), other * np.float32(size))
    assert found.sqnr_db == pytest.approx(wanted.sqnr_db, abs=1e-4)
    assert found.cosine == pytest.approx(wanted.cosine, abs=1e-6)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shapes differ: \(2, 3\) and \(3, 2\)"):
        TensorErrors().add(ONES, ONES.T)
