"""Statistics on disk: one NumPy .npz file, read without pickle."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from calibrate.observation.streaming import Observation
from calibrate.plan import Origin
from validate.exceptions import DAMAGED_NPZ, JobError
from validate.records import Record, replacing
from validate.stats import MAX_BINS, Statistics

__all__ = ["StoredStatistics", "merged", "read_statistics", "write_statistics"]


class _Header(Record):
    """Everything in the file that is not a number per tensor."""

    origin: Origin
    samples: int = Field(ge=1)
    tensors: list[str]
    arrays_sha256: str = Field(description="of the arrays, since a zip's checksum misses what it does not cover")


@dataclass(frozen=True)
class StoredStatistics:
    """Statistics of one or more calibration passes, their provenance, and the number of samples."""

    observation: Observation
    origin: Origin
    samples: int


def write_statistics(stored: StoredStatistics, path: Path) -> None:
    """Write statistics to an .npz file, which appears only when it is complete."""
    halves = stored.observation.halves
    tensors = list(halves[0])
    per_half = [[half[name] for name in tensors] for half in halves]
    bins = np.array([[s.bins for s in half] for half in per_half], np.int64)
    counts = np.array([[(s.count, s.zeros, s.exponent) for s in half] for half in per_half], np.int64)
    extremes = np.array([[(s.minimum, s.maximum) for s in half] for half in per_half], np.float64)
    header = _Header(
        origin=stored.origin, samples=stored.samples, tensors=tensors, arrays_sha256=_digest(bins, counts, extremes)
    )
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            header=np.frombuffer(header.model_dump_json().encode(), np.uint8),
            bins=bins,
            counts=counts,
            extremes=extremes,
        )


def read_statistics(path: Path) -> StoredStatistics:
    """Read what `write_statistics` wrote.

    Raises:
        JobError: the file cannot be read, is of another kind, is damaged, or is from another version of this package.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            header = _Header.model_validate_json(file["header"].tobytes())
            bins, counts, extremes = file["bins"], file["counts"], file["extremes"]
    except OSError as error:
        raise JobError(f"statistics {path} cannot be read: {error.strerror or error}") from error
    except DAMAGED_NPZ as error:
        raise JobError(f"{path} is not a statistics file; python -m calibrate observe writes one") from error
    header.origin.require_version(f"statistics {path}")
    shape = (2, len(header.tensors))
    fits = (bins.shape, counts.shape, extremes.shape) == ((*shape, MAX_BINS), (*shape, 3), (*shape, 2))
    if not fits or _digest(bins, counts, extremes) != header.arrays_sha256:
        raise JobError(f"statistics {path} is damaged: its arrays are not those that were written; observe again")
    first, second = (
        {name: _statistics(bins[h, t], counts[h, t], extremes[h, t]) for t, name in enumerate(header.tensors)}
        for h in range(2)
    )
    return StoredStatistics(Observation((first, second)), header.origin, header.samples)


def merged(files: Sequence[Path]) -> StoredStatistics:
    """Read the statistics of parts of the data, which several machines may have made, and merge them.

    Args:
        files: what `write_statistics` wrote, one at least. Their order does not matter.

    Raises:
        JobError: they are of different models, tensors or preprocessing, or of the same data.
    """
    parts = [read_statistics(file) for file in files]
    first = parts[0]
    for file, part in zip(files[1:], parts[1:], strict=True):
        part.origin.require_model(f"statistics {file}", first.origin.model_sha256, f"that of {files[0]}")
        if part.origin.preprocessing_sha256 != first.origin.preprocessing_sha256:
            raise JobError(
                f"statistics {file} and {files[0]} are of different preprocessing; observe one of them again"
            )
        if part.observation.halves[0].keys() != first.observation.halves[0].keys():
            raise JobError(f"statistics {file} and {files[0]} are of different tensors; observe one of them again")
    data = [str(part.origin.data_sha256) for part in parts]
    for file, digest in zip(files, data, strict=True):
        if data.count(digest) > 1:
            raise JobError(f"statistics {file} is of the same samples as another one; give each part of the data once")
    if len(parts) == 1:
        return first
    joint = hashlib.sha256("".join(sorted(data)).encode()).hexdigest()  # whatever their order
    origin = first.origin.model_copy(update={"data_sha256": joint})
    observation = reduce(Observation.merge, (part.observation for part in parts))
    return StoredStatistics(observation, origin, sum(part.samples for part in parts))


def _digest(*arrays: NDArray[Any]) -> str:
    return hashlib.sha256(b"".join(f"{a.dtype.str}{a.shape}".encode() + a.tobytes() for a in arrays)).hexdigest()


def _statistics(bins: NDArray[np.int64], counts: NDArray[np.int64], extremes: NDArray[np.float64]) -> Statistics:
    count, zeros, exponent = map(int, counts)
    return Statistics(float(extremes[0]), float(extremes[1]), count, zeros, exponent, bins)
