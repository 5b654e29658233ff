"""From a source of rows to batches of model inputs: streamed, preprocessed in worker threads.

A source is named in a config, or is any iterable in memory.
"""

from __future__ import annotations

from validate.data.preprocessing import as_image
from validate.data.samples import Samples
from validate.data.stream import UNION_BRANCHES, Batch, DataConfig, SampleStream, Split, label_text, repeats

__all__ = [
    "UNION_BRANCHES",
    "Batch",
    "DataConfig",
    "SampleStream",
    "Samples",
    "Split",
    "as_image",
    "label_text",
    "repeats",
]
