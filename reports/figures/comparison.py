"""The figures of a comparison, as plain data: ``plotly.graph_objects.Figure(figure)`` is the object."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from reports import format as fmt
from reports.figures.run import (
    GRID,
    MUTED,
    OTHERS,
    SELECTED,
    SYMBOLS,
    Figure,
    histogram_layout,
    layout,
    plot_text,
)
from validate.layerwise import Comparison, LayerDifference, QuantizedInput, Thresholds

__all__ = ["Trace", "depth_figure", "input_figure"]

_FAIL = "#d0454c"
_ORANGE, _GREEN = OTHERS[:2]
_SYMBOLS = {**SYMBOLS, "other": "x-thin-open"}
_INPUTS = 3
"""How many quantized inputs a hover names."""


class Trace(NamedTuple):
    """A view in the depth figure, which a reader may show or hide: its name, colour, and indices of plotly traces."""

    name: str
    colour: str
    indices: list[int]


class _View(NamedTuple):
    """An SQNR per layer, in dB or None where the layer has no such view, and how it is drawn."""

    name: str
    colour: str
    sqnr_db: Callable[[LayerDifference], float | None]
    mode: str = "lines+markers"
    dash: str = "solid"


class _Panel(NamedTuple):
    """Views on one scale: a y axis, and the part of the figure's height that it has."""

    axis: str
    title: str
    domain: tuple[float, float]
    views: Sequence[_View]


_QUANTIZATION = (
    _View("accumulated", SELECTED, lambda x: x.accumulated.sqnr_db if x.accumulated else None),
    _View("isolated", _ORANGE, lambda x: x.isolated.sqnr_db if x.isolated else None, "markers"),
)
_RUNTIME = (
    _View("runtime against simulation", _GREEN, lambda x: x.runtime.difference.sqnr_db if x.runtime else None),
    _View("floor of rounding", MUTED, lambda x: x.runtime.floor_db if x.runtime else None, "lines", "dot"),
)


def depth_figure(
    comparison: Comparison, failures: Mapping[str, Sequence[str]], thresholds: Thresholds
) -> tuple[Figure, list[Trace]]:
    """Return the SQNR (dB) of every layer along the depth, and the views in it.

    Quantization is in the upper panel. A runtime, where there was one, is in a panel of its own below: it is judged
    against the rounding floor, whose scale may be quite another. Exact layers are at the upper edge of their panel,
    and layers without a number at the lower one; both edges are labelled.

    Args:
        comparison: its layers may be in any order.
        failures: reasons of failure, by tensor, of the layers that fail.
        thresholds: the minimum SQNRs among them are drawn as lines.
    """
    layers = sorted(comparison.layers, key=lambda x: x.depth)
    hover = [_hover(layer, failures.get(layer.tensor, ())) for layer in layers]
    limits = {"accumulated": thresholds.accumulated.min_sqnr_db, "isolated": thresholds.isolated.min_sqnr_db}
    panels = [_Panel("y", "SQNR, dB", (0, 1), _QUANTIZATION)]
    if any(layer.runtime for layer in layers):
        panels = [panels[0]._replace(domain=(0.42, 1)), _Panel("y2", "runtime, dB", (0, 0.34), _RUNTIME)]
    data: list[dict[str, Any]] = []
    shown: list[Trace] = []
    annotations: list[dict[str, Any]] = []
    shapes: list[dict[str, Any]] = []
    axes: dict[str, Any] = {}
    for panel in panels:
        views = [view for view in panel.views if any(view.sqnr_db(layer) is not None for layer in layers)]
        levels = [level for view in views for level in map(view.sqnr_db, layers) if level is not None]
        least = [(view, level) for view in views if (level := limits.get(view.name)) is not None]
        low, high = _edges([*levels, *(level for _, level in least)])
        for view in views:
            traces = _traces(view, layers, hover, panel.axis, low, high)
            shown.append(Trace(view.name, view.colour, list(range(len(data), len(data) + len(traces)))))
            data += traces
        if panel.axis == "y":
            data.append(_failure_markers(layers, hover, failures, low, high))
        annotations += _edge_labels(panel.axis, levels, low, high)
        for view, level in least:
            shapes.append(_line(view.colour, "dot", 1.5, x0=0, x1=1, xref="paper", y0=level, y1=level, yref=panel.axis))
            annotations.append(_label(f"least {view.name} SQNR", panel.axis, level, 9, "right"))
        margin = 0.12 * (high - low)  # room for the labels of the edges
        axes[panel.axis.replace("y", "yaxis")] = {
            "title": {"text": panel.title},
            "range": [low - margin, high + margin],
            "domain": list(panel.domain),
            "zeroline": False,
            "gridcolor": GRID,
        }
    figure = {
        "data": data,
        "layout": layout(
            height=420 if len(panels) == 1 else 620,
            xaxis={
                "title": {"text": "layer, in topological order"},
                "anchor": panels[-1].axis,
                "zeroline": False,
                "gridcolor": GRID,
            },
            **axes,
            annotations=annotations,
            shapes=shapes,
            margin={"l": 52, "r": 8, "t": 28, "b": 48},
            hovermode="closest",
        ),
    }
    return figure, shown


def input_figure(quantized: QuantizedInput) -> Figure:
    """Return the histogram of |x| of a quantized input (log counts), with the limits of clipping marked."""
    histogram = quantized.histogram
    assert histogram is not None
    width, counts = histogram.width, histogram.counts
    limit = max(abs(quantized.low), abs(quantized.high))
    last = max((i for i, number in enumerate(counts) if number), default=0) + 1
    end = 1.04 * max(last * width, limit)
    return {
        "data": [
            {
                "type": "bar",
                "x": [float(f"{(i + 0.5) * width:.6g}") for i in range(last)],
                "y": [number or None for number in counts[:last]],
                "width": width,
                "marker": {
                    "color": [_FAIL if i * width >= limit else SELECTED for i in range(last)],
                    "line": {"width": 0},
                },
                "hovertemplate": "|x| near %{x:.3g}: %{y:,}<extra></extra>",
            }
        ],
        "layout": histogram_layout(
            end,
            math.log10(max([*counts, 1])) + 0.4,
            height=230,
            shapes=[
                {**_line(_FAIL, dash, 2, x0=x, x1=x, y0=0, y1=1, yref="paper"), "layer": "above"}
                for x, dash in _limits(quantized)
            ],
        ),
    }


def _limits(quantized: QuantizedInput) -> list[tuple[float, str]]:
    """Return where |x| is clipped: the upper limit, and the lower where it is another by more than a step."""
    if quantized.low >= -quantized.scale:  # unsigned
        return [(quantized.high, "solid")]
    if abs(quantized.high + quantized.low) <= 1.5 * quantized.scale:
        return [(max(quantized.high, -quantized.low), "solid")]
    return [(quantized.high, "solid"), (-quantized.low, "dash")]


def _edges(levels: Sequence[float]) -> tuple[float, float]:
    """Return where exact and undefined layers are drawn: below and above all numbers, in dB."""
    finite = [level for level in levels if math.isfinite(level)] or [0.0, 40.0]
    margin = 0.1 * (max(finite) - min(finite)) or 5.0
    return min(finite) - margin, max(finite) + margin


def _traces(
    view: _View, layers: Sequence[LayerDifference], hover: Sequence[str], axis: str, low: float, high: float
) -> list[dict[str, Any]]:
    """Return a view's line or points, with gaps where it has no finite number, and its points at the edges."""
    points = [(layer, text, view.sqnr_db(layer)) for layer, text in zip(layers, hover, strict=True)]
    points = [point for point in points if point[2] is not None]
    edge = [
        (x, text, high if level == math.inf else low)
        for x, text, level in points
        if level is not None and not math.isfinite(level)
    ]
    base = {"type": "scatter", "name": view.name, "yaxis": axis, "hoverinfo": "text", "connectgaps": False}
    traces = [
        {
            **base,
            "mode": view.mode,
            "x": [layer.depth for layer, _, _ in points],
            "y": [round(level, 3) if level is not None and math.isfinite(level) else None for _, _, level in points],
            "hovertext": [text for _, text, _ in points],
            "line": {"color": view.colour, "width": 2, "dash": view.dash},
            "marker": {
                "color": view.colour,
                "size": 7,
                "symbol": [_SYMBOLS[layer.precision] for layer, _, _ in points],
            },
        }
    ]
    if edge:
        traces.append(
            {
                **base,
                "mode": "markers",
                "x": [layer.depth for layer, _, _ in edge],
                "y": [level for _, _, level in edge],
                "hovertext": [text for _, text, _ in edge],
                "marker": {
                    "color": view.colour,
                    "size": 8,
                    "symbol": ["triangle-up" if level == high else "x" for _, _, level in edge],
                },
            }
        )
    return traces


def _failure_markers(
    layers: Sequence[LayerDifference],
    hover: Sequence[str],
    failures: Mapping[str, Sequence[str]],
    low: float,
    high: float,
) -> dict[str, Any]:
    """Return a ring around each layer that fails."""
    failed = [(x, text) for x, text in zip(layers, hover, strict=True) if x.tensor in failures]

    def level(layer: LayerDifference) -> float:
        view = layer.accumulated or layer.isolated
        value = math.nan if view is None else view.sqnr_db
        return value if math.isfinite(value) else high if value == math.inf else low

    return {
        "type": "scatter",
        "name": "fails",
        "mode": "markers",
        "x": [layer.depth for layer, _ in failed],
        "y": [round(level(layer), 3) for layer, _ in failed],
        "hovertext": [text for _, text in failed],
        "hoverinfo": "text",
        "marker": {"color": _FAIL, "size": 15, "symbol": "circle-open", "line": {"width": 2.5, "color": _FAIL}},
    }


def _edge_labels(axis: str, levels: Sequence[float], low: float, high: float) -> list[dict[str, Any]]:
    """Return what the edges mean, where something is drawn there."""
    edges = []
    if math.inf in levels:
        edges.append((high, "exact", 9))
    if any(not level > -math.inf for level in levels):
        edges.append((low, "could not be computed", -9))
    return [_label(text, axis, y, shift, "left") for y, text, shift in edges]


def _label(text: str, axis: str, y: float, shift: int, side: str) -> dict[str, Any]:
    """Return a text at the left or right edge of a panel, `shift` pixels above y."""
    x, inwards = (0, 4) if side == "left" else (1, -4)
    return {
        "text": text,
        "x": x,
        "xref": "paper",
        "xanchor": side,
        "xshift": inwards,
        "y": y,
        "yref": axis,
        "yshift": shift,
        "showarrow": False,
    }


def _line(colour: str, dash: str, width: float, **ends: Any) -> dict[str, Any]:
    return {"type": "line", "line": {"color": colour, "width": width, "dash": dash}, "layer": "below", **ends}


def _hover(layer: LayerDifference, failures: Sequence[str]) -> str:
    """Return the hover text of a layer, in plotly's HTML, with every text from the model escaped."""
    lines = [
        f"<b>{plot_text(fmt.shorten(layer.node, 60))}</b>",
        f"{plot_text(layer.op_type)}, {layer.precision.upper()}",
    ]
    for view in (*_QUANTIZATION, *_RUNTIME):
        level = view.sqnr_db(layer)
        if level is not None:
            lines.append(f"{view.name}: {fmt.minus(fmt.level(level))}")
    lines += [
        f"{plot_text(fmt.shorten(quantized.tensor, 40))}: scale {fmt.significant(quantized.scale)}, "
        f"{plot_text(fmt.share(quantized.clipped_share))} clipped"
        for quantized in layer.quantized_inputs[:_INPUTS]
    ]
    if len(layer.quantized_inputs) > _INPUTS:
        lines.append(f"and {len(layer.quantized_inputs) - _INPUTS} more quantized inputs")
    lines += [f"fails: {plot_text(fmt.shorten(failure, 90))}" for failure in failures[:_INPUTS]]
    return "<br>".join(lines)
