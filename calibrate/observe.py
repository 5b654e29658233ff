"""One streaming pass over the calibration data: activations in, statistics out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from calibrate.statistics import NonFiniteError, Statistics
from validate.backends.base import Runnable
from validate.data import Batch
from validate.exceptions import JobError

__all__ = ["observe"]


def observe(
    model: Runnable,
    tensors: Sequence[str],
    batches: Iterable[Batch],
    on_batch: Callable[[Batch, Mapping[str, NDArray[Any]]], None],
) -> dict[str, Statistics]:
    """Return the statistics of every tensor over the batches, in constant memory.

    Args:
        model: the float model, with the tensors among its outputs.
        tensors: what to observe.
        batches: calibration data.
        on_batch: called after each batch with all that the model gave for it.

    Raises:
        JobError: a tensor holds a NaN or an infinity; the tensor and the sample are named.
    """
    statistics = {name: Statistics() for name in tensors}
    for batch in batches:
        outputs = model.run(batch.inputs)
        for name in tensors:
            try:
                statistics[name].update(outputs[name])
            except NonFiniteError as error:
                per_sample = outputs[name].ndim > 0 and len(outputs[name]) == len(batch)
                raise JobError(
                    f"activation {name} is not finite for calibration sample "
                    f"{batch.first + error.row * per_sample}; the float model overflows there, or the "
                    "preprocessing is wrong"
                ) from error
        on_batch(batch, outputs)
    return statistics
