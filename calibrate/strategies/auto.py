"""Automatic choice: for each tensor, the threshold of the strategy with the least expected error."""

from __future__ import annotations

import numpy as np

from calibrate.strategies.entropy import entropy
from calibrate.strategies.minmax import minmax
from calibrate.strategies.mse import expected_errors, mse
from calibrate.strategies.percentile import percentile
from validate.number_formats import INT8, NumberFormat
from validate.stats import Statistics

__all__ = ["auto"]

_CLIPPING = 2.0
"""Weight of squared errors by clipping; those by rounding have weight 1."""


def auto(statistics: Statistics, number_format: NumberFormat = INT8) -> float:
    """Return the threshold t, among those of all strategies, that minimises ``R(t) + 2 C(t)``, in the tensor's unit.

    R is the expected squared error of the values that are rounded and C that of those that are clipped, over the
    histogram as in `mse`. With equal weights `mse` would win for every tensor. Rounding errors are independent of
    one another and average out in the sums that a layer computes; clipping errors all point the same way. Of 45
    criteria, none was measurably better than `mse` on every model, and this one ties with it: docs/strategies.md has
    the table.

    Args:
        statistics: of the tensor.

    Examples:
        >>> import numpy as np
        >>> from validate.stats import Statistics
        >>> statistics = Statistics()
        >>> statistics.update(np.append(np.linspace(-1, 1, 100_001), 4.0))  # one outlier
        >>> round(auto(statistics), 1)
        2.6
    """
    candidates = [threshold(statistics, number_format) for threshold in (minmax, entropy, mse)]
    if statistics.amax == 0:
        return 0.0
    candidates += [percentile(statistics, percent) for percent in (99.9, 99.99, 99.999)]
    thresholds = np.array([threshold for threshold in candidates if threshold > 0])
    rounding, clipping = expected_errors(statistics, thresholds, number_format)
    return float(thresholds[np.argmin(rounding + _CLIPPING * clipping)])
