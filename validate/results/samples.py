"""Scores of every validation sample in every model: ``samples.parquet``, a row per sample."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from validate.exceptions import JobError
from validate.records import replacing
from validate.results.run import Results

__all__ = ["SAMPLES_FILE", "SampleTable", "paired_rows", "samples_of"]

SAMPLES_FILE = "samples.parquet"
_CANDIDATE, _KERNELS = "candidate/", "integer_kernels/"

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SampleTable:
    """Scores of the float reference and of all candidates on the same samples, in their order.

    In the file: `index` (int64), `content`, `label`, `slice` (strings, the last two may be null), `reference` and
    ``candidate/NAME`` (float64, or lists of float64 where the metric is no mean of scores but made of a record per
    sample); and ``integer_kernels/NAME`` where the CPU is the target.

    Attributes:
        contents: of each sample the hash of what goes into the model, in hex (`validate.data.stream.Sample.content`).
        labels: of each sample, as text; None where it has none.
        slices: what the column says that the config names as data.slice; None where there is none.
        reference: scores, shape (n,), or records, shape (n, k).
        candidates: the same of every candidate, by name, in float simulation.
        kernels: the same with integer kernels, where they were measured.

    Examples:
        >>> reference, candidate = np.array([1.0, 1.0]), np.array([1.0, 0.0])
        >>> table = SampleTable(["3f", "a0"], ["cat", "dog"], [None, None], reference, {"mse": candidate})
        >>> len(table), sorted(table.candidates)
        (2, ['mse'])
    """

    contents: Sequence[str]
    labels: Sequence[str | None]
    slices: Sequence[str | None]
    reference: Scores
    candidates: dict[str, Scores]
    kernels: dict[str, Scores] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.contents)

    def write(self, path: Path) -> str:
        """Write as parquet, whole or not at all; return the file's SHA-256, for `Results.samples_sha256`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, Any] = {
            "index": pa.array(range(len(self)), pa.int64()),
            "content": pa.array(self.contents, pa.string()),
            "label": pa.array(self.labels, pa.string()),
            "slice": pa.array(self.slices, pa.string()),
            "reference": _column(self.reference),
            **{_CANDIDATE + name: _column(scores) for name, scores in self.candidates.items()},
            **{_KERNELS + name: _column(scores) for name, scores in self.kernels.items()},
        }
        with replacing(path) as partial:
            pq.write_table(pa.table(columns), partial)
        return _sha256(path)

    @classmethod
    def read(cls, path: Path) -> SampleTable:
        """Read what `write` wrote. Raises JobError where it is something else."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
        except OSError as error:
            raise JobError(f"{path} cannot be read: {error.strerror or error}") from error
        except pa.ArrowInvalid as error:
            raise JobError(f"{path} is not a table of samples: {' '.join(str(error).split())}") from error
        if missing := {"content", "label", "slice", "reference"} - set(table.column_names):
            raise JobError(f"{path} is not a table of samples: it has no column {', '.join(sorted(missing))}")
        contents, labels, slices = (table[name].to_pylist() for name in ("content", "label", "slice"))
        candidates, kernels = (
            {x.removeprefix(prefix): _scores(table[x]) for x in table.column_names if x.startswith(prefix)}
            for prefix in (_CANDIDATE, _KERNELS)
        )
        return cls(contents, labels, slices, _scores(table["reference"]), candidates, kernels)


def samples_of(results: Results, folder: Path) -> tuple[SampleTable | None, str]:
    """Return the samples of results whose files are in a folder, or None and why there are none.

    Raises JobError where the file is of other results, by its SHA-256. Its contents would not tell: two runs of one
    float model on one validation set have the same samples, the same float scores, and often candidates of the same
    name.
    """
    path = folder / SAMPLES_FILE
    if not path.is_file():
        return None, f"there is no {SAMPLES_FILE} beside the results"
    if results.samples_sha256 is None:
        return None, (
            f"the results are of a version that did not note which {SAMPLES_FILE} is theirs, so that the one beside "
            "them is not read; run again"
        )
    if _sha256(path) != results.samples_sha256:
        raise JobError(f"{path} is not of these results: its SHA-256 is another than they note; copy both again")
    return SampleTable.read(path), ""


def paired_rows(ours: SampleTable, theirs: SampleTable) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the rows of samples that are in both tables, by their contents, each shape (m,).

    A sample that is there twice is paired with as many as the other table has.

    Examples:
        >>> def table(*contents):
        ...     return SampleTable(contents, [None] * len(contents), [None] * len(contents), np.ones(len(contents)), {})
        >>> ours, theirs = paired_rows(table("a", "b", "b"), table("b", "c", "a"))
        >>> ours.tolist(), theirs.tolist()
        ([0, 1], [2, 0])
    """
    rows = {key: row for row, key in enumerate(_keys(theirs))}
    pairs = [(row, rows[key]) for row, key in enumerate(_keys(ours)) if key in rows]
    both = np.array(pairs, np.intp).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _keys(table: SampleTable) -> list[tuple[str, int]]:
    """Return each sample's content, and how often it was there before."""
    seen: dict[str, int] = {}
    keys = []
    for content in table.contents:
        seen[content] = seen.get(content, -1) + 1
        keys.append((content, seen[content]))
    return keys


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _column(scores: Scores) -> Any:
    import pyarrow as pa

    if scores.ndim == 1:
        return pa.array(scores, pa.float64(), from_pandas=False)  # NaN is a score, not a null
    return pa.array(list(scores), pa.list_(pa.float64()))


def _scores(column: Any) -> Scores:
    """Return scores or records; a null is a NaN, so that it can never be a good score."""
    import pyarrow as pa

    if pa.types.is_list(column.type):
        return np.array(column.to_pylist(), np.float64).reshape(len(column), -1)
    return np.asarray(column.to_numpy(), np.float64)
