"""Policy and measurements in, verdict out. Runs nothing."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field

from validate.results import Accuracy, BuildResult, CandidateAccuracy, Decision, IntegerKernels, Rule, Verdict

__all__ = ["Policy", "decide"]


class Policy(BaseModel):
    """What a release must keep to. Rates are fractions: 0.01 is one percentage point."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_drop: float = Field(
        gt=0, allow_inf_nan=False, description="margin: how much worse than the float model is acceptable"
    )
    confidence: float = Field(
        default=0.95, gt=0.5, lt=1,
        description="two-sided; shared by all looks at the validation samples (the selected candidate, and "
        "every fallback trial)",
    )  # fmt: skip
    require_tensorrt_build: bool = Field(
        default=True, description="no GO where no TensorRT builder has accepted the file"
    )


def decide(
    policy: Policy,
    reference: Accuracy,
    accuracy: CandidateAccuracy,
    build: BuildResult,
    integer_kernels: IntegerKernels | None,
) -> Verdict:
    """Judge one candidate by non-inferiority.

    With d the drop against the reference and [low, high] its interval: GO when high < margin, NO-GO when
    low > margin, INCONCLUSIVE between. Integer kernels are judged too where they were measured, which is
    where the CPU is the deployment target. No samples or a number that is not finite is never a GO.
    """
    rules = [_accuracy_rule("accuracy", policy, reference, accuracy)]
    if integer_kernels is not None:
        rules.append(_accuracy_rule("accuracy with integer kernels", policy, reference, integer_kernels.accuracy))
    rules.append(_build_rule(policy, build))
    outcomes = {rule.outcome for rule in rules}
    if "fail" in outcomes:
        decision = Decision.NO_GO
    elif outcomes & {"undecided", "not_measured"}:
        decision = Decision.INCONCLUSIVE
    else:
        decision = Decision.GO
    deciding = [rule for rule in rules if decision is Decision.GO or rule.outcome != "pass"]
    return Verdict(decision=decision, reasons=[rule.message for rule in deciding], rules=rules)


def _accuracy_rule(name: str, policy: Policy, reference: Accuracy, accuracy: CandidateAccuracy) -> Rule:
    margin = policy.max_drop
    numbers = (reference.value, accuracy.value, accuracy.drop)
    samples = min(reference.n, accuracy.n)
    if samples == 0 or not all(map(math.isfinite, numbers)):
        return Rule(
            name=name, outcome="not_measured",
            message=f"{accuracy.metric} could not be measured ({samples} samples, value {accuracy.value})",
        )  # fmt: skip
    show = _percent if accuracy.is_rate else _plain
    room = reference.value if accuracy.higher_is_better else 1 - reference.value
    if accuracy.is_rate and room <= margin:
        return Rule(
            name=name, outcome="not_measured",
            message=f"the float model's {accuracy.metric} is {show(reference.value)}, so that no drop could reach "
            f"the {show(margin)} that the policy allows; check labels and preprocessing",
        )  # fmt: skip
    found = (
        f"{accuracy.metric} is {show(accuracy.value)}, {show(reference.value)} in float, on {accuracy.n} samples: "
        f"a drop of {show(accuracy.drop)}, between {show(accuracy.ci_low)} and {show(accuracy.ci_high)} "
        f"({100 * accuracy.confidence:.4g}% confidence)"
    )
    if name != "accuracy":
        found = f"{name}: {found}"
    if accuracy.ci_high < margin:
        return Rule(name=name, outcome="pass", message=f"{found}; the policy allows {show(margin)}")
    if accuracy.ci_low > margin:
        return Rule(name=name, outcome="fail", message=f"{found}; the policy allows only {show(margin)}")
    return Rule(
        name=name,
        outcome="undecided",
        message=f"{found}, on both sides of the {show(margin)} that the policy allows; "
        f"{_samples_needed(accuracy, margin)}",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _plain(value: float) -> str:
    return f"{value:.4g}"


def _samples_needed(accuracy: CandidateAccuracy, margin: float) -> str:
    """Say how many samples would settle it: an interval's width shrinks with the square root of n."""
    distance = abs(margin - accuracy.drop)
    width = (accuracy.ci_high - accuracy.drop) if accuracy.drop < margin else (accuracy.drop - accuracy.ci_low)
    if not math.isfinite(width):
        return "give more validation samples"
    if distance < 0.1 * margin:
        return "the drop is too close to the margin for any practical number of samples to settle it"
    if width > 1000 * distance:
        return "the scores vary too much for any practical number of samples to settle it"
    needed = math.ceil(accuracy.n * (width / distance) ** 2)
    return f"about {max(needed, accuracy.n + 1)} validation samples would settle it if the drop stays as it is"


def _build_rule(policy: Policy, build: BuildResult) -> Rule:
    name = "TensorRT build"
    if build.ok:
        return Rule(name=name, outcome="pass", message=f"{build.backend} {build.version} {build.message}")
    if build.ok is False:
        return Rule(name=name, outcome="fail", message=f"{build.backend} {build.version} refuses it: {build.message}")
    if policy.require_tensorrt_build:
        return Rule(name=name, outcome="not_measured", message=f"TensorRT build {build.message}")
    return Rule(name=name, outcome="pass", message=f"TensorRT build {build.message}; the policy does not ask for it")
