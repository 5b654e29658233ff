"""Ranks the layers of a plan, judges plans for the search, and records each trial."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from calibrate.graph import layer_precisions
from calibrate.measurement import TimedScores
from calibrate.plan import QuantizationPlan
from calibrate.search.ladder import (
    Budget,
    CostOf,
    Layers,
    TrialResult,
    ladder,
    search,
)
from calibrate.search.sensitivity import effects_of_layers, ranking_samples
from calibrate.search.settings import FallbackConfig
from calibrate.search.target import Target, changed
from calibrate.search.trial_bench import Stop, TrialBench
from validate.accuracy import candidate_accuracy
from validate.exceptions import JobError
from validate.number_formats import Precision
from validate.results import Accuracy, Candidate, Search, Trial, Verdict
from validate.stats import paired_interval

__all__ = ["Acceptance", "SearchOutcome", "Trials", "fallback_can_help", "search_plans"]

_FEWEST = 10
"""Calibration samples below which nothing is searched."""
_LOOKS = 8
"""Number of parts of the judging samples; after each but the last, a trial may be stopped."""
_SAFER_FACTOR = 8.0
"""Factor by which the safer plan, judged where the found one misses the verdict, cuts the remaining effects."""


@dataclass(frozen=True)
class SearchOutcome:
    """Plans that a search ends with.

    Attributes:
        plans: to be judged on the validation samples one after the other: the plan that was found, or came closest,
            and a safer one. Both are fixed before any validation sample is run.
        search: record of the search, for the results.
    """

    plans: list[QuantizationPlan]
    search: Search


@dataclass
class Trials:
    """Puts layers of one plan back to float until a target is met.

    Attributes:
        bench: measures plans.
        plan: the candidate that missed the target.
        target: of the search.
        settings: of the search.
        records: every trial, as the results show it.
    """

    bench: TrialBench
    plan: QuantizationPlan
    target: Target
    settings: FallbackConfig
    records: list[Trial] = field(default_factory=list)

    def run(self) -> SearchOutcome:
        """Rank the layers, search, and return the plans that were found."""
        layers = [name for name, precision in self.plan.layers.items() if precision == "int8"]
        pool = min(self.settings.samples, self.bench.calibration.samples)
        samples = ranking_samples(len(layers), pool)
        with self.bench.journal.stage("rank", f"rank {len(layers)} layers", len(layers)) as advance:
            of_layer = self.bench.errors_alone(self.plan, samples, advance)
            alone = {layer: of_layer(layer) for layer in layers}
        effects = effects_of_layers(layers, lambda layer, index: alone[layer].values[index], range(len(samples)))
        finite = _finite(effects)
        judging = self.bench.judging(samples)
        evaluator = _TrialEvaluator(self, effects, judging)
        spent = sum(errors.seconds for errors in alone.values()) + evaluator.seconds
        budget = Budget(self.settings.evaluations - evaluator.passes, self.settings.minutes or math.inf, spent)
        found = search(ladder(finite, self._cost), finite, self._cost, evaluator, budget)
        self.bench.release()
        # Where nothing met the target, the last that was judged came closest: each left less than the one before.
        best = found.layers or next(reversed(found.judged), frozenset())
        ended = found.ended
        if self.records[0].meets_target:
            ended += "; on the judging samples the plan all in int8 meets the target"
        plans = [self.mixed(layers) for layers in (best, _safer_layers(best, finite, self._cost)) if layers]
        return SearchOutcome(
            plans,
            Search(
                target=self._sentence(),
                precision=self.settings.precision,
                effects=effects,
                ranking_samples=pool,
                ranked_on=len(samples),
                ranking_passes=(len(layers) + 1) * len(samples) / pool,
                judging_samples=len(judging),
                judging_passes=evaluator.passes + found.passes,
                screened=len(found.screened),
                trials=self.records,
                ended=ended,
            ),
        )

    def mixed(self, back: Layers) -> QuantizationPlan:
        """Return the plan with these layers in float, named by them."""
        name = f"{self.plan.name}+{len(back)}{self.settings.precision}"
        mixed = self.plan.with_layers(back, self.settings.precision, name)
        same = {trial.plan_hash: trial.name for trial in self.records}
        alike = [trial for trial in self.records if trial.name.split("-try")[0] == name]
        unique = same.get(mixed.hash, f"{name}-try{len(alike) + 1}" if alike else name)
        return mixed.model_copy(update={"name": unique})

    def reference(self, samples: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the float model's scores on calibration samples."""
        scores = self.bench.reference_scores
        assert scores is not None  # see `fallback_can_help`
        found: NDArray[np.float64] = scores[samples]
        return found

    def record(
        self, plan: QuantizationPlan, back: Sequence[str], judging: NDArray[np.int64], scores: NDArray[np.float64]
    ) -> bool:
        """Keep a trial for the results, and return whether it meets the target."""
        metric, expected = self.bench.inputs.task.metric, self.reference(judging[: len(scores)])
        stopped = len(scores) < len(judging)
        meets = not stopped and self.target.met(expected, scores)
        self.records.append(
            Trial(
                name=plan.name,
                plan_hash=plan.hash,
                float_layers=list(back),
                accuracy=candidate_accuracy(metric, expected, scores, self.target.confidence or 0.95),
                stopped_early=stopped,
                meets_target=meets,
                cost=self.bench.pricing.cost(plan),
            )
        )
        return meets

    def _cost(self, back: Layers) -> float:
        int8, floats = self._precisions
        return self.bench.pricing.plans.cost({**int8, **{layer: floats[layer] for layer in back}}).value

    @cached_property
    def _precisions(self) -> tuple[dict[str, Precision], dict[str, Precision]]:
        """Precisions of the layers in the plan, and with all of them in float; cached, as every cost needs them."""
        prepared, plan = self.bench.inputs.model.prepared, self.plan
        back = plan.with_layers(plan.int8_layers, self.settings.precision, plan.name)
        return layer_precisions(prepared, plan), layer_precisions(prepared, back)

    def _sentence(self) -> str:
        metric, target = self.bench.inputs.task.metric, self.target
        margin = f"{100 * target.margin:.4g} percentage points" if metric.is_rate else f"{target.margin:.4g}"
        sure = ""
        if target.confidence is not None:
            sure = f", with {100 * target.confidence:.4g}% confidence on {target.samples} samples"
        return f"{metric.name} at most {margin} worse than the float model{sure}"


class _TrialEvaluator:
    """Screens and judges plans on the calibration samples that did not rank the layers; see `PlanEvaluator`.

    It begins with the plan itself, all in int8, and runs it until enough scores have changed to screen by.
    """

    def __init__(self, trials: Trials, effects: Mapping[str, float], judging: NDArray[np.int64]) -> None:
        self._trials, self._effects, self._judging = trials, effects, judging
        begun = self._scores(trials.plan, trials.target.can_screen, "until enough changed")
        first = begun.values
        trials.record(trials.plan, [], judging, first)
        number = trials.target.screening_size(trials.reference(judging[: len(first)]), first)
        self._seen = judging[:number]
        self._reference = trials.reference(self._seen)
        self._changed = changed(self._reference, first[:number])
        self.passes = len(first) / len(judging)
        """Share of the judging samples that the first evaluation ran."""
        self.seconds = begun.seconds
        """Time of the first evaluation."""
        self.screen_passes = len(self._changed) / len(judging)

    def screen(self, layers: Layers) -> TrialResult:
        """See `PlanEvaluator`."""
        if not len(self._changed):  # nothing to tell plans apart by: the ladder alone decides
            return TrialResult(True, 0.0, 0.0)
        bench, plan = self._trials.bench, self._trials.plan
        screened = bench.screen(plan, layers, self._seen[self._changed])
        scores = self._reference.copy()
        scores[self._changed] = screened.values
        return TrialResult(self._trials.target.met(self._reference, scores), self.screen_passes, screened.seconds)

    def judge(self, layers: Layers) -> TrialResult:
        """See `PlanEvaluator`."""
        trials, total, plan = self._trials, len(self._judging), self._trials.mixed(layers)
        judged = self._scores(plan, partial(trials.target.is_futile, total=total), "until hopeless")
        back = [layer for layer in self._effects if layer in layers]
        meets = trials.record(plan, back, self._judging, judged.values)
        return TrialResult(meets, len(judged.values) / total, judged.seconds)

    def _scores(self, plan: QuantizationPlan, stop: Stop, rule: str) -> TimedScores:
        bench, total = self._trials.bench, len(self._judging)
        with bench.journal.stage("trials", f"try {plan.name}", total) as advance:
            looks = np.linspace(0, total, _LOOKS + 1)[1:-1].astype(int).tolist()
            return bench.judge(plan, self._judging, stop, looks, advance, {"stop": rule, **self._trials.target.key})


def _finite(effects: Mapping[str, float]) -> dict[str, float]:
    """Return the effects with infinite ones replaced by a number far above all others.

    A layer has an infinite effect where it alone breaks the model. Beside infinity the other effects would not count.
    """
    broken = 1e3 * sum(effect for effect in effects.values() if math.isfinite(effect)) + 1.0
    return {name: effect if math.isfinite(effect) else broken for name, effect in effects.items()}


@dataclass(frozen=True)
class Acceptance:
    """Condition that the verdict puts on a plan that a search found.

    Attributes:
        max_drop: the policy's margin, in the metric's unit.
        confidence: two-sided, of the interval that has to lie below it.
        samples: number of validation samples.
    """

    max_drop: float
    confidence: float
    samples: int


def fallback_can_help(bench: TrialBench, wanted: Acceptance, candidate: Candidate, verdict: Verdict) -> bool:
    """Return whether layers in float could turn the verdict into a GO, and warn where that cannot be found out.

    They cannot where a rule other than accuracy is missed, where the samples are so few that even a candidate
    without a single changed score would stay undecided, and where no samples can judge the trials.
    """
    missed = {rule.outcome for rule in verdict.rules if rule.name.startswith("accuracy")} & {"fail", "undecided"}
    if not missed and math.isfinite(candidate.accuracy.drop):  # a model that INT8 breaks has no number to judge
        return False
    warn, metric = bench.journal.warn, bench.inputs.task.metric
    if (simulated := candidate.simulated) is not None and simulated.ci_high < wanted.max_drop:
        warn(
            "no layers were put back to float: in simulation the candidate keeps to the policy, and the search sees "
            "simulations alone; what the engine does is said in the verdict"
        )
        return False
    if metric.is_rate and metric.is_mean:
        unchanged = paired_interval(np.zeros(wanted.samples), wanted.confidence, metric.largest_difference)
        if unchanged.high >= wanted.max_drop:
            warn(
                f"no layers were put back to float: with {wanted.samples} validation samples even a candidate without "
                f"a single changed answer has an interval up to {unchanged.high:.4f}, beyond policy.max_drop "
                f"{wanted.max_drop:g}; give more samples"
            )
            return False
    if bench.calibration.samples < _FEWEST:
        warn(f"no layers were put back to float: fewer than {_FEWEST} calibration samples can rank and judge nothing")
        return False
    try:
        labelled = bench.reference_scores is not None
    except JobError as error:
        warn(f"no layers were put back to float: the calibration samples' labels cannot judge trials ({error})")
        return False
    if not labelled:
        warn(
            "no layers were put back to float: the calibration samples have no labels, so that they cannot judge "
            "trials, and the validation samples are for the verdict alone; give the calibration set the label column"
        )
        return False
    return True


def search_plans(
    settings: FallbackConfig, bench: TrialBench, wanted: Acceptance, plan: QuantizationPlan, reference: Accuracy
) -> SearchOutcome:
    """Search the fastest plan that meets the target on calibration samples; no validation sample is run here.

    Args:
        settings: of the search; its target is that of the verdict unless it has one of its own.
        bench: runs plans.
        wanted: condition of the verdict.
        plan: the candidate that missed the target.
        reference: accuracy of the float model.
    """
    margin = settings.max_drop or wanted.max_drop
    if settings.max_relative_drop is not None:
        margin = settings.max_relative_drop * abs(reference.value)
    target = Target(bench.inputs.task.metric, margin, settings.confidence or wanted.confidence, wanted.samples)
    return Trials(bench, plan, target, settings).run()


def _safer_layers(found: Layers, effects: Mapping[str, float], cost: CostOf) -> Layers | None:
    """Return more layers than those that were found, in case these are not enough; None where no layers are left.

    They are those of the next rungs, until an eighth of the remaining effects is left.
    """
    left = {name: effect for name, effect in effects.items() if name not in found}
    if len(left) < 2:
        return None
    base = ladder(left, lambda more: cost(found | more))
    wanted = base[0].remaining / _SAFER_FACTOR
    rung = next((rung for rung in base[1:] if rung.remaining <= wanted), base[-1])
    return found | rung.layers if rung.layers else None
