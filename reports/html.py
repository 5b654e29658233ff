"""The HTML page about a run; `reports.page` says what all pages have in common.

Everything a page says is in its text and tables, and the two figures only add to them: a reader whose viewer
runs no scripts misses no number.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from reports import format as fmt
from reports import page, plots
from validate.results import Candidate, CandidateAccuracy, Latency, LayerError, Reference, Results

__all__ = [
    "FloatLayer",
    "float_layers",
    "render",
    "unquantized",
    "worst_layers",
    "write",
]

WORST = 15
"""How many layers the table of the worst has."""


class FloatLayer(NamedTuple):
    """A layer that fallback put back to float, and what it was like in INT8."""

    node: str
    op_type: str | None
    precision: str | None
    sqnr_db: float | None
    int8_sqnr_db: float | None
    int8_candidate: str | None
    """The candidate that has this layer in INT8, where one was measured."""


def write(results: Results, path: Path) -> None:
    """Write the page, whole or not at all: a reader never sees half a file."""
    page.write(render(results), path)


def render(results: Results) -> str:
    """Return the page. The same results and versions give the same page."""
    rate = results.reference.accuracy.is_rate
    selected = results.selected_candidate
    return page.render(
        "report.html.jinja",
        figures={"drop": plots.drop_figure(results), "sqnr": plots.sqnr_figure(results)},
        filters=_FILTERS,
        results=results,
        rate=rate,
        unit=fmt.drop_unit(rate),
        selected=selected,
        reference=results.reference,
        rows=[(candidate, _relative_speed(results, candidate)) for candidate in results.candidates],
        devices=_devices(results),
        hardware={latency.device for latency in _latencies(results)},
        latency_gaps=_grouped(_latency_gaps(results)),
        build_messages=_grouped((c.name, c.tensorrt_build.message) for c in results.candidates),
        intervals=sorted({_interval_kind(candidate.accuracy) for candidate in results.candidates}),
        worst=worst_layers(selected) if selected else [],
        exact=sum(layer.sqnr_db == math.inf for layer in selected.layers) if selected else 0,
        undefined=sum(math.isnan(layer.sqnr_db) for layer in selected.layers) if selected else 0,
        fallback=float_layers(results, selected) if selected else [],
        unquantized=unquantized(selected) if selected else [],
        integer=[c for c in results.candidates if c.integer_kernels is not None],
        has_layers=any(candidate.layers for candidate in results.candidates),
        colours=plots.colours(results),
        data=_data(results.data),
        config=results.model_dump(mode="json")["config"],
        total=sum(results.timings.values()),
        headline=fmt.headline(results),
    )


def worst_layers(candidate: Candidate, limit: int = WORST) -> list[LayerError]:
    """Return the layers with the lowest SQNR, worst first; those that are exact or undefined are left out."""
    comparable = (layer for layer in candidate.layers if layer.sqnr_db < math.inf)
    return sorted(comparable, key=lambda layer: (layer.sqnr_db, layer.depth))[:limit]


def float_layers(results: Results, candidate: Candidate) -> list[FloatLayer]:
    """Return the layers that fallback put back to float, worst first, with their SQNR now and in INT8.

    The INT8 value is that of another candidate which has the layer in INT8: of the same strategy where there
    is one, and else of the one with the fewest layers in float.
    """
    others = sorted(
        (other for other in results.candidates if other.name != candidate.name),
        key=lambda other: (other.strategy != candidate.strategy, len(other.float_layers)),
    )
    in_int8: dict[str, tuple[float, str]] = {}
    for other in others:
        for layer in other.layers:
            if layer.precision == "int8":
                in_int8.setdefault(layer.node, (layer.sqnr_db, other.name))
    now = {layer.node: layer for layer in candidate.layers}
    rows = []
    for node in candidate.float_layers:
        layer_now = now.get(node)
        int8_sqnr, int8_candidate = in_int8.get(node, (None, None))
        rows.append(
            FloatLayer(
                node,
                layer_now.op_type if layer_now else None,
                layer_now.precision if layer_now else None,
                layer_now.sqnr_db if layer_now else None,
                int8_sqnr,
                int8_candidate,
            )
        )
    return rows


def unquantized(candidate: Candidate) -> list[tuple[str, str, int]]:
    """Return (precision, operator, number of layers) of what is in float without fallback's doing."""
    fallen = set(candidate.float_layers)
    counts = Counter(
        (layer.precision, layer.op_type)
        for layer in candidate.layers
        if layer.precision != "int8" and layer.node not in fallen
    )
    return [(*key, number) for key, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def _relative_speed(results: Results, candidate: Candidate) -> float | None:
    return fmt.speed_up(results.reference.latency, candidate.latency)


def _devices(results: Results) -> list[str]:
    """Return how latency was measured, each way once."""
    return list(dict.fromkeys(map(_device, _latencies(results))))


def _latencies(results: Results) -> list[Latency]:
    measured = [results.reference.latency, *(candidate.latency for candidate in results.candidates)]
    return [latency for latency in measured if latency is not None]


def _device(latency: Latency) -> str:
    return f"{latency.device}, {latency.runtime}, batch {latency.batch_size}, {fmt.count(latency.runs)} calls"


def _latency_gaps(results: Results) -> Iterable[tuple[str, str]]:
    """Yield what has no latency, and why."""
    subjects: list[tuple[str, Reference | Candidate]] = [("float reference", results.reference)]
    subjects += [(candidate.name, candidate) for candidate in results.candidates]
    for name, subject in subjects:
        if subject.latency is None:
            yield name, subject.latency_reason or "no reason was given"


def _interval_kind(accuracy: CandidateAccuracy) -> str:
    return f"{100 * accuracy.confidence:g}%, {accuracy.method}"


def _grouped(messages: Iterable[tuple[str, str]]) -> list[tuple[list[str], str]]:
    """Return each message once, with all the names that it is about; those without one are left out."""
    groups: dict[str, list[str]] = {}
    for name, message in messages:
        if message:
            groups.setdefault(message, []).append(name)
    return [(names, message) for message, names in groups.items()]


def _data(data: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return per split its facts as text."""
    return [
        (split, [(str(key), _plain(value)) for key, value in facts.items()])
        if isinstance(facts, dict)
        else (split, [("", _plain(facts))])
        for split, facts in data.items()
    ]


def _plain(value: Any) -> str:
    """Return a value of unknown kind as text: a string as it is, a whole number with commas, else JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return fmt.count(value)
    return json.dumps(value, ensure_ascii=False, default=str)


_FILTERS: dict[str, Callable[..., str]] = {
    "build_answer": fmt.build_answer,
    "build_backend": fmt.build_backend,
    "decision": fmt.decision,
    "device": _device,
    "drop": lambda value, rate: fmt.minus(fmt.drop(value, rate)),
    "interval": lambda accuracy, rate: fmt.minus(fmt.interval(accuracy.ci_low, accuracy.ci_high, rate)),
    "metric": lambda accuracy, rate: fmt.minus(fmt.metric_value(accuracy.value, rate)),
    "ms": fmt.milliseconds,
    "outcome": fmt.outcome,
    "seconds": fmt.seconds,
    "size": fmt.size,
}
