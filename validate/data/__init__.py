"""From a source of rows to batches of model inputs: streamed, preprocessed in worker threads.

A source is named in a config, or is any iterable in memory.
"""

from __future__ import annotations

from validate.data.preprocessing import as_image
from validate.data.stream import UNION_BRANCHES, Batch, DataConfig, SampleStream, Split

__all__ = [
    "UNION_BRANCHES",
    "Batch",
    "DataConfig",
    "SampleStream",
    "Split",
    "as_image",
]
