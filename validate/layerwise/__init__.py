"""Layer-wise comparison: how far each tensor is from the reference, and which layer makes the error.

The comparison is data; thresholds judge it afterwards, without inference.
"""

from __future__ import annotations

from validate.layerwise.command import CompareRequest, compare_files
from validate.layerwise.comparator import compare, subjects_of
from validate.layerwise.comparison import (
    Comparison,
    Execution,
    LayerDifference,
    QuantizedInput,
    TensorDifference,
    Unpaired,
)
from validate.layerwise.model_pair import JudgedComparison, compare_models
from validate.layerwise.pairing import pair
from validate.layerwise.rounding_floor import ROUNDING
from validate.layerwise.tensor_errors import TensorErrors
from validate.layerwise.thresholds import Judgement, RuntimeLimits, Thresholds, by_growth, by_isolated, judge

__all__ = [
    "ROUNDING",
    "CompareRequest",
    "Comparison",
    "Execution",
    "JudgedComparison",
    "Judgement",
    "LayerDifference",
    "QuantizedInput",
    "RuntimeLimits",
    "TensorDifference",
    "TensorErrors",
    "Thresholds",
    "Unpaired",
    "by_growth",
    "by_isolated",
    "compare",
    "compare_files",
    "compare_models",
    "judge",
    "pair",
    "subjects_of",
]
