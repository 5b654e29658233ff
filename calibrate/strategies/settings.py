"""The `quantization` section of a config."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from calibrate.plan import FloatPrecision, QuantizationRules
from validate.settings import Section

__all__ = ["PercentileStrategy", "QuantizationConfig", "Strategy"]


class PercentileStrategy(Section):
    """Strategy that clips a fixed share of the values: those of |x| above a percentile, in (0, 100]."""

    percentile: float = Field(gt=0, le=100)


def _kind_of_strategy(value: Any) -> str:
    return "percentile" if isinstance(value, dict | PercentileStrategy) else "name"


Strategy = Annotated[
    Annotated[Literal["minmax", "entropy", "mse", "auto"], Tag("name")]
    | Annotated[PercentileStrategy, Tag("percentile")],
    Discriminator(_kind_of_strategy),  # one sentence for one mistake, not one for every branch of the union
]


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

    @field_validator("strategies")
    @classmethod
    def _distinct(cls, strategies: list[Strategy]) -> list[Strategy]:
        seen: list[Strategy] = []
        for strategy in strategies:
            if strategy in seen:
                raise ValueError(f"{strategy} is there twice")
            seen.append(strategy)
        return strategies
