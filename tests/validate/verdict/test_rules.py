"""Every rule of a policy but those of the engine: what passes, what fails, and what was not measured is no GO."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from tests.validate.conftest import layer, speedup
from validate.results import (
    Accuracy,
    Candidate,
    Clipping,
    Decision,
    Rule,
    Verdict,
)
from validate.verdict.decision import decide
from validate.verdict.evidence import Evidence
from validate.verdict.policy import Policy

GO, NO_GO, INCONCLUSIVE = Decision.GO, Decision.NO_GO, Decision.INCONCLUSIVE
DECISIONS = {"pass": GO, "fail": NO_GO, "undecided": INCONCLUSIVE, "not_measured": INCONCLUSIVE}


@pytest.fixture
def evidence(reference: Accuracy, measured: Candidate) -> Evidence:
    return Evidence(reference=reference, candidate=measured, overlap=0)


def judge(evidence: Evidence, changes: dict[str, Any], **policy: Any) -> Verdict:
    changed = replace(evidence, candidate=evidence.candidate.model_copy(update=changes))
    return decide(Policy.model_validate({"max_drop": 0.02, **policy}), changed)


def the_rule(verdict: Verdict) -> Rule:
    """Return the rule after accuracy, build and engine, and hold the decision against it."""
    rule = verdict.rules[-1]
    assert verdict.decision is DECISIONS[rule.outcome]
    assert rule.message in verdict.reasons
    assert rule.threshold is not None
    assert (rule.value is None) == (rule.outcome == "not_measured")
    return rule


FASTER = {"FP16": {"at_least": 1.2}}
ESTIMATE = {"FP16": {"at_least": 1.2, "estimate": True}}


@pytest.mark.parametrize(
    ("speedups", "policy", "outcome", "said"),
    [
        ([speedup(1.5, ci_low=1.4, ci_high=1.6)], FASTER, "pass", "measured: an L4"),
        ([speedup(1.5, ci_low=1.2, ci_high=1.6)], FASTER, "pass", "between 1.2 and 1.6"),
        ([speedup(1.5, ci_low=1.1, ci_high=1.6)], FASTER, "undecided", "between 1.1 and 1.6"),
        ([speedup(1.1, ci_low=1.0, ci_high=1.19)], FASTER, "fail", "asks for 1.2"),
        ([speedup(1.5)], FASTER, "pass", "measured"),
        ([speedup(1.1)], FASTER, "fail", "measured"),
        ([speedup(1.5, basis="estimate")], FASTER, "not_measured", "only estimated"),
        ([speedup(1.5, basis="estimate")], ESTIMATE, "pass", "estimate: an L4"),
        ([speedup(1.1, basis="estimate")], ESTIMATE, "fail", "estimate: an L4"),
        ([speedup(1.5, basis="multiply-accumulates")], ESTIMATE, "not_measured", "counted, no measurement"),
        ([speedup(1.5, on_target=False)], ESTIMATE, "not_measured", "says nothing of the target"),
        ([speedup(1.5, against="TensorRT FP32")], FASTER, "not_measured", "was not measured"),
        ([speedup(1.5, against="PyTorch eager")], FASTER, "not_measured", "was not measured"),
        ([], FASTER, "not_measured", "was not measured"),
        ([speedup(math.nan)], FASTER, "not_measured", "was not measured"),
        # A measurement is heard before an estimate, wherever it is in the list.
        ([speedup(1.5, basis="estimate", against="FP16"), speedup(1.1)], ESTIMATE, "fail", "measured: an L4"),
        # Models timed whole are heard before a sum of the times of layers, which has no interval.
        ([speedup(1.5, against="FP16"), speedup(0.9, ci_low=0.88, ci_high=0.92)], FASTER, "fail", "between 0.88 and"),
        ([speedup(1.1, on_target=False), speedup(1.5, basis="estimate")], ESTIMATE, "pass", "estimate: an L4"),
    ],
)
def test_speedup(evidence: Evidence, speedups: list[Any], policy: Any, outcome: str, said: str) -> None:
    rule = the_rule(judge(evidence, {"speedups": speedups}, speedup=policy))
    assert (rule.name, rule.outcome, rule.threshold) == ("speed-up against FP16", outcome, 1.2)
    assert said in rule.message


@pytest.mark.parametrize("others", [[], [speedup(0.4, against="TensorRT FP16"), speedup(0.3, basis="estimate")]])
@pytest.mark.parametrize(("fp32", "tf32", "outcome"), [(3.0, 1.5, "fail"), (1.5, 3.0, "fail"), (3.0, 2.5, "pass")])
def test_against_float32_the_faster_of_its_engines_counts(
    evidence: Evidence, fp32: float, tf32: float, outcome: str, others: list[Any]
) -> None:
    """Who has TensorRT's default, with TF32, gains what the candidate gains over that, and no more."""
    speedups = [speedup(fp32, against="TensorRT FP32"), speedup(tf32, against="TensorRT TF32"), *others]
    rule = the_rule(judge(evidence, {"speedups": speedups}, speedup={"FP32": {"at_least": 2.0}}))
    assert (rule.name, rule.outcome, rule.value) == ("speed-up against FP32", outcome, min(fp32, tf32))


@pytest.mark.parametrize(
    ("speedups", "said"),
    [
        ([speedup(1.5, ci_low=1.2, ci_high=1.6)], None),
        ([speedup(1.1, ci_low=0.9, ci_high=1.3)], "not shown to be faster than FP16"),
        ([speedup(0.53, ci_low=0.52, ci_high=0.54)], "0.53, between 0.52 and 0.54 (measured: an L4): ship FP16"),
        ([speedup(1.0, basis="estimate")], "INT8 is not faster than FP16: the speed-up is 1 (estimate: an L4)"),
        ([speedup(0.9, basis="estimate"), speedup(1.5, ci_low=1.4, ci_high=1.6)], None),  # it was measured otherwise
        ([speedup(0.9, on_target=False)], None),  # a CPU says nothing about a GPU
        ([speedup(0.9, against="FP32")], None),
        ([], None),
    ],
)
def test_int8_that_is_not_faster_than_fp16_is_said_and_stops_nothing(
    evidence: Evidence, speedups: list[Any], said: str | None
) -> None:
    verdict = judge(evidence, {"speedups": speedups})
    assert verdict.decision is GO
    found = [reason for reason in verdict.reasons if "faster than FP16" in reason]
    assert bool(found) == (said is not None)
    if said is not None:
        assert said in found[0]
        assert found[0].endswith("ship FP16") == ("ship FP16" in said)  # an estimate advises nothing


@pytest.mark.parametrize(
    ("speedups", "why"),
    [
        (
            [speedup(1.5, basis="multiply-accumulates", on_target=False)],
            "1.5 (counted, no measurement: an L4) says not",
        ),
        ([speedup(0.9, on_target=False)], "0.9 (measured: an L4) says nothing of the target"),
        ([speedup(1.5, against="FP32")], "nothing was measured or estimated for it"),
        ([speedup(1.5)], None),
        ([speedup(1.5, basis="estimate")], None),
    ],
)
def test_a_go_that_does_not_know_whether_int8_beats_fp16_says_so(
    evidence: Evidence, speedups: list[Any], why: str | None
) -> None:
    def unknown(**policy: Any) -> list[str]:
        reasons = judge(evidence, {"speedups": speedups}, **policy).reasons
        return [reason for reason in reasons if reason.startswith("how fast INT8 is against FP16 on the target is not")]

    assert len(unknown()) == (why is not None)
    assert why is None or why in unknown()[0]
    assert not unknown(speedup=FASTER, optional=["speedup"])  # whose rule says it
    assert not unknown(max_drop=1e-6)  # no GO


@pytest.mark.parametrize(
    ("latency", "speedups", "policy", "outcome"),
    [
        ({}, None, {"p99_ms": 3.3}, "pass"),
        ({}, None, {"p99_ms": 3.1}, "undecided"),
        ({}, None, {"p99_ms": 2.7}, "fail"),
        ({"runs": 10, "p99_high_ms": None}, None, {"p99_ms": 50.0}, "undecided"),  # all ten may be below by luck
        ({"p99_ms": math.nan}, None, {"p99_ms": 5.0}, "not_measured"),
        ({}, None, {"p99_ms": 5.0, "device": "nvidia l4"}, "pass"),
        ({}, None, {"p99_ms": 5.0, "device": "NVIDIA L40"}, "not_measured"),  # the whole name
        ({}, None, {"p99_ms": 5.0, "batch_size": 4}, "pass"),
        ({}, None, {"p99_ms": 5.0, "batch_size": 1}, "not_measured"),
        ({}, [], {"p99_ms": 5.0}, "not_measured"),  # nothing says that it was the target
        ({}, [speedup(1.5, basis="estimate")], {"p99_ms": 5.0}, "not_measured"),
        ({}, [speedup(1.5, on_target=False)], {"p99_ms": 5.0}, "not_measured"),
        ({}, [], {"p99_ms": 5.0, "device": "NVIDIA L4"}, "pass"),
        (None, None, {"p99_ms": 5.0}, "not_measured"),
    ],
)
def test_latency(evidence: Evidence, latency: Any, speedups: Any, policy: Any, outcome: str) -> None:
    assert evidence.candidate.latency is not None
    changed = None if latency is None else evidence.candidate.latency.model_copy(update=latency)
    changes = {"latency": changed} | ({} if speedups is None else {"speedups": speedups})
    rule = the_rule(judge(evidence, changes, latency=policy))
    assert (rule.name, rule.outcome, rule.unit) == ("latency p99", outcome, "ms")


@pytest.mark.parametrize(
    ("changes", "policy", "outcome", "value"),
    [
        ({}, {"max_model_bytes": 1000}, "pass", 1000),
        ({}, {"max_model_bytes": 999}, "fail", 1000),
        ({"size_bytes": 0}, {"max_model_bytes": 999}, "not_measured", None),
        ({}, {"min_layer_sqnr_db": 20}, "pass", 20),
        ({}, {"min_layer_sqnr_db": 20.1}, "fail", 20),
        ({"layers": [layer(math.inf)]}, {"min_layer_sqnr_db": 20}, "pass", math.inf),
        ({"layers": [layer(30), layer(-math.inf)]}, {"min_layer_sqnr_db": -50}, "fail", -math.inf),
        ({"layers": [layer(30), layer(math.nan)]}, {"min_layer_sqnr_db": 20}, "not_measured", None),
        ({"layers": []}, {"min_layer_sqnr_db": 20}, "not_measured", None),
        ({}, {"max_clipped_share": 0.002}, "pass", 0.002),
        ({}, {"max_clipped_share": 0.0019}, "fail", 0.002),
        ({"clipping": None}, {"max_clipped_share": 1.0}, "not_measured", None),
        (
            {"clipping": Clipping(share=math.nan, tensor="x", split="validation", samples=9)},
            {"max_clipped_share": 1.0},
            "not_measured",
            None,
        ),
        (
            {"clipping": Clipping(share=0.0, tensor="x", split="validation", samples=0)},
            {"max_clipped_share": 0.1},
            "not_measured",
            None,
        ),
    ],
)
def test_sizes_and_layers(evidence: Evidence, changes: Any, policy: Any, outcome: str, value: Any) -> None:
    rule = the_rule(judge(evidence, changes, **policy))
    assert (rule.outcome, rule.value) == (outcome, value)


@pytest.mark.parametrize(("overlap", "outcome"), [(0, "pass"), (2, "pass"), (3, "fail"), (None, "not_measured")])
def test_leakage(evidence: Evidence, overlap: int | None, outcome: str) -> None:
    rule = the_rule(judge(replace(evidence, overlap=overlap), {}, max_overlap=2))
    assert (rule.name, rule.outcome, rule.value, rule.threshold) == ("calibration leakage", outcome, overlap, 2)


UNMEASURED: dict[str, Any] = {
    "classes": {"max_drop": 0.1},
    "slices": {"max_drop": 0.1},
    "speedup": {"FP32": {"at_least": 1}},
    "latency": {"p99_ms": 1},
    "max_clipped_share": 0.1,
    "max_overlap": 0,
    "min_layer_sqnr_db": 10,
    "max_model_bytes": 1,
    "engine": {"compute_capability": "8.9"},
}
NOTHING = {"speedups": [], "latency": None, "clipping": None, "layers": [], "size_bytes": 0}


@pytest.mark.parametrize("key", UNMEASURED)
def test_a_rule_that_cannot_be_measured_stops_a_release_unless_it_is_optional(evidence: Evidence, key: str) -> None:
    unknown = replace(evidence, overlap=None)
    stopped = judge(unknown, NOTHING, **{key: UNMEASURED[key]})
    assert stopped.decision is INCONCLUSIVE
    assert stopped.reasons[1:] == [rule.message for rule in stopped.rules[3:]]
    let_through = judge(unknown, NOTHING, **{key: UNMEASURED[key]}, optional=[key])
    assert let_through.decision is GO
    assert [rule.outcome for rule in let_through.rules[3:]] == ["not_measured"] * len(let_through.rules[3:])
    assert all(rule.optional and rule.message in let_through.reasons for rule in let_through.rules[3:])


def test_an_optional_rule_that_was_measured_holds(evidence: Evidence) -> None:
    assert judge(evidence, {}, max_model_bytes=1, optional=["max_model_bytes"]).decision is NO_GO


def test_without_anything_measured_no_policy_is_a_go(evidence: Evidence) -> None:
    nothing = evidence.candidate.accuracy.model_copy(update={"n": 0, "value": math.nan, "drop": math.nan})
    everything = {**UNMEASURED, "optional": list(UNMEASURED), "require_tensorrt_build": False}
    assert judge(evidence, NOTHING | {"accuracy": nothing}, **everything).decision is INCONCLUSIVE


def test_one_failure_outweighs_all_that_is_open(evidence: Evidence) -> None:
    verdict = judge(evidence, NOTHING | {"size_bytes": 5}, **UNMEASURED)
    assert verdict.decision is NO_GO


@pytest.mark.parametrize(
    "policy",
    [
        {"optional": ["latency"]},  # there is no such rule in it
        {"optional": ["accuracy"], "max_overlap": 0},
        {"speedup": {"INT4": {"at_least": 1}}},
        {"speedup": {"FP16": {"at_least": 0}}},
        {"latency": {"p99_ms": -1}},
        {"latency": {"p99": 1}},
        {"max_clipped_share": 1.1},
        {"max_overlap": -1},
        {"classes": {"max_drop": 0}},
        {"classes": {"max_drop": 0.1, "unproven": "fail"}},
        {"min_layer_sqnr_db": math.nan},
        {"engine": {"compute_capability": "ada"}},
        {"engine": {"gpu": "NVIDIA L4"}},
    ],
    ids=str,
)
def test_a_policy_that_makes_no_sense_is_refused(policy: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Policy.model_validate({"max_drop": 0.02, **policy})


def test_a_rule_of_zero_can_be_optional() -> None:
    assert Policy.model_validate({"max_drop": 0.02, "max_overlap": 0, "optional": ["max_overlap"]}).max_overlap == 0
