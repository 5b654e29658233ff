"""Measures candidates: error, accuracy, layer errors, TensorRT build, latency.

Everything that is measured over samples is cached on disk by the hash of the plan, so that an interrupted run resumes.
"""

from __future__ import annotations

from calibrate.measurement.candidates import CandidateBench, MeasuredCandidate
from calibrate.measurement.engines import ENGINE, EngineBench, why_no_engine
from calibrate.measurement.evaluation_cache import EvaluationCache, TimedScores, evaluation_context
from calibrate.measurement.pictures import illustrate
from calibrate.measurement.reference import ReferenceRun, evaluate_reference
from calibrate.measurement.settings import LatencyConfig
from calibrate.measurement.timing import Times, engine_profile, time_models

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
    "engine_profile",
    "evaluate_reference",
    "evaluation_context",
    "illustrate",
    "time_models",
    "why_no_engine",
]
