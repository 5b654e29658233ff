"""Number formats against the types themselves: what each holds, and how it rounds."""

from __future__ import annotations

from typing import get_args

import numpy as np
import onnx
import pytest

from validate.number_formats import INT8, NUMBER_FORMATS, FloatPrecision, NumberFormat, Precision

FORMATS = NUMBER_FORMATS.values()


def test_the_names_are_those_of_the_types() -> None:
    assert tuple(NUMBER_FORMATS) == get_args(Precision)
    assert tuple(name for name, row in NUMBER_FORMATS.items() if not row.scaled) == get_args(FloatPrecision)


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)
def test_a_row_agrees_with_onnx(row: NumberFormat) -> None:
    assert onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.DataType.Value(row.onnx)) == row.numpy
    assert row.bytes == row.numpy.itemsize


def test_the_limits_are_those_of_the_bits() -> None:
    """Every number that two bytes can be, of the formats that have two bytes; all of int8."""
    patterns = np.arange(2**16, dtype=np.uint16)
    for name in ("fp16", "bf16"):
        row = NUMBER_FORMATS[name]  # type: ignore[index]
        with np.errstate(invalid="ignore"):  # signalling NaNs are among them
            numbers = patterns.view(row.numpy).astype(np.float64)
        numbers = numbers[np.isfinite(numbers)]
        assert (row.lowest, row.largest) == (numbers.min(), numbers.max())
        assert row.smallest in numbers
    assert NUMBER_FORMATS["fp16"].smallest == 2.0**-24
    assert (INT8.lowest, INT8.largest) == (-(2**7), 2**7 - 1)


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)
def test_halves_go_to_the_even_number_and_nothing_overflows(row: NumberFormat) -> None:
    unit = 1.0 if row.is_integer else float(np.spacing(np.ones((), row.numpy)).astype(np.float64))
    halves = 1 + unit * np.array([0.5, 1.5, 2.5])
    evens = 1 + unit * np.array([1.0, 1.0, 3.0]) if row.is_integer else 1 + unit * np.array([0.0, 2.0, 2.0])
    assert row.encode(halves).astype(np.float64).tolist() == evens.tolist()
    beyond = row.encode(np.array([-1e39, 1e39])).astype(np.float64)
    assert beyond.tolist() == [row.lowest, row.largest]
    assert row.encode(np.zeros((2, 3))).dtype == row.numpy
