"""Measures candidates: error, accuracy, layer errors, TensorRT build, latency.

Everything that is measured over samples is cached on disk by the hash of the plan, so that an interrupted run resumes.
"""

from __future__ import annotations

from calibrate.measurement.candidates import CandidateBench, MeasuredCandidate
from calibrate.measurement.engines import ENGINE, EngineBench, why_no_engine
from calibrate.measurement.evaluation_cache import EvaluationCache, TimedScores
from calibrate.measurement.pictures import illustrate
from calibrate.measurement.reference import ReferenceRun, evaluate_reference
from calibrate.measurement.settings import LatencyConfig
from calibrate.measurement.timing import Times, time_models, timed_batches

__all__ = [
    "ENGINE",
    "CandidateBench",
    "EngineBench",
    "EvaluationCache",
    "LatencyConfig",
    "MeasuredCandidate",
    "ReferenceRun",
    "TimedScores",
    "Times",
    "evaluate_reference",
    "illustrate",
    "time_models",
    "timed_batches",
    "why_no_engine",
]
