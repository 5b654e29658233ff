"""The records that everything else reads: results of a run, scores of samples, illustrations.

``python -m validate.results`` prints the JSON Schema of ``results.json``.
"""

from __future__ import annotations

from validate.results.accuracy import Accuracy, Basis, CandidateAccuracy, IntegerKernels
from validate.results.engines import Baseline, Departure, EngineFile, EngineRun, Int8InEngine, OutputDistance
from validate.results.evaluation import Evaluation, ModelEvaluation
from validate.results.fp16 import Fp16Check
from validate.results.illustrations import (
    ILLUSTRATIONS,
    Convergence,
    ConvergencePoint,
    Histogram,
    Illustrations,
    TensorHistogram,
    Threshold,
    WorstSample,
)
from validate.results.pareto import FLOAT, cost_kind, pareto_points
from validate.results.run import (
    BuildResult,
    Candidate,
    Clipping,
    Decision,
    ForwardPasses,
    LayerError,
    ModelInfo,
    NodeCounts,
    ParetoPoint,
    Reference,
    Results,
    Rule,
    Search,
    Trial,
    Verdict,
)
from validate.results.samples import SAMPLES_FILE, SampleTable, paired_rows, samples_of
from validate.results.speed import Cost, Latency, Speedup

__all__ = [
    "FLOAT",
    "ILLUSTRATIONS",
    "SAMPLES_FILE",
    "Accuracy",
    "Baseline",
    "Basis",
    "BuildResult",
    "Candidate",
    "CandidateAccuracy",
    "Clipping",
    "Convergence",
    "ConvergencePoint",
    "Cost",
    "Decision",
    "Departure",
    "EngineFile",
    "EngineRun",
    "Evaluation",
    "ForwardPasses",
    "Fp16Check",
    "Histogram",
    "Illustrations",
    "Int8InEngine",
    "IntegerKernels",
    "Latency",
    "LayerError",
    "ModelEvaluation",
    "ModelInfo",
    "NodeCounts",
    "OutputDistance",
    "ParetoPoint",
    "Reference",
    "Results",
    "Rule",
    "SampleTable",
    "Search",
    "Speedup",
    "TensorHistogram",
    "Threshold",
    "Trial",
    "Verdict",
    "WorstSample",
    "cost_kind",
    "paired_rows",
    "pareto_points",
    "samples_of",
]
