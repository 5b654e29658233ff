"""Runs plans on calibration samples: one layer alone in INT8 for the ranking, screens, and whole trials."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.cost import Pricing
from calibrate.graph import SWITCHES, apply, switchable
from calibrate.journal import Journal
from calibrate.loading import Inputs
from calibrate.measurement import EvaluationCache, TimedScores
from calibrate.observation import CalibrationRun
from calibrate.plan import QuantizationPlan
from validate.accuracy import batch_scores, evaluate, stored_scores
from validate.backends import OnnxRuntimeModel, detach
from validate.data import Batch
from validate.tasks import Agreement, Outputs

__all__ = ["Stop", "TrialBench"]

Stop = Callable[[NDArray[np.float64], NDArray[np.float64]], bool]
"""Tells from the scores, or records, of the reference and of a plan whether no more samples are needed."""


class _Switched:
    """One session for every plan that has some of a plan's layers in int8; it is made when it first runs."""

    def __init__(self, inputs: Inputs, plan: QuantizationPlan) -> None:
        model, self._layers = inputs.model, [layer.node for layer in inputs.model.placement.layers]
        self._session = cache(lambda: OnnxRuntimeModel(detach(switchable(model.prepared, model.placement, plan))))

    def run(self, batch: Batch, int8: frozenset[str]) -> Outputs:
        on = np.array([name in int8 for name in self._layers])
        return self._session().run({**batch.inputs, SWITCHES: on})


@dataclass(frozen=True)
class TrialBench:
    """Everything that trials are run with; no validation sample is among it.

    Attributes:
        inputs: the model, its calibration set and its task.
        calibration: the float model's outputs on the calibration samples.
        evaluations: what was evaluated before, also by a run that was killed.
        pricing: says what plans cost.
        journal: counts passes.
    """

    inputs: Inputs
    calibration: CalibrationRun
    evaluations: EvaluationCache
    pricing: Pricing
    journal: Journal
    _kept: dict[int, Batch] = field(default_factory=dict)
    _sessions: dict[str, _Switched] = field(default_factory=dict)

    @cached_property
    def reference_scores(self) -> NDArray[np.float64] | None:
        """The reference's per-sample scores on the calibration set; None where its samples have no labels."""
        task, stream = self.inputs.task, self.inputs.calibration
        if not isinstance(task, Agreement) and next(iter(stream.limited(1).batches())).labels[0] is None:
            return None
        return stored_scores(task, self.calibration.fingerprint.again(stream.batches()), self.calibration.outputs)

    def judging(self, ranking: Sequence[int]) -> NDArray[np.int64]:
        """Return the indices of the calibration samples that judge: all that do not rank."""
        return np.setdiff1d(np.arange(self.calibration.samples), ranking)

    def errors_alone(
        self, plan: QuantizationPlan, samples: Sequence[int], advance: Callable[[int], None]
    ) -> Callable[[str], TimedScores]:
        """Return what gives the task's errors with one layer alone in int8, by layer, in the order of `samples`.

        Args:
            plan: with the layers in int8.
            samples: indices of calibration samples.
            advance: called with 1 for each layer that is done.
        """
        task, switched = self.inputs.task, self._switched(plan)

        @cache
        def references() -> list[tuple[Batch, Outputs]]:
            chosen = self.singles(samples)
            self.journal.forwarded("rank", len(chosen))
            return [(batch, switched.run(batch, frozenset())) for batch in chosen]

        def of_layer(layer: str) -> NDArray[np.float64]:
            known = references()
            self.journal.forwarded("rank", len(known))
            alone = frozenset({layer})
            return np.concatenate([task.errors(switched.run(batch, alone), expected) for batch, expected in known])

        def stored(layer: str) -> TimedScores:
            key = {"plan": plan.hash, "layer": layer, "samples": list(samples)}
            errors = self.evaluations.get("alone", partial(of_layer, layer), **key)
            advance(1)
            return errors

        return stored

    def screen(self, plan: QuantizationPlan, back: frozenset[str], samples: NDArray[np.int64]) -> TimedScores:
        """Return the scores, or records, of a plan on some calibration samples; `back` are in float32.

        One session serves all plans, so that this is quick where `judge` is exact.
        """

        def compute() -> NDArray[np.float64]:
            switched, task = self._switched(plan), self.inputs.task
            chosen = self.singles(samples.tolist())
            self.journal.forwarded("screen", len(chosen))
            on = plan.int8_layers - back
            return np.concatenate([batch_scores(task, b, switched.run(b, on), is_reference=False) for b in chosen])

        key = {"plan": plan.hash, "back": sorted(back), "samples": samples.tolist()}
        return self.evaluations.get("screen", compute, **key)

    def singles(self, samples: Sequence[int]) -> list[Batch]:
        """Return some calibration samples, each a batch of its own; they are kept until `forget`."""
        if missing := set(samples) - self._kept.keys():
            stream = replace(self.inputs.calibration.limited(max(missing) + 1), batch_size=1)
            batches = self.calibration.fingerprint.again(stream.batches())
            self._kept.update({batch.first: batch for batch in batches if batch.first in missing})
        return [self._kept[index] for index in samples]

    def forget(self) -> None:
        """Let go of the samples and the session that ranking and screening hold."""
        self._kept.clear()
        self._sessions.clear()

    def _switched(self, plan: QuantizationPlan) -> _Switched:
        if plan.hash not in self._sessions:
            self._sessions.clear()  # one is as large as two models
            self._sessions[plan.hash] = _Switched(self.inputs, plan)
        return self._sessions[plan.hash]

    def judge(
        self,
        plan: QuantizationPlan,
        judging: NDArray[np.int64],
        stop: Stop,
        looks: Sequence[int],
        advance: Callable[[int], None],
        rule: Mapping[str, Any],
    ) -> TimedScores:
        """Return the scores of a plan on calibration samples that have labels, or on the first until it is to stop.

        Args:
            plan: to judge.
            judging: indices of the samples, in order.
            stop: tells from the scores, or records, of the reference and of the plan on the first samples.
            looks: numbers of samples after which it is asked.
            advance: called with numbers of samples that were run.
            rule: all that `stop` depends on, as JSON values: another one may stop elsewhere.
        """
        task, reference = self.inputs.task, self.reference_scores
        assert reference is not None

        def compute() -> NDArray[np.float64]:
            simulated = apply(plan, self.inputs.model.prepared, self.inputs.model.placement, simulate=True)
            model, due = OnnxRuntimeModel(detach(simulated)), deque(looks)
            scores = reference[:0]
            batches = self.calibration.fingerprint.again(self.inputs.calibration.batches())
            for batch in self.journal.forward("trials", batches):
                wanted = np.isin(np.arange(batch.first, batch.first + len(batch)), judging)
                scores = np.concatenate([scores, evaluate(model, task, [batch], advance)[wanted]])
                if due and len(scores) >= due[0]:
                    due.popleft()
                    if stop(reference[judging[: len(scores)]], scores):
                        break
            return scores

        key = {"plan": plan.hash, "samples": judging.tolist(), "looks": list(looks), "rule": dict(rule)}
        return self.evaluations.get("trial", compute, **key)
