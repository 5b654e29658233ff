"""Share of activations of unseen samples that INT8 clips, by one float pass over the validation set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from calibrate.graph import Placement
from calibrate.journal import Journal
from calibrate.loading import Inputs, SplitFingerprint
from calibrate.observation.streaming import observable, observe, workers
from calibrate.plan import QuantizationPlan
from validate.results import Clipping
from validate.stats import Statistics

__all__ = ["clipped_share", "measure_clipping"]

_LARGEST = 127.5
"""In steps: what is larger becomes 127. Of negative values -128 is the last, so that this counts half a step early."""


def measure_clipping(
    inputs: Inputs, validation: SplitFingerprint, plans: Sequence[QuantizationPlan], journal: Journal
) -> list[Clipping]:
    """Return for every plan the largest clipped share of the activations that it quantizes."""
    tensors = inputs.model.placement.tensors()
    side_by_side, threads = workers()
    with journal.stage("clipping", f"observe {len(tensors)} tensors of the validation set") as advance:
        source = observable(inputs.model.prepared, tensors, threads)
        batches = validation.verify(journal.forward("clipping", inputs.validation.batches()))
        observation = observe(source, batches, lambda batch, outputs: advance(len(batch)), side_by_side, "validation")
    statistics, samples = observation.statistics, len(validation.order)
    return [_worst(plan, inputs.model.placement, statistics, samples) for plan in plans]


def clipped_share(statistics: Statistics, scale: float) -> float:
    """Return the share of values that INT8 clips; values of the bin that the limit is in count as clipped."""
    if statistics.amax <= _LARGEST * scale:
        return 0.0
    return float(statistics.bins[int(_LARGEST * scale / statistics.width) :].sum()) / statistics.count


def _worst(
    plan: QuantizationPlan, placement: Placement, statistics: Mapping[str, Statistics], samples: int
) -> Clipping:
    quantized = placement.tensors(plan.int8_layers)
    shares = {tensor: clipped_share(statistics[tensor], plan.scales[tensor]) for tensor in quantized}
    worst = max(shares, key=lambda tensor: shares[tensor])
    return Clipping(share=shares[worst], tensor=worst, split="validation", samples=samples)
