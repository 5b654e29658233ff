"""What a recovery step is, and what it may look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from calibrate.loading import FloatModel
from calibrate.plan import QuantizationPlan
from validate.data import Batch
from validate.stats import Statistics

__all__ = ["RecoveryInputs", "RecoveryStep"]


@dataclass(frozen=True)
class RecoveryInputs:
    """What a step may look at, besides the plan. No validation sample is among it, since the verdict is about them.

    Attributes:
        model: the float model; ``model.prepared`` is the graph that weight edits refer to, and is not to be changed.
        statistics: of every tensor that can be quantized, over all calibration samples, by name.
        batches: starts a pass over the calibration samples; every pass yields the same ones.
        threshold: the plan's strategy: from statistics to the largest |x| that is not clipped; 0 of zeros alone.
    """

    model: FloatModel
    statistics: Mapping[str, Statistics]
    batches: Callable[[], Iterator[Batch]]
    threshold: Callable[[Statistics], float]


RecoveryStep = Callable[[QuantizationPlan, RecoveryInputs], QuantizationPlan]
"""Returns a better plan for the same model, with the name that it had: other scales, precisions or edits of weights."""
