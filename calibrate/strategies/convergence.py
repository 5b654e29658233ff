"""Convergence of scales: thresholds of the first samples, relative to those of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from calibrate.strategies.planning import SETTLED
from calibrate.strategies.registry import Strategy, strategy_name, threshold_function
from validate.number_formats import INT8
from validate.results import Convergence, ConvergencePoint
from validate.stats import Statistics

__all__ = ["ScaleHistory"]

_TENSORS = 64
"""Largest number of tensors that are followed; a strategy takes some milliseconds for each."""


class ScaleHistory:
    """Records thresholds during the calibration pass, for the plot of convergence.

    `note` is the `on_doubling` of `calibrate.observation.observe`.

    Args:
        strategies: of the run.
        tensors: that are observed. Where there are more than 64, 64 are followed, evenly spread over the depth.
    """

    def __init__(self, strategies: Sequence[Strategy], tensors: Sequence[str]) -> None:
        picked = np.unique(np.linspace(0, len(tensors) - 1, min(len(tensors), _TENSORS)).round().astype(int))
        self._tensors = [tensors[i] for i in picked]
        self._thresholds = {strategy_name(strategy): threshold_function(strategy, INT8) for strategy in strategies}
        self._notes: list[tuple[int, dict[str, dict[str, float]]]] = []

    def note(self, samples: int, statistics: Callable[[str], Statistics]) -> None:
        """Record the thresholds that the first samples give.

        Args:
            samples: how many were seen so far.
            statistics: returns the statistics of a tensor over them.
        """
        seen = {tensor: statistics(tensor) for tensor in self._tensors}
        self._notes.append((samples, self._all_thresholds(seen)))

    def curves(self, statistics: Mapping[str, Statistics], samples: int) -> list[Convergence]:
        """Return the relative distance of each strategy's earlier scales from the final ones.

        Args:
            statistics: over all samples, by tensor.
            samples: how many samples there are; the record of all of them is left out.
        """
        live = {name: statistics[name] for name in self._tensors if statistics[name].amax > 0}
        if not live:
            return []
        last = self._all_thresholds(live)
        curves = []
        for strategy, thresholds in last.items():
            points = []
            for seen, noted in self._notes:
                # A tensor that was zero, or not reached, in the first samples had no scale: all of it is new.
                changes = [abs(noted[strategy][name] / last_one - 1) for name, last_one in thresholds.items()]
                median, most = np.quantile(changes, [0.5, 0.9])
                if seen < samples:
                    points.append(ConvergencePoint(samples=seen, median=float(median), most=float(most)))
            curves.append(Convergence(strategy=strategy, tensors=len(live), settled=SETTLED, points=points))
        return curves

    def _all_thresholds(self, statistics: Mapping[str, Statistics]) -> dict[str, dict[str, float]]:
        return {
            strategy: {name: threshold(s) if s.amax > 0 else 0.0 for name, s in statistics.items()}
            for strategy, threshold in self._thresholds.items()
        }
