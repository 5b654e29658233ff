"""Changes of scores by class and slice, read from the samples beside the results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from validate.exceptions import JobError
from validate.results import SAMPLES_FILE, Results, samples_of
from validate.tasks import Metric
from validate.verdict import Paired, by_class, by_name, metric_of_samples

__all__ = ["GroupChange", "SampleScores", "changes", "read_scores"]


@dataclass(frozen=True)
class SampleScores:
    """Scores of the float model and of one candidate on each sample, paired.

    Attributes:
        reference, candidate: scores, float64, shape (n,).
        metric: of the task.
        groups: scores of the samples of each group, by what they are grouped by (``label``, ``class`` or ``slice``).
    """

    reference: NDArray[np.float64]
    candidate: NDArray[np.float64]
    metric: Metric
    groups: dict[str, dict[str, Paired]]

    @property
    def worse(self) -> int:
        """Number of samples on which the candidate scores worse."""
        return int((self.metric.worsening(self.reference, self.candidate) > 0).sum())

    @property
    def better(self) -> int:
        """Number of samples on which the candidate scores better."""
        return int((self.metric.worsening(self.reference, self.candidate) < 0).sum())


class GroupChange(NamedTuple):
    """Change of the metric on the samples of one group."""

    name: str
    samples: int
    reference: float
    """Metric of the float model on them."""
    candidate: float
    """Metric of the candidate."""
    drop: float
    """How much worse it is; positive is worse, whatever the metric."""
    worse: int
    """Samples that score worse by themselves."""
    better: int


def read_scores(results: Results, candidate: str, folder: Path) -> SampleScores | str:
    """Return the scores of a candidate, or a sentence that says why there are none.

    Args:
        results: of a run.
        candidate: name.
        folder: with the results and ``samples.parquet``.
    """
    try:
        table, problem = samples_of(results, folder)
    except JobError as error:
        return f"{str(error).removeprefix(str(folder)).lstrip('/')}."
    if table is None:
        return f"{problem[:1].upper()}{problem[1:]}, so that changes by sample are not known."
    if candidate not in table.candidates:
        return f"The {SAMPLES_FILE} beside the results has no scores of {candidate}."
    metric = metric_of_samples(results, table)
    if metric is None:
        return "How the metric is made of samples is known only to the task, so that there are no changes by sample."
    both = (table.reference, table.candidates[candidate])
    groups = {"slice": by_name(table.slices, both)}
    if metric.is_mean:
        groups = {"label": by_name(table.labels, both), **groups}
    elif metric.per_class is not None:
        groups = {"class": by_class(metric, both), **groups}
    return SampleScores(metric.each(both[0]), metric.each(both[1]), metric, groups)


def changes(metric: Metric, groups: Mapping[str, Paired]) -> list[GroupChange]:
    """Return the change of every group, the one that lost most first.

    Samples whose scores are not finite are left out. Where most groups have a single sample (texts as labels, for
    example), a group says nothing, and the list is empty.

    Args:
        metric: of the task.
        groups: scores of the float model and of the candidate, by group.

    Examples:
        >>> accuracy = Metric("accuracy", higher_is_better=True, is_rate=True)
        >>> cats, dogs = (np.ones(4), np.array([1.0, 1.0, 1.0, 0.0])), (np.ones(2), np.ones(2))
        >>> [(change.name, change.drop, change.worse) for change in changes(accuracy, {"dog": dogs, "cat": cats})]
        [('cat', 0.25, 1), ('dog', 0.0, 0)]
    """
    rows = []
    for name, (reference, candidate) in groups.items():
        usable = np.isfinite(np.c_[reference, candidate]).all(axis=1)
        if not usable.any():
            continue
        both = (reference[usable], candidate[usable])
        worse = metric.worsening(*map(metric.each, both))
        rows.append(
            GroupChange(
                name,
                int(usable.sum()),
                metric.value(both[0]),
                metric.value(both[1]),
                metric.drop(*both),
                int((worse > 0).sum()),
                int((worse < 0).sum()),
            )
        )
    if len(rows) < 2 or np.median([row.samples for row in rows]) < 2:
        return []
    return sorted(rows, key=lambda row: (-row.drop, row.name))
