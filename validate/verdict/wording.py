"""Wording of numbers in the reasons of a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable

from validate.results import Accuracy

__all__ = ["interval", "out_of_reach", "score"]


def score(is_rate: bool) -> Callable[[float], str]:
    """Return a formatter of a metric or a drop: a rate as ``1.25%``, else four significant digits.

    Examples:
        >>> score(is_rate=True)(0.0125), score(is_rate=False)(0.0125)
        ('1.25%', '0.0125')
    """
    return _percent if is_rate else _plain


def interval(low: float, high: float, show: Callable[[float], str]) -> str:
    """Return an interval in words; one with an infinite end says that too few samples differ to tell.

    Examples:
        >>> interval(-0.002, 0.008, score(is_rate=True))
        'between -0.20% and 0.80%'
    """
    if math.isfinite(low) and math.isfinite(high):
        return f"between {show(low)} and {show(high)}"
    return "with too few samples, or too few that differ, to tell how sure that is"


def out_of_reach(accuracy: Accuracy, margin: float) -> str:
    """Return why no drop can exceed a margin, so that a rule with it would prove nothing; "" where one can.

    Args:
        accuracy: of the float model.
        margin: in the metric's unit.

    Examples:
        >>> top1 = Accuracy(metric="top1", higher_is_better=True, is_rate=True, value=0.76, n=500)
        >>> out_of_reach(top1, margin=0.01)
        ''
        >>> out_of_reach(top1, margin=1.0).split(",")[0]
        "the float model's top1 is 76.00%"
    """
    if accuracy.higher_is_better:
        room = accuracy.value if accuracy.is_rate or accuracy.value > 0 else math.inf
    else:
        room = 1 - accuracy.value if accuracy.is_rate else math.inf
    if not room <= margin:
        return ""
    show = score(accuracy.is_rate)
    return (
        f"the float model's {accuracy.metric} is {show(accuracy.value)}, so that no drop could reach {show(margin)}; "
        "one point is written 0.01, and if that is what was meant, check labels and preprocessing"
    )


def _percent(share: float) -> str:
    written = f"{100 * share:.2f}%"
    return "0.00%" if written == "-0.00%" else written


def _plain(value: float) -> str:
    return f"{value + 0.0:.4g}"  # -0.0 is written 0
