"""Calibration strategies, one per file: each computes a tensor's clipping threshold from its statistics alone.

`make_plan` turns the thresholds of a strategy into a plan.
"""

from __future__ import annotations

from calibrate.strategies.convergence import ScaleHistory
from calibrate.strategies.entropy import entropy
from calibrate.strategies.mse import mse
from calibrate.strategies.percentile import PercentileStrategy, percentile
from calibrate.strategies.planning import make_plan, make_plans, plan_of_scales
from calibrate.strategies.registry import STRATEGIES, ThresholdFunction, threshold_function
from calibrate.strategies.scale_types import with_fp32_scales
from calibrate.strategies.settings import QuantizationConfig

__all__ = [
    "STRATEGIES",
    "PercentileStrategy",
    "QuantizationConfig",
    "ScaleHistory",
    "ThresholdFunction",
    "entropy",
    "make_plan",
    "make_plans",
    "mse",
    "percentile",
    "plan_of_scales",
    "threshold_function",
    "with_fp32_scales",
]
