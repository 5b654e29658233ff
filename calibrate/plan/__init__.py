"""The quantization plan: scales, precisions and weight edits, as data.

Where a plan comes from (`Origin`), and the calibration caches of TensorRT 10 and older, belong to it.
"""

from __future__ import annotations

from calibrate.plan.calibration_cache import companion, read_cache, write_cache
from calibrate.plan.origin import Origin
from calibrate.plan.quantization_plan import Exclusion, QuantizationPlan, QuantizationRules
from calibrate.plan.weight_edits import WeightEdit, WeightEdits, weights_file

__all__ = [
    "Exclusion",
    "Origin",
    "QuantizationPlan",
    "QuantizationRules",
    "WeightEdit",
    "WeightEdits",
    "companion",
    "read_cache",
    "weights_file",
    "write_cache",
]
