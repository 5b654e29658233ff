"""Runs plans on calibration samples: one layer alone in INT8 for the ranking, screens, and whole trials."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from calibrate.search.single_samples import SingleSamples
from validate.accuracy import batch_scores, evaluate, stored_scores
from validate.backends import OnnxRuntimeModel, detach
from validate.data import Batch
from validate.tasks import Agreement, Outputs

__all__ = ["Stop", "TrialBench"]

Stop = Callable[[NDArray[np.float64], NDArray[np.float64]], bool]
"""Stopping rule of a trial: from the scores, or records, of the reference and of a plan, whether to stop."""


class _SwitchedSession:
    """One session that runs a plan with any subset of its int8 layers in int8; it is made when it first runs."""

    def __init__(self, inputs: Inputs, plan: QuantizationPlan) -> None:
        model, self._layers = inputs.model, [layer.node for layer in inputs.model.placement.layers]
        self._session = cache(lambda: OnnxRuntimeModel(detach(switchable(model.prepared, model.placement, plan))))

    def run(self, batch: Batch, int8: frozenset[str]) -> Outputs:
        on = np.array([name in int8 for name in self._layers])
        return self._session().run({**batch.inputs, SWITCHES: on})


@dataclass(frozen=True)
class TrialBench:
    """Runs plans on calibration samples: rankings, screens and trials. It holds no validation sample.

    Attributes:
        inputs: the model, its calibration set and its task.
        calibration: the float model's outputs on the calibration samples.
        evaluations: cache of evaluations, also those of an interrupted run.
        pricing: costs of plans.
        journal: counts forward passes.
    """

    inputs: Inputs
    calibration: CalibrationRun
    evaluations: EvaluationCache
    pricing: Pricing
    journal: Journal
    _sessions: dict[str, _SwitchedSession] = field(default_factory=dict)

    @cached_property
    def _single(self) -> SingleSamples:
        return SingleSamples(self.inputs, self.calibration)

    @cached_property
    def reference_scores(self) -> NDArray[np.float64] | None:
        """Scores, or records, of the float model on the calibration samples; None where they have no labels."""
        task, stream = self.inputs.task, self.inputs.calibration
        if not isinstance(task, Agreement) and next(iter(stream.limited(1).batches())).labels[0] is None:
            return None
        return stored_scores(task, self.calibration.fingerprint.verify(stream.batches()), self.calibration.outputs)

    def judging(self, ranking: Sequence[int]) -> NDArray[np.int64]:
        """Return the indices of the calibration samples that judge plans: all but the ranking samples."""
        return np.setdiff1d(np.arange(self.calibration.samples), ranking)

    def errors_alone(
        self, plan: QuantizationPlan, samples: Sequence[int], advance: Callable[[int], None]
    ) -> Callable[[str], TimedScores]:
        """Return a function from a layer to the task's errors with only that layer in int8, in the order of `samples`.

        Args:
            plan: with the layers in int8.
            samples: indices of calibration samples.
            advance: called with 1 for each layer that is done.
        """
        task, switched = self.inputs.task, self._switched(plan)

        @cache
        def references() -> list[tuple[Batch, Outputs]]:
            chosen = self._single.batches(samples)
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
        """Return the scores, or records, of a plan on some calibration samples, with the layers `back` in float32.

        One session serves all plans, so that this is quick. It is not exact: `judge` types float layers as the plan
        does.
        """

        def compute() -> NDArray[np.float64]:
            switched, task = self._switched(plan), self.inputs.task
            chosen = self._single.batches(samples.tolist())
            self.journal.forwarded("screen", len(chosen))
            on = plan.int8_layers - back
            return np.concatenate([batch_scores(task, b, switched.run(b, on), is_reference=False) for b in chosen])

        key = {"plan": plan.hash, "back": sorted(back), "samples": samples.tolist()}
        return self.evaluations.get("screen", compute, **key)

    def release(self) -> None:
        """Free the memory of the samples and the session of ranking and screening."""
        self._single.release()
        self._sessions.clear()

    def _switched(self, plan: QuantizationPlan) -> _SwitchedSession:
        if plan.hash not in self._sessions:
            self._sessions.clear()  # one is as large as two models
            self._sessions[plan.hash] = _SwitchedSession(self.inputs, plan)
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
        """Return the scores, or records, of a plan on labelled calibration samples, up to where `stop` ends it.

        Args:
            plan: to judge.
            judging: indices of the samples, in order.
            stop: stopping rule, on the scores, or records, of the reference and of the plan on the first samples.
            looks: numbers of samples after which the rule is applied.
            advance: called with the number of samples that were run.
            rule: all that `stop` depends on, as JSON values; part of the cache's key.
        """
        task, reference = self.inputs.task, self.reference_scores
        assert reference is not None

        def compute() -> NDArray[np.float64]:
            simulated = apply(plan, self.inputs.model.prepared, self.inputs.model.placement, simulate=True)
            model, due = OnnxRuntimeModel(detach(simulated)), deque(looks)
            scores = reference[:0]
            batches = self.calibration.fingerprint.verify(self.inputs.calibration.batches())
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
