"""Which layers does INT8 hurt most?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from calibrate.plan import QuantizationPlan

__all__ = ["rank_layers"]


def rank_layers(
    plan: QuantizationPlan, errors_of: Callable[[QuantizationPlan], NDArray[np.float64]]
) -> dict[str, float]:
    """Return the effect of every int8 layer of `plan` on the task's error, worst first.

    The effect of a layer is the mean error of the model with that layer alone in int8. The errors are nearly
    additive over layers (see `validate.tasks.base.log_probability_error`), and a layer's own error is a far
    cleaner signal than the small change that one layer makes among all others. One run over the ranking samples
    per layer; ties keep topological order.

    Args:
        errors_of: per-sample task errors of a plan on samples that the verdict does not use, shape (n,).
    """
    layers = [name for name, precision in plan.layers.items() if precision == "int8"]
    effects = {
        name: float(errors_of(plan.with_layers(frozenset(layers) - {name}, "fp32", name)).mean()) for name in layers
    }
    return dict(sorted(effects.items(), key=lambda item: -item[1]))
