"""Which layers go back to float: the fastest plan that meets a target.

Layers are ranked by their error alone in INT8; a ladder of plans follows, and trials on calibration samples pick one.
"""

from __future__ import annotations

from calibrate.search.fallback import Selection, put_layers_back, select, verdict_confidences
from calibrate.search.float_type import FloatTypeBench, check_float_type, sufficient_sets
from calibrate.search.ladder import Budget, TrialResult, ladder, search
from calibrate.search.sensitivity import effects_of_layers, ranking_samples
from calibrate.search.settings import FallbackConfig
from calibrate.search.target import Target, changed
from calibrate.search.trial_bench import TrialBench

__all__ = [
    "Budget",
    "FallbackConfig",
    "FloatTypeBench",
    "Selection",
    "Target",
    "TrialBench",
    "TrialResult",
    "changed",
    "check_float_type",
    "effects_of_layers",
    "ladder",
    "put_layers_back",
    "ranking_samples",
    "search",
    "select",
    "sufficient_sets",
    "verdict_confidences",
]
