"""Is the float model as good as it should be? Where it is not, no verdict on what is made from it is worth much."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from validate.aggregate import value_interval
from validate.data import SampleStream
from validate.tasks.base import Metric

__all__ = ["doubt"]

_CONFIDENCE = 0.99
_SLACK = 0.02
"""Share of the expected value below which a difference is no doubt: another resize filter, decoder or sample of images
costs up to about a point of top-1, and a wrong mean and std, channel order or crop several."""


def doubt(metric: Metric, scores: NDArray[np.float64], expected: float | None, validation: SampleStream) -> str | None:
    """Return what the user should know before believing anything that is held against the float model, a sentence.

    It is far below what is expected where even the better end of its value's 99% interval is beyond the expected value,
    and that is no small difference: so that neither a small sample nor the choice of a resize filter gives an alarm.

    Args:
        metric: of the task.
        scores: the float model's scores or records on the validation samples.
        expected: the metric's value that the float model is known for; None where the user does not say.
        validation: where the samples come from.
    """
    if metric.is_agreement:
        return (
            f"the validation samples have no labels (data.label is null), so that {metric.name} is measured: agreement "
            "with the float model, which says nothing of how often either is right"
        )
    if expected is None:
        return None
    value, interval = metric.value(scores), value_interval(metric, scores, _CONFIDENCE)
    if metric.higher_is_better:
        best, far = interval.high, interval.high < expected and value < expected - _SLACK * abs(expected)
    else:
        best, far = interval.low, interval.low > expected and value > expected + _SLACK * abs(expected)
    if not far:
        return None
    found, at_best, wanted = (f"{100 * x:.2f}%" if metric.is_rate else f"{x:.4g}" for x in (value, best, expected))
    return (
        f"the float model's {metric.name} is {found} on {len(scores)} samples, at best {at_best} with "
        f"{100 * _CONFIDENCE:g}% confidence, far from the {wanted} that model.expected_metric says; the usual cause is "
        "the preprocessing (mean and std, channel order, resize, crop), or another order of the classes; what was "
        f"applied is {validation.preparation.description}"
    )
