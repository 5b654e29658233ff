"""Rules on every sample's score: by class, by slice, and against the champion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from validate.results import Rule, SampleTable, paired_rows
from validate.stats import drop_interval, drop_intervals
from validate.tasks import Metric, Records
from validate.verdict.evidence import Champion, Evidence
from validate.verdict.policy import GroupPolicy
from validate.verdict.wording import interval, out_of_reach, score

__all__ = ["GroupDrop", "Paired", "by_class", "by_name", "champion_rule", "group_drops", "group_rule"]

_SHOWN = 5
"""Groups that a message names at most."""
_WITH_KERNELS = " with integer kernels"
_NO_METRIC = "how the metric is made of the samples' records is not known here, but only in the run itself"

Paired = tuple[Records, Records]
"""Scores, or records, of the reference and of the candidate on the same samples."""


@dataclass(frozen=True)
class GroupDrop:
    """How much worse a candidate does on one group of samples.

    Attributes:
        name: of the group.
        n: its samples.
        drop: of the metric on them; positive is worse.
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


def by_name(names: Sequence[str | None], both: Paired) -> dict[str, Paired]:
    """Return the samples of each group; those without a name are in none.

    Examples:
        >>> groups = by_name(["day", "night", None, "day"], (np.array([1.0, 1, 1, 1]), np.array([1.0, 0, 1, 1])))
        >>> {name: candidate.tolist() for name, (reference, candidate) in groups.items()}
        {'day': [1.0, 1.0], 'night': [0.0]}
    """
    members: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if name is not None:
            members.setdefault(name, []).append(row)
    return {name: (both[0][rows], both[1][rows]) for name, rows in members.items()}


def by_class(metric: Metric, both: Paired) -> dict[str, Paired]:
    """Return the records of each class, of a metric that is made of classes, on the samples that have any of it.

    Classes for which the reference has no value are left out: no label and no answer is of them.

    Examples:
        >>> from validate.tasks import Segmentation
        >>> task, label = Segmentation(classes=3), np.array([[0, 1], [0, 1]])
        >>> reference = task.scores({"y": np.array([[[0, 1], [0, 1]]])}, [label])
        >>> candidate = task.scores({"y": np.array([[[0, 1], [1, 1]]])}, [label])
        >>> groups = by_class(task.metric, (reference, candidate))
        >>> {name: round(task.metric.drop(*both), 4) for name, both in groups.items()}
        {'0': 0.5, '1': 0.3333}
    """
    assert metric.per_class is not None
    found = {}
    for reference, candidate in zip(*map(metric.per_class, both), strict=True):
        rows = reference.concerned | candidate.concerned
        parts = (reference.records[rows], candidate.records[rows])
        if np.isfinite(metric.value(parts[0])):
            found[reference.name] = parts
    return found


def group_drops(metric: Metric, groups: Mapping[str, Paired], confidence: float) -> list[GroupDrop]:
    """Return the drop of every group, the worst first.

    Args:
        metric: of the task.
        groups: the samples of each, by its name.
        confidence: two-sided, in (0, 1).

    Examples:
        >>> groups = {"day": (np.ones(100), np.ones(100)), "night": (np.ones(100), np.repeat([0.0, 1.0], [10, 90]))}
        >>> for group in group_drops(Metric("top1", higher_is_better=True, is_rate=True), groups, confidence=0.95):
        ...     print(group.name, group.n, round(group.drop, 2), round(group.low, 3), round(group.high, 3))
        night 100 0.1 0.047 0.174
        day 100 0.0 -0.048 0.037
    """
    corrected = 1 - (1 - confidence) / max(len(groups), 1)
    found = []
    for name, both in groups.items():
        shared, alone = drop_intervals(metric, *both, [corrected, confidence])
        found.append(GroupDrop(name, len(both[0]), metric.drop(*both), shared.low, alone.high))
    return sorted(found, key=lambda group: -group.drop)


def group_rule(kind: Literal["class", "slice"], wanted: GroupPolicy, evidence: Evidence, kernels: bool = False) -> Rule:
    """Judge the drop of every class, or of every slice, by its margin.

    Args:
        kind: of group.
        wanted: the policy's.
        evidence: of the candidate.
        kernels: judge what integer kernels scored, in place of float simulation.
    """
    name, metric = f"accuracy of every {kind}{_WITH_KERNELS if kernels else ''}", evidence.metric
    show = score(evidence.reference.is_rate)
    wish = f"the policy allows {show(wanted.max_drop)} of each"

    def unmeasured(why: str) -> Rule:
        return Rule(name=name, outcome="not_measured", threshold=wanted.max_drop, message=f"{name}: {why}; {wish}")

    both = _both(evidence, kernels)
    if problem := out_of_reach(evidence.reference, wanted.max_drop):
        return unmeasured(problem)
    if isinstance(both, str) or metric is None or evidence.samples is None:
        return unmeasured(both if isinstance(both, str) else _NO_METRIC)
    if not len(both[0]) or not all(np.isfinite(x).all() for x in both):
        return unmeasured("there are no samples" if not len(both[0]) else "some scores are not finite")
    groups = _groups(kind, metric, evidence.samples, both)
    if isinstance(groups, str):
        return unmeasured(groups)
    return _judged(name, kind, wanted, group_drops(metric, groups, evidence.candidate.accuracy.confidence), show)


def _both(evidence: Evidence, kernels: bool) -> Paired | str:
    """Return what every sample scored in the reference and in the candidate, or why it is not known."""
    if evidence.samples is None:
        return evidence.no_samples
    scores = evidence.samples.kernels if kernels else evidence.samples.candidates
    if evidence.candidate.name not in scores:
        return f"samples.parquet has no scores of {evidence.candidate.name}{_WITH_KERNELS if kernels else ''}"
    return evidence.samples.reference, scores[evidence.candidate.name]


def _groups(
    kind: Literal["class", "slice"], metric: Metric, table: SampleTable, both: Paired
) -> dict[str, Paired] | str:
    """Return the samples of every group, or why there are no groups."""
    if kind == "class" and not metric.is_mean:
        if metric.per_class is None:
            return f"{metric.name} has no value of a class"
        return by_class(metric, both) or "no label is of any class"
    names = table.labels if kind == "class" else table.slices
    missing = sum(name is None for name in names)
    if missing:
        where = "data.label" if kind == "class" else "data.slice"
        return f"{missing} of {len(names)} samples have no {kind}; see {where} in the config"
    return by_name(names, both)


def _judged(name: str, kind: str, wanted: GroupPolicy, found: list[GroupDrop], show: Callable[[float], str]) -> Rule:
    margin = wanted.max_drop
    beyond = [group for group in found if group.low > margin]
    unproven = [group for group in found if not group.high < margin and group not in beyond]
    wish = f"the policy allows {show(margin)} of each"

    def listed(groups: list[GroupDrop]) -> str:
        shown = [
            f"{kind} {g.name} by {show(g.drop)} ({interval(g.low, g.high, show)}, {g.n} samples)"
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
    return Rule(name=name, outcome=outcome, value=worst.drop, threshold=margin, message=f"{name}: {message}; {wish}")


def champion_rule(margin: float, evidence: Evidence, champion: Champion, kernels: bool = False) -> Rule:
    """Judge the candidate against the live model, on the samples that both have scores of.

    Args:
        margin: how much worse than the champion the candidate may be, in the metric's unit.
        evidence: of the candidate.
        champion: the live model.
        kernels: see `group_rule`.
    """
    name, accuracy, metric = "accuracy against the champion", evidence.reference, evidence.metric
    name += _WITH_KERNELS if kernels else ""
    show = score(accuracy.is_rate)
    wish = f"the policy allows {show(margin)}"

    def rule(outcome: Literal["pass", "fail", "undecided", "not_measured"], message: str, drop: float | None) -> Rule:
        return Rule(name=name, outcome=outcome, value=drop, threshold=margin, message=f"{message}; {wish}")

    def unmeasured(why: str) -> Rule:
        return rule("not_measured", f"{name} {champion.name}: {why}", None)

    if problem := out_of_reach(accuracy, margin) or _incomparable(evidence, champion):
        return unmeasured(problem)
    both = _both(evidence, kernels)
    if isinstance(both, str) or metric is None or evidence.samples is None or champion.scores is None:
        return unmeasured(both if isinstance(both, str) else _NO_METRIC)
    ours, theirs = both[1], champion.scores.reference
    if ours.shape[1:] != theirs.shape[1:]:
        return unmeasured(f"its records of {metric.name} are of another kind")
    rows, their_rows = paired_rows(evidence.samples, champion.scores)
    other = _other_labels(evidence.samples, rows, champion.scores, their_rows)
    if other:
        return unmeasured(f"{other} of the {len(rows)} samples that both saw had another label there")
    ours, theirs = ours[rows], theirs[their_rows]
    if not len(rows) or not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return unmeasured("the two saw no sample in common" if not len(rows) else "some scores are not finite")
    confidence, drop = evidence.candidate.accuracy.confidence, metric.drop(theirs, ours)
    found = drop_interval(metric, theirs, ours, confidence)
    outcome: Literal["pass", "fail", "undecided"] = "undecided"
    if found.high < margin or (champion.plan_hash == evidence.candidate.plan_hash and drop == 0):
        outcome = "pass"
    elif found.low > margin:
        outcome = "fail"
    unpaired = len(evidence.samples) - len(rows)
    left_out = f" ({unpaired} others are left out)" if unpaired else ""
    message = (
        f"against {champion.name}, {accuracy.metric}{_WITH_KERNELS if kernels else ''} drops by {show(drop)}, "
        f"{interval(found.low, found.high, show)} ({100 * confidence:.4g}% confidence), on {len(rows)} samples that "
        f"both saw{left_out}"
    )
    return rule(outcome, message, drop)


def _incomparable(evidence: Evidence, champion: Champion) -> str:
    """Return why the two cannot be compared, as far as it is known without their samples."""
    ours, theirs = evidence.reference, champion.accuracy
    if theirs is None or champion.scores is None:
        return champion.problem
    if (ours.metric, ours.higher_is_better) != (theirs.metric, theirs.higher_is_better):
        return f"it was judged by {theirs.metric}, and the candidate by {ours.metric}"
    if ours.is_agreement and champion.model_sha256 != evidence.model_sha256:
        return "the two were held against float models of their own, and there are no labels to hold both against"
    return ""


def _other_labels(ours: SampleTable, rows: NDArray[np.intp], theirs: SampleTable, their_rows: NDArray[np.intp]) -> int:
    """Return how many samples have another label in the other table; one without a label here or there has none."""
    pairs = ((ours.labels[a], theirs.labels[b]) for a, b in zip(rows, their_rows, strict=True))
    return sum(a is not None and b is not None and a != b for a, b in pairs)
