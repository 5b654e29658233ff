"""All strategies by name: a new one is a file beside this one, and a row here.

A package of the user's adds its own under the entry points `int8_gate.strategies`: see docs/extending.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

from pydantic import BaseModel

from calibrate.strategies.auto import auto
from calibrate.strategies.entropy import entropy
from calibrate.strategies.minmax import minmax
from calibrate.strategies.mse import mse
from calibrate.strategies.percentile import PercentileStrategy
from validate.exceptions import JobError
from validate.number_formats import NumberFormat
from validate.registry import FunctionField, Registry
from validate.stats import Statistics

__all__ = ["STRATEGIES", "Strategy", "ThresholdFunction", "strategy_name", "threshold_function"]

ThresholdFunction = Callable[[Statistics, NumberFormat], float]
"""A strategy: from the statistics of a tensor to the largest |x| that is not clipped, > 0, in the tensor's unit."""

STRATEGIES: Registry[ThresholdFunction | type[BaseModel]] = Registry(
    "strategy",
    "int8_gate.strategies",
    {"minmax": minmax, "entropy": entropy, "mse": mse, "auto": auto, "percentile": PercentileStrategy},
    FunctionField.problem,
)

_FIELD: FunctionField[ThresholdFunction] = FunctionField(STRATEGIES)

Strategy = Annotated[str | BaseModel, _FIELD]
"""A strategy as a config names it: its name, or its settings where it has parameters."""


def strategy_name(strategy: Strategy) -> str:
    """Return the name of a strategy in results.

    Examples:
        >>> strategy_name("mse"), strategy_name(PercentileStrategy(percentile=99.99))
        ('mse', 'percentile-99.99')
    """
    return _FIELD.label_of(strategy)


def threshold_function(strategy: Strategy, number_format: NumberFormat) -> Callable[[Statistics], float]:
    """Return the function from statistics to the threshold: the largest |x| that is not clipped; 0 of zeros alone.

    The function that is returned raises JobError where the strategy's threshold is none.

    Examples:
        >>> import numpy as np
        >>> from validate.number_formats import INT8
        >>> statistics = Statistics()
        >>> statistics.update(np.array([-3.0, 1.0]))
        >>> threshold_function("minmax", INT8)(statistics)
        3.0
    """
    return partial(_threshold, strategy, _FIELD.function_of(strategy), number_format)


def _threshold(
    strategy: Strategy, function: ThresholdFunction, number_format: NumberFormat, statistics: Statistics
) -> float:
    if statistics.amax == 0:
        return 0.0
    threshold = float(function(statistics, number_format))
    if not 0 < threshold < float("inf"):
        raise JobError(
            f"strategy {strategy_name(strategy)} gives the threshold {threshold:g} for a tensor with values up to "
            f"{statistics.amax:g}; a threshold is positive and finite"
        )
    return threshold
