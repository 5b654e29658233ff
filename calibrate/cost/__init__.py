"""Cost of a plan on the target: measured on its GPU, estimated by a roofline, or counted in MACs.

`price` picks the best of the three that is available; the search looks for plans of low cost.
"""

from __future__ import annotations

from calibrate.cost.pricing import Pricing, price
from calibrate.cost.roofline import multiply_accumulates
from calibrate.cost.settings import TargetConfig

__all__ = [
    "Pricing",
    "TargetConfig",
    "multiply_accumulates",
    "price",
]
