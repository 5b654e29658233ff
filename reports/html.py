"""One self-contained HTML page about a run; it opens from disk, needs no network and loads nothing.

Everything a page says is in its text and tables, and the two figures only add to them: a reader whose viewer
runs no scripts misses no number. Text out of models and data sets is escaped wherever it goes, and the page's
content security policy permits no script but the two that it was written with, and no connection at all.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reports import format as fmt
from validate.results import Candidate, CandidateAccuracy, Latency, LayerError, Reference, Results

__all__ = [
    "FloatLayer",
    "drop_figure",
    "float_layers",
    "render",
    "sqnr_figure",
    "unquantized",
    "worst_layers",
    "write",
]

WORST = 15
"""How many layers the table of the worst has."""

# Each of these reads on white and on near-black; the first is for the selected candidate alone.
_SELECTED = "#2f81d6"
_OTHERS = ("#c9772b", "#2a9d78", "#b8578f", "#8a72d0", "#a08a1f", "#4b9aa8", "#c05a55", "#7a8793")
_MUTED = "#7f8994"
_INTEGER = "#c9772b"
_GRID = "rgba(127,137,148,0.22)"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_SYMBOLS = {"int8": "circle", "fp16": "diamond-open", "fp32": "square-open"}

Figure = dict[str, Any]
"""A plotly figure as data: ``plotly.graph_objects.Figure(figure)`` is the object."""


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
    partial = path.with_name(path.name + ".partial")
    partial.write_text(render(results), encoding="utf-8", newline="\n")
    partial.replace(path)


def render(results: Results) -> str:
    """Return the page. The same results and versions give the same page."""
    rate = fmt.is_rate(results)
    selected = _selected(results)
    plotly = importlib.import_module("plotly.offline")  # untyped, and 5 MB: imported where it is used
    page = _environment().get_template("report.html.jinja")
    return page.render(
        results=results,
        rate=rate,
        unit=fmt.drop_unit(rate),
        selected=selected,
        reference=results.reference,
        rows=[(candidate, _relative_speed(results, candidate)) for candidate in results.candidates],
        devices=_devices(results),
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
        colours=_colours(results),
        data=_data(results.data),
        config=_yaml(results.model_dump(mode="json")["config"]),
        total=sum(results.timings.values()),
        plotlyjs=Markup(plotly.get_plotlyjs()),  # noqa: S704 - a constant of the package
        figures={"drop": drop_figure(results), "sqnr": sqnr_figure(results)},
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


def drop_figure(results: Results) -> Figure:
    """Return the drop of every candidate with its interval: one row per candidate, zero marked."""
    rate = fmt.is_rate(results)
    scale = 100.0 if rate else 1.0
    candidates = results.candidates
    # Rows are numbers, not names: plotly would read a candidate called 2024 as a position.
    simulated = [(row, c, c.accuracy) for row, c in enumerate(candidates)]
    integer = [
        (row + 0.24, c, c.integer_kernels.accuracy) for row, c in enumerate(candidates) if c.integer_kernels is not None
    ]
    traces = [
        _intervals("selected", [p for p in simulated if p[1].name == results.selected], rate, _SELECTED),
        _intervals("candidate", [p for p in simulated if p[1].name != results.selected], rate, _MUTED),
        _intervals("integer kernels", integer, rate, _INTEGER, "square-open"),
    ]
    labels = []
    for row, c in enumerate(candidates):
        name = _plot_text(fmt.shorten(c.name, 30))
        labels.append(_label(row, 0.0, "left", f"<b>{name}</b>" if c.name == results.selected else name))
        labels.append(_label(row, 1.0, "right", _drop_text(c.accuracy, rate)))
    bounds = [x * scale for _, _, a in (*simulated, *integer) for x in (a.drop, a.ci_low, a.ci_high)]
    ends = [0.0, *filter(math.isfinite, bounds)]
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low) or 1.0
    return {
        "data": [trace for trace in traces if trace["x"]],
        "layout": _layout(
            height=78 + 58 * len(candidates),
            xaxis={
                "title": {"text": f"drop{', pp' if rate else ''} (right of zero is worse than float)"},
                "range": [low - margin, high + margin],
                "zeroline": True,
                "zerolinewidth": 2,
                "zerolinecolor": _MUTED,
                "gridcolor": _GRID,
                "fixedrange": True,
            },
            yaxis={
                "range": [len(candidates) - 0.45, -0.75],
                "visible": False,
                "fixedrange": True,
            },
            annotations=labels,
            margin={"l": 4, "r": 4, "t": 4, "b": 52},
            dragmode=False,
        ),
    }


def sqnr_figure(results: Results) -> Figure:
    """Return the SQNR of every layer along the depth: one line per candidate, the selected one visible.

    A layer without a finite SQNR (exact, or nothing to compare with) is a gap in the line.
    """
    colours = _colours(results)
    shown = _selected(results) or (results.candidates[0] if results.candidates else None)
    traces = []
    for candidate in results.candidates:
        is_shown = shown is not None and candidate.name == shown.name
        layers = sorted(candidate.layers, key=lambda layer: layer.depth)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": _plot_text(candidate.name),
                "visible": True if is_shown else "legendonly",
                "x": [layer.depth for layer in layers],
                "y": [round(layer.sqnr_db, 3) if math.isfinite(layer.sqnr_db) else None for layer in layers],
                "customdata": [
                    [
                        _plot_text(fmt.shorten(layer.node, 60)),
                        _plot_text(layer.op_type),
                        layer.precision.upper(),
                    ]
                    for layer in layers
                ],
                "hovertemplate": "%{customdata[0]}<br>%{customdata[1]}, %{customdata[2]}<br>"
                "%{y:.1f} dB in %{fullData.name}<extra></extra>",
                "connectgaps": False,
                "line": {"color": colours[candidate.name], "width": 2 if is_shown else 1.5},
                "marker": {
                    "color": colours[candidate.name],
                    "size": 7,
                    "symbol": [_SYMBOLS[layer.precision] for layer in layers],
                },
            }
        )
    return {
        "data": traces,
        "layout": _layout(
            height=400,
            xaxis={
                "title": {"text": "layer, in topological order"},
                "zeroline": False,
                "gridcolor": _GRID,
            },
            yaxis={
                "title": {"text": "SQNR, dB"},
                "zeroline": False,
                "gridcolor": _GRID,
            },
            margin={"l": 52, "r": 8, "t": 28, "b": 48},
            hovermode="closest",
        ),
    }


def _intervals(
    name: str,
    points: list[tuple[float, Candidate, CandidateAccuracy]],
    rate: bool,
    colour: str,
    symbol: str = "circle",
) -> dict[str, Any]:
    """Return one trace of drops, each at its row; an endless or unknown bound has no bar on its side."""
    scale = 100.0 if rate else 1.0

    def reach(drop: float, bound: float) -> float:
        return abs(bound - drop) * scale if math.isfinite(bound - drop) else 0.0

    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [a.drop * scale if math.isfinite(a.drop) else None for _, _, a in points],
        "y": [row for row, _, _ in points],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [reach(a.drop, a.ci_high) for _, _, a in points],
            "arrayminus": [reach(a.drop, a.ci_low) for _, _, a in points],
            "color": colour,
            "thickness": 2.5,
            "width": 5,
        },
        "marker": {"color": colour, "size": 11, "symbol": symbol, "line": {"width": 2, "color": colour}},
        "customdata": [[_plot_text(fmt.shorten(c.name, 60)), _drop_text(a, rate)] for _, c, a in points],
        "hovertemplate": "%{customdata[0]} (%{fullData.name})<br>%{customdata[1]}<extra></extra>",
    }


def _drop_text(accuracy: CandidateAccuracy, rate: bool) -> str:
    bounds = fmt.interval(accuracy.ci_low, accuracy.ci_high, rate)
    return _minus(f"{fmt.drop(accuracy.drop, rate)} {bounds}")


def _label(row: int, x: float, anchor: str, text: str) -> dict[str, Any]:
    """Return a text above the row of a candidate, at the left (0) or right (1) edge."""
    return {
        "text": text,
        "x": x,
        "xref": "paper",
        "xanchor": anchor,
        "y": row,
        "yshift": 17,
        "showarrow": False,
        "font": {"size": 13},
    }


def _layout(**changes: Any) -> dict[str, Any]:
    """Return a layout that reads on light and dark; the page's style sheet recolours its text and lines."""
    return {
        "autosize": True,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": _FONT, "size": 12.5, "color": _MUTED},
        "hoverlabel": {
            "bgcolor": "#1d232b",
            "bordercolor": "#1d232b",
            "align": "left",
            "font": {"family": _FONT, "size": 13, "color": "#f2f5f8"},
        },
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": _MUTED, "activecolor": _SELECTED},
        "showlegend": False,
        **changes,
    }


def _plot_text(text: str) -> str:
    """Return text for a figure: plotly reads some HTML (bold, links) in every text that it draws."""
    return html.escape(fmt.printable(text), quote=False)


def _minus(text: str) -> str:
    """Return text with typographic minus signs in place of hyphens before digits."""
    return text.replace("-", "\N{MINUS SIGN}")


def _selected(results: Results) -> Candidate | None:
    return results.candidate(results.selected) if results.selected is not None else None


def _colours(results: Results) -> dict[str, str]:
    """Return a colour per candidate; the selected one has its own."""
    others = [candidate.name for candidate in results.candidates if candidate.name != results.selected]
    colours = {name: _OTHERS[i % len(_OTHERS)] for i, name in enumerate(others)}
    return colours if results.selected is None else {**colours, results.selected: _SELECTED}


def _relative_speed(results: Results, candidate: Candidate) -> float | None:
    return fmt.speed_up(results.reference.latency, candidate.latency)


def _devices(results: Results) -> list[str]:
    """Return how latency was measured, each way once."""
    measured = [results.reference.latency, *(candidate.latency for candidate in results.candidates)]
    return list(dict.fromkeys(_device(latency) for latency in measured if latency is not None))


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


def _yaml(config: dict[str, Any]) -> str:
    text: str = importlib.import_module("yaml").safe_dump(config, sort_keys=False, allow_unicode=True, width=100)
    return text


def _csp_hash(script: str) -> str:
    """Return the source expression that permits exactly this script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Before escaping, and only what is not yet known to be HTML.
        finalize=lambda value: fmt.printable(value) if type(value) is str else value,
    )
    environment.filters.update(
        build_answer=fmt.build_answer,
        build_backend=fmt.build_backend,
        count=fmt.count,
        csp_hash=_csp_hash,
        db=lambda value: _minus(fmt.decibels(value)),
        decision=fmt.decision,
        device=_device,
        drop=lambda value, rate: _minus(fmt.drop(value, rate)),
        error=fmt.error,
        file_name=fmt.file_name,
        interval=lambda accuracy, rate: _minus(fmt.interval(accuracy.ci_low, accuracy.ci_high, rate)),
        metric=lambda accuracy, rate: _minus(fmt.metric_value(accuracy.value, rate)),
        moment=fmt.moment,
        ms=fmt.milliseconds,
        outcome=fmt.outcome,
        seconds=fmt.seconds,
        size=fmt.size,
    )
    environment.globals["headline"] = fmt.headline
    return environment
