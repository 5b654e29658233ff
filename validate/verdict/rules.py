"""Rules on speed, size, layers and data."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

from validate.results import Rule, Speedup
from validate.verdict.evidence import Measured
from validate.verdict.policy import LatencyPolicy, SpeedupPolicy

__all__ = [
    "clipping_rule",
    "fp16_not_known",
    "latency_rule",
    "model_size_rule",
    "not_faster_than_fp16",
    "overlap_rule",
    "size_rule",
    "speedup_rule",
    "worst_layer_rule",
]

_TELLING = 1.05
"""By how much an estimate has to differ from 1 to tell anything."""
_P99_CALLS = 368
"""Fewest calls of which the slowest is above the 99th percentile in 97.5% of cases: 0.99^368 < 0.025."""
_TRUST = {"measured": 0, "estimate": 1, "multiply-accumulates": 2}


def speedup_rule(against: str, wanted: SpeedupPolicy, candidate: Measured) -> Rule:
    """Judge the speed-up on the target by the least that the policy asks for; a measured one by its interval.

    Examples:
        >>> from validate.results import Candidate
        >>> measured = {"ci_low": 1.4, "ci_high": 1.6, "confidence": 0.95, "basis": "measured"}
        >>> speedup = Speedup(against="FP16", value=1.5, on_target=True, source="NVIDIA L4", **measured)
        >>> candidate = Candidate.model_construct(speedups=[speedup])
        >>> speedup_rule("FP16", SpeedupPolicy(at_least=1.2), candidate).outcome
        'pass'
    """
    name, wish = f"speed-up against {against}", f"the policy asks for {wanted.at_least:g}"
    found = _speedup(candidate, against)
    rule = partial(Rule, name=name, threshold=wanted.at_least)
    if found is None or math.isnan(found.value):
        message = f"the {name} was not measured on the target{_off_target(candidate, against)}, and {wish}"
        return rule(outcome="not_measured", message=message)
    if found.basis != "measured" and not (wanted.estimate and found.basis == "estimate"):
        kind = "only estimated" if found.basis == "estimate" else "not measured"
        message = f"the {name} was {kind} ({_described(found)}), and {wish}, measured on the target"
        return rule(outcome="not_measured", message=message)
    low = found.value if found.ci_low is None else found.ci_low
    high = found.value if found.ci_high is None else found.ci_high
    outcome: Literal["pass", "fail", "undecided"] = "undecided"
    if low >= wanted.at_least:
        outcome = "pass"
    elif high < wanted.at_least:
        outcome = "fail"
    return rule(outcome=outcome, value=found.value, message=f"the {name} is {_described(found)}; {wish}")


def not_faster_than_fp16(candidate: Measured) -> str | None:
    """Return a sentence where INT8 is not faster than FP16 on the target, as far as is known; else None.

    Examples:
        >>> from validate.results import Candidate
        >>> speedup = Speedup(against="FP16", value=0.9, basis="estimate", on_target=True, source="NVIDIA L4")
        >>> not_faster_than_fp16(Candidate.model_construct(speedups=[speedup]))
        'INT8 is not faster than FP16: the speed-up is 0.9 (estimate: NVIDIA L4)'
    """
    found = _speedup(candidate, "FP16")
    if found is None or (found.value / _TELLING if found.ci_low is None else found.ci_low) > 1:
        return None
    if found.value > 1:
        return f"INT8 is not shown to be faster than FP16: the speed-up is {_described(found)}"
    advice = ": ship FP16" if found.basis == "measured" else ""
    return f"INT8 is not faster than FP16: the speed-up is {_described(found)}{advice}"


def fp16_not_known(candidate: Measured) -> str | None:
    """Return a sentence where it is not known how fast INT8 is against FP16 on the target; else None.

    Examples:
        >>> from validate.results import Candidate
        >>> fp16_not_known(Candidate.model_construct(speedups=[]))
        'how fast INT8 is against FP16 on the target is not known; nothing was measured or estimated for it'
    """
    if _speedup(candidate, "FP16") is not None:
        return None
    why = _off_target(candidate, "FP16") or "; nothing was measured or estimated for it"
    return f"how fast INT8 is against FP16 on the target is not known{why}"


def _off_target(candidate: Measured, against: str) -> str:
    """Return what is known of another machine, or of no machine; empty where that is nothing."""
    found = next((speedup for speedup in candidate.speedups if _is_of(speedup, against)), None)
    return "" if found is None else f"; {_described(found)} says nothing of the target"


def _speedup(candidate: Measured, against: str) -> Speedup | None:
    """Return the speed-up on the target that is known best: measured before estimated before counted.

    Models that were timed whole, in turns, come before a sum of the times of their layers, which has no interval. Of
    several baselines of one precision, as float32 with TF32 and without, the fastest counts.
    """
    known = [speedup for speedup in candidate.speedups if speedup.on_target and _is_of(speedup, against)]
    return min(known, key=lambda found: (_TRUST[found.basis], found.ci_low is None, found.value), default=None)


def _is_of(speedup: Speedup, against: str) -> bool:
    """Tell whether it is against that precision, in any runtime: FP16, TensorRT FP16. TF32 is a float32 model's."""
    return speedup.against.split()[-1:] in ([against], ["TF32"] if against == "FP32" else [against])


def _described(speedup: Speedup) -> str:
    between = "" if speedup.ci_low is None else f", between {speedup.ci_low:.3g} and {speedup.ci_high:.3g}"
    kind = "counted, no measurement" if speedup.basis == "multiply-accumulates" else speedup.basis
    return f"{speedup.value:.3g}{between} ({kind}: {speedup.source})"


def latency_rule(wanted: LatencyPolicy, candidate: Measured) -> Rule:
    """Judge the 99th percentile of a call's time by the policy's limit, by its confidence interval.

    Examples:
        >>> from validate.results import Candidate
        >>> from validate.results import Latency
        >>> times = {"p50_ms": 2.0, "p90_ms": 2.2, "p99_ms": 3.0, "p99_low_ms": 2.8, "p99_high_ms": 3.4}
        >>> latency = Latency(runtime="tensorrt 11.0", device="NVIDIA L4", batch_size=1, runs=1000, **times)
        >>> wanted = LatencyPolicy(p99_ms=5.0, device="NVIDIA L4")
        >>> latency_rule(wanted, Candidate.model_construct(latency=latency)).outcome
        'pass'
    """
    name, wish = "latency p99", f"the policy allows {wanted.p99_ms:g} ms"
    found = candidate.latency
    on_target = any(s.on_target for s in candidate.speedups if s.basis == "measured")
    problem = None
    if found is None:
        problem = f"latency was not measured ({candidate.latency_reason or 'no reason is known'})"
    elif not math.isfinite(found.p99_ms):
        problem = f"the latency of {found.device} is not a number"
    elif wanted.device is not None and found.device.casefold() != wanted.device.casefold():
        problem = f"latency was measured on {found.device}, not on {wanted.device}"
    elif wanted.device is None and not on_target:
        problem = f"latency was measured on {found.device}, which is not the target"
    elif wanted.batch_size not in (None, found.batch_size):
        problem = f"latency was measured with batch size {found.batch_size}, not {wanted.batch_size}"
    if problem is not None or found is None:
        return Rule(name=name, outcome="not_measured", threshold=wanted.p99_ms, unit="ms", message=f"{problem}; {wish}")
    low, high = found.p99_low_ms or 0.0, found.p99_high_ms or math.inf
    outcome: Literal["pass", "fail", "undecided"] = "undecided"
    if high <= wanted.p99_ms:
        outcome = "pass"
    elif low > wanted.p99_ms:
        outcome = "fail"
    sure = f"between {low:.4g} and {high:.4g} ms"
    if not math.isfinite(high):
        sure = f"as far as so few can tell (it takes {_P99_CALLS} or more: latency.runs)"
    return Rule(
        name=name,
        outcome=outcome,
        value=found.p99_ms,
        threshold=wanted.p99_ms,
        unit="ms",
        message=f"99 of 100 calls take at most {found.p99_ms:.4g} ms, {sure} ({found.runs} calls of batch size "
        f"{found.batch_size}, {found.runtime} on {found.device}); {wish}",
    )


def model_size_rule(most: int, candidate: Measured) -> Rule:
    """Judge the size in bytes of the ONNX file, with its external data, by the policy's limit.

    Examples:
        >>> from validate.results import Candidate
        >>> model_size_rule(10_000_000, Candidate.model_construct(size_bytes=11_700_000)).outcome
        'fail'
    """
    return size_rule("model size", "the model's file", candidate.size_bytes, most)


def size_rule(name: str, what: str, size: int | None, most: int) -> Rule:
    """Judge the size of a file in bytes by a limit; one that is empty, or whose size is not known, is not measured.

    Examples:
        >>> size_rule("engine size", "model.engine", 4_000_000, most=8_000_000).outcome
        'pass'
    """
    if not size:
        problem = "is empty" if size == 0 else "has a size that was not measured"
        return Rule(
            name=name,
            outcome="not_measured",
            threshold=most,
            unit="bytes",
            message=f"{what} {problem}; the policy allows {most:,} bytes",
        )
    return Rule(
        name=name,
        outcome="pass" if size <= most else "fail",
        value=size,
        threshold=most,
        unit="bytes",
        message=f"{what} has {size:,} bytes; the policy allows {most:,}",
    )


def worst_layer_rule(least: float, candidate: Measured) -> Rule:
    """Judge the lowest SQNR of all layers, both models run whole, by the policy's limit in dB.

    A layer whose reference is all zero has no SQNR (-inf) where the candidate is not zero, which fails.

    Examples:
        >>> from validate.results import Candidate
        >>> from validate.results import LayerError
        >>> pairs = [("conv1", 31.0), ("fc", 18.5)]
        >>> layers = [LayerError.model_construct(node=node, sqnr_db=db) for node, db in pairs]
        >>> worst_layer_rule(20.0, Candidate.model_construct(layers=layers)).outcome
        'fail'
    """
    name, wish = "worst layer", f"the policy asks for {least:g} dB of every layer"
    measured = [layer for layer in candidate.layers if not math.isnan(layer.sqnr_db)]
    if len(measured) < len(candidate.layers) or not measured:
        unknown = [layer.node for layer in candidate.layers if math.isnan(layer.sqnr_db)]
        what = f"of {', '.join(unknown[:3])} could not be measured" if unknown else "was measured of no layer"
        return Rule(name=name, outcome="not_measured", threshold=least, unit="dB", message=f"the SQNR {what}; {wish}")
    worst = min(measured, key=lambda layer: layer.sqnr_db)
    return Rule(
        name=name,
        outcome="pass" if worst.sqnr_db >= least else "fail",
        value=worst.sqnr_db,
        threshold=least,
        unit="dB",
        message=f"the lowest SQNR of a layer is {worst.sqnr_db:.4g} dB, of {worst.node}; {wish}",
    )


def clipping_rule(most: float, candidate: Measured) -> Rule:
    """Judge the clipped share of the worst activation, on validation samples, by the policy's limit.

    Examples:
        >>> from validate.results import Candidate
        >>> from validate.results import Clipping
        >>> clipping = Clipping(share=0.0001, tensor="r1", split="validation", samples=500)
        >>> clipping_rule(0.001, Candidate.model_construct(clipping=clipping)).outcome
        'pass'
    """
    name, wish, found = "clipped activations", f"the policy allows {100 * most:.4g}%", candidate.clipping
    if found is None or found.samples == 0 or math.isnan(found.share):
        return Rule(
            name=name,
            outcome="not_measured",
            threshold=most,
            message="the share of clipped activations was not measured on validation samples (the share of each layer "
            f"is of calibration samples); run with policy.max_clipped_share in the config; {wish}",
        )
    return Rule(
        name=name,
        outcome="pass" if found.share <= most else "fail",
        value=found.share,
        threshold=most,
        message=f"INT8 clips up to {100 * found.share:.4g}% of an activation's values, of {found.tensor}, on "
        f"{found.samples} {found.split} samples; {wish}",
    )


def overlap_rule(most: int, overlap: int | None) -> Rule:
    """Judge the number of validation samples that scales were found on by the policy's limit.

    Examples:
        >>> overlap_rule(most=0, overlap=3).outcome
        'fail'
    """
    name, wish = "calibration leakage", f"the policy allows {most}"
    if overlap is None:
        return Rule(
            name=name,
            outcome="not_measured",
            threshold=most,
            unit="samples",
            message=f"samples in both sets were not counted by the version that made these results; {wish}",
        )
    return Rule(
        name=name,
        outcome="pass" if overlap <= most else "fail",
        value=overlap,
        threshold=most,
        unit="samples",
        message=f"{overlap} validation samples are calibration samples too; {wish}",
    )
