"""What changed on which samples: the scores that a run writes beside its results, as changes by group."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from validate.exceptions import JobError
from validate.results import Results
from validate.samples import SAMPLES_FILE, samples_of

__all__ = ["GroupChange", "SampleScores", "changes", "read_scores"]


@dataclass(frozen=True)
class SampleScores:
    """Scores of the float model and of one candidate, paired: float64 of shape (n,).

    Attributes:
        groups: by what samples are grouped (``label``, ``slice``), the name of each sample's group, or None.
    """

    reference: NDArray[np.float64]
    candidate: NDArray[np.float64]
    groups: dict[str, list[str | None]]


class GroupChange(NamedTuple):
    """What a candidate did to the samples of one group."""

    name: str
    samples: int
    reference: float
    """Mean score of the float model."""
    candidate: float
    """Mean score of the candidate."""
    drop: float
    """How much worse the mean is; positive is worse, whatever the metric."""
    worse: int
    """Samples whose score is worse."""
    better: int


def read_scores(results: Results, candidate: str, folder: Path) -> SampleScores | str:
    """Return the scores of a candidate of results in a folder, or a sentence that says why there are none."""
    try:
        table, problem = samples_of(results, folder)
    except JobError as error:
        return f"{str(error).removeprefix(str(folder)).lstrip('/')}."
    if table is None:
        return f"{problem[:1].upper()}{problem[1:]}, so that changes by sample are not known."
    if candidate not in table.candidates:
        return f"The {SAMPLES_FILE} beside the results has no scores of {candidate}."
    if table.reference.ndim != 1:
        return "The metric is not made of scores of single samples, so that there are no changes by sample."
    groups = {"label": list(table.labels), "slice": list(table.slices)}
    return SampleScores(table.reference, table.candidates[candidate], groups)


def changes(scores: SampleScores, by: str, higher_is_better: bool) -> list[GroupChange]:
    """Return the change of every group, the one that lost most first.

    Samples without a group or without finite scores are left out. Where most groups have a single sample, as texts
    have that are labels, nothing can be said of a group and the list is empty.
    """
    names = scores.groups.get(by, [])
    usable = np.isfinite(scores.reference) & np.isfinite(scores.candidate)
    kept = [i for i, name in enumerate(names) if name is not None and usable[i]]
    if not kept:
        return []
    groups, member = np.unique([str(names[i]) for i in kept], return_inverse=True)
    counts = np.bincount(member)
    if len(groups) < 2 or np.median(counts) < 2:
        return []
    reference, candidate = scores.reference[kept], scores.candidate[kept]
    worse = reference - candidate if higher_is_better else candidate - reference

    def per_group(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.bincount(member, weights=values).astype(np.float64)

    columns = (
        groups, counts, per_group(reference) / counts, per_group(candidate) / counts, per_group(worse) / counts,
        per_group(worse > 0), per_group(worse < 0),
    )  # fmt: skip
    rows = [
        GroupChange(str(name), int(n), float(ref), float(cand), float(drop), int(down), int(up))
        for name, n, ref, cand, drop, down, up in zip(*columns, strict=True)
    ]
    return sorted(rows, key=lambda row: (-row.drop, row.name))
