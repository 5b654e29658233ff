"""Quantization plans, and the whole job from a float model to a verdict; read `calibrate.pipeline` first.

    from calibrate import quantize

    quantized = quantize("model.onnx", samples)
    quantized.save("model.int8.onnx")

What judges a model lives in `validate`, what shows results in `reports`; both are imported from here and
import nothing from here. Names are imported when they are first asked for.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from validate import __version__

if TYPE_CHECKING:
    from calibrate.api import Quantized, quantize, run
    from calibrate.config import Config
    from calibrate.plan import Exclusion, QuantizationPlan

__all__ = ["Config", "Exclusion", "QuantizationPlan", "Quantized", "__version__", "quantize", "run"]

_MODULE_OF = {
    "Config": "config",
    "Exclusion": "plan",
    "QuantizationPlan": "plan",
    "Quantized": "api",
    "quantize": "api",
    "run": "api",
}

logging.getLogger(__name__).addHandler(logging.NullHandler())  # what is logged is for those who configure logging


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
