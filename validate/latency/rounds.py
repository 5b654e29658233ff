"""Timing of calls in rounds, percentiles, and ratios with confidence intervals.

Models that are compared are timed in turns: in every round each runs a block of calls, and the order of the blocks
changes from round to round, so that whatever drifts (clocks, temperature, other processes) hits all of them alike. A
ratio is made within each round, where the machine was nearly the same for both, and its interval is of the rounds; or
of several loads, since the same model loaded again may be some percent faster or slower for good.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import stats

from validate.records import Number, Record
from validate.results import Latency

__all__ = [
    "MIN_PAIRS",
    "Batches",
    "Blocks",
    "Clock",
    "Ratio",
    "Timed",
    "Timing",
    "calls_of_rounds",
    "interleave",
    "order",
    "ratio",
    "summarize",
    "warm_up",
]

MIN_PAIRS = 5
"""Rounds or loads below which they say too little of their spread, and a ratio has no interval."""
_ROUNDS, _BLOCK = 10, 10  # rounds before blocks grow, calls a block before rounds do
_WARM_UP_CALLS, _WARM_UP_SECONDS = 3, 0.25

Batches = Sequence[Mapping[str, NDArray[Any]]]
Clock = Callable[[], float]
"""Seconds since any moment, never going back."""
Blocks = list[NDArray[np.float64]]
"""Milliseconds of calls, an array per round."""


class Ratio(Record):
    """Time of a model over the time of the baseline: below 1 the model is faster."""

    value: Number = Field(description="geometric mean over rounds or loads of p50 of the model / p50 of the baseline")
    ci_low: Number = Field(description="lower confidence bound; 0 where too little is known")
    ci_high: Number = Field(description="upper confidence bound; infinite where too little is known")
    confidence: float = Field(gt=0, lt=1, description="two-sided confidence of the interval")
    pairs: int = Field(ge=0, description="rounds or loads")
    method: str = Field(description="how the interval was computed")


class Timing(Record):
    """A model's calls of one batch size, timed in turns with those of other models."""

    latency: Latency
    samples_per_second: float = Field(description="of calls one after another: samples over the sum of the times")
    paired_by: Literal["round", "load"] = Field(description="what the ratio's interval is of")
    p50s_ms: list[float] = Field(description="median of the calls of each round or load")
    ratio: Ratio | None = Field(description="against the first model; null for itself")


class Timed(Protocol):
    """A model with its batches, of which one call can be timed."""

    runtime: str
    device: str

    def __call__(self, batch: int) -> float:
        """Run a batch, by its number, and return how long it took in milliseconds. Raises JobError."""
        ...


def warm_up(model: Timed, batches: int, clock: Clock = time.perf_counter) -> None:
    """Call until every batch was seen, at least three calls were made, and a quarter of a second has passed.

    The first call, which may compile, is not a part of that. Raises JobError where the model cannot run.

    Examples:
        >>> import itertools
        >>> warm_up(print, batches=2, clock=itertools.count().__next__)
        0
        1
        0
        1
    """
    model(0)
    calls, started = 0, clock()
    while calls < max(_WARM_UP_CALLS, batches) or clock() - started < _WARM_UP_SECONDS:
        calls += 1
        model(calls % batches)


def interleave(
    models: Mapping[str, Timed], batches: int, runs: int, advance: Callable[[], None] = lambda: None
) -> dict[str, Blocks]:
    """Time calls of models that are warm, in turns; the first model is the baseline.

    Each model runs its batches in turns, since calls on the same values are faster than real ones where caches or
    branches depend on the values. A block begins with a call that is not counted: it brings the model back into
    the caches.

    Args:
        models: by name.
        batches: how many each of them has.
        runs: timed calls of each model, >= 1.
        advance: called after each round.

    Examples:
        >>> times = interleave({"a": lambda batch: 1.0, "b": lambda batch: 2.0}, batches=1, runs=20)
        >>> {name: (len(blocks), blocks[0].tolist()) for name, blocks in times.items()}
        {'a': (10, [1.0, 1.0]), 'b': (10, [2.0, 2.0])}
    """
    names = list(models)
    times: dict[str, Blocks] = {name: [] for name in names}
    done = 0
    for number, calls in enumerate(calls_of_rounds(runs)):
        for name in order(names, number):
            model = models[name]
            model((done - 1) % batches)
            times[name].append(np.array([model((done + i) % batches) for i in range(calls)]))
        done += calls
        advance()
    return times


def summarize(
    models: Mapping[str, Timed], loads: Sequence[Mapping[str, Blocks]], batch_size: int, confidence: float = 0.95
) -> dict[str, Timing]:
    """Return each model's latency, and its ratio to the first model, the baseline.

    Args:
        models: what was timed.
        loads: what `interleave` gave, for each time that the models were loaded; one or more. With several, ratios are
            paired by load, and their intervals hold what differs from load to load.
        batch_size: samples in each batch.
        confidence: two-sided, in (0, 1).
    """
    p50s: dict[str, list[float]] = {}
    found = {}
    for name, model in models.items():
        every = np.concatenate([block for load in loads for block in load[name]])
        pairs = loads[0][name] if len(loads) == 1 else [np.concatenate(load[name]) for load in loads]
        p50s[name] = [float(np.median(times)) for times in pairs]
        p50, p90, p99 = map(float, np.percentile(every, [50, 90, 99]))
        # Order statistics of a binomial (Conover, "Practical Nonparametric Statistics", 3rd ed., section 3.2).
        bounds: Any = stats.quantile_test(every, p=0.99).confidence_interval(confidence)
        latency = Latency(
            runtime=model.runtime,
            device=model.device,
            batch_size=batch_size,
            runs=every.size,
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99,
            p99_low_ms=_or_none(bounds.low),
            p99_high_ms=_or_none(bounds.high),
        )
        baseline = next(iter(p50s))
        found[name] = Timing(
            latency=latency,
            samples_per_second=float(1e3 * batch_size * every.size / every.sum()),
            p50s_ms=p50s[name],
            ratio=None if name == baseline else ratio(p50s[baseline], p50s[name], confidence),
            paired_by="round" if len(loads) == 1 else "load",
        )
    return found


def _or_none(bound: float) -> float | None:
    return None if math.isnan(bound) else float(bound)


def calls_of_rounds(runs: int) -> list[int]:
    """Return how many calls each round has: ten rounds, until they have ten calls each, and then more rounds.

    Examples:
        >>> calls_of_rounds(25)
        [3, 3, 3, 3, 3, 2, 2, 2, 2, 2]
    """
    rounds = max(min(runs, _ROUNDS), runs // _BLOCK)
    return [runs // rounds + (number < runs % rounds) for number in range(rounds)]


def order(names: Sequence[str], number: int) -> list[str]:
    """Return the order of the blocks in a round.

    Every other round is the reverse of the one before, so that over both each model is equally late, and every pair of
    rounds begins with another model: A B, B A, B A, A B.

    Examples:
        >>> [order(["A", "B"], number) for number in range(4)]
        [['A', 'B'], ['B', 'A'], ['B', 'A'], ['A', 'B']]
    """
    first = (number // 2) % len(names)
    rotated = [*names[first:], *names[:first]]
    return rotated[::-1] if number % 2 else rotated


def ratio(baseline_ms: Sequence[float], model_ms: Sequence[float], confidence: float = 0.95) -> Ratio:
    """Return the ratio of paired medians, with its interval.

    The interval is Student's of the mean of log(model / baseline) over the pairs. Georges, Buytaert and Eeckhout,
    "Statistically Rigorous Java Performance Evaluation", OOPSLA 2007, section 3.2, take Student's t for few
    measurements; docs/latency.md has what it covers, and why it is not a bootstrap. Pairs of one load say nothing of
    another, which may place memory or choose kernels otherwise (the levels of Kalibera and Jones, "Rigorous
    Benchmarking in Reasonable Time", ISMM 2013): that takes pairs of several loads.

    Args:
        baseline_ms: median of each round of one load, or of each load, in milliseconds.
        model_ms: of the same rounds or loads.
        confidence: two-sided, in (0, 1).

    Examples:
        >>> found = ratio([10.0, 10.2, 9.9, 10.1, 10.0], [5.1, 5.0, 5.0, 4.9, 5.2])
        >>> round(found.value, 3), round(found.ci_low, 3), round(found.ci_high, 3)
        (0.502, 0.484, 0.52)
    """
    times = np.array([baseline_ms, model_ms], np.float64)
    pairs = times.shape[1]
    if not (times > 0).all():  # NaN too
        return Ratio(value=math.nan, ci_low=0, ci_high=math.inf, confidence=confidence, pairs=pairs, method="none")
    logs = np.log(times[1] / times[0])
    mean = float(logs.mean())
    if pairs < MIN_PAIRS or np.ptp(logs) == 0:  # pairs that do not differ say nothing about their spread
        low, high, method = -math.inf, math.inf, "none"
    else:
        half = float(stats.t.ppf(0.5 + confidence / 2, pairs - 1) * logs.std(ddof=1) / math.sqrt(pairs))
        low, high, method = mean - half, mean + half, "Student's t of the log ratios"
    return Ratio(
        value=math.exp(mean),
        ci_low=math.exp(low),
        ci_high=math.exp(high),
        confidence=confidence,
        pairs=pairs,
        method=method,
    )
