"""Rules on the TensorRT engine: that it was run, that it is its simulation, and that it is the file to be deployed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from validate.backends.tensorrt import hardware_fits, version_fits
from validate.results import Rule
from validate.verdict.evidence import Engine, Evidence, Measured
from validate.verdict.policy import EnginePolicy, Int8Policy
from validate.verdict.rules import size_rule

__all__ = ["engine_rule", "engine_rules", "int8_in_engine_rule"]

_DIGITS = 12
"""Digits of a SHA-256 that a sentence shows."""


def engine_rule(candidate: Measured, given: Engine | None, is_waived: bool) -> Rule:
    """Judge whether the engine was run, whether it computes what its simulation does, and whether it is the one given.

    Args:
        candidate: with the engine that was run, where one was.
        given: the engine file that is to be deployed; None where none was named.
        is_waived: the policy lets it go unmeasured.

    Examples:
        >>> from validate.results import Candidate
        >>> candidate = Candidate.model_construct(engine=None, engine_reason="no GPU is found here")
        >>> engine_rule(candidate, given=None, is_waived=True).message
        'no engine was run (no GPU is found here), and the policy leaves it at a simulation'
    """
    rule = partial(Rule, name="engine")
    if (file := candidate.engine_file) is None:
        advice = "; run this on a machine with the target's GPU, or waive it with policy.optional: [engine]"
        message = f"no engine was run ({candidate.engine_reason or 'no reason is known'})"
        message += ", and the policy leaves it at a simulation" if is_waived else advice
        return rule(outcome="not_measured", message=message)
    ran = f"the engine (SHA-256 {file.sha256[:_DIGITS]}, {file.library} on {file.gpu})"
    if given is not None and given.sha256 != file.sha256:
        return rule(
            outcome="fail",
            message=f"{given.path.name} has SHA-256 {given.sha256[:_DIGITS]} and is not {ran} that was judged; deploy "
            "that file, or judge this one by a run of its own",
        )
    if candidate.engine is None:
        return rule(outcome="pass", message=f"{ran} was run; it was not held against a simulation")
    if (departure := candidate.engine.departure) is not None:
        return rule(outcome="fail", message=f"{ran} is not its simulation: {departure}")
    if wrong := candidate.engine.not_finite_samples:
        return rule(
            outcome="fail",
            message=f"{ran} is not its simulation: of {wrong} validation samples it gives values that are not finite",
        )
    looked = f"{len(candidate.engine.outputs)} outputs and {candidate.engine.inner_tensors} inner tensors"
    if not candidate.engine.compared:
        return rule(outcome="not_measured", message=f"{ran} was run, and was compared with its simulation on no sample")
    return rule(
        outcome="pass",
        message=f"{ran} is its simulation within what rounding does: {looked}, {candidate.engine.compared} samples",
    )


def int8_in_engine_rule(wanted: Int8Policy, candidate: Measured) -> Rule:
    """Judge how much of the planned INT8 layers' work the engine does in INT8, by the least that the policy asks for.

    Examples:
        >>> from validate.results import Candidate, EngineRun, Int8InEngine
        >>> nothing = Int8InEngine(planned=2, ran=0, share=0.0, not_run=["conv1", "conv2"], stray_kernels=0)
        >>> candidate = Candidate.model_construct(engine=EngineRun.model_construct(int8=nothing))
        >>> int8_in_engine_rule(Int8Policy(at_least=0.9), candidate).outcome
        'fail'
    """
    rule = partial(Rule, name="INT8 in the engine", threshold=wanted.at_least)
    wish = f"the policy asks for {100 * wanted.at_least:g}%"
    if candidate.engine is None:
        why = candidate.engine_reason or "its kernels were not looked at"
        return rule(outcome="not_measured", message=f"what the engine runs in INT8 is not known ({why}); {wish}")
    if (found := candidate.engine.int8) is None:
        return rule(outcome="fail", value=0.0, message=f"the engine has no INT8 layer, and {wish}")
    left = f" (not {', '.join(found.not_run[:3])}{', ...' if len(found.not_run) > 3 else ''})" if found.not_run else ""
    return rule(
        outcome="pass" if found.share >= wanted.at_least else "fail",
        value=found.share,
        message=f"the engine runs {found.ran} of the {found.planned} planned INT8 layers in INT8{left}, "
        f"{100 * found.share:.4g}% of their multiply-accumulates; {wish}",
    )


def engine_rules(wanted: EnginePolicy, evidence: Evidence) -> Iterator[Rule]:
    """Judge an engine by the deployment target, and by the candidate that it should have been built from."""
    name, engine = "engine fingerprint", evidence.engine
    if engine is None:
        yield Rule(name=name, outcome="not_measured", message="no engine was given; name the file with --engine")
    elif engine.fingerprint is None:
        yield Rule(name=name, outcome="not_measured", message=engine.problem)
    elif problems := list(_mismatches(wanted, engine, evidence.candidate)):
        yield Rule(name=name, outcome="fail", message=f"{engine.path.name}: {'; '.join(problems)}")
    else:
        found = engine.fingerprint
        target = found.gpu or f"compute capability {found.compute_capability or '8.0 and later'}"
        yield Rule(
            name=name, outcome="pass", message=f"{engine.path.name}: {found.flavour} {found.version}, for {target}"
        )
    if wanted.max_bytes is not None:
        if engine is None:
            yield Rule(
                name="engine size",
                outcome="not_measured",
                threshold=wanted.max_bytes,
                unit="bytes",
                message="no engine was given; name the file with --engine",
            )
        else:
            yield size_rule("engine size", engine.path.name, engine.size_bytes, wanted.max_bytes)


def _mismatches(wanted: EnginePolicy, engine: Engine, candidate: Measured) -> Iterator[str]:
    found = engine.fingerprint
    assert found is not None
    if engine.problem:
        yield engine.problem
    if found.plan_sha256 != candidate.plan_hash:
        made = f"plan {found.plan_sha256[:12]}" if found.plan_sha256 else "a model without a plan"
        yield f"it was built from {made}, and the candidate's plan is {candidate.plan_hash[:12]}"
    if wanted.compute_capability and not hardware_fits(found, wanted.gpu, wanted.compute_capability):
        built = f"{found.gpu or 'a GPU'} (compute capability {found.compute_capability or '8.0 or later'})"
        yield f"it was built for {built}, and the target is {wanted.gpu or 'one'} of {wanted.compute_capability}"
    if wanted.tensorrt and not version_fits(found, wanted.tensorrt):
        yield f"it was built by {found.flavour} {found.version}, and the target has {wanted.tensorrt}"
