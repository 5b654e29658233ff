"""The `quantization` section of a config."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from calibrate.plan import QuantizationRules
from calibrate.recovery import RecoveryChoice
from calibrate.strategies.percentile import PercentileStrategy
from calibrate.strategies.registry import Strategy, strategy_name
from validate.number_formats import FloatPrecision

__all__ = ["QuantizationConfig"]


class QuantizationConfig(QuantizationRules):
    """Settings of quantization: the strategies, each of which gives one candidate, and the rules for all of them."""

    # FP16 is what INT8 has to beat, and a rest in FP32 loses to it; nodes that FP16 cannot hold are found and kept out.
    float_precision: FloatPrecision = Field(
        default="fp16", description="type of everything that is not int8, and of the float side of int8 layers"
    )
    strategies: list[Strategy] = Field(
        default=[
            "minmax",
            PercentileStrategy(percentile=99.9),
            PercentileStrategy(percentile=99.99),
            PercentileStrategy(percentile=99.999),
            "entropy",
            "mse",
        ],
        min_length=1,
        description="each gives one candidate; a percentile is written {percentile: 99.99}",
    )
    fp32_scales: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="keep the scales of INT8 layers in float32 where the rest is FP16 or BF16. auto: all of them where "
        "TensorRT's products need it, which is found by running one, and else those that FP16 does not hold to 1 %; "
        "never: none, whatever it costs",
    )
    recovery: list[RecoveryChoice] = Field(
        default=[], description="steps that change every plan, in order, so that its layers can stay in INT8"
    )

    @field_validator("strategies")
    @classmethod
    def _distinct(cls, strategies: list[Strategy]) -> list[Strategy]:
        names = [strategy_name(strategy) for strategy in strategies]  # which name files too
        for index, strategy in enumerate(strategies):
            if names[index] in names[:index]:
                raise ValueError(f"{strategy} is there twice")
        return strategies
