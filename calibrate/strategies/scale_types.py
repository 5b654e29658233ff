"""Which scales of a plan stay in float32 where the rest is FP16 or BF16, by the config and by the library."""

from __future__ import annotations

from calibrate.graph import nodes_with_fp32_scales
from calibrate.loading import FloatModel
from calibrate.plan import QuantizationPlan
from calibrate.strategies.settings import QuantizationConfig
from validate.backends.tensorrt import needs_fp32_scales

__all__ = ["with_fp32_scales"]


def with_fp32_scales(plan: QuantizationPlan, settings: QuantizationConfig, model: FloatModel) -> QuantizationPlan:
    """Return the plan with `QuantizationPlan.fp32_scales` as `QuantizationConfig.fp32_scales` says.

    It is called again where a plan's weights were edited, since their scales follow from them.

    Args:
        plan: for this model.
        settings: of the config.
        model: the float model.
    """
    if settings.fp32_scales == "never":
        return plan
    # Of FP16 alone, which overflows; BF16 has the range of float32.
    needed = plan.float_precision == "fp16" and settings.fp32_scales == "auto" and needs_fp32_scales()
    everywhere = needed or settings.fp32_scales == "always"
    nodes = nodes_with_fp32_scales(plan, model.prepared, model.placement, everywhere)
    return plan.model_copy(update={"fp32_scales": nodes})
