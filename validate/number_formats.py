"""The number formats that a layer may be computed in, a row each; everything that a format decides is read from here.

They stand below both packages, since results and comparisons name them as plans do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

__all__ = ["INT8", "NUMBER_FORMATS", "FloatPrecision", "NumberFormat", "Precision"]

Precision = Literal["int8", "fp16", "bf16", "fp32"]
"""Names of all formats."""
FloatPrecision = Literal["fp16", "bf16", "fp32"]
"""Names of those that need no scale."""


@dataclass(frozen=True)
class NumberFormat:
    """A type of numbers, and which numbers it holds.

    Attributes:
        name: by which configs, plans and results call it.
        bits: of one number, with its sign.
        onnx: name of the type in ONNX (``TensorProto.DataType``).
        numpy: the type in NumPy; types that NumPy lacks are those of ml_dtypes.
        largest: the largest finite number. In a format with a scale, a tensor's threshold becomes this one.
        lowest: the lowest finite number.
        smallest: the smallest positive number that is used; in fp16, whose range is short, a subnormal one.
        scaled: a tensor needs a scale, and so a QuantizeLinear and a DequantizeLinear.
        rounding: of numbers between two that the format holds.
    """

    name: Precision
    bits: int
    onnx: str
    numpy: np.dtype[Any]
    largest: float
    lowest: float
    smallest: float
    scaled: bool = False
    rounding: Literal["half_to_even"] = "half_to_even"

    @property
    def bytes(self) -> int:
        """Size of one number in memory."""
        return self.bits // 8

    @property
    def is_integer(self) -> bool:
        """Whether the numbers are evenly spaced."""
        return self.numpy.kind == "i"

    def encode(self, values: NDArray[np.floating[Any]]) -> NDArray[Any]:
        """Return the nearest numbers that the format holds, in its NumPy type and the shape of `values`.

        Numbers beyond the range become the largest or the lowest one. In a format with a scale, `values` were divided
        by it.

        Examples:
            >>> INT8.encode(np.array([0.5, 1.5, -1000.0])).tolist()
            [0, 2, -128]
        """
        rounded = np.rint(values) if self.is_integer else values  # a cast to a float type rounds half to even
        encoded: NDArray[Any] = np.clip(rounded, self.lowest, self.largest).astype(self.numpy)
        return encoded


INT8 = NumberFormat("int8", 8, "INT8", np.dtype(np.int8), largest=127.0, lowest=-128.0, smallest=1.0, scaled=True)

_FP16 = np.finfo(np.float16)
_BF16 = ml_dtypes.finfo(ml_dtypes.bfloat16)  # type: ignore[no-untyped-call]
_FP32 = np.finfo(np.float32)

NUMBER_FORMATS: dict[Precision, NumberFormat] = {
    row.name: row
    for row in (
        INT8,
        NumberFormat(
            "fp16",
            16,
            "FLOAT16",
            np.dtype(np.float16),
            largest=float(_FP16.max),
            lowest=float(_FP16.min),
            smallest=float(_FP16.smallest_subnormal),
        ),
        NumberFormat(
            "bf16",
            16,
            "BFLOAT16",
            np.dtype(ml_dtypes.bfloat16),
            largest=float(_BF16.max),
            lowest=float(_BF16.min),
            smallest=float(_BF16.tiny),
        ),
        NumberFormat(
            "fp32",
            32,
            "FLOAT",
            np.dtype(np.float32),
            largest=float(_FP32.max),
            lowest=float(_FP32.min),
            smallest=float(_FP32.tiny),
        ),
    )
}
"""By name."""
