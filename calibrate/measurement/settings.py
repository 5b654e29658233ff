"""The `latency` section of a config."""

from __future__ import annotations

from pydantic import Field

from validate.settings import Section

__all__ = ["LatencyConfig"]


class LatencyConfig(Section):
    """Settings of the latency measurement."""

    runs: int = Field(default=10, ge=0, description="timed calls per model; 0 measures nothing")
    batch_size: int = Field(default=1, ge=1)
    torch_compile: bool = Field(
        default=False, description="time a PyTorch model compiled too, which takes minutes, beside the eager one"
    )
