"""The figures of a report, as plain data: ``plotly.graph_objects.Figure(figure)`` is the object."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from typing import Any

from reports import format as fmt
from validate.results import Candidate, CandidateAccuracy, LayerError, Results

__all__ = [
    "GRID",
    "MUTED",
    "OTHERS",
    "SELECTED",
    "SYMBOLS",
    "Figure",
    "colours",
    "dashes",
    "drop_figure",
    "layout",
    "plot_text",
    "sqnr_figure",
]

# Each of these is legible on white and on near-black; the first is for the selected candidate alone.
SELECTED = "#2f81d6"
OTHERS = ("#c9772b", "#2a9d78", "#b8578f", "#8a72d0", "#a08a1f", "#4b9aa8", "#c05a55", "#7a8793")
MUTED = "#7f8994"
_INTEGER = "#c9772b"
GRID = "rgba(127,137,148,0.22)"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
SYMBOLS = {"int8": "circle", "fp16": "diamond-open", "bf16": "triangle-up-open", "fp32": "square-open"}

Figure = dict[str, Any]
"""A plotly figure as data: ``plotly.graph_objects.Figure(figure)`` is the object."""


def drop_figure(results: Results) -> Figure:
    """Return the drop of every candidate with its interval: one row per candidate, zero marked."""
    rate = results.reference.accuracy.is_rate
    scale = 100.0 if rate else 1.0
    candidates = results.candidates
    # Rows are numbers, not names: plotly would read a candidate called 2024 as a position.
    simulated = [(row, c, c.accuracy) for row, c in enumerate(candidates)]
    integer = [
        (row + 0.24, c, c.integer_kernels.accuracy) for row, c in enumerate(candidates) if c.integer_kernels is not None
    ]
    traces = [
        _intervals("selected", [p for p in simulated if p[1].name == results.selected], rate, SELECTED),
        _intervals("candidate", [p for p in simulated if p[1].name != results.selected], rate, MUTED),
        _intervals("integer kernels", integer, rate, _INTEGER, "square-open"),
    ]
    labels = []
    for row, c in enumerate(candidates):
        name = plot_text(fmt.shorten(c.name, 30))
        labels.append(_label(row, 0.0, "left", f"<b>{name}</b>" if c.name == results.selected else name))
        labels.append(_label(row, 1.0, "right", _drop_text(c.accuracy, rate)))
    bounds = [x * scale for _, _, a in (*simulated, *integer) for x in (a.drop, a.ci_low, a.ci_high)]
    ends = [0.0, *filter(math.isfinite, bounds)]
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low) or 1.0
    return {
        "data": [trace for trace in traces if trace["x"]],
        "layout": layout(
            height=78 + 58 * len(candidates),
            xaxis={
                "title": {"text": f"drop{', pp' if rate else ''} (right of zero is worse than float)"},
                "range": [low - margin, high + margin],
                "zeroline": True,
                "zerolinewidth": 2,
                "zerolinecolor": MUTED,
                "gridcolor": GRID,
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
    """Return the SQNR of every layer along the depth: a line per candidate, that of the one shown first visible.

    Points beside the lines are the isolated SQNR of that candidate's layers, as the last trace. A layer without a
    finite SQNR (exact, or nothing to compare with) is a gap.
    """
    colour_of = colours(results)
    shown = results.selected_candidate or next(iter(results.candidates), None)
    traces = []
    for candidate in results.candidates:
        is_shown = shown is not None and candidate.name == shown.name
        line = {"color": colour_of[candidate.name], "width": 2 if is_shown else 1.5}
        trace = _layers(candidate, candidate.name, lambda layer: layer.sqnr_db, colour_of[candidate.name])
        traces.append({**trace, "mode": "lines+markers", "visible": True if is_shown else "legendonly", "line": line})
    if shown is not None:
        isolated = _layers(shown, f"{shown.name}, isolated", lambda layer: layer.isolated_sqnr_db, MUTED)
        traces.append({**isolated, "mode": "markers", "visible": True})
    return {
        "data": traces,
        "layout": layout(
            height=400,
            xaxis={
                "title": {"text": "layer, in topological order"},
                "zeroline": False,
                "gridcolor": GRID,
            },
            yaxis={
                "title": {"text": "SQNR, dB"},
                "zeroline": False,
                "gridcolor": GRID,
            },
            margin={"l": 52, "r": 8, "t": 28, "b": 48},
            hovermode="closest",
        ),
    }


def _layers(candidate: Candidate, name: str, level: Callable[[LayerError], float], colour: str) -> dict[str, Any]:
    """Return one trace of a level (dB) of every layer, with a symbol for its precision."""
    layers = sorted(candidate.layers, key=lambda layer: layer.depth)
    return {
        "type": "scatter",
        "name": plot_text(name),
        "x": [layer.depth for layer in layers],
        "y": [round(level(layer), 3) if math.isfinite(level(layer)) else None for layer in layers],
        "customdata": [
            [plot_text(fmt.shorten(layer.node, 60)), plot_text(layer.op_type), layer.precision.upper()]
            for layer in layers
        ],
        "hovertemplate": "%{customdata[0]}<br>%{customdata[1]}, %{customdata[2]}<br>"
        "%{y:.1f} dB in %{fullData.name}<extra></extra>",
        "connectgaps": False,
        "marker": {"color": colour, "size": 7, "symbol": [SYMBOLS[layer.precision] for layer in layers]},
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
        "customdata": [[plot_text(fmt.shorten(c.name, 60)), _drop_text(a, rate)] for _, c, a in points],
        "hovertemplate": "%{customdata[0]} (%{fullData.name})<br>%{customdata[1]}<extra></extra>",
    }


def _drop_text(accuracy: CandidateAccuracy, rate: bool) -> str:
    bounds = fmt.interval(accuracy.ci_low, accuracy.ci_high, rate)
    return fmt.minus(f"{fmt.drop(accuracy.drop, rate)} {bounds}")


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


def layout(**changes: Any) -> dict[str, Any]:
    """Return a plotly layout that is legible on light and dark; the page's style sheet recolours text and lines."""
    return {
        "autosize": True,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": _FONT, "size": 12.5, "color": MUTED},
        "hoverlabel": {
            "bgcolor": "#1d232b",
            "bordercolor": "#1d232b",
            "align": "left",
            "font": {"family": _FONT, "size": 13, "color": "#f2f5f8"},
        },
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": MUTED, "activecolor": SELECTED},
        "showlegend": False,
        **changes,
    }


def histogram_layout(end: float, top: float, **changes: Any) -> dict[str, Any]:
    """Return the layout of a histogram of |x| with logarithmic counts.

    Args:
        end: of the x axis, in the tensor's unit.
        top: of the y axis, as the power of ten.
        changes: as of `layout`.
    """
    return layout(
        bargap=0,
        xaxis={
            "title": {"text": "|x|"},
            "range": [0, end],
            "zeroline": False,
            "gridcolor": GRID,
            "fixedrange": True,
        },
        yaxis={
            "title": {"text": "values"},
            "type": "log",
            "dtick": 2,
            "exponentformat": "power",
            "range": [-0.3, top],
            "gridcolor": GRID,
            "fixedrange": True,
        },
        margin={"l": 52, "r": 8, "t": 8, "b": 44},
        dragmode=False,
        **changes,
    )


def plot_text(text: str) -> str:
    """Return text escaped for a figure: plotly renders some HTML (bold, links) in every text that it draws.

    Examples:
        >>> plot_text("<b>conv</b>")
        '&lt;b&gt;conv&lt;/b&gt;'
    """
    return escape(fmt.printable(text), quote=False)


def colours(results: Results) -> dict[str, str]:
    """Return a colour per candidate, by name; the selected one has a colour of its own."""
    others = [candidate.name for candidate in results.candidates if candidate.name != results.selected]
    colours = {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}
    return colours if results.selected is None else {**colours, results.selected: SELECTED}


def dashes(results: Results) -> dict[str, str]:
    """Return plotly's line style of each candidate, by name, so that lines differ by more than colour."""
    kinds = ("solid", "dash", "dot")
    return {candidate.name: kinds[i % len(kinds)] for i, candidate in enumerate(results.candidates)}
