"""Which layers go back to float: the fastest plan that meets a target.

Layers are ranked by their error alone in INT8; a ladder of plans follows, and trials on calibration samples pick one.
"""

from __future__ import annotations

from calibrate.search.ladder import Budget, Tried, ladder, search
from calibrate.search.sensitivity import effects_of_layers, ranking_samples
from calibrate.search.settings import FallbackConfig
from calibrate.search.target import Target, changed
from calibrate.search.trials import fallback_can_help, search_plans

__all__ = [
    "Budget",
    "FallbackConfig",
    "Target",
    "Tried",
    "changed",
    "effects_of_layers",
    "fallback_can_help",
    "ladder",
    "ranking_samples",
    "search",
    "search_plans",
]
