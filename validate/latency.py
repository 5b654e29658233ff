"""How long does one inference call take?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from validate.backends.base import Runnable
from validate.results import Latency

__all__ = ["measure"]

_WARM_UP = 3


def measure(model: Runnable, inputs: Mapping[str, NDArray[Any]], runs: int) -> Latency:
    """Time single calls on the same inputs, after a warm-up.

    Args:
        model: what to time.
        inputs: one batch, batch on axis 0.
        runs: timed calls, >= 1.

    Raises:
        JobError: the model cannot run them.
    """
    for _ in range(_WARM_UP):
        model.run(inputs)
    milliseconds = np.empty(runs)
    for run in range(runs):
        started = time.perf_counter()
        model.run(inputs)
        milliseconds[run] = 1e3 * (time.perf_counter() - started)
    p50, p90, p99 = map(float, np.percentile(milliseconds, [50, 90, 99]))
    return Latency(
        runtime=model.runtime, device=model.device, batch_size=len(next(iter(inputs.values()))), runs=runs,
        p50_ms=p50, p90_ms=p90, p99_ms=p99,
    )  # fmt: skip
