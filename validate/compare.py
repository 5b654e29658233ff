"""Layer by layer: how far is each tensor of a model from the same tensor of the reference?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from validate.backends.base import Runnable
from validate.data import Batch
from validate.errors import SignalNoise
from validate.exceptions import JobError

__all__ = ["layer_sqnr"]


def layer_sqnr(
    reference: Runnable, candidate: Runnable, tensors: Sequence[str], batches: Iterable[Batch]
) -> dict[str, float]:
    """Return the SQNR in dB of each tensor when both models run whole (error accumulates along the depth).

    Both models must have all `tensors` among their outputs; pairs are made by exact name and none is skipped.
    Memory holds one batch of both. Raises JobError where a tensor is missing or shapes differ.
    """
    for which, model in (("reference", reference), ("candidate", candidate)):
        if missing := set(tensors) - set(model.output_names):
            raise JobError(f"the {which} does not give {', '.join(sorted(missing))}, which cannot be compared")
    errors = {name: SignalNoise() for name in tensors}
    for batch in batches:
        expected, actual = reference.run(batch.inputs), candidate.run(batch.inputs)
        for name, error in errors.items():
            try:
                error.add(expected[name], actual[name])
            except ValueError as problem:
                raise JobError(f"tensor {name} cannot be compared: {problem}") from problem
    return {name: error.db for name, error in errors.items()}
