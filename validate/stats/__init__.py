"""Statistics: confidence intervals of paired differences, the jackknife, histograms of activations.

Nothing here runs a model.
"""

from __future__ import annotations

from validate.stats.histograms import MAX_BINS, NonFiniteError, Statistics
from validate.stats.intervals import POWER, Interval, paired_interval, samples_to_settle
from validate.stats.jackknife import drop_interval, drop_intervals, projected_drop_interval, value_interval

__all__ = [
    "MAX_BINS",
    "POWER",
    "Interval",
    "NonFiniteError",
    "Statistics",
    "drop_interval",
    "drop_intervals",
    "paired_interval",
    "projected_drop_interval",
    "samples_to_settle",
    "value_interval",
]
