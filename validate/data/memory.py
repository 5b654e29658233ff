"""Rows in memory as a source of samples: iterables of arrays, tuples or mappings, data sets and data loaders."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from itertools import islice
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from validate.exceptions import UsageError

__all__ = ["BATCH_SIZE", "RAW", "MemorySource", "as_array", "batch_size_of", "memory_source"]

Row = Mapping[str, Any]

RAW = ""
"""Column of what a preprocessing takes, where a row is no mapping."""
BATCH_SIZE = 8
"""Samples that run at once, where nobody says how many."""
_KEPT = 16
"""First rows of an iterator that stay in memory: calibration looks at the first samples beside its one pass."""


class MemorySource(BaseModel):
    """Rows that are in memory, or come from an iterable there; see `DataSource` for one that a config names."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    memory: str = Field(description="what the rows come from, e.g. list of 64")
    limit: int | None = Field(default=None, ge=1, description="take the first so many rows only")
    length: int | None = Field(default=None, exclude=True, description="number of rows, where it is known")
    read: Callable[[int | None], Iterator[Row]] = Field(
        exclude=True, repr=False, description="gives the first so many rows, or all of them"
    )

    def rows(self) -> Iterator[Row]:
        """Yield the rows in their order. Raises UsageError where an iterator is read a second time."""
        return self.read(self.limit)


def memory_source(
    items: Any, input_names: tuple[str, ...], label: str | None, prepared: bool, keep: int
) -> MemorySource:
    """Return rows in memory as a source, each row a mapping from column to value.

    Args:
        items: an iterable of rows, a mapping from column to an array with a row on axis 0 of it, a map-style data set,
            or a PyTorch DataLoader, whose batches are split into rows.
        input_names: of the model, by which the arrays of a tuple are called.
        label: column of the label; None where there are none.
        prepared: a preprocessing makes the inputs of a row.
        keep: rows of an iterator that can be read again, at least.

    Raises:
        UsageError: it is nothing that gives rows.
    """
    length = len(items) if isinstance(items, Sized) and batch_size_of(items) is None else None
    if isinstance(items, Mapping):
        length = _common_length(items)
    described = type(items).__name__ + ("" if length is None else f" of {length}")
    repeatable = _iterable(items)
    again = _Once(repeatable, max(keep, _KEPT)) if isinstance(repeatable, Iterator) else None

    def read(limit: int | None) -> Iterator[Row]:
        chosen = islice(iter(repeatable), limit) if again is None else again.read(limit)
        return (_row(item, input_names, label, prepared) for item in chosen)

    return MemorySource(memory=described, length=length, read=read)


def batch_size_of(items: Any) -> int | None:
    """Return the batch size of a PyTorch DataLoader that batches; None of anything else."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(items, torch.utils.data.DataLoader):
        return None
    if items.batch_size is None and items.batch_sampler is None:
        return None
    return int(items.batch_size or getattr(items.batch_sampler, "batch_size", BATCH_SIZE))


def as_array(value: Any) -> NDArray[Any]:
    """Return an array, also of a PyTorch tensor that is on a GPU or has a gradient."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value)


class _Once:
    """An iterator that can be read to its end once, while its first rows can be read again."""

    def __init__(self, items: Iterator[Any], keep: int) -> None:
        self._items, self._keep = items, keep
        self._kept: list[Any] = []
        self._spent = False

    def read(self, limit: int | None) -> Iterator[Any]:
        """Yield the first so many rows, or all. Raises UsageError where they are gone."""
        wanted = self._keep if limit is None else min(limit, self._keep)
        if not self._spent and wanted > len(self._kept):
            self._kept += islice(self._items, wanted - len(self._kept))
        if not self._kept:
            raise UsageError(
                "the samples come from an iterator that has none left: it gives them only once; make a new one, or "
                "give a list, a data set or a data loader"
            )
        yield from self._kept[:limit]
        if len(self._kept) < self._keep or (limit is not None and limit <= len(self._kept)):
            return
        if self._spent:
            raise UsageError(
                "the samples come from an iterator, which gives them only once, and several passes are needed; give a "
                "list, a data set or a data loader"
            )
        self._spent = True
        yield from islice(self._items, None if limit is None else limit - len(self._kept))


def _iterable(items: Any) -> Iterable[Any]:
    """Return what gives one row after the other."""
    if isinstance(items, Mapping):
        columns = cast("Mapping[str, Any]", items)
        return _Again(lambda: ({k: v[i] for k, v in columns.items()} for i in range(_common_length(columns))))
    if batch_size_of(items) is not None:
        return _Again(lambda: (row for batch in items for row in _unbatched(batch)))
    if isinstance(items, str | bytes) or getattr(items, "ndim", 1) == 0:
        raise UsageError(
            f"{items!r:.80} holds no samples; give an iterable of arrays, tuples or mappings, a data set or a data "
            "loader"
        )
    if isinstance(items, Iterable):
        return items
    if hasattr(items, "__getitem__") and hasattr(items, "__len__"):  # a map-style data set, which may not end by itself
        return _Again(lambda: (items[i] for i in range(len(items))))
    raise UsageError(
        f"a {type(items).__name__} holds no samples; give an iterable of arrays, tuples or mappings, a data set or a "
        "data loader"
    )


class _Again:
    """An iterable that starts anew every time."""

    def __init__(self, start: Callable[[], Iterator[Any]]) -> None:
        self._start = start

    def __iter__(self) -> Iterator[Any]:
        return self._start()


def _common_length(columns: Mapping[str, Any]) -> int:
    lengths = {len(column) for column in columns.values() if isinstance(column, Sized)}
    if len(lengths) != 1 or not all(isinstance(column, Sized) for column in columns.values()):
        raise UsageError(
            "samples that are a mapping should have an array for every column, all with as many rows on axis 0; these "
            f"columns are {', '.join(map(str, columns)) or 'none'}"
        )
    return lengths.pop()


def _row(item: Any, names: tuple[str, ...], label: str | None, prepared: bool) -> Row:
    """Return a row as a mapping from column to value."""
    if isinstance(item, Mapping):
        if label is not None and label in item:
            return {**item, label: _plain(item[label])}
        return cast("Row", item)
    if isinstance(item, list) and any(getattr(part, "shape", ()) for part in item):
        item = tuple(item)  # what a DataLoader makes of a tuple
    inputs, found = _split(item, len(names), label is not None, prepared)
    row: dict[str, Any] = {} if label is None or found is None else {label: _plain(found[0])}
    if prepared:
        return {RAW: inputs, **row}
    if isinstance(inputs, Mapping):
        return {**inputs, **row}
    arrays = inputs if isinstance(inputs, tuple) else (inputs,)
    if len(arrays) != len(names):
        raise UsageError(
            f"a sample has {len(arrays)} input{'s' if len(arrays) > 1 else ''}, and the model {len(names)}, which are "
            f"{', '.join(names)}; give a tuple of arrays in this order, or a mapping from input name to array"
        )
    return {**dict(zip(names, arrays, strict=True)), **row}


def _split(item: Any, inputs: int, labelled: bool, prepared: bool) -> tuple[Any, tuple[Any] | None]:
    """Return the inputs of a row that is no mapping, and its label in a tuple; None where it has none."""
    if not isinstance(item, tuple):
        if labelled:
            raise UsageError(
                f"a row is a {type(item).__name__} without a label; give tuples (inputs, label), or mappings with a "
                "column for the label, or label=None to measure agreement with the first model"
            )
        return item, None
    nested = len(item) == 2 and isinstance(item[0], tuple | Mapping)
    if nested or (prepared and len(item) == 2):
        return item[0], (item[1],)
    if len(item) == inputs + 1:
        return (item[0] if inputs == 1 else item[:-1]), (item[-1],)
    if labelled:
        raise UsageError(
            f"a row is a tuple of {len(item)}, and the model has {inputs} input{'s' if inputs > 1 else ''}; give "
            "(inputs, label)"
        )
    return (item[0] if len(item) == 1 else item), None


def _plain(label: Any) -> Any:
    """Return a label without PyTorch or numpy around a single number."""
    if hasattr(label, "detach"):
        label = as_array(label)
    return label.item() if isinstance(label, np.ndarray) and label.ndim == 0 else label


def _unbatched(batch: Any) -> Iterator[Any]:
    """Yield the samples of a batch as `torch.utils.data.default_collate` and its like make it."""
    size = _size(batch)
    return (_picked(batch, i, size, outermost=True) for i in range(size))


def _size(batch: Any) -> int:
    """Return how many samples a batch has: the length of the first array in it."""
    if hasattr(batch, "shape"):
        return len(batch)
    parts = list(batch.values()) if isinstance(batch, Mapping) else batch
    sizes = [_size(part) for part in parts if hasattr(part, "shape") or isinstance(part, Mapping | list | tuple)]
    return sizes[0] if sizes else len(parts)


def _picked(batch: Any, index: int, size: int, outermost: bool) -> Any:
    """Return what is of one sample: of arrays and lists with one entry a sample, in whatever they are nested."""
    if isinstance(batch, Mapping):
        return {key: _picked(part, index, size, outermost=False) for key, part in batch.items()}
    if isinstance(batch, list | tuple):
        sized = [part for part in batch if hasattr(part, "shape") and part.shape and len(part) == size]
        if outermost or (sized and len(sized) == len(batch)):
            return tuple(_picked(part, index, size, outermost=False) for part in batch)
    return batch[index]
