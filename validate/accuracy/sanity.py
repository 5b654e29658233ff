"""Sanity checks of the float model: is it as accurate as expected, and do its answers tell classes apart?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from validate.data import SampleStream
from validate.exceptions import JobError
from validate.stats import value_interval
from validate.tasks import CountsLabels, Metric, Task

__all__ = ["sanity_warnings"]

_CONFIDENCE = 0.99
_SLACK = 0.02
"""Share of the expected value below which a difference is no doubt: another resize filter, decoder or sample of images
costs up to about a point of top-1, and a wrong mean and std, channel order or crop several."""
_ROUNDING = 1e-6
"""By how much a sum of rates may be off the whole."""
_NAMED = 5
"""Classes that a sentence names at most."""


def sanity_warnings(
    task: Task, scores: NDArray[np.float64], expected: float | None, validation: SampleStream
) -> list[str]:
    """Return warnings, as sentences, about a float model that may be no valid reference; none, an empty list.

    Args:
        task: the task that gave the scores.
        scores: the float model's scores or records on the validation samples.
        expected: the metric's value that the float model is known for; None where the user does not say.
        validation: where the samples come from.

    Raises:
        JobError: without labels, the float model does not agree with its own answers, so that they cannot serve as
            labels.
    """
    metric = task.metric
    if metric.is_agreement:
        _check_agreement(metric, scores)
        sentence = (
            f"the validation samples have no labels (data.label is null), so that {metric.name} is measured: agreement "
            "with the float model, which says nothing of how often either is right"
        )
        return [sentence]
    sentences = [_below(metric, scores, expected, validation), _unlabelled(task, scores)]
    return [sentence for sentence in sentences if sentence is not None]


def _check_agreement(metric: Metric, scores: NDArray[np.float64]) -> None:
    value, best = metric.value(scores), metric.best
    if best is not None and abs(value - best) > _ROUNDING:
        raise JobError(
            f"{metric.name} of the float model and its own answers is {value:.4g} and not {best:g}, so that a "
            "candidate could score better than what it is held against; its outputs are not finite, or the metric "
            "depends on how sure a model is, as a loss does, and needs labels (data.label)"
        )


def _below(metric: Metric, scores: NDArray[np.float64], expected: float | None, validation: SampleStream) -> str | None:
    """Say so where the float model is far below what is expected.

    That is where even the better end of its value's 99% interval is beyond the expected value, and that is no small
    difference: so that neither a small sample nor the choice of a resize filter gives an alarm.
    """
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


def _unlabelled(task: Task, scores: NDArray[np.float64]) -> str | None:
    """Say so where a class is in no label at all, of which the metric then knows nothing."""
    if not isinstance(task, CountsLabels):
        return None
    counts = task.label_counts(scores)
    absent = np.flatnonzero(counts == 0)
    if not absent.size:
        return None
    named = ", ".join(map(str, absent[:_NAMED])) + (f" and {absent.size - _NAMED} more" if absent.size > _NAMED else "")
    return (
        f"no label of the {len(scores)} validation samples has class {named}, so that {task.metric.name} does not tell "
        f"whether a model finds it; labels are 0 to {counts.size - 1}, not 0 and 255"
    )
