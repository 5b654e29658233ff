"""How long does one inference call take?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from validate.backends.base import Runnable
from validate.results import Latency

__all__ = ["measure"]

_WARM_UP = 3


def measure(models: Sequence[Runnable], inputs: Mapping[str, NDArray[Any]], runs: int) -> list[Latency]:
    """Time single calls on the same inputs, the models in turn, so that drift of the machine hits all alike.

    Args:
        models: what to time; each is warmed up first.
        inputs: one batch, batch on axis 0.
        runs: timed calls per model, >= 1.
    """
    for model in models:
        for _ in range(_WARM_UP):
            model.run(inputs)
    milliseconds = np.empty((len(models), runs))
    for run in range(runs):
        for index, model in enumerate(models):
            started = time.perf_counter()
            model.run(inputs)
            milliseconds[index, run] = 1e3 * (time.perf_counter() - started)
    batch_size = len(next(iter(inputs.values())))
    return [
        Latency(
            runtime=model.runtime, device=model.device, batch_size=batch_size, runs=runs,
            p50_ms=float(p50), p90_ms=float(p90), p99_ms=float(p99),
        )
        for model, (p50, p90, p99) in zip(models, np.percentile(milliseconds, [50, 90, 99], axis=1).T, strict=True)
    ]  # fmt: skip
