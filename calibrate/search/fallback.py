"""Fallback: puts layers back to float where no candidate meets the policy, and judges the plans that result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from calibrate.measurement import CandidateBench, MeasuredCandidate
from calibrate.search.settings import FallbackConfig
from calibrate.search.trial_bench import TrialBench
from calibrate.search.trials import Acceptance, fallback_can_help, search_plans
from validate.results import Accuracy, Candidate, Decision, Search, Verdict
from validate.verdict import Evidence, Policy, decide

__all__ = ["Selection", "put_layers_back", "select", "verdict_confidences"]


@dataclass(frozen=True)
class Selection:
    """The candidates of a run, and the one that the verdict is about.

    Attributes:
        candidates: in the order in which they were measured.
        selected: name of the one that the verdict is about.
        verdict: on the selected candidate, by its accuracy and its TensorRT build alone: nothing is timed yet.
        search: record of the search; None where there was none.
    """

    candidates: Sequence[MeasuredCandidate]
    selected: str
    verdict: Verdict
    search: Search | None = None

    @property
    def chosen(self) -> MeasuredCandidate:
        """The candidate that the verdict is about."""
        return next(candidate for candidate in self.candidates if candidate.record.name == self.selected)


def verdict_confidences(policy: Policy, settings: FallbackConfig) -> list[float]:
    """Return the confidence of each evaluation on the validation samples, in order: a weighted Bonferroni correction.

    Half of the error goes to the candidate without fallback, a third to the plan that fallback found, a sixth to the
    safer plan that is judged if that one misses. So a false GO is no likelier than the policy allows over all three.

    Examples:
        >>> confidences = verdict_confidences(Policy(max_drop=0.01, confidence=0.94), FallbackConfig())
        >>> [round(confidence, 4) for confidence in confidences]
        [0.97, 0.98, 0.99]
    """
    alpha = 1 - policy.confidence
    shares = (1 / 2, 1 / 3, 1 / 6) if settings.evaluations else (1.0,)
    return [1 - alpha * share for share in shares]


def select(policy: Policy, reference: Accuracy, candidates: Sequence[MeasuredCandidate]) -> Selection:
    """Select the candidate with the least error on calibration samples, which the verdict does not use."""
    best = min(candidates, key=lambda candidate: candidate.record.selection_error or 0.0)
    return Selection(candidates, best.record.name, _verdict(policy, reference, best.record))


def put_layers_back(
    settings: FallbackConfig,
    policy: Policy,
    candidate_bench: CandidateBench,
    trial_bench: TrialBench,
    selection: Selection,
) -> Selection:
    """Search plans with layers in float, and return the selection with those that the search found.

    It searches only where the selected candidate misses the policy and layers in float can help; otherwise the
    selection is returned as it is. Calibration samples choose the plans, and validation samples only judge them. Where
    no plan is a GO, the verdict is about the one that came closest.

    Args:
        settings: of the search.
        policy: that the verdict is by.
        candidate_bench: measures the plans that the search found.
        trial_bench: runs the trials of the search.
        selection: the candidates so far.
    """
    reference = candidate_bench.reference_accuracy
    looks = verdict_confidences(policy, settings)[1:]
    if selection.verdict.decision is Decision.GO or not looks:
        return selection
    wanted = Acceptance(policy.max_drop, looks[0], len(candidate_bench.reference.scores))
    chosen = selection.chosen
    if not fallback_can_help(trial_bench, wanted, chosen.record, selection.verdict):
        return selection
    found = search_plans(settings, trial_bench, wanted, chosen.plan, reference)
    selection = replace(selection, search=found.search)
    for plan, confidence in zip(found.plans, looks, strict=False):
        back = [layer for layer in found.search.effects if plan.layers[layer] != "int8"]
        candidate = candidate_bench.measure(plan, confidence, back, select=False)
        verdict = _verdict(policy, reference, candidate.record)
        candidates = [*selection.candidates, candidate]
        closest, so_far = _closeness(candidate.record, verdict), _closeness(chosen.record, selection.verdict)
        if closest < so_far:
            chosen = candidate
            selection = replace(selection, selected=candidate.record.name, verdict=verdict)
        selection = replace(selection, candidates=candidates)
        if selection.verdict.decision is Decision.GO:
            break
    return selection


def _verdict(policy: Policy, reference: Accuracy, candidate: Candidate) -> Verdict:
    """Judge a candidate by what is known before it is timed: its accuracy and its TensorRT build."""
    return decide(policy.without_named_rules(), Evidence(reference, candidate))


def _closeness(candidate: Candidate, verdict: Verdict) -> tuple[int, float]:
    """Return what sorts candidates by how close they came to a GO, closest first."""
    order = [Decision.GO, Decision.INCONCLUSIVE, Decision.NO_GO]
    kernels = candidate.integer_kernels
    if not math.isfinite(candidate.accuracy.drop):
        return len(order), math.inf
    return order.index(verdict.decision), max(candidate.accuracy.drop, kernels.accuracy.drop if kernels else -math.inf)
