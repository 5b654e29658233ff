"""Classes, slices and the champion: against plain recomputation, and honest by simulation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from validate.evidence import Champion, Evidence
from validate.gate import decide
from validate.groups import group_drops
from validate.policy import Policy
from validate.results import Accuracy, Candidate, Decision, Rule
from validate.samples import SampleTable
from validate.significance import tango_interval

Scores = NDArray[np.float64]


def table(reference: Scores, candidate: Scores, labels: list[Any], slices: list[Any] | None = None) -> SampleTable:
    contents = [f"{index:032x}" for index in range(len(reference))]
    return SampleTable(contents, labels, slices or [None] * len(labels), reference, {"mse": candidate})


@pytest.fixture
def evidence(reference: Accuracy, measured: Candidate) -> Evidence:
    return Evidence(reference=reference, candidate=measured, overlap=0)


def rule_of(evidence: Evidence, **policy: Any) -> Rule:
    verdict = decide(Policy.model_validate({"max_drop": 0.02, **policy}), evidence)
    rule = verdict.rules[-1]
    blocked = {"fail": Decision.NO_GO, "pass": Decision.GO}.get(rule.outcome, Decision.INCONCLUSIVE)
    assert verdict.decision is blocked
    return rule


def two_classes(lost: int, n: int = 200) -> SampleTable:
    """Class a keeps all of its answers, class b loses some."""
    reference, candidate = np.ones(2 * n), np.ones(2 * n)
    candidate[n : n + lost] = 0
    return table(reference, candidate, ["a"] * n + ["b"] * n)


@pytest.mark.parametrize(
    ("lost", "unproven", "outcome"),
    [(0, "undecided", "pass"), (18, "undecided", "undecided"), (18, "pass", "pass"), (60, "pass", "fail")],
)
def test_no_class_may_lose_more(evidence: Evidence, lost: int, unproven: str, outcome: str) -> None:
    given = replace(evidence, samples=two_classes(lost))
    rule = rule_of(given, classes={"max_drop": 0.1, "unproven": unproven})
    assert (rule.name, rule.outcome, rule.threshold) == ("accuracy of every class", outcome, 0.1)
    assert rule.value == pytest.approx(lost / 200)
    if lost:
        assert f"class b by {100 * lost / 200:.2f}%" in rule.message


def test_a_mean_that_is_fine_does_not_hide_a_class(evidence: Evidence) -> None:
    """A class of 50 loses everything, which is 1.25% of all."""
    reference, candidate = np.ones(4000), np.ones(4000)
    candidate[:50] = 0
    samples = table(reference, candidate, ["rare"] * 50 + ["common"] * 3950)
    assert rule_of(replace(evidence, samples=samples), classes={"max_drop": 0.1}).outcome == "fail"


def test_slices_are_another_grouping(evidence: Evidence) -> None:
    n = 400
    reference, candidate = np.ones(n), np.ones(n)
    candidate[::4] = 0
    samples = table(reference, candidate, ["same"] * n, ["night" if i % 4 == 0 else "day" for i in range(n)])
    rule = rule_of(replace(evidence, samples=samples), slices={"max_drop": 0.5})
    assert (rule.name, rule.outcome, rule.value) == ("accuracy of every slice", "fail", 1.0)
    assert "slice night by 100.00%" in rule.message


def test_groups_against_plain_recomputation() -> None:
    random = np.random.default_rng(2)
    worse = random.choice([1.0, 0.0, -1.0], 500, p=[0.1, 0.85, 0.05])
    names = [None if i % 10 == 9 else "abc"[i % 3] for i in range(500)]
    found = group_drops(worse, names, 0.95, 1.0)
    assert [group.drop for group in found] == sorted((group.drop for group in found), reverse=True)
    for group in found:
        own = np.array([w for w, name in zip(worse, names, strict=True) if name == group.name])
        counts = int((own == 1).sum()), int((own == -1).sum()), len(own)
        assert (group.n, group.drop) == (len(own), pytest.approx(own.mean()))
        assert group.high == tango_interval(*counts, 0.95)[1]
        assert group.low == tango_interval(*counts, 1 - 0.05 / 3)[0]
    assert sum(group.n for group in found) == 450


@pytest.mark.parametrize("bad_classes", [1, 10])
def test_many_classes_do_not_make_false_verdicts(bad_classes: int) -> None:
    """Ten classes of 60. With one just at the floor, it is hardly ever said that all keep to it; with all at the
    floor, it is hardly ever said that one does not."""
    random, floor, studies = np.random.default_rng(4), 0.1, 800
    names = [str(i // 60) for i in range(600)]
    passed = failed = 0
    for _ in range(studies):
        lost = np.where(np.arange(600) // 60 < bad_classes, floor, 0.0)
        worse = (random.random(600) < lost).astype(float)
        groups = group_drops(worse, names, 0.95, 1.0)
        passed += all(group.high < floor for group in groups)
        failed += any(group.low > floor for group in groups)
    noise = 3 * math.sqrt(0.025 * 0.975 / studies)
    assert passed / studies <= 0.025 + noise
    assert failed / studies <= 0.025 + noise + 0.01  # a score interval of rare losses is not exact


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (None, "no samples.parquet"),
        (table(np.ones(4), np.ones(4), ["a", None, "b", "b"]), "1 of 4 samples have no class"),
        (table(np.ones((4, 2)), np.ones((4, 2)), list("aabb")), "not a mean of scores"),
        (table(np.ones(4), np.array([1, 1, math.nan, 1]), list("aabb")), "not finite"),
        (table(np.ones(0), np.ones(0), []), "no samples"),
        (replace(table(np.ones(4), np.ones(4), list("aabb")), candidates={}), "no scores of mse"),
    ],
)
def test_what_groups_cannot_be_judged_on_was_not_measured(
    evidence: Evidence, samples: SampleTable | None, said: str
) -> None:
    rule = rule_of(replace(evidence, samples=samples), classes={"max_drop": 0.1})
    assert rule.outcome == "not_measured"
    assert said in rule.message


def test_a_floor_that_no_rate_can_miss_is_no_floor(evidence: Evidence, measured: Candidate) -> None:
    samples = two_classes(150)
    rule = rule_of(replace(evidence, samples=samples), classes={"max_drop": 5})
    assert rule.outcome == "not_measured"
    assert "five percentage points are written 0.05" in rule.message
    live = champion(measured, np.ones(400), list(samples.contents))
    rule = rule_of(replace(evidence, samples=samples, champion=live), champion={"max_drop": 1})
    assert rule.outcome == "not_measured"


def test_a_class_of_one_sample_proves_nothing(evidence: Evidence) -> None:
    samples = table(np.ones(301), np.ones(301), ["a"] * 300 + ["b"])
    rule = rule_of(replace(evidence, samples=samples), classes={"max_drop": 0.1})
    assert rule.outcome == "undecided"
    assert "class b" in rule.message


# --- the champion ---


def champion(measured: Candidate, scores: Scores, contents: list[str], **changes: Any) -> Champion:
    nothing: list[Any] = [None] * len(scores)
    accuracy = measured.accuracy.model_copy(update=changes)
    return Champion("net version 3 (champion)", accuracy, SampleTable(contents, nothing, nothing, scores, {}))


@pytest.mark.parametrize(("better", "outcome"), [(0, "pass"), (16, "undecided"), (60, "fail")])
def test_the_candidate_may_not_be_worse_than_what_is_live(
    evidence: Evidence, measured: Candidate, better: int, outcome: str
) -> None:
    """The champion answers some samples right that the candidate does not; its samples come in another order."""
    n = 500
    ours = np.zeros(n)
    samples = table(np.ones(n), ours, ["a"] * n)
    theirs = ours.copy()
    theirs[:better] = 1
    order = np.random.default_rng(0).permutation(n)
    live = champion(measured, theirs[order], [samples.contents[i] for i in order])
    rule = rule_of(replace(evidence, samples=samples, champion=live))
    assert (rule.name, rule.outcome, rule.value) == ("accuracy against the champion", outcome, better / n)
    assert "net version 3 (champion)" in rule.message
    assert "500 samples that both saw;" in rule.message


def test_only_common_samples_are_compared(evidence: Evidence, measured: Candidate) -> None:
    samples = table(np.ones(400), np.ones(400), ["a"] * 400)
    live = champion(measured, np.r_[np.ones(300), np.zeros(100)], [*samples.contents[:300], *["f" * 32] * 100])
    rule = rule_of(replace(evidence, samples=samples, champion=live))
    assert (rule.outcome, rule.value) == ("pass", 0)
    assert "300 samples that both saw (100 others are left out)" in rule.message


def test_the_champions_margin_can_be_its_own(evidence: Evidence, measured: Candidate) -> None:
    samples = table(np.ones(500), np.zeros(500), ["a"] * 500)
    live = champion(measured, np.r_[np.ones(16), np.zeros(484)], list(samples.contents))
    given = replace(evidence, samples=samples, champion=live)
    assert rule_of(given, champion={"max_drop": 0.1}).outcome == "pass"


def test_a_champion_that_cannot_be_compared_with_is_not_measured(evidence: Evidence, measured: Candidate) -> None:
    samples = table(np.ones(100), np.ones(100), ["a"] * 100)
    for live, said in (
        (Champion("net@champion", problem="no version of net holds the alias champion yet"), "holds the alias"),
        (champion(measured, np.ones(100), ["f" * 32] * 100), "no sample in common"),
        (champion(measured, np.ones(100), list(samples.contents), metric="top5"), "judged by top5"),
        (champion(measured, np.full(100, math.nan), list(samples.contents)), "not finite"),
        (champion(measured, np.ones((100, 2)), list(samples.contents)), "not a mean"),
    ):
        rule = rule_of(replace(evidence, samples=samples, champion=live))
        assert rule.outcome == "not_measured"
        assert said in rule.message
    first = replace(evidence, samples=samples, champion=Champion("net@champion", problem="none yet"))
    assert decide(Policy(max_drop=0.02, optional=["champion"]), first).decision is Decision.GO
