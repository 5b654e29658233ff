"""The decision on one candidate, from a policy and measurements. Runs nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator

from validate.results import (
    Accuracy,
    BuildResult,
    CandidateAccuracy,
    Decision,
    Rule,
    Verdict,
)
from validate.stats import POWER, samples_to_settle
from validate.verdict import rules
from validate.verdict.engine_rules import engine_rule, engine_rules, int8_in_engine_rule
from validate.verdict.evidence import Champion, Evidence
from validate.verdict.groups import champion_rule, group_rule
from validate.verdict.policy import Policy, RuleKey
from validate.verdict.wording import interval, out_of_reach, score

__all__ = ["decide"]

_NO_BASELINE = Champion("", problem="no model was named to compare with; name it with --baseline", is_absent=True)


def decide(policy: Policy, evidence: Evidence) -> Verdict:
    """Judge one candidate.

    The accuracy is judged by non-inferiority. With d the drop against the reference and [low, high] its interval: it
    passes when high < margin, fails when low > margin, and is undecided between. Integer kernels are judged too where
    they were measured, which is where the CPU is the deployment target.

    What ships is judged: an engine has to have been run, unless the policy has `engine` among its optional rules.

    GO: every rule passes. NO-GO: one fails. INCONCLUSIVE: none fails, but one is undecided, or was not measured and is
    not optional. No samples or a number that is not finite is never a GO.

    Examples:
        >>> from validate.results import Candidate
        >>> top1 = {"metric": "top1", "higher_is_better": True, "is_rate": True, "n": 5000}
        >>> interval = {"drop": 0.003, "ci_low": -0.001, "ci_high": 0.007, "confidence": 0.95, "method": "Tango score"}
        >>> accuracy = CandidateAccuracy(value=0.757, **interval, **top1)
        >>> build = BuildResult(ok=True, backend="tensorrt", version="11.0.0.114", message="")
        >>> candidate = Candidate.model_construct(
        ...     accuracy=accuracy, tensorrt_build=build, engine_reason="no GPU is found here"
        ... )
        >>> evidence = Evidence(Accuracy(value=0.76, **top1), candidate)
        >>> decide(Policy(max_drop=0.01), evidence).decision.value
        'INCONCLUSIVE'
        >>> decide(Policy(max_drop=0.01, optional=["engine"]), evidence).decision.value
        'GO'
    """
    found = list(_rules(policy, evidence))
    outcomes = {rule.outcome for rule in found if rule.blocks_release}
    if "fail" in outcomes:
        decision = Decision.NO_GO
    elif outcomes:
        decision = Decision.INCONCLUSIVE
    else:
        decision = Decision.GO
    basis = evidence.candidate.accuracy.basis
    deciding = [rule for rule in found if decision is Decision.GO or rule.blocks_release]
    notes = [_cost_of_fp16(evidence), rules.not_faster_than_fp16(evidence.candidate)]
    if decision is Decision.GO and "FP16" not in policy.speedup:  # whose rule says it otherwise
        notes.append(rules.fp16_not_known(evidence.candidate))
    reasons = [_basis(evidence), *(rule.message for rule in deciding), *notes]
    return Verdict(decision=decision, basis=basis, reasons=[reason for reason in reasons if reason], rules=found)


def _cost_of_fp16(evidence: Evidence) -> str | None:
    """Return a sentence that says what FP16 costs alone, and INT8 beyond that; None where that was not measured.

    Engines are asked before simulations.
    """
    fp16 = next((baseline.accuracy for baseline in evidence.baselines if baseline.name.endswith("FP16")), None)
    if fp16 is None:
        return None if evidence.fp16 is None else evidence.fp16.message
    drop, show = evidence.candidate.accuracy.drop, score(fp16.is_rate)
    return f"FP16 alone costs {show(fp16.drop)} of {fp16.metric}, and INT8 {show(drop - fp16.drop)} beyond that"


def _basis(evidence: Evidence) -> str | None:
    """Return a sentence that says what the verdict is about; None where that is not known."""
    accuracy, file = evidence.candidate.accuracy, evidence.candidate.engine_file
    if accuracy.basis == "engine" and file is not None:
        return f"by the engine: {file.library} on {file.gpu}, SHA-256 {file.sha256}"
    if accuracy.basis == "kernels" or evidence.candidate.integer_kernels is not None:
        return "by the CPU's integer kernels, and by simulation"
    return "by simulation: no engine was run" if accuracy.basis == "simulation" else None


def _rules(policy: Policy, evidence: Evidence) -> Iterator[Rule]:
    """Apply every rule that the policy has."""
    candidate, reference = evidence.candidate, evidence.reference
    yield _accuracy_rule("accuracy", policy, reference, candidate.accuracy)
    if candidate.integer_kernels is not None:
        yield _accuracy_rule("accuracy with integer kernels", policy, reference, candidate.integer_kernels.accuracy)
    yield _build_rule(policy, candidate.tensorrt_build)
    if candidate.integer_kernels is None:  # else the CPU is the target, and what runs there
        yield _optional(policy, "engine", engine_rule(candidate, evidence.engine), evidence)
    yield from (_optional(policy, key, rule, evidence) for key, rule in _named_rules(policy, evidence))


def _named_rules(policy: Policy, evidence: Evidence) -> Iterator[tuple[RuleKey, Rule]]:
    """Apply the rules that are there only where the policy has them, each with its key in the policy."""
    candidate = evidence.candidate
    for kernels in (False, True) if candidate.integer_kernels is not None else (False,):
        if policy.classes:
            yield "classes", group_rule("class", policy.classes, evidence, kernels)
        if policy.slices:
            yield "slices", group_rule("slice", policy.slices, evidence, kernels)
        if evidence.champion is not None or policy.champion is not None:
            margin = (policy.champion and policy.champion.max_drop) or policy.max_drop
            yield "champion", champion_rule(margin, evidence, evidence.champion or _NO_BASELINE, kernels)
    for against, wanted in policy.speedup.items():
        yield "speedup", rules.speedup_rule(against, wanted, candidate)
    if policy.latency:
        yield "latency", rules.latency_rule(policy.latency, candidate)
    if policy.max_model_bytes is not None:
        yield "max_model_bytes", rules.model_size_rule(policy.max_model_bytes, candidate)
    if policy.min_layer_sqnr_db is not None:
        yield "min_layer_sqnr_db", rules.worst_layer_rule(policy.min_layer_sqnr_db, candidate)
    if policy.max_clipped_share is not None:
        yield "max_clipped_share", rules.clipping_rule(policy.max_clipped_share, candidate)
    if policy.max_overlap is not None:
        yield "max_overlap", rules.overlap_rule(policy.max_overlap, evidence.overlap)
    if policy.engine:
        for rule in engine_rules(policy.engine, evidence):
            yield "engine", rule
    if policy.int8_in_engine:
        yield "int8_in_engine", int8_in_engine_rule(policy.int8_in_engine, candidate)


def _optional(policy: Policy, key: RuleKey, rule: Rule, evidence: Evidence) -> Rule:
    if key not in policy.optional:
        return rule
    # Of a champion, what may be missing is the champion: one that is live and cannot be compared with is another thing.
    live = key == "champion" and evidence.champion is not None and not evidence.champion.is_absent
    return rule.model_copy(update={"optional": not live})


def _accuracy_rule(name: str, policy: Policy, reference: Accuracy, accuracy: CandidateAccuracy) -> Rule:
    margin = policy.max_drop
    numbers = (reference.value, accuracy.value, accuracy.drop)
    samples = min(reference.n, accuracy.n)
    if samples == 0 or not all(map(math.isfinite, numbers)):
        return Rule(
            name=name,
            outcome="not_measured",
            threshold=margin,
            message=f"{accuracy.metric} could not be measured ({samples} samples, value {accuracy.value})",
        )
    show = score(accuracy.is_rate)
    if problem := out_of_reach(reference, margin):
        return Rule(name=name, outcome="not_measured", value=accuracy.drop, threshold=margin, message=problem)
    found = (
        f"{accuracy.metric} is {show(accuracy.value)}, {show(reference.value)} in float, on {accuracy.n} samples: "
        f"a drop of {show(accuracy.drop)}, {interval(accuracy.ci_low, accuracy.ci_high, show)} "
        f"({100 * accuracy.confidence:.4g}% confidence)"
    )
    if name != "accuracy":
        found = f"{name}: {found}"
    if accuracy.ci_high < margin:
        outcome, message = "pass", f"{found}; the policy allows {show(margin)}"
    elif accuracy.ci_low > margin:
        outcome, message = "fail", f"{found}; the policy allows only {show(margin)}"
    else:
        outcome, where = "undecided", "on both sides of" if math.isfinite(accuracy.ci_high) else "against"
        message = f"{found}, {where} the {show(margin)} that the policy allows; {_samples_needed(accuracy, margin)}"
    return Rule.model_validate(
        {"name": name, "outcome": outcome, "message": message, "value": accuracy.drop, "threshold": margin}
    )


def _samples_needed(accuracy: CandidateAccuracy, margin: float) -> str:
    """Say how many samples would settle it; see `samples_to_settle`."""
    distance = abs(margin - accuracy.drop)
    arm = (accuracy.ci_high - accuracy.drop) if accuracy.drop < margin else (accuracy.drop - accuracy.ci_low)
    if not math.isfinite(arm) or arm <= 0:
        return "give more validation samples"
    if distance < 0.1 * margin:
        return "the drop is too close to the margin for any practical number of samples to settle it"
    if arm > 1000 * distance:
        return "the scores vary too much for any practical number of samples to settle it"
    needed = samples_to_settle(accuracy.n, distance, arm, accuracy.deviation, accuracy.confidence)
    return (
        f"about {needed} validation samples would settle it in {100 * POWER:.0f}% of cases if the drop stays as it is"
    )


def _build_rule(policy: Policy, build: BuildResult) -> Rule:
    name = "TensorRT build"
    if build.ok:
        return Rule(name=name, outcome="pass", message=f"{build.backend} {build.version} {build.message}")
    if build.ok is False:
        return Rule(name=name, outcome="fail", message=f"{build.backend} {build.version} refuses it: {build.message}")
    unasked = "" if policy.require_tensorrt_build else "; the policy does not ask for it"
    return Rule(
        name=name,
        outcome="not_measured",
        message=f"TensorRT build {build.message}{unasked}",
        optional=not policy.require_tensorrt_build,
    )
