"""Rules that need every sample's score: no class and no slice may lose much, and none is worse than what is live."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from validate.evidence import Champion, Evidence
from validate.policy import GroupPolicy
from validate.results import Accuracy, Rule
from validate.samples import paired_rows
from validate.significance import paired_interval
from validate.wording import score

__all__ = ["GroupDrop", "champion_rule", "group_drops", "group_rule", "largest_difference", "worsening"]

_SHOWN = 5
"""Groups that a message names at most."""


@dataclass(frozen=True)
class GroupDrop:
    """How much worse a candidate does on one group of samples.

    Attributes:
        name: of the group.
        n: its samples.
        drop: mean of how much worse each is; positive is worse.
        low: lower confidence bound, corrected for the number of groups: one group of many that is beyond it by chance
            alone is to be expected otherwise.
        high: upper confidence bound, not corrected: that every group keeps to a margin is wrongly said only where
            the one that does not happens to look as if it did (an intersection-union test; Berger and Hsu,
            "Bioequivalence trials, intersection-union tests and equivalence confidence sets", 1996, section 2).
    """

    name: str
    n: int
    drop: float
    low: float
    high: float


def group_drops(
    worse: NDArray[np.float64], groups: Sequence[str | None], confidence: float, bound: float | None
) -> list[GroupDrop]:
    """Return the drop of every group, the worst first. Samples without a group are in none.

    Args:
        worse: by how much each sample is worse, shape (n,).
        groups: of each sample.
        confidence: two-sided, in (0, 1).
        bound: see `paired_interval`.
    """
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        if group is not None:
            members.setdefault(group, []).append(row)
    corrected = 1 - (1 - confidence) / max(len(members), 1)
    found = []
    for name, rows in members.items():
        values = worse[rows]
        high = paired_interval(values, confidence, bound).high
        low = paired_interval(values, corrected, bound).low
        found.append(GroupDrop(name, len(rows), float(values.mean()), low, high))
    return sorted(found, key=lambda group: -group.drop)


def group_rule(kind: Literal["class", "slice"], wanted: GroupPolicy, evidence: Evidence) -> Rule:
    """Hold the drop of every class, or of every slice, against its margin."""
    name, table, candidate = f"accuracy of every {kind}", evidence.samples, evidence.candidate
    accuracy, show = evidence.reference, score(evidence.reference.is_rate)
    wish = f"the policy allows {show(wanted.max_drop)} of each"

    def unmeasured(why: str) -> Rule:
        return Rule(name=name, outcome="not_measured", threshold=wanted.max_drop, message=f"{name}: {why}; {wish}")

    if accuracy.is_rate and wanted.max_drop >= 1:
        return unmeasured("that is any drop of a rate, and five percentage points are written 0.05")
    if table is None:
        return unmeasured(evidence.no_samples)
    if candidate.name not in table.candidates:
        return unmeasured(f"samples.parquet has no scores of {candidate.name}")
    groups = table.labels if kind == "class" else table.slices
    missing = sum(group is None for group in groups)
    if missing:
        where = "data.label" if kind == "class" else "data.slice"
        return unmeasured(f"{missing} of {len(groups)} samples have no {kind}; see {where} in the config")
    if table.reference.ndim != 1:
        return unmeasured(f"{accuracy.metric} is not a mean of scores that a {kind} has by itself")
    worse = worsening(accuracy, table.reference, table.candidates[candidate.name])
    if not worse.size or not np.isfinite(worse).all():
        return unmeasured("there are no samples" if not worse.size else "some scores are not finite")
    found = group_drops(worse, groups, candidate.accuracy.confidence, largest_difference(accuracy))
    return _judged(name, kind, wanted, found, show)


def _judged(name: str, kind: str, wanted: GroupPolicy, found: list[GroupDrop], show: Callable[[float], str]) -> Rule:
    margin = wanted.max_drop
    beyond = [group for group in found if group.low > margin]
    unproven = [group for group in found if not group.high < margin and group not in beyond]
    wish = f"the policy allows {show(margin)} of each"

    def listed(groups: list[GroupDrop]) -> str:
        shown = [
            f"{kind} {g.name} by {show(g.drop)} (between {show(g.low)} and {show(g.high)}, {g.n} samples)"
            for g in groups[:_SHOWN]
        ]
        return ", ".join(shown) + (f" and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else "")

    outcome: Literal["pass", "fail", "undecided"] = "pass"
    if beyond:
        outcome, message = "fail", f"{len(beyond)} of {len(found)} drop by more than allowed: {listed(beyond)}"
    elif unproven and wanted.unproven == "undecided":
        outcome, message = "undecided", f"{len(unproven)} of {len(found)} are open: {listed(unproven)}"
    elif unproven:
        message = f"none of {len(found)} is shown to drop by more, but {len(unproven)} are open: {listed(unproven)}"
    else:
        message = f"none of {len(found)} drops by more than allowed; the worst is {listed(found[:1])}"
    worst = (beyond or unproven or found)[0]
    return Rule(
        name=name, outcome=outcome, value=worst.drop, threshold=margin, message=f"{name}: {message}; {wish}"
    )  # fmt: skip


def champion_rule(margin: float, evidence: Evidence, champion: Champion) -> Rule:
    """Hold the candidate against the model that is live, on the samples that both saw."""
    name, table, accuracy = "accuracy against the champion", evidence.samples, evidence.reference
    show = score(accuracy.is_rate)
    wish = f"the policy allows {show(margin)}"

    def unmeasured(why: str) -> Rule:
        return Rule(
            name=name, outcome="not_measured", threshold=margin, message=f"{name} {champion.name}: {why}; {wish}"
        )

    if accuracy.is_rate and margin >= 1:
        return unmeasured("that is any drop of a rate, and five percentage points are written 0.05")
    if champion.accuracy is None or champion.scores is None:
        return unmeasured(champion.problem)
    if table is None:
        return unmeasured(evidence.no_samples)
    if evidence.candidate.name not in table.candidates:
        return unmeasured(f"samples.parquet has no scores of {evidence.candidate.name}")
    if (accuracy.metric, accuracy.higher_is_better) != (champion.accuracy.metric, champion.accuracy.higher_is_better):
        return unmeasured(f"it was judged by {champion.accuracy.metric}, and the candidate by {accuracy.metric}")
    ours, theirs = table.candidates[evidence.candidate.name], champion.scores.reference
    if ours.ndim != 1 or theirs.ndim != 1:
        return unmeasured(f"{accuracy.metric} is not a mean of scores that can be paired")
    rows, their_rows = paired_rows(table, champion.scores)
    worse = worsening(accuracy, theirs[their_rows], ours[rows])
    if not worse.size or not np.isfinite(worse).all():
        return unmeasured("the two saw no sample in common" if not worse.size else "some scores are not finite")
    confidence = evidence.candidate.accuracy.confidence
    interval = paired_interval(worse, confidence, largest_difference(accuracy))
    drop = float(worse.mean())
    outcome: Literal["pass", "fail", "undecided"] = "undecided"
    if interval.high < margin:
        outcome = "pass"
    elif interval.low > margin:
        outcome = "fail"
    unpaired = len(table) - len(rows)
    return Rule(
        name=name, outcome=outcome, value=drop, threshold=margin,
        message=f"against {champion.name}, {accuracy.metric} drops by {show(drop)}, between {show(interval.low)} and "
        f"{show(interval.high)} ({100 * confidence:.4g}% confidence), on {len(rows)} samples that both saw"
        f"{f' ({unpaired} others are left out)' if unpaired else ''}; {wish}",
    )  # fmt: skip


def worsening(
    accuracy: Accuracy, reference: NDArray[np.float64], candidate: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return by how much each sample is worse; positive is worse, whatever the metric."""
    return reference - candidate if accuracy.higher_is_better else candidate - reference


def largest_difference(accuracy: Accuracy) -> float | None:
    """Return the bound of the difference of two scores; see `paired_interval`."""
    return 1.0 if accuracy.is_rate else None
