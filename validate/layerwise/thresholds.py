"""Judges a comparison by thresholds, layer by layer, without inference.

Thresholds are data (YAML), so that a saved comparison can be judged again by others.
"""

from __future__ import annotations

import math
import re

from pydantic import BaseModel, ConfigDict, Field, field_validator

from validate.layerwise.comparison import Comparison, LayerDifference, TensorDifference
from validate.records import Record

__all__ = ["Judgement", "LayerVerdict", "Limits", "RuntimeLimits", "Thresholds", "judge"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Limits(_Section):
    """Bounds of one view. A bound that is null is not checked."""

    min_sqnr_db: float | None = Field(default=None, description="least SQNR, in dB")
    max_growth_db: float | None = Field(
        default=None, description="most dB that a layer may be below the worst of its inputs; accumulated view only"
    )
    min_cosine: float | None = Field(default=None, ge=-1, le=1)
    max_relative_l2: float | None = Field(default=None, ge=0)
    max_abs: float | None = Field(default=None, ge=0, description="in the tensor's unit")


class RuntimeLimits(_Section):
    """Bound of a runtime's noise over the noise of rounding alone."""

    max_excess_db: float = Field(default=3.0, description="most noise over the measured floor, in dB")


class Override(_Section):
    """Other limits for some layers; the last override that matches holds, whole."""

    pattern: str = Field(description="regular expression, searched for in the names of node and tensor")
    accumulated: Limits = Limits()
    isolated: Limits = Limits()

    @field_validator("pattern")
    @classmethod
    def _regular(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return pattern


class Thresholds(_Section):
    """What a comparison has to meet to pass."""

    accumulated: Limits = Limits(max_growth_db=15.0)
    isolated: Limits = Limits(min_sqnr_db=15.0)
    runtime: RuntimeLimits = RuntimeLimits()
    max_clipped_share: float | None = Field(default=None, ge=0, le=1, description="of any quantized input")
    overrides: list[Override] = []


class LayerVerdict(Record):
    """The thresholds that one layer fails; none where `failures` is empty."""

    tensor: str
    node: str
    failures: list[str]


class Judgement(Record):
    """The verdict of thresholds on a comparison."""

    passed: bool
    reasons: list[str] = Field(description="why it failed; else what was found to be fine")
    layers: list[LayerVerdict] = Field(description="those that fail, in topological order")
    first: str | None = Field(description="tensor of the first layer that fails")
    worst_isolated: str | None = Field(description="tensor of the layer that makes the most error")
    worst_accumulated: str | None = Field(description="tensor of the layer after which error grows most")


def judge(comparison: Comparison, thresholds: Thresholds) -> Judgement:
    """Judge a comparison by thresholds. Nothing compared, or a metric that could not be computed, is a failure.

    Examples:
        >>> nothing = Comparison.model_construct(layers=[], unpaired=[], samples=0)
        >>> judgement = judge(nothing, Thresholds())
        >>> judgement.passed, judgement.reasons
        (False, ['nothing was compared'])
    """
    verdicts = [
        LayerVerdict(tensor=x.tensor, node=x.node, failures=_failures(x, thresholds)) for x in comparison.layers
    ]
    failed = [verdict for verdict in verdicts if verdict.failures]
    reasons = []
    if not comparison.layers or not comparison.samples:
        reasons.append("nothing was compared")
    if failed:
        reasons.append(f"{len(failed)} of {len(verdicts)} layers fail, the first is {failed[0].node}")
    reasons += [
        f"output {missed.tensor} of the {missed.side} was compared with nothing: {missed.reason}"
        for missed in comparison.unpaired
        if missed.is_output
    ]
    passed = not reasons
    if passed:
        reasons.append(f"all {len(verdicts)} layers are within the thresholds")
    return Judgement(
        passed=passed,
        reasons=reasons,
        layers=failed,
        first=failed[0].tensor if failed else None,
        worst_isolated=_first_name(by_isolated(comparison.layers)),
        worst_accumulated=_first_name(by_growth(comparison.layers)),
    )


def by_isolated(layers: list[LayerDifference]) -> list[LayerDifference]:
    """Return the layers that have an isolated view, those that make the most error first.

    Examples:
        >>> rows = [("conv1", 0, 40.0), ("conv2", 1, 12.0)]
        >>> rows = [(t, d, TensorDifference.model_construct(sqnr_db=db)) for t, d, db in rows]
        >>> layers = [LayerDifference.model_construct(tensor=t, depth=d, isolated=x) for t, d, x in rows]
        >>> [layer.tensor for layer in by_isolated(layers)]
        ['conv2', 'conv1']
    """
    return sorted((x for x in layers if x.isolated), key=lambda x: (_ranking_sqnr(x.isolated), x.depth))


def by_growth(layers: list[LayerDifference]) -> list[LayerDifference]:
    """Return the layers, those after which error grows most first.

    Examples:
        >>> rows = [("conv1", 0, 2.0), ("conv2", 1, 9.0)]
        >>> layers = [LayerDifference.model_construct(tensor=t, depth=d, growth_db=db) for t, d, db in rows]
        >>> [layer.tensor for layer in by_growth(layers)]
        ['conv2', 'conv1']
    """
    return sorted((x for x in layers if x.growth_db is not None), key=lambda x: (-(x.growth_db or 0.0), x.depth))


def _ranking_sqnr(difference: TensorDifference | None) -> float:
    assert difference is not None
    return -math.inf if math.isnan(difference.sqnr_db) else difference.sqnr_db


def _first_name(layers: list[LayerDifference]) -> str | None:
    return layers[0].tensor if layers else None


def _failures(layer: LayerDifference, thresholds: Thresholds) -> list[str]:
    accumulated, isolated = thresholds.accumulated, thresholds.isolated
    for override in thresholds.overrides:
        if re.search(override.pattern, layer.node) or re.search(override.pattern, layer.tensor):
            accumulated, isolated = override.accumulated, override.isolated
    failures = _beyond("accumulated", layer.accumulated, accumulated) + _beyond("isolated", layer.isolated, isolated)
    limit = accumulated.max_growth_db
    if limit is not None and layer.growth_db is not None and limit < layer.growth_db < math.inf:  # inf: NaN says it
        failures.append(f"error grows by {layer.growth_db:.1f} dB over its inputs, more than {limit:g}")
    for quantized in layer.quantized_inputs:
        most = thresholds.max_clipped_share
        if most is not None and not quantized.clipped_share <= most:
            failures.append(
                f"{quantized.clipped_share:.2%} of its input {quantized.tensor} are clipped, more than {most:.2%}"
            )
    if (runtime := layer.runtime) is not None:
        if runtime.difference.problem:
            failures.append(f"runtime: {runtime.difference.problem}")
        elif math.isnan(runtime.excess_low_db):
            failures.append("runtime: two samples at least are needed to tell its error from rounding")
        elif runtime.excess_low_db > thresholds.runtime.max_excess_db:
            failures.append(
                f"runtime: noise is {runtime.excess_db:.1f} dB over what rounding does (at least "
                f"{runtime.excess_low_db:.1f}), more than {thresholds.runtime.max_excess_db:g}"
            )
    return failures


def _beyond(view: str, difference: TensorDifference | None, limits: Limits) -> list[str]:
    """Return which limits a tensor misses. Written so that NaN, too, misses them."""
    if difference is None:
        return []
    if difference.problem:
        return [f"{view}: {difference.problem}"]
    found = []
    if limits.min_sqnr_db is not None and not difference.sqnr_db >= limits.min_sqnr_db:
        found.append(f"{view} SQNR {difference.sqnr_db:.1f} dB, less than {limits.min_sqnr_db:g}")
    if limits.min_cosine is not None and not difference.cosine >= limits.min_cosine:
        found.append(f"{view} cosine {difference.cosine:.6f}, less than {limits.min_cosine:g}")
    if limits.max_relative_l2 is not None and not difference.relative_l2 <= limits.max_relative_l2:
        found.append(f"{view} relative L2 {difference.relative_l2:.3g}, more than {limits.max_relative_l2:g}")
    if limits.max_abs is not None and not difference.max_abs <= limits.max_abs:
        found.append(f"{view} largest difference {difference.max_abs:.3g}, more than {limits.max_abs:g}")
    return found
