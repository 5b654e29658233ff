"""Statistics and a strategy in, a plan out; no inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from calibrate.config import PercentileStrategy, Strategy
from calibrate.graph.placement import Placement
from calibrate.plan import FloatPrecision, QuantizationPlan
from calibrate.statistics import Statistics
from calibrate.strategies.entropy import entropy
from calibrate.strategies.minmax import minmax
from calibrate.strategies.mse import mse
from calibrate.strategies.percentile import percentile

__all__ = ["make_plan", "strategy_name", "unquantizable"]

_LEVELS = 127


def strategy_name(strategy: Strategy) -> str:
    """Return the name by which a strategy appears in results, e.g. ``percentile-99.99``."""
    if isinstance(strategy, PercentileStrategy):
        return f"percentile-{strategy.percentile!r}".removesuffix(".0")
    return strategy


def make_plan(
    strategy: Strategy,
    statistics: Mapping[str, Statistics],
    placement: Placement,
    model_sha256: str,
    float_precision: FloatPrecision,
) -> QuantizationPlan:
    """Return the plan with every layer in int8 whose activation has a range.

    Tensors that a Concat joins share the widest of their scales.
    """
    threshold = _threshold_function(strategy)
    dead = unquantizable(statistics)
    scales = {name: threshold(s) / _LEVELS for name, s in statistics.items() if name not in dead}
    for group in placement.scale_groups():
        members = group & scales.keys()
        scales |= dict.fromkeys(members, max((scales[name] for name in members), default=0.0))
    blocked = {layer.node for layer in placement.layers if layer.activation in dead}
    blocked |= {residual.fused_into for residual in placement.residuals if residual.tensor in dead}
    name = strategy_name(strategy)
    return QuantizationPlan(
        name=name,
        strategy=name,
        model_sha256=model_sha256,
        scales=scales,
        layers={layer.node: float_precision if layer.node in blocked else "int8" for layer in placement.layers},
        float_precision=float_precision,
    )


def unquantizable(statistics: Mapping[str, Statistics]) -> set[str]:
    """Return the tensors that were zero throughout, for which no scale exists; their layers stay in float."""
    return {name for name, s in statistics.items() if s.amax == 0}


def _threshold_function(strategy: Strategy) -> Callable[[Statistics], float]:
    if isinstance(strategy, PercentileStrategy):
        percent = strategy.percentile
        # A percentile of a mostly-zero tensor is 0, which is no scale: nothing is clipped then.
        return lambda statistics: percentile(statistics, percent) or minmax(statistics)
    return {"minmax": minmax, "entropy": entropy, "mse": mse}[strategy]
