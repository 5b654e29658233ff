"""Judges FP16 before INT8: what the float model loses in FP16 alone, and which nodes have to be FP32 for that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from calibrate.graph import apply, nodes_in
from calibrate.journal import Journal
from calibrate.loading import Inputs
from calibrate.measurement import EvaluationCache
from calibrate.observation import CalibrationRun
from calibrate.plan import QuantizationPlan
from calibrate.search.single_samples import SingleSamples
from calibrate.search.target import changed
from validate.accuracy import evaluate, stored_scores
from validate.backends import OnnxRuntimeModel, detach
from validate.data import Batch
from validate.exceptions import JobError
from validate.number_formats import FloatPrecision
from validate.results import Fp16Check
from validate.tasks import Agreement, Metric, Task, with_or_without_labels

__all__ = ["FloatTypeBench", "check_float_type", "sufficient_sets"]

_SHARE_OF_FP16 = 0.5
"""Of the margin, that FP16 may take once nodes go to FP32: INT8 needs the rest."""
_SAMPLES = 32
"""Samples that FP16 changes, on which plans are tried."""
_MOST = 64
"""Plans that are tried at most."""
_CONFIRMED = 3
"""Plans that are confirmed at most, on all samples."""

Nodes = frozenset[str]


@dataclass(frozen=True)
class FloatTypeBench:
    """Runs the float model in FP16 or BF16 on calibration samples.

    Attributes:
        inputs: the model, its calibration set and its task.
        calibration: the float model's outputs on the calibration samples.
        evaluations: cache of evaluations, also those of an interrupted run.
        journal: counts forward passes and gets warnings.
    """

    inputs: Inputs
    calibration: CalibrationRun
    evaluations: EvaluationCache
    journal: Journal

    @cached_property
    def _single(self) -> SingleSamples:
        return SingleSamples(self.inputs, self.calibration)

    @cached_property
    def judged_by(self) -> tuple[Task, NDArray[np.float64]] | None:
        """The task and the float model's scores, or records, on all calibration samples.

        Without labels, or with labels that the task cannot use, the task is agreement with the float model; None where
        it gives no answers to agree with.
        """
        task = self.inputs.task
        first = next(iter(self.inputs.calibration.limited(1).batches()))
        if isinstance(task, Agreement) or first.labels[0] is not None:
            try:
                return task, stored_scores(task, self.batches(), self.calibration.outputs)
            except JobError:  # fallback says so, where it needs them
                pass
        task = with_or_without_labels(task, labelled=False)
        if not isinstance(task, Agreement):
            return None
        return task, stored_scores(task, self.batches(), self.calibration.outputs)

    def batches(self) -> Iterable[Batch]:
        """Start a pass over the calibration samples."""
        return self.calibration.fingerprint.verify(self.inputs.calibration.batches())

    def scores(self, plan: QuantizationPlan, task: Task, samples: Sequence[int] | None = None) -> NDArray[np.float64]:
        """Return the scores, or records, of a plan on calibration samples, in simulation.

        Args:
            plan: to run.
            task: that scores.
            samples: their indices; None: all.
        """

        def compute() -> NDArray[np.float64]:
            model = self.inputs.model
            simulated = OnnxRuntimeModel(detach(apply(plan, model.prepared, model.placement, simulate=True)))
            batches = self.batches() if samples is None else self._single.batches(samples)
            return evaluate(simulated, task, self.journal.forward("fp16", batches), on_batch=lambda done: None)

        key = {"plan": plan.hash, "metric": task.metric.name, "samples": samples}
        return self.evaluations.get("fp16", compute, **key).values


def check_float_type(plan: QuantizationPlan, max_drop: float, bench: FloatTypeBench) -> Fp16Check | None:
    """Measure the float model in the plan's float type, and find the nodes that have to be FP32 for the target.

    Where the model in FP16 loses more than `max_drop`, nodes go to FP32 until it loses half of that at most. The search
    begins with all nodes in FP32, and puts ever smaller parts of the graph back to FP16 (delta debugging). It runs on
    samples whose scores FP16 changes, and what it ends with is confirmed on all. A single sample that changes is no
    reason, however few samples there are. BF16 is measured only.

    Args:
        plan: whose float type and `wide_nodes` are judged; its int8 layers are in that type.
        max_drop: the policy's margin, in the metric's unit.
        bench: runs plans.

    Returns:
        None where nothing was measured: the plan is FP32 throughout, or there are neither labels nor answers.
    """
    kind, judged_by = plan.float_precision, bench.judged_by
    if kind == "fp32" or judged_by is None:
        return None
    task, reference = judged_by
    whole, metric = plan.in_float(kind, kind), task.metric
    scores = bench.scores(whole, task)
    drop = metric.drop(reference, scores)
    one_sample = 1 / len(reference) if metric.is_rate and metric.is_mean else 0.0
    nodes: Sequence[str] = ()
    after, tried = drop, 1
    allowed = max(max_drop, one_sample)
    differing = changed(reference, scores)
    if not drop <= allowed and kind == "fp16" and len(differing):
        search = _Search(bench, whole, task, reference, differing, _SHARE_OF_FP16 * max_drop)
        nodes, after = search.run()
        tried += search.evaluations
    misses = not after <= allowed
    said = _sentence(kind, metric, (drop, after), nodes, len(reference))
    if misses and kind == "bf16":
        said += "; nodes go to FP32 beside FP16 only: take quantization.float_precision fp16 or fp32"
    return Fp16Check(
        precision=kind,
        metric=metric.name,
        drop=drop,
        drop_after=after,
        samples=len(reference),
        fp32_nodes=list(nodes),
        evaluations=tried,
        misses=misses,
        message=said,
    )


def sufficient_sets(nodes: Sequence[str], meets: Callable[[Nodes], bool], most: int) -> list[Nodes]:
    """Return sets of nodes that meet a target, each a part of the one before; the first is all of them.

    Delta debugging (Zeller): halves of the nodes are left out one after the other, then quarters, down to single nodes,
    and stay out where the rest still meets the target. Few tries are needed where few nodes are to blame.

    Args:
        nodes: in topological order, so that parts of them are parts of the graph.
        meets: whether the target is met with these nodes in FP32; with all of them it is.
        most: tries at most.

    Examples:
        >>> sets = sufficient_sets("abcdefgh", lambda nodes: nodes >= {"c", "d"}, most=20)
        >>> [len(nodes) for nodes in sets], sorted(sets[-1])
        ([8, 4, 2], ['c', 'd'])
    """
    left, found, tries = list(nodes), [frozenset(nodes)], 0
    size = len(left) // 2
    while size:
        for part in [left[start : start + size] for start in range(0, len(left), size)]:
            rest = [node for node in left if node not in part]
            if not rest or tries == most:
                continue
            tries += 1
            if meets(frozenset(rest)):
                left = rest
                found.append(frozenset(rest))
        size //= 2
    return found


class _Search:
    """Searches the nodes that have to be FP32."""

    def __init__(
        self,
        bench: FloatTypeBench,
        whole: QuantizationPlan,
        task: Task,
        reference: NDArray[np.float64],
        differing: NDArray[np.int64],
        aim: float,
    ) -> None:
        self._bench, self._whole, self._task, self._reference, self._aim = bench, whole, task, reference, aim
        number = min(len(differing), _SAMPLES)
        self._samples = differing[np.linspace(0, len(differing) - 1, number).round().astype(int)].tolist()
        self._weight = len(differing) / number
        self.evaluations = 0
        """Plans that were run."""

    def run(self) -> tuple[list[str], float]:
        """Return the nodes that have to be FP32, in topological order, and the drop with them on all samples."""
        model = self._bench.inputs.model.prepared
        nodes = nodes_in(self._whole.float_precision, model, self._whole)
        sets = sufficient_sets(nodes, self._meets, _MOST)
        # The smallest first, then larger ones; at last all nodes, which is the float model.
        steps = np.linspace(len(sets) - 1, 0, min(_CONFIRMED, len(sets))).round().astype(int)
        drop = np.nan
        for chosen in (sets[step] for step in steps):
            self.evaluations += 1
            drop = self._task.metric.drop(self._reference, self._bench.scores(self._plan(chosen), self._task))
            if drop <= self._aim:
                break
        return [node for node in nodes if node in chosen], drop

    def _meets(self, wide: Nodes) -> bool:
        """Return whether the target is met, by the samples that FP16 changes; the others are taken to stay as they are.

        Where not all of these are run, the drop is extrapolated to them.
        """
        self.evaluations += 1
        scores = self._reference.copy()
        scores[self._samples] = self._bench.scores(self._plan(wide), self._task, self._samples)
        return self._task.metric.drop(self._reference, scores) * self._weight <= self._aim

    def _plan(self, wide: Nodes) -> QuantizationPlan:
        return self._whole.model_copy(update={"wide_nodes": self._whole.wide_nodes | wide})


def _sentence(
    kind: FloatPrecision, metric: Metric, drops: tuple[float, float], nodes: Sequence[str], samples: int
) -> str:
    """Say what a float type costs alone, and with nodes in FP32."""
    alone, after = (f"{100 * drop:.4g} percentage points" if metric.is_rate else f"{drop:.4g}" for drop in drops)
    costs = f"{kind.upper()} alone, without INT8, costs {alone} of {metric.name} on {samples} calibration samples"
    if not nodes:
        return costs
    named = ", ".join(nodes[:3]) + (", ..." if len(nodes) > 3 else "")
    return f"{costs}, and {after} with {len(nodes)} more {'node' if len(nodes) == 1 else 'nodes'} in FP32 ({named})"
