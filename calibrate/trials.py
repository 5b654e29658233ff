"""Fallback at work: ranks the layers of a plan on the bench, judges plans for the search, and records each trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from calibrate.config import FallbackConfig
from calibrate.cost import CostModel
from calibrate.fallback import Budget, Found, Layers, Tried, ladder, search
from calibrate.measuring import Bench
from calibrate.plan import QuantizationPlan
from calibrate.sensitivity import effects_of_layers, samples_per_layer
from validate.evaluate import candidate_accuracy
from validate.results import Search, Trial
from validate.significance import paired_interval

__all__ = ["Target", "Trials"]

_RANKING_PASSES = 3.0
"""Of the six that a search may take: the float model's, the plan's and that of the ranges are three more."""
_MOST_SAMPLES = 4
"""Per layer: more do not rank any better; see `calibrate.sensitivity`."""
_HOPELESS = 0.99
"""Confidence with which a trial is beyond the target when it is stopped early. It then can never be a GO."""
_LOOKS = 8
"""In how many parts of the judging samples a trial may be stopped."""
_FEWEST = 30
"""Samples below which no trial is stopped."""


@dataclass(frozen=True)
class Target:
    """At most this drop of the task's metric.

    Attributes:
        margin: in the metric's unit.
        confidence: of the two-sided interval of the drop that has to lie below it; None: the drop itself has to.
    """

    margin: float
    confidence: float | None

    def met(self, worse: NDArray[np.float64]) -> bool:
        """Tell from how much worse each judging sample is, shape (n,)."""
        if self.confidence is None:
            return bool(worse.mean() <= self.margin)
        return bool(paired_interval(worse, self.confidence).high < self.margin)

    def hopeless(self, worse: NDArray[np.float64]) -> bool:
        """Tell from the first samples whether it is hardly to be met."""
        return worse.size >= _FEWEST and bool(paired_interval(worse, _HOPELESS).low > self.margin)


@dataclass
class Trials:
    """Puts layers of one plan back to float until a target is met.

    Attributes:
        bench: measures plans.
        plan: the candidate that missed the target.
        target: of the search.
        settings: of the search.
        costs: what it minimises.
        wide: nodes that FP16 cannot hold.
        plans: every plan that was tried, by its layers in float.
        records: the same, as the results show them.
    """

    bench: Bench
    plan: QuantizationPlan
    target: Target
    settings: FallbackConfig
    costs: CostModel
    wide: frozenset[str]
    plans: dict[Layers, QuantizationPlan] = field(default_factory=dict)
    records: list[Trial] = field(default_factory=list)

    def run(self, ranked_on: float) -> tuple[Found, Search]:
        """Rank, search, and return what was found.

        Args:
            ranked_on: runs over the ranking samples that came before: of the float model, of the plan, of ranges.
        """
        journal = self.bench.journal
        available = min(self.settings.samples, len(self.bench.calibration.order))
        layers = [name for name, precision in self.plan.layers.items() if precision == "int8"]
        each = min(_MOST_SAMPLES, samples_per_layer(len(layers) + 1, available, _RANKING_PASSES))
        samples = np.unique(np.linspace(0, available - 1, each).round().astype(int)).tolist()
        with journal.stage("rank", f"rank {len(layers)} layers", len(layers)) as advance:
            alone = self.bench.errors_alone(self.plan, samples, advance)
            effects = effects_of_layers(layers, alone, range(len(samples)))
        passes = ranked_on + (len(layers) + 1) * len(samples) / available
        budget = Budget(self.settings.max_trials, minutes=self.settings.minutes or np.inf)
        found = search(
            ladder(effects, self._cost), effects, self._cost, lambda back: self._judge(back, effects), budget
        )
        return found, Search(
            target=self._sentence(), precision=self.settings.precision, effects=effects, ranking_samples=available,
            ranking_passes=passes, judging_samples=len(self.bench.scores), judging_passes=found.passes,
            trials=self.records, ended=found.ended,
        )  # fmt: skip

    def mixed(self, back: Layers) -> QuantizationPlan:
        """Return the plan with these layers in float."""
        name = f"{self.plan.name}+{len(back)}{self.settings.precision}"
        taken = sum(plan.name.split("-try")[0] == name for layers, plan in self.plans.items() if layers != back)
        mixed = self.plan.with_layers(back, self.settings.precision, f"{name}-try{taken + 1}" if taken else name)
        return mixed.model_copy(update={"wide_nodes": self.wide | self.plan.wide_nodes})

    def _cost(self, back: Layers) -> float:
        precisions = {**self.plan.layers, **dict.fromkeys(back, self.settings.precision)}
        return self.costs.cost(precisions).value

    def _judge(self, back: Layers, effects: Mapping[str, float]) -> Tried:
        bench, metric = self.bench, self.bench.inputs.task.metric
        plan = self.plans.setdefault(back, self.mixed(back))
        total = len(bench.scores)
        with bench.journal.stage("trials", f"try {plan.name}", total) as advance:
            judged = bench.judge(plan, self.target.hopeless, np.linspace(0, total, _LOOKS + 1)[1:-1], advance)
        seen = len(judged.values)
        reference = bench.scores[:seen]
        meets = seen == total and self.target.met(metric.worsening(reference, judged.values))
        self.records.append(
            Trial(
                name=plan.name, plan_hash=plan.hash, float_layers=[x for x in effects if x in back],
                accuracy=candidate_accuracy(metric, reference, judged.values, self.target.confidence or 0.95),
                stopped_early=seen < total, meets_target=meets, cost=self.costs.cost(plan.layers),
            )
        )  # fmt: skip
        return Tried(meets, seen / total, judged.seconds)

    def _sentence(self) -> str:
        metric = self.bench.inputs.task.metric
        margin = f"{100 * self.target.margin:.4g} percentage points" if metric.is_rate else f"{self.target.margin:.4g}"
        sure = "" if self.target.confidence is None else f", with {100 * self.target.confidence:.4g}% confidence"
        return f"{metric.name} at most {margin} worse than the float model{sure}"
