"""Classes, slices and the champion: against plain recomputation, and honest by simulation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from validate.results import Accuracy, Candidate, Decision, IntegerKernels, Rule
from validate.results.samples import SampleTable
from validate.stats.intervals import tango_interval
from validate.tasks.base import Metric
from validate.tasks.detection import Detection
from validate.tasks.segmentation import Segmentation
from validate.verdict.decision import decide
from validate.verdict.evidence import Champion, Evidence
from validate.verdict.groups import by_class, by_name, group_drops
from validate.verdict.policy import Policy

Scores = NDArray[np.float64]
TOP1 = Metric("top1", higher_is_better=True, is_rate=True)


def table(reference: Scores, candidate: Scores, labels: list[Any], slices: list[Any] | None = None) -> SampleTable:
    contents = [f"{index:032x}" for index in range(len(reference))]
    return SampleTable(contents, labels, slices or [None] * len(labels), reference, {"mse": candidate})


@pytest.fixture
def evidence(reference: Accuracy, measured: Candidate) -> Evidence:
    return Evidence(reference=reference, candidate=measured, metric=TOP1, overlap=0)


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
    found = group_drops(TOP1, by_name(names, (worse, np.zeros(500))), 0.95)
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
        groups = group_drops(TOP1, by_name(names, (worse, np.zeros(600))), 0.95)
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


def test_a_floor_that_no_drop_can_reach_is_no_floor(evidence: Evidence, measured: Candidate) -> None:
    samples = two_classes(150)
    rule = rule_of(replace(evidence, samples=samples), classes={"max_drop": 5})
    assert rule.outcome == "not_measured"
    assert "one point is written 0.01" in rule.message
    live = champion(measured, np.ones(400), list(samples.contents))
    rule = rule_of(replace(evidence, samples=samples, champion=live), champion={"max_drop": 1})
    assert rule.outcome == "not_measured"
    of_correlation = evidence.reference.model_copy(update={"is_rate": False, "value": 0.85})
    rule = rule_of(replace(evidence, samples=samples, reference=of_correlation), classes={"max_drop": 1})
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
    same = champion(measured, np.ones(100), list(samples.contents))
    assert same.scores is not None
    for live, said in (
        (Champion("net@champion", problem="no version of net holds the alias champion yet"), "holds the alias"),
        (champion(measured, np.ones(100), ["f" * 32] * 100), "no sample in common"),
        (champion(measured, np.ones(100), list(samples.contents), metric="top5"), "judged by top5"),
        (champion(measured, np.full(100, math.nan), list(samples.contents)), "not finite"),
        (champion(measured, np.ones((100, 2)), list(samples.contents)), "of another kind"),
        (replace(same, scores=replace(same.scores, labels=["b"] * 100)), "100 of the 100 samples"),
    ):
        rule = rule_of(replace(evidence, samples=samples, champion=live))
        assert rule.outcome == "not_measured"
        assert said in rule.message


def test_only_that_nothing_is_live_can_be_waived(evidence: Evidence, measured: Candidate) -> None:
    """Not that the two cannot be compared, which would go unnoticed from then on."""
    policy = Policy.model_validate({"max_drop": 0.02, "champion": {}, "optional": ["champion"]})
    samples = table(np.ones(400), np.ones(400), ["a"] * 400)
    renamed = champion(measured, np.ones(400), list(samples.contents), metric="top5")
    for live, decision in (
        (None, Decision.GO),
        (Champion("net@champion", problem="none yet", is_absent=True), Decision.GO),
        (Champion("net@champion", problem="its results cannot be read"), Decision.INCONCLUSIVE),
        (renamed, Decision.INCONCLUSIVE),
    ):
        assert decide(policy, replace(evidence, samples=samples, champion=live)).decision is decision
    unasked = policy.model_copy(update={"optional": []})
    assert decide(unasked, replace(evidence, samples=samples)).decision is Decision.INCONCLUSIVE


def test_agreement_with_another_float_model_says_nothing_of_a_champion(evidence: Evidence, measured: Candidate) -> None:
    samples = table(np.ones(400), np.ones(400), ["a"] * 400)
    live = replace(champion(measured, np.ones(400), list(samples.contents), is_agreement=True), model_sha256="ab")
    reference = evidence.reference.model_copy(update={"is_agreement": True})
    given = replace(evidence, reference=reference, samples=samples, champion=live, model_sha256="ab")
    assert rule_of(given).outcome == "pass"
    rule = rule_of(replace(given, model_sha256="cd"))
    assert rule.outcome == "not_measured"
    assert "float models of their own" in rule.message


def test_what_integer_kernels_lose_is_judged_too(evidence: Evidence, measured: Candidate) -> None:
    """In float simulation nothing is lost; with the kernels that will run, class b loses a third."""
    kernels = IntegerKernels(runtime="ONNX Runtime", accuracy=measured.accuracy, difference=0)
    samples = two_classes(0)
    candidate = measured.model_copy(update={"integer_kernels": kernels})
    given = replace(evidence, candidate=candidate, samples=samples)
    rule = rule_of(given, classes={"max_drop": 0.1})
    assert (rule.name, rule.outcome) == ("accuracy of every class with integer kernels", "not_measured")
    lossy = replace(samples, kernels=two_classes(66).candidates)
    rule = rule_of(replace(given, samples=lossy), classes={"max_drop": 0.1})
    assert (rule.name, rule.outcome) == ("accuracy of every class with integer kernels", "fail")


# --- metrics that are no mean ---


def masks(n: int, seed: int, wrong: dict[int, float]) -> tuple[list[Any], Any]:
    """Return maps of 3 classes in 6 x 6 pixels, and answers that miss a share of each class's pixels for class 0."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, (n, 6, 6))
    answers = labels.copy()
    for kind, share in wrong.items():
        answers[(labels == kind) & (random.random(labels.shape) < share)] = 0
    return list(labels), {"y": answers}


def test_classes_of_a_segmentation_are_those_of_its_pixels(evidence: Evidence) -> None:
    """Against sklearn's jaccard_score: one class loses half of its pixels, and two lose little."""
    from sklearn.metrics import jaccard_score

    task, n = Segmentation(3), 200
    labels, good = masks(n, 0, {1: 0.1})
    _, bad = masks(n, 0, {1: 0.1, 2: 0.5})
    both = (task.scores(good, labels), task.scores(bad, labels))
    found = {g.name: g for g in group_drops(task.metric, by_class(task.metric, both), 0.95)}
    ious = [jaccard_score(np.ravel(labels), x["y"].ravel(), average=None) for x in (good, bad)]
    assert {name: group.drop for name, group in found.items()} == pytest.approx(
        {str(k): ious[0][k] - ious[1][k] for k in range(3)}
    )
    samples = table(*both, [None] * n, ["day", "night"] * (n // 2))
    reference = evidence.reference.model_copy(update={"metric": "miou"})
    given = replace(evidence, reference=reference, metric=task.metric, samples=samples)
    rule = rule_of(given, classes={"max_drop": 0.4})
    assert rule.outcome == "fail"
    assert "class 2 by" in rule.message
    assert rule_of(given, slices={"max_drop": 0.5}).outcome == "pass"
    assert rule_of(given, slices={"max_drop": 0.1}).outcome == "fail"
    assert rule_of(replace(given, metric=replace(task.metric, per_class=None)), classes={"max_drop": 0.4}).outcome == (
        "not_measured"
    )
    assert rule_of(replace(given, metric=None), slices={"max_drop": 0.5}).outcome == "not_measured"


def test_classes_of_a_detector_have_the_ap_of_pycocotools() -> None:
    """COCOeval on the labels and detections of one class alone."""
    random = np.random.default_rng(3)
    n, task = 120, Detection(3)
    kinds = random.integers(0, 2, (n, 4))  # no label is of class 2
    boxes = random.uniform(0, 60, (n, 4, 2))
    labels = [
        {"bbox": np.c_[b, np.full((4, 2), 12.0)].tolist(), "category": k.tolist()}
        for b, k in zip(boxes, kinds, strict=True)
    ]

    def answers(noise: float) -> dict[str, NDArray[Any]]:
        moved = boxes + np.where(kinds[..., None] == 1, noise, 0.5) * random.normal(size=boxes.shape)
        return {"y": np.concatenate([moved, moved + 12, random.random((n, 4, 1)), kinds[..., None]], axis=2)}

    outputs = answers(1.0), answers(3.0)
    both = (task.scores(outputs[0], labels), task.scores(outputs[1], labels))
    found = {g.name: g for g in group_drops(task.metric, by_class(task.metric, both), 0.95)}
    assert found.keys() == {"0", "1"}
    for name, group in found.items():
        alone = [
            {"bbox": np.array(x["bbox"])[k == int(name)].tolist(), "category": k[k == int(name)].tolist()}
            for x, k in zip(labels, kinds, strict=True)
        ]
        values = []
        for output in outputs:
            own = output["y"].copy()
            own[..., 4] *= own[..., 5] == int(name)  # a score of 0 is padding
            values.append(task.metric.value(task.scores({"y": own}, alone)))
        assert group.drop == pytest.approx(values[0] - values[1])
        assert group.n == sum(int(name) in k for k in kinds)
    assert found["1"].low > 0.05


def test_a_champion_is_compared_with_where_the_metric_is_no_mean(evidence: Evidence, measured: Candidate) -> None:
    task, n = Segmentation(3), 200
    labels, good = masks(n, 0, {1: 0.1})
    better, worse = task.scores(good, labels), task.scores(masks(n, 0, {1: 0.1, 2: 0.5})[1], labels)
    reference = evidence.reference.model_copy(update={"metric": "miou"})
    for ours, theirs, outcome in ((better, worse, "pass"), (worse, better, "fail")):
        samples = table(better, ours, [None] * n)
        live = champion(measured, theirs, list(samples.contents), metric="miou")
        given = replace(evidence, reference=reference, metric=task.metric, samples=samples, champion=live)
        rule = rule_of(given)
        assert rule.outcome == outcome
        assert rule.value == pytest.approx(task.metric.value(theirs) - task.metric.value(ours))
