"""Ranges of shapes, as data: what an engine must take."""

from __future__ import annotations

import numpy as np

from validate.backends.tensorrt.options import ShapeRanges


def batch(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def test_ranges_are_over_all_batches_and_axis_by_axis() -> None:
    ranges = ShapeRanges.of(
        [batch(x=(8, 3, 48, 320), y=(8, 1)), batch(x=(8, 3, 32, 640), y=(8, 1)), batch(x=(2, 3, 40, 80))]
    )
    assert ranges.smallest == {"x": (2, 3, 32, 80), "y": (8, 1)}
    assert ranges.largest == {"x": (8, 3, 48, 640), "y": (8, 1)}


def test_the_order_of_batches_is_irrelevant() -> None:
    batches = [batch(x=(1, 4)), batch(x=(3, 9)), batch(x=(2, 2))]
    assert ShapeRanges.of(batches) == ShapeRanges.of(reversed(batches))


def test_a_union_is_the_ranges_over_all_that_they_are_of() -> None:
    """A call that is timed may be of another batch size than the samples, and both have to fit the engine."""
    validation, timed = [batch(x=(8, 3, 32)), batch(x=(3, 3, 64))], [batch(x=(32, 3, 48), mask=(32, 1))]
    parts = [ShapeRanges.of(validation), ShapeRanges.of(timed)]
    before = ShapeRanges.of(validation)
    assert ShapeRanges.union(parts) == ShapeRanges.of([*validation, *timed])
    assert parts[0] == before  # it changes none of them
    assert ShapeRanges.union([]) == ShapeRanges()
    whole = ShapeRanges.union(parts).profile(fixed_batch=None)
    assert whole["x"] == ((1, 3, 32), (32, 3, 64), (32, 3, 64))


def test_a_model_with_a_fixed_batch_gets_that_and_no_other() -> None:
    ranges = ShapeRanges.of([batch(x=(8, 3, 32)), batch(x=(8, 3, 64))])
    assert ranges.profile(fixed_batch=4) == {"x": ((4, 3, 32), (4, 3, 64), (4, 3, 64))}
