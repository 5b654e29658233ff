"""The records that everything else reads: results of a run, scores of samples, illustrations.

``python -m validate.results`` prints the JSON Schema of ``results.json``.
"""

from __future__ import annotations

from validate.results.engines import Departure, EngineFile, EngineRun, Int8InEngine, OutputDistance
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
    Accuracy,
    BuildResult,
    Candidate,
    CandidateAccuracy,
    Clipping,
    Cost,
    Decision,
    ForwardPasses,
    IntegerKernels,
    Latency,
    LayerError,
    ModelInfo,
    NodeCounts,
    ParetoPoint,
    Reference,
    Results,
    Rule,
    Search,
    Speedup,
    Trial,
    Verdict,
)
from validate.results.samples import SAMPLES_FILE, SampleTable, paired_rows, samples_of

__all__ = [
    "FLOAT",
    "ILLUSTRATIONS",
    "SAMPLES_FILE",
    "Accuracy",
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
