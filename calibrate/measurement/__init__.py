"""Measures candidates: error, accuracy, layer errors, TensorRT build, latency.

Everything that is measured over samples is cached on disk by the hash of the plan, so that an interrupted run resumes.
"""

from __future__ import annotations

from calibrate.measurement.candidates import Bench, Stop
from calibrate.measurement.evaluation_cache import Evaluated, Evaluations
from calibrate.measurement.pictures import illustrate
from calibrate.measurement.settings import LatencyConfig
from calibrate.measurement.timing import time_models

__all__ = [
    "Bench",
    "Evaluated",
    "Evaluations",
    "LatencyConfig",
    "Stop",
    "illustrate",
    "time_models",
]
