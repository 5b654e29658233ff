"""Share of activations of unseen samples that INT8 clips, by one float pass over the validation set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from calibrate.graph import scales_in_file
from calibrate.journal import Journal
from calibrate.loading import FloatModel, Inputs, SplitFingerprint
from calibrate.observation.streaming import observable, observe, workers
from calibrate.plan import QuantizationPlan
from validate.number_formats import INT8
from validate.results import Clipping
from validate.stats import Statistics

__all__ = ["clipped_share", "measure_clipping"]

_LARGEST = INT8.largest + 0.5
"""In steps of the scale: larger values become 127. Negative values are clipped only below -128.5, so that this counts
some of them that are not."""


def measure_clipping(
    inputs: Inputs, validation: SplitFingerprint, plans: Sequence[QuantizationPlan], journal: Journal
) -> list[Clipping]:
    """Return for every plan the largest share, in [0, 1], that it clips of an activation, over the validation samples.

    Args:
        inputs: the model and its validation set.
        validation: fingerprint of that set.
        plans: to measure.
        journal: counts the pass.
    """
    tensors = inputs.model.placement.tensors()
    side_by_side, threads = workers()
    with journal.stage("clipping", f"observe {len(tensors)} tensors of the validation set") as advance:
        source = observable(inputs.model.prepared, tensors, threads)
        batches = validation.verify(journal.forward("clipping", inputs.validation.batches()))
        observation = observe(source, batches, lambda batch, outputs: advance(len(batch)), side_by_side, "validation")
    statistics, samples = observation.statistics, len(validation.order)
    return [_worst(plan, inputs.model, statistics, samples) for plan in plans]


def clipped_share(statistics: Statistics, scale: float) -> float:
    """Return the share of values, in [0, 1], that INT8 clips. All values of the bin with the limit count as clipped.

    Args:
        statistics: of the tensor, of at least one value.
        scale: positive; values beyond 127.5 times the scale are clipped.

    Examples:
        >>> import numpy as np
        >>> statistics = Statistics()
        >>> statistics.update(np.array([0.0, 1.0, -2.0, 8.0]))
        >>> clipped_share(statistics, scale=4 / 127)
        0.25
    """
    if statistics.amax <= _LARGEST * scale:
        return 0.0
    return float(statistics.bins[int(_LARGEST * scale / statistics.width) :].sum()) / statistics.count


def _worst(plan: QuantizationPlan, model: FloatModel, statistics: Mapping[str, Statistics], samples: int) -> Clipping:
    scales = scales_in_file(plan, model.prepared, model.placement)
    shares = {tensor: clipped_share(statistics[tensor], scale) for tensor, scale in scales.items()}
    worst = max(shares, key=lambda tensor: shares[tensor])
    return Clipping(share=shares[worst], tensor=worst, split="validation", samples=samples)
