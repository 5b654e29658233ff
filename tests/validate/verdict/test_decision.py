"""The gate: never a GO without data, and the decision is that of the intervals."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from validate.results import (
    Accuracy,
    BuildResult,
    Candidate,
    CandidateAccuracy,
    Cost,
    Decision,
    IntegerKernels,
    NodeCounts,
    Verdict,
)
from validate.verdict.decision import decide
from validate.verdict.evidence import Evidence
from validate.verdict.policy import Policy

BY_SIMULATION = "by simulation: no engine was run"
GO, NO_GO, INCONCLUSIVE = Decision.GO, Decision.NO_GO, Decision.INCONCLUSIVE
MARGIN = 0.01
BUILT = BuildResult(ok=True, backend="tensorrt_rtx", version="1.2", message="builds it")
REFUSED = BuildResult(ok=False, backend="tensorrt_rtx", version="1.2", message="no kernel for node 7")
NOT_MADE = BuildResult(ok=None, backend=None, version=None, message="was not made: TensorRT is not installed")


def reference(value: float = 0.9, n: int = 1000) -> Accuracy:
    return Accuracy(metric="top1", higher_is_better=True, is_rate=True, value=value, n=n)


def candidate(low: float, high: float, **changes: Any) -> CandidateAccuracy:
    fields = {
        "metric": "top1",
        "higher_is_better": True,
        "is_rate": True,
        "basis": "simulation",
        "value": 0.895,
        "n": 1000,
        "drop": (low + high) / 2,
        "ci_low": low,
        "ci_high": high,
        "confidence": 0.95,
        "method": "Tango score",
    }
    return CandidateAccuracy(**{**fields, **changes})


def kernels(low: float, high: float, **changes: Any) -> IntegerKernels:
    return IntegerKernels(runtime="onnxruntime", accuracy=candidate(low, high, **changes), difference=0.0)


def judge(
    accuracy: CandidateAccuracy,
    *,
    build: BuildResult = BUILT,
    integer: IntegerKernels | None = None,
    float_model: Accuracy | None = None,
    required: bool = True,
    margin: float = MARGIN,
    waived: bool = True,
) -> Verdict:
    """Judge a candidate of which no engine was run, by a policy that waives that where it says so."""
    policy = Policy(max_drop=margin, require_tensorrt_build=required, optional=["engine"] if waived else [])
    measured = Candidate(
        name="mse",
        strategy="mse",
        plan="plans/mse.json",
        plan_hash="0" * 64,
        float_layers=[],
        selection_error=None,
        accuracy=accuracy,
        integer_kernels=integer,
        latency=None,
        int8_mac_share=1.0,
        size_bytes=1000,
        cost=Cost(basis="multiply-accumulates", value=1, unit="int8 multiply-accumulates", source="counted"),
        nodes=NodeCounts(int8=1, fp16=0, fp32=0),
        tensorrt_build=build,
        layers=[],
    )
    return decide(policy, Evidence(reference=float_model or reference(), candidate=measured))


GOOD, BAD, OPEN = (0.0, 0.005), (0.02, 0.03), (0.0, 0.02)


@pytest.mark.parametrize(
    ("low", "high", "decision"),
    [
        (*GOOD, GO),
        (*BAD, NO_GO),
        (*OPEN, INCONCLUSIVE),
        (-0.05, -0.01, GO),  # better than the reference
        (0.0, math.nextafter(MARGIN, 0), GO),
        (0.0, MARGIN, INCONCLUSIVE),
        (0.0, math.nextafter(MARGIN, 1), INCONCLUSIVE),
        (math.nextafter(MARGIN, 0), 0.03, INCONCLUSIVE),
        (MARGIN, 0.03, INCONCLUSIVE),
        (math.nextafter(MARGIN, 1), 0.03, NO_GO),
        (MARGIN, MARGIN, INCONCLUSIVE),
        (-1.0, 1.0, INCONCLUSIVE),
    ],
)
def test_the_interval_decides(low: float, high: float, decision: Decision) -> None:
    verdict = judge(candidate(low, high))
    assert verdict.decision is decision
    assert verdict.reasons


@pytest.mark.parametrize(
    ("low", "high"), [(-math.inf, math.inf), (0.0, math.inf), (-math.inf, 0.02), (math.nan, math.nan)]
)
def test_an_interval_that_says_nothing_is_inconclusive(low: float, high: float) -> None:
    assert judge(candidate(low, high, drop=0.0)).decision is INCONCLUSIVE


@pytest.mark.parametrize("interval", [GOOD, BAD])
@pytest.mark.parametrize(
    "nothing",
    [
        {"n": 0},
        {"value": math.nan},
        {"value": math.inf},
        {"drop": math.nan},
        {"drop": -math.inf},
        {"n": 0, "value": math.nan, "drop": math.nan},
    ],
    ids=str,
)
def test_what_was_not_measured_is_inconclusive(interval: tuple[float, float], nothing: dict[str, Any]) -> None:
    verdict = judge(candidate(*interval, **nothing))
    assert verdict.decision is INCONCLUSIVE
    assert [rule.outcome for rule in verdict.rules] == ["not_measured", "pass", "not_measured"]
    assert (verdict.rules[-1].name, verdict.rules[-1].optional) == ("engine", True)


@pytest.mark.parametrize("float_model", [reference(math.nan), reference(math.inf), reference(n=0)])
def test_a_reference_that_was_not_measured_is_inconclusive(float_model: Accuracy) -> None:
    assert judge(candidate(*GOOD), float_model=float_model).decision is INCONCLUSIVE


@pytest.mark.parametrize(
    ("build", "required", "decision"),
    [
        (BUILT, True, GO),
        (BUILT, False, GO),
        (REFUSED, True, NO_GO),
        (REFUSED, False, NO_GO),  # a refusal is evidence, whether it was asked for or not
        (NOT_MADE, True, INCONCLUSIVE),
        (NOT_MADE, False, GO),
    ],
)
def test_the_builder_is_heard(build: BuildResult, required: bool, decision: Decision) -> None:
    verdict = judge(candidate(*GOOD), build=build, required=required)
    assert verdict.decision is decision
    assert any(build.message in reason for reason in verdict.reasons)


def test_a_build_does_not_excuse_a_drop() -> None:
    assert judge(candidate(*BAD), build=BUILT).decision is NO_GO
    assert judge(candidate(*BAD), build=NOT_MADE).decision is NO_GO
    assert judge(candidate(*OPEN), build=BUILT).decision is INCONCLUSIVE
    assert judge(candidate(*OPEN), build=REFUSED).decision is NO_GO


@pytest.mark.parametrize(
    ("simulated", "integer", "decision"),
    [
        (GOOD, GOOD, GO),
        (GOOD, BAD, NO_GO),
        (GOOD, OPEN, INCONCLUSIVE),
        (BAD, GOOD, NO_GO),
        (OPEN, GOOD, INCONCLUSIVE),
        (OPEN, BAD, NO_GO),
    ],
)
def test_integer_kernels_are_judged_too(
    simulated: tuple[float, float], integer: tuple[float, float], decision: Decision
) -> None:
    verdict = judge(candidate(*simulated), integer=kernels(*integer))
    assert verdict.decision is decision
    assert len(verdict.rules) == 3


@pytest.mark.parametrize("nothing", [{"n": 0}, {"value": math.nan}, {"drop": math.nan}], ids=str)
def test_integer_kernels_that_were_not_measured_are_inconclusive(nothing: dict[str, Any]) -> None:
    verdict = judge(candidate(*GOOD), integer=kernels(*GOOD, **nothing))
    assert verdict.decision is INCONCLUSIVE


def test_reasons_are_of_the_rules_that_decided() -> None:
    verdict = judge(candidate(*GOOD), integer=kernels(*BAD))
    assert verdict.reasons == ["by the CPU's integer kernels, and by simulation", verdict.rules[1].message]
    assert "integer kernels: top1 is" in verdict.reasons[1]
    basis, *deciding, speed = judge(candidate(*GOOD)).reasons
    assert basis == BY_SIMULATION
    assert deciding == [rule.message for rule in judge(candidate(*GOOD)).rules]
    assert speed.startswith("how fast INT8 is against FP16 on the target is not known")


def test_a_reason_says_what_was_measured_and_allowed() -> None:
    _, reason = judge(candidate(0.02, 0.03, value=0.875)).reasons
    for number in ("87.50%", "90.00%", "2.50%", "2.00%", "3.00%", "1.00%", "1000 samples", "95% confidence"):
        assert number in reason
    loss = {"metric": "loss", "higher_is_better": False, "is_rate": False}
    _, reason = judge(candidate(0.02, 0.03, value=0.875, **loss)).reasons
    assert "loss is 0.875" in reason
    assert "confidence" in reason
    assert reason.count("%") == 1  # only the confidence is a share


def test_an_open_question_says_how_many_samples_would_settle_it() -> None:
    """z = 1.96 and s = 0.16: the arm of 0.01 is that of 1,000 samples, and half of it takes (1 + 0.84 / 1.96)^2 x 4."""
    open_drop = {"drop": 0.005, "n": 1000, "ci_high": 0.015, "deviation": 0.01 * math.sqrt(1000) / 1.96}
    _, reason = judge(candidate(-0.01, 0.02, **open_drop)).reasons
    needed = int(re.search(r"about (\d+) validation samples", reason)[1])  # type: ignore[index]
    assert needed == pytest.approx(4000 * (1 + 0.8416 / 1.96) ** 2, rel=0.02)
    assert "in 80% of cases" in reason
    _, reason = judge(candidate(-math.inf, math.inf, drop=0.0)).reasons
    assert "more validation samples" in reason
    _, reason = judge(candidate(0.0, 0.02, drop=0.0099)).reasons
    assert "too close to the margin" in reason
    _, reason = judge(candidate(-1e200, 1e200, drop=0.0)).reasons
    assert "vary too much" in reason


@pytest.mark.parametrize(
    "policy",
    [
        {},
        {"max_drop": 0.0},
        {"max_drop": -0.1},
        {"max_drop": math.nan},
        {"max_drop": 0.01, "confidence": 0.5},
        {"max_drop": 0.01, "confidence": 1.0},
        {"max_drop": 0.01, "confidence": math.nan},
        {"max_drop": 0.01, "margin": 0.01},
    ],
    ids=str,
)
def test_a_policy_that_makes_no_sense_is_refused(policy: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Policy(**policy)


_numbers = st.floats() | st.floats(-0.05, 0.05) | st.just(MARGIN)


@st.composite
def _accuracies(draw: st.DrawFn) -> CandidateAccuracy:
    low, high = sorted((draw(_numbers), draw(_numbers)))
    return candidate(low, high, drop=draw(_numbers), value=draw(_numbers), n=draw(st.sampled_from([0, 1, 500])))


@given(
    _accuracies(),
    st.none() | _accuracies(),
    st.builds(reference, _numbers, st.sampled_from([0, 1000])),
    st.sampled_from([BUILT, REFUSED, NOT_MADE]),
    st.booleans(),
    st.floats(1e-6, 1e3) | st.just(MARGIN),
    st.booleans(),
)
@settings(deadline=None, max_examples=500)
def test_a_go_means_what_it_says(
    accuracy: CandidateAccuracy,
    integer: CandidateAccuracy | None,
    float_model: Accuracy,
    build: BuildResult,
    required: bool,
    margin: float,
    waived: bool,
) -> None:
    measured = None if integer is None else IntegerKernels(runtime="r", accuracy=integer, difference=0.0)
    verdict = judge(
        accuracy,
        build=build,
        integer=measured,
        float_model=float_model,
        required=required,
        margin=margin,
        waived=waived,
    )
    judged = [accuracy] if integer is None else [accuracy, integer]
    works = float_model.n > 0 and float_model.value > margin
    known = [a.n > 0 and works and all(map(math.isfinite, (a.value, a.drop, float_model.value))) for a in judged]
    ran = integer is not None or waived  # on the CPU, whose kernels are what ships
    may_go = (build.ok or (build.ok is None and not required)) and ran
    may_go = may_go and all(k and a.ci_high < margin for k, a in zip(known, judged, strict=True))
    assert (verdict.decision is GO) == may_go
    refuted = build.ok is False or any(
        k and a.ci_low > margin and not a.ci_high < margin for k, a in zip(known, judged, strict=True)
    )
    assert (verdict.decision is NO_GO) == refuted
    assert verdict.reasons
    assert all(verdict.reasons)


@pytest.mark.parametrize("value", [0.0, MARGIN])
def test_a_float_model_that_does_not_work_is_never_a_go(value: float) -> None:
    verdict = judge(candidate(0.0, 0.001, value=0.0), float_model=reference(value))
    assert verdict.decision is INCONCLUSIVE
    assert "labels and preprocessing" in verdict.reasons[1]
