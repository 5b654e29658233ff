"""The figure of accuracy against speed, as plain data; see `reports.figures.run`."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from reports import format as fmt
from reports.figures.run import (
    GRID,
    MUTED,
    OTHERS,
    SELECTED,
    Figure,
    layout,
    plot_text,
)
from validate.results import FLOAT, ParetoPoint, Results, cost_kind

__all__ = ["comparable", "margin", "pareto_figure"]

_MARGIN = "#d0454c"
_FRONT = OTHERS[1]


def comparable(results: Results) -> list[ParetoPoint]:
    """Return the Pareto points whose costs are of the most frequent kind: only costs of one kind share an axis."""
    kinds = Counter(cost_kind(point.cost) for point in results.pareto)
    return [point for point in results.pareto if cost_kind(point.cost) == max(kinds, key=kinds.__getitem__)]


def margin(results: Results) -> float | None:
    """Return the policy's largest drop, in the metric's unit; None where the results have none."""
    policy = results.config.get("policy")
    allowed = policy.get("max_drop") if isinstance(policy, dict) else None
    return float(allowed) if isinstance(allowed, int | float) and math.isfinite(allowed) else None


def pareto_figure(results: Results) -> Figure:
    """Return the metric over cost: a point per model with its interval, the Pareto front as steps, and the margin."""
    accuracy = results.reference.accuracy
    rate, higher = accuracy.is_rate, accuracy.higher_is_better
    scale = 100.0 if rate else 1.0
    points = [point for point in comparable(results) if math.isfinite(point.value) and math.isfinite(point.cost.value)]
    best = [point for point in points if point.on_front]
    groups = {
        "selected": [point for point in points if point.name == results.selected],
        "on the front": [point for point in best if point.name != results.selected],
        "not on the front": [point for point in points if not point.on_front and point.name != results.selected],
    }
    steps = {
        "type": "scatter",
        "mode": "lines",
        "name": "front",
        "x": [point.cost.value for point in best],
        "y": [scale * point.value for point in best],
        # A faster model's accuracy is to be had at every higher cost too, up to where the next is better.
        "line": {"color": _FRONT, "width": 2, "shape": "hv"},
        "hoverinfo": "skip",
    }
    looks = {
        "selected": (SELECTED, "circle" if all(x.on_front for x in groups["selected"]) else "circle-open", 14),
        "on the front": (_FRONT, "circle", 10),
        "not on the front": (MUTED, "circle-open", 9),
    }
    traces = [_points(results, name, group, *looks[name]) for name, group in groups.items()]
    unit = fmt.cost_unit(points[0].cost) if points else ""  # where it comes from is said above the figure
    shapes, labels = [], []
    allowed = margin(results)
    if allowed is not None:
        level = scale * (accuracy.value - allowed if higher else accuracy.value + allowed)
        shapes.append(
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": level,
                "y1": level,
                "line": {"color": _MARGIN, "width": 1.5, "dash": "dash"},
            }
        )
        # On its worse side and at the costly end, where models are rare.
        labels.append({**_label("the policy's margin", 1.0, level, "right", -9 if higher else 9), "xref": "paper"})
    labels += [
        _label(
            plot_text(fmt.shorten(point.name, 24)), point.cost.value, scale * point.value, anchor, 18 if higher else -18
        )
        for point, anchor in _named(points, results.selected)
    ]
    return {
        "data": [trace for trace in (steps, *reversed(traces)) if trace["x"]],
        "layout": layout(
            height=460,
            xaxis={"title": {"text": plot_text(unit)}, "zeroline": False, "gridcolor": GRID},
            yaxis={
                "title": {"text": plot_text(fmt.shorten(accuracy.metric, 40)) + (", %" if rate else "")},
                "zeroline": False,
                "gridcolor": GRID,
            },
            annotations=labels,
            shapes=shapes,
            margin={"l": 58, "r": 12, "t": 28, "b": 52},
            hovermode="closest",
        ),
    }


def _points(
    results: Results, name: str, points: list[ParetoPoint], colour: str, symbol: str, size: int
) -> dict[str, Any]:
    rate, higher = results.reference.accuracy.is_rate, results.reference.accuracy.higher_is_better
    scale = 100.0 if rate else 1.0

    def reach(point: ParetoPoint, bound: float) -> float:
        return scale * abs(bound - point.drop) if math.isfinite(bound - point.drop) else 0.0

    to_high = [reach(point, point.ci_high) for point in points]
    to_low = [reach(point, point.ci_low) for point in points]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [point.cost.value for point in points],
        "y": [scale * point.value for point in points],
        "error_y": {
            "type": "data",
            "symmetric": False,
            # A larger drop is a lower value only where higher is better.
            "array": to_low if higher else to_high,
            "arrayminus": to_high if higher else to_low,
            "color": colour,
            "thickness": 1.5,
            "width": 4,
        },
        "marker": {"color": colour, "size": size, "symbol": symbol, "line": {"width": 2, "color": colour}},
        "customdata": [[_hover(point, rate, name)] for point in points],
        "hovertemplate": "%{customdata[0]}<extra></extra>",
    }


def _hover(point: ParetoPoint, rate: bool, group: str) -> str:
    facts = [
        f"<b>{plot_text(fmt.shorten(point.name, 60))}</b>, {group}",
        plot_text(f"{fmt.cost(point.cost)} {fmt.cost_unit(point.cost)}"),
        fmt.minus(
            f"{fmt.metric_value(point.value, rate)}, drop {fmt.drop(point.drop, rate)} "
            f"{fmt.interval(point.ci_low, point.ci_high, rate)} {fmt.drop_unit(rate)}".rstrip()
        ),
        f"{fmt.percent(point.int8_mac_share)} of multiply-accumulates in INT8",
    ]
    if point.size_bytes is not None:
        facts.append(f"file of {fmt.size(point.size_bytes)}")
    if point.latency_ms is not None:
        facts.append(f"{fmt.milliseconds(point.latency_ms)} ms on this machine, median")
    return "<br>".join(facts)


def _named(points: list[ParetoPoint], selected: str | None) -> list[tuple[ParetoPoint, str]]:
    """Return the points that have a label, which matters most first, and at which end it is anchored to stay inside."""
    costs = [point.cost.value for point in points]
    middle = (min(costs) + max(costs)) / 2 if costs else 0.0
    return [
        (point, "right" if point.cost.value > middle else "left")
        for name in dict.fromkeys((selected, FLOAT))
        for point in points
        if point.name == name
    ]


def _label(text: str, x: float, y: float, anchor: str, yshift: int) -> dict[str, Any]:
    """Return a text beside a point; the page's script leaves out one that would lie on one before it."""
    return {
        "text": text,
        "x": x,
        "xref": "x",
        "xanchor": anchor,
        "y": y,
        "yshift": yshift,
        "showarrow": False,
        "font": {"size": 12.5},
    }
