"""Makes plans from statistics and strategies, without inference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from calibrate.graph import Placement
from calibrate.journal import Journal
from calibrate.observation import Observation, unquantizable
from calibrate.plan import Origin, QuantizationPlan, QuantizationRules
from calibrate.strategies.registry import Strategy, strategy_name, threshold_function
from calibrate.strategies.settings import QuantizationConfig
from validate.exceptions import JobError
from validate.stats import Statistics

__all__ = [
    "SETTLED",
    "Settling",
    "make_plan",
    "make_plans",
    "plan_of_scales",
    "scale_changes",
]

SETTLED = 0.1
"""Relative change of a scale that is too small to matter."""


def make_plan(
    strategy: Strategy,
    statistics: Mapping[str, Statistics],
    placement: Placement,
    origin: Origin,
    rules: QuantizationRules,
) -> QuantizationPlan:
    """Return the plan of a strategy: every layer is in int8 whose activations were not zero throughout.

    Args:
        strategy: that chooses the thresholds.
        statistics: of every tensor that may be quantized.
        placement: of the model.
        origin: of the statistics.
        rules: settings that the user chose.

    Examples:
        >>> import numpy as np, onnx_ir as ir
        >>> from calibrate.graph import place
        >>> model = ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 19]>
        ...     net (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { [product] y = MatMul(x, w) }''')
        >>> statistics = {"x": Statistics()}
        >>> statistics["x"].update(np.array([-254.0, 127.0]))
        >>> plan = make_plan("minmax", statistics, place(model), Origin(model_sha256="0" * 64), QuantizationRules())
        >>> plan.scales, plan.layers
        ({'x': 2.0}, {'product': 'int8'})
    """
    threshold = threshold_function(strategy, rules.number_format)
    dead = unquantizable(statistics)
    largest = rules.number_format.largest
    scales = {name: threshold(s) / largest for name, s in statistics.items() if name not in dead}
    return plan_of_scales(strategy_name(strategy), scales, placement, origin, rules)


def make_plans(
    settings: QuantizationConfig, observation: Observation, placement: Placement, origin: Origin, journal: Journal
) -> list[QuantizationPlan]:
    """Return a plan for every strategy, and warn where its scales had not converged.

    Args:
        settings: strategies and rules.
        observation: statistics of every tensor that may be quantized.
        placement: of the model.
        origin: of the statistics.
        journal: gets the warnings.

    Raises:
        JobError: all tensors were zero throughout.
    """
    plans = []
    for strategy in settings.strategies:
        plan = make_plan(strategy, observation.statistics, placement, origin, settings)
        if not plan.int8_layers:
            raise JobError("every tensor that could be quantized was zero on all calibration samples; check the data")
        if not (settling := scale_changes(plan, strategy, observation)).settled:
            journal.warn(f"{plan.name}: {settling}; more calibration samples may help")
        plans.append(plan)
    return plans


def plan_of_scales(
    strategy: str, scales: Mapping[str, float], placement: Placement, origin: Origin, rules: QuantizationRules
) -> QuantizationPlan:
    """Return the plan of given scales: every layer is in int8 whose quantized inputs all have a scale.

    Tensors that a Concat joins share the widest of their scales.

    Args:
        strategy: name of the plan, and of what chose its scales.
        scales: by tensor, positive and finite, ``threshold / 127``.
        placement: of the model.
        origin: of the scales.
        rules: settings that the user chose.

    Examples:
        >>> import onnx_ir as ir
        >>> from calibrate.graph import place
        >>> model = ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 19]>
        ...     net (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { [product] y = MatMul(x, w) }''')
        >>> plan_of_scales("given", {}, place(model), Origin(model_sha256="0" * 64), QuantizationRules()).layers
        {'product': 'fp32'}
    """
    shared = placement.with_shared_scales(scales)
    blocked = {layer.node for layer in placement.layers if not shared.keys() >= set(layer.activations)}
    blocked |= {residual.fused_into for residual in placement.residuals if residual.tensor not in shared}
    return QuantizationPlan(
        name=strategy,
        strategy=strategy,
        origin=origin,
        scales=shared,
        layers={
            layer.node: rules.float_precision if layer.node in blocked else rules.number_format.name
            for layer in placement.layers
        },
        **{name: getattr(rules, name) for name in QuantizationRules.model_fields},
    )


@dataclass(frozen=True)
class Settling:
    """Relative change of a plan's scales from half of the samples to all of them.

    Attributes:
        median, most, worst: over the tensors: the 50th and the 90th percentile, and the maximum; NaN where there
            was only one batch.
        tensor: name of the one that changed most.
    """

    median: float
    most: float
    worst: float
    tensor: str

    @property
    def settled(self) -> bool:
        """Whether nine in ten tensors changed by at most `SETTLED`."""
        return self.most <= SETTLED

    def __str__(self) -> str:
        if math.isnan(self.most):
            return "all samples are in one batch, so that it is not known if the scales had settled"
        return (
            f"from half of the samples to all, one scale in ten still changed by more than {self.most:.0%} "
            f"(median {self.median:.1%}, most {self.worst:.0%} at tensor {self.tensor})"
        )


def scale_changes(plan: QuantizationPlan, strategy: Strategy, observation: Observation) -> Settling:
    """Return the relative change of a plan's scales from half of the samples to all of them."""
    half, rest = observation.halves
    if not any(s.count for s in rest.values()):
        return Settling(math.nan, math.nan, math.nan, "")
    threshold, largest = threshold_function(strategy, plan.number_format), plan.number_format.largest
    scale = {name: threshold(s) / largest for name, s in observation.statistics.items() if name in plan.scales}
    # A tensor that half of the samples did not reach had no scale then: all of it is new.
    changes = {n: abs(threshold(half[n]) / largest / scale[n] - 1) if half[n].count else 1.0 for n in scale}
    median, most = np.quantile(list(changes.values()), [0.5, 0.9])
    tensor = max(changes, key=lambda name: changes[name])
    return Settling(float(median), float(most), changes[tensor], tensor)
