"""Quantization plans, and the whole job from a float model to a verdict; read `calibrate.pipeline` first.

What judges a model lives in `validate`, what shows results in `reports`; both are imported from here and
import nothing from here.
"""

__version__ = "0.1.0"
