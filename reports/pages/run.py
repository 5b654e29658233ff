"""The HTML page about a run; `reports.pages.page` says what all pages have in common.

Its data are ``results.json`` and the files beside it: ``illustrations.json`` (histograms, convergence, pictures) and
``samples.parquet``. Where one of them is missing, the page says what it cannot show.

All numbers are in text and tables, and figures only add to them: nothing is missing in a viewer that runs no scripts.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from reports import format as fmt
from reports.figures import (
    MUTED,
    Figure,
    activation_figure,
    colours,
    comparable,
    convergence_figure,
    drop_figure,
    margin,
    pareto_figure,
    sqnr_figure,
)
from reports.figures import dashes as dashes_of
from reports.pages import page
from reports.pages.samples import SampleScores, changes, read_scores
from validate.exceptions import JobError
from validate.records import write_text
from validate.results import (
    FLOAT,
    ILLUSTRATIONS,
    Candidate,
    CandidateAccuracy,
    Illustrations,
    Latency,
    LayerError,
    ParetoPoint,
    Reference,
    Results,
)

__all__ = [
    "Effect",
    "FloatLayer",
    "effects",
    "float_layers",
    "render_run_page",
    "sorted_layers",
    "unquantized",
    "write_run_page",
]

EFFECTS = 20
"""Number of layers in the table of effects."""


class Effect(NamedTuple):
    """A layer that fallback ranked, and its task error alone in INT8."""

    node: str
    error: float
    share: float
    """The error over the largest finite error, in [0, 1]."""
    in_float: bool
    """Whether it is in float in the selected candidate."""


class FloatLayer(NamedTuple):
    """A layer that fallback put back to float, with its SQNR in float and in INT8."""

    node: str
    op_type: str | None
    precision: str | None
    sqnr_db: float | None
    int8_sqnr_db: float | None
    int8_candidate: str | None
    """The candidate that has this layer in INT8, where one was measured."""


def write_run_page(results: Results, path: Path, folder: Path | None = None) -> None:
    """Write the HTML page of a run; the file appears only when it is complete.

    Args:
        results: of the run.
        path: of the page.
        folder: with the run's other files; default: that of the page.
    """
    write_text(render_run_page(results, folder or path.parent), path)


def render_run_page(results: Results, folder: Path) -> str:
    """Return the HTML page of a run. The same results, files beside them and versions give the same page.

    Args:
        results: of the run.
        folder: with the run's other files.
    """
    rate = results.reference.accuracy.is_rate
    selected = results.selected_candidate
    shown = selected or next(iter(results.candidates), None)
    layers = sorted_layers(shown) if shown else []
    illustrations, no_illustrations = _illustrations(results, folder)
    histograms = (
        [(f"histogram-{i}", tensor) for i, tensor in enumerate(illustrations.histograms)] if illustrations else []
    )
    return page.render(
        "report.html.jinja",
        figures=_figures(results, illustrations),
        filters=_FILTERS,
        results=results,
        rate=rate,
        unit=fmt.drop_unit(rate),
        selected=selected,
        reference=results.reference,
        rows=[(candidate, _relative_speed(results, candidate)) for candidate in results.candidates],
        devices=_devices(results),
        hardware={latency.device for latency in _latencies(results)},
        timed_on_target=fmt.timed_on_target(results),
        engines=[candidate for candidate in results.candidates if candidate.engine],
        engine_gaps=_grouped((c.name, c.engine_reason) for c in results.candidates if c.engine_reason),
        latency_gaps=_grouped(_latency_gaps(results)),
        build_messages=_grouped((c.name, c.tensorrt_build.message) for c in results.candidates),
        intervals=sorted({_interval_kind(candidate.accuracy) for candidate in results.candidates}),
        shown=shown,
        layers=layers,
        layers_timed=any(layer.latency_ms is not None for layer in layers),
        precisions=sorted({layer.precision for layer in layers}),
        operators=sorted({layer.op_type for layer in layers}),
        fallback=float_layers(results, selected) if selected else [],
        unquantized=unquantized(selected) if selected else [],
        points=_points(results),
        basis=_cost_basis(results),
        # One unit for all stands in the tables' head, and several in their cells.
        cost_units={fmt.cost_unit(point.cost) for point in results.pareto},
        float_name=FLOAT,
        margin=margin(results),
        search=results.search,
        candidate_of={candidate.plan_hash: candidate.name for candidate in results.candidates},
        effects=effects(results)[:EFFECTS],
        integer=[c for c in results.candidates if c.integer_kernels is not None],
        has_layers=any(candidate.layers for candidate in results.candidates),
        colours=colours(results),
        dashes=dashes_of(results),
        muted=MUTED,
        illustrations=illustrations,
        no_illustrations=no_illustrations,
        histograms=histograms,
        convergence_samples=[point.samples for point in illustrations.convergence[0].points]
        if illustrations and illustrations.convergence
        else [],
        **_samples(results, selected, folder),
        data=_data(results.data),
        preprocessing=dict(results.data.get("validation") or {}).get("preprocessing"),
        config=results.model_dump(mode="json")["config"],
        total=sum(results.timings.values()),
        headline=fmt.headline(results),
    )


def sorted_layers(candidate: Candidate) -> list[LayerError]:
    """Return the layers, lowest SQNR first; those without a number (NaN, a reference that is zero) come last."""

    def key(layer: LayerError) -> tuple[bool, float, int]:
        has_number = layer.sqnr_db > -math.inf
        return not has_number, layer.sqnr_db if has_number else 0.0, layer.depth

    return sorted(candidate.layers, key=key)


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
    """Return (precision, operator, number of layers) of the layers in float that fallback did not put there."""
    fallen = set(candidate.float_layers)
    counts = Counter(
        (layer.precision, layer.op_type)
        for layer in candidate.layers
        if layer.precision != "int8" and layer.node not in fallen
    )
    return [(*key, number) for key, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def effects(results: Results) -> list[Effect]:
    """Return every layer that fallback ranked with its error, worst first; empty where there was no search."""
    if results.search is None:
        return []
    errors = results.search.effects
    largest = max((error for error in errors.values() if math.isfinite(error)), default=0.0)
    selected = results.selected_candidate
    back = set(selected.float_layers) if selected else set()
    return [Effect(node, error, _share_of_largest(error, largest), node in back) for node, error in errors.items()]


def _share_of_largest(error: float, largest: float) -> float:
    """Return the error over the largest, in [0, 1]; 1 for infinity, and 0 for NaN or a negative error."""
    if not math.isfinite(error):
        return float(error > 0)
    return max(0.0, error / largest) if largest > 0 else 0.0


def _illustrations(results: Results, folder: Path) -> tuple[Illustrations | None, str]:
    """Return the illustrations about the selected candidate, or None and a sentence that says why there is none."""
    path = folder / ILLUSTRATIONS
    if not path.exists():
        return None, f"There is no {ILLUSTRATIONS} beside the results, so that there is nothing to show here."
    try:
        illustrations = Illustrations.read(path)
    except JobError as error:
        return None, f"{str(error).removeprefix(str(folder)).lstrip('/')}."
    selected = results.selected_candidate
    if selected is None or illustrations.plan_hash != selected.plan_hash:
        return None, f"The {ILLUSTRATIONS} beside the results is about another candidate, so that it is not shown."
    return illustrations, ""


def _samples(results: Results, selected: Candidate | None, folder: Path) -> dict[str, Any]:
    """Return what the template says of single samples: the scores, or a sentence, and the changes by group."""
    if selected is None:
        return {"scores": "", "group_changes": []}
    scores = read_scores(results, selected.name, folder)
    if not isinstance(scores, SampleScores):
        return {"scores": scores, "group_changes": []}
    by_group = [(by, changes(scores.metric, groups)) for by, groups in scores.groups.items()]
    return {"scores": scores, "group_changes": [(by, rows) for by, rows in by_group if rows]}


def _figures(results: Results, illustrations: Illustrations | None) -> dict[str, Figure]:
    figures = {"drop": drop_figure(results), "sqnr": sqnr_figure(results)}
    if len(comparable(results)) > 1:
        figures["pareto"] = pareto_figure(results)
    if illustrations is None:
        return figures
    dashes = dashes_of(results)
    lines = {name: {"color": colour, "dash": dashes[name]} for name, colour in colours(results).items()}
    if any(curve.points for curve in illustrations.convergence):
        figures["convergence"] = convergence_figure(illustrations.convergence, lines)
    return figures | {f"histogram-{i}": activation_figure(x, lines) for i, x in enumerate(illustrations.histograms)}


def _points(results: Results) -> list[tuple[ParetoPoint, float | None]]:
    """Return the models of the section on speed, each with how many times faster than float it is."""
    if len(results.pareto) < 2:
        return []
    float_cost = next((x.cost for x in results.pareto if x.name == FLOAT), None)
    return [(x, None if x.name == FLOAT else fmt.cost_ratio(float_cost, x.cost)) for x in results.pareto]


def _cost_basis(results: Results) -> list[str]:
    """Return how costs are known, each way once, as sentences."""
    said = {
        "measured": "Cost in {unit} is measured: {source}.",
        "estimate": "Cost in {unit} is an estimate and no measurement: {source}.",
        "multiply-accumulates": "Cost is counted in {unit}, not in time: {source}.",
    }
    costs = [point.cost for point in results.pareto]
    return list(dict.fromkeys(said[cost.basis].format(unit=cost.unit, source=cost.source) for cost in costs))


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
    return f"{100 * accuracy.confidence:.4g}%, {accuracy.method}"


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


def _sort_key(value: float | None) -> str:
    """Return a number as the page's script sorts it; empty where there is none, which comes last."""
    if value is None or not value > -math.inf:
        return ""
    return "Infinity" if value == math.inf else repr(value)


_FILTERS: dict[str, Callable[..., str]] = {
    "build_answer": fmt.build_answer,
    "build_backend": fmt.build_backend,
    "cost": fmt.cost,
    "cost_unit": fmt.cost_unit,
    "decision": fmt.decision,
    "device": _device,
    "drop": lambda value, rate: fmt.minus(fmt.drop(value, rate)),
    "interval": lambda accuracy, rate: fmt.minus(fmt.interval(accuracy.ci_low, accuracy.ci_high, rate)),
    "metric": lambda accuracy, rate: fmt.minus(fmt.metric_value(accuracy.value, rate)),
    "ms": fmt.milliseconds,
    "outcome": fmt.outcome,
    "passes": fmt.passes,
    "quantity": lambda value, unit: fmt.minus(fmt.quantity(value, unit)) or "-",
    "score": lambda value, rate: fmt.minus(fmt.metric_value(value, rate)),
    "seconds": fmt.seconds,
    "share": fmt.share,
    "size": fmt.size,
    "sort_key": _sort_key,
}
