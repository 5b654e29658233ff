"""Makes quantization plans and runs the whole job; `calibrate.pipeline` is the page to read first.

What judges a model lives in `validate`, what shows results in `reports`; both are imported from here and
import nothing from here.
"""

__version__ = "0.1.0"
