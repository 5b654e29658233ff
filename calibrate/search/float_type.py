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
from calibrate.search.target import changed
from validate.accuracy import evaluate, stored_scores
from validate.backends import OnnxRuntimeModel, detach
from validate.data import Batch
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
    def task(self) -> Task | None:
        """The task, or agreement with the float model where calibration has no labels; None where neither is there."""
        task, stream = self.inputs.task, self.inputs.calibration
        if isinstance(task, Agreement) or next(iter(stream.limited(1).batches())).labels[0] is not None:
            return task
        agreement = with_or_without_labels(task, labelled=False)
        return agreement if isinstance(agreement, Agreement) else None

    def reference(self, task: Task) -> NDArray[np.float64]:
        """Return the float model's scores, or records, on all calibration samples."""
        return stored_scores(task, self.batches(), self.calibration.outputs)

    def batches(self) -> Iterable[Batch]:
        """Start a pass over the calibration samples."""
        return self.calibration.fingerprint.verify(self.inputs.calibration.batches())

    def scores(
        self, plan: QuantizationPlan, task: Task, batches: Iterable[Batch] | None = None, samples: Sequence[int] = ()
    ) -> NDArray[np.float64]:
        """Return the scores, or records, of a plan on all calibration samples, or on some batches of them.

        Args:
            plan: to run, in simulation.
            task: that scores.
            batches: to run; None: all.
            samples: indices of the samples in them, for the key of the cache.
        """

        def compute() -> NDArray[np.float64]:
            model = self.inputs.model
            simulated = OnnxRuntimeModel(detach(apply(plan, model.prepared, model.placement, simulate=True)))
            watched = self.journal.forward("fp16", self.batches() if batches is None else batches)
            return evaluate(simulated, task, watched, on_batch=lambda done: None)

        key = {"plan": plan.hash, "metric": task.metric.name, "samples": list(samples)}
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
    kind, task = plan.float_precision, bench.task
    if kind == "fp32" or task is None:
        return None
    whole, metric = plan.in_float(kind, kind), task.metric
    reference = bench.reference(task)
    scores = bench.scores(whole, task)
    drop = metric.drop(reference, scores)
    one_sample = 1 / len(reference) if metric.is_rate and metric.is_mean else 0.0
    nodes: Sequence[str] = ()
    after, tried = drop, 1
    allowed = max(max_drop, one_sample)
    if not drop <= allowed and kind == "fp16":
        search = _Search(bench, whole, task, reference, changed(reference, scores), _SHARE_OF_FP16 * max_drop)
        nodes, after = search.run()
        tried += search.evaluations
    return Fp16Check(
        precision=kind,
        metric=metric.name,
        drop=drop,
        drop_after=after,
        samples=len(reference),
        fp32_nodes=list(nodes),
        evaluations=tried,
        misses=not after <= allowed,
        message=_sentence(kind.upper(), metric, drop, after, nodes, len(reference)),
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
        self._batches = _batches_with(differing, bench.batches())
        self._samples = [batch.first + offset for batch in self._batches for offset in range(len(batch))]
        self._weight = len(differing) / len(np.intersect1d(differing, self._samples))
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
        scores[self._samples] = self._bench.scores(self._plan(wide), self._task, self._batches, self._samples)
        return self._task.metric.drop(self._reference, scores) * self._weight <= self._aim

    def _plan(self, wide: Nodes) -> QuantizationPlan:
        return self._whole.model_copy(update={"wide_nodes": self._whole.wide_nodes | wide})


def _batches_with(samples: NDArray[np.int64], batches: Iterable[Batch]) -> list[Batch]:
    """Return the first batches that hold `_SAMPLES` of those samples, or all batches that hold one."""
    found: list[Batch] = []
    held = 0
    for batch in batches:
        inside = int(((samples >= batch.first) & (samples < batch.first + len(batch))).sum())
        if inside:
            found.append(batch)
            held += inside
        if held >= _SAMPLES:
            break
    return found


def _sentence(kind: str, metric: Metric, drop: float, after: float, nodes: Sequence[str], samples: int) -> str:
    def amount(value: float) -> str:
        return f"{100 * value:.4g} percentage points" if metric.is_rate else f"{value:.4g}"

    costs = f"{kind} alone, without INT8, costs {amount(drop)} of {metric.name} on {samples} calibration samples"
    if not nodes:
        return costs
    named = ", ".join(nodes[:3]) + (", ..." if len(nodes) > 3 else "")
    return f"{costs}, and {amount(after)} with {len(nodes)} more nodes in FP32 ({named})"
