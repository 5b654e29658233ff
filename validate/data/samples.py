"""What a user of Python gives as samples: rows, and how they become batches of inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from validate.data.memory import BATCH_SIZE, RAW, batch_size_of, memory_source
from validate.data.preprocessing import Preparation
from validate.data.stream import SampleStream, Split

__all__ = ["Samples"]


@dataclass(frozen=True)
class Samples:
    """Samples in memory, and how they become inputs of a model; wherever samples are asked for, the rows alone will do.

    A row is an array, a tuple of arrays in the order of the model's inputs, or a mapping from input name to array;
    with a label it is a tuple ``(inputs, label)``, or a mapping with a column for it. Arrays have no batch axis.

    Attributes:
        rows: an iterable of rows; a mapping from column to an array with a row on axis 0 of it; a Hugging Face Dataset,
            also a streaming one; or a PyTorch DataLoader, whose batches are split and made again. An iterator, such as
            a generator, will do where one pass is enough.
        preprocess: row -> array, or mapping from input name to array. Of a row ``(inputs, label)`` it gets the inputs.
        batch_size: samples that run at once; by default a DataLoader's own, or 8. A model may be fixed to another.
        slice: column by which the samples are sliced, for `Policy.slices`.
        allow_repeats: accept samples that repeat others, where the world repeats itself too.

    Examples:
        >>> import numpy as np
        >>> samples = Samples(np.zeros((4, 3), np.float32), preprocess=lambda x: x + 1, batch_size=2)
        >>> [batch.inputs["x"].shape for batch in samples.stream("calibration", ("x",)).batches()]
        [(2, 3), (2, 3)]
    """

    rows: Any
    preprocess: Callable[[Any], Any] | None = None
    batch_size: int | None = None
    slice: str | None = None
    allow_repeats: bool = False

    @classmethod
    def of(cls, rows: Any) -> Samples:
        """Return samples as they are, and rows as samples without a preprocessing."""
        return rows if isinstance(rows, cls) else cls(rows)

    def stream(
        self, split: Split, input_names: tuple[str, ...], label: str | None = None, fixed_batch: int | None = None
    ) -> SampleStream:
        """Return the samples ready to be streamed to a model.

        Args:
            split: what they are for, as sentences about them say it.
            input_names: of the model.
            label: column of the label; None leaves labels out.
            fixed_batch: batch size that the model is fixed to, if it is.

        Raises:
            UsageError: the rows are nothing that gives samples.
        """
        batch_size = fixed_batch or self.batch_size or batch_size_of(self.rows) or BATCH_SIZE
        return SampleStream(
            split,
            memory_source(self.rows, input_names, label, self.preprocess is not None, batch_size),
            self._preparation(),
            label,
            input_names,
            batch_size,
            label_required=label is not None,
            slice=self.slice,
        )

    def _preparation(self) -> Preparation:
        preprocess = self.preprocess
        if preprocess is None:
            return Preparation(None, "none: the arrays as they were given")

        def call(row: Any) -> Any:
            return preprocess(row.get(RAW, row))

        return Preparation(call, getattr(preprocess, "__qualname__", type(preprocess).__name__))
