"""Formatting of numbers and words of a result for people: pure functions, shared by every report.

The functions are named after what they format.
"""

from __future__ import annotations

from reports.format.quantities import (
    NOT_AVAILABLE,
    cost,
    cost_ratio,
    cost_unit,
    count,
    decibels,
    drop,
    drop_unit,
    growth,
    interval,
    level,
    metric_value,
    milliseconds,
    minus,
    passes,
    percent,
    quantity,
    seconds,
    share,
    significant,
    size,
    speed_up,
    timestamp,
)
from reports.format.words import build_answer, build_backend, decision, file_name, headline, outcome, printable, shorten

__all__ = [
    "NOT_AVAILABLE",
    "build_answer",
    "build_backend",
    "cost",
    "cost_ratio",
    "cost_unit",
    "count",
    "decibels",
    "decision",
    "drop",
    "drop_unit",
    "file_name",
    "growth",
    "headline",
    "interval",
    "level",
    "metric_value",
    "milliseconds",
    "minus",
    "outcome",
    "passes",
    "percent",
    "printable",
    "quantity",
    "seconds",
    "share",
    "shorten",
    "significant",
    "size",
    "speed_up",
    "timestamp",
]
