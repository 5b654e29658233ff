"""The figures of histograms and of convergence, as plain data; see `reports.figures.run`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from reports import format as fmt
from reports.figures.run import GRID, MUTED, Figure, histogram_layout, layout, plot_text
from validate.results import Convergence, TensorHistogram

__all__ = ["activation_figure", "convergence_figure"]

Line = dict[str, Any]
"""How plotly draws a line."""
_UNKNOWN: Line = {"color": MUTED}


def activation_figure(tensor: TensorHistogram, lines: Mapping[str, Line]) -> Figure:
    """Return the histogram of |x| of an activation (log counts), with each strategy's clipping threshold.

    Args:
        tensor: histogram and thresholds.
        lines: plotly's line style of each candidate, by name.
    """
    width, counts = tensor.histogram.width, tensor.histogram.counts
    end = 1.04 * max([len(counts) * width, *(threshold.value for threshold in tensor.thresholds)])
    top = math.log10(max([*counts, 1])) + 0.3
    bars = {
        "type": "bar",
        "x": [float(f"{(i + 0.5) * width:.6g}") for i in range(len(counts))],
        "y": [number or None for number in counts],
        "width": width,
        "marker": {"color": MUTED, "line": {"width": 0}},
        "hovertemplate": "|x| near %{x:.3g}: %{y:,}<extra></extra>",
    }
    thresholds: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            # Points along the line, so that it can be hovered over anywhere.
            "x": [threshold.value] * 9,
            "y": [10 ** (-0.3 + (top + 0.3) * i / 8) for i in range(9)],
            "line": {"width": 2.5, **lines.get(threshold.candidate, _UNKNOWN)},
            "hovertemplate": f"{plot_text(fmt.shorten(threshold.candidate, 40))} clips at "
            f"{fmt.significant(threshold.value)}<extra></extra>",
        }
        for threshold in tensor.thresholds
    ]
    return {
        "data": [bars, *thresholds],
        "layout": histogram_layout(end, top, height=240, hovermode="closest"),
    }


def convergence_figure(curves: Sequence[Convergence], lines: Mapping[str, Line]) -> Figure:
    """Return the distance of scales from their final value, in percent, over the samples seen (both logarithmic).

    Args:
        curves: one per strategy.
        lines: plotly's line style of each strategy, by name.
    """
    points = [point for curve in curves for point in curve.points]
    shown = [100 * point.most for point in points if math.isfinite(point.most) and point.most > 0]
    # A change of zero has no place on a logarithmic axis: it is drawn at the lower edge.
    settled = [100 * level for level in sorted({curve.settled for curve in curves})]
    low, high = min([*shown, *settled]) / 2, max([*shown, *settled]) * 1.6
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": plot_text(fmt.shorten(curve.strategy, 40)),
            "x": [point.samples for point in curve.points],
            "y": [max(100 * point.most, low) if math.isfinite(point.most) else None for point in curve.points],
            "customdata": [[fmt.percent(point.most), fmt.percent(point.median)] for point in curve.points],
            "hovertemplate": "%{fullData.name}, %{x:,} samples<br>nine in ten scales within %{customdata[0]}, "
            "half of them within %{customdata[1]}<extra></extra>",
            "line": {"width": 2, **lines.get(curve.strategy, _UNKNOWN)},
            "marker": {"size": 7},
        }
        for curve in curves
    ]
    return {
        "data": data,
        "layout": layout(
            height=320,
            xaxis={
                "title": {"text": "calibration samples"},
                "type": "log",
                "tickvals": sorted({point.samples for point in points}),
                "gridcolor": GRID,
                "fixedrange": True,
            },
            yaxis={
                "title": {"text": "away from the last, %"},
                "type": "log",
                "range": [math.log10(low), math.log10(high)],
                "tickvals": [0.01, 0.1, 1, 10, 100, 1000],
                "gridcolor": GRID,
                "fixedrange": True,
            },
            shapes=[
                {
                    "type": "line",
                    "xref": "paper",
                    "x0": 0,
                    "x1": 1,
                    "y0": level,
                    "y1": level,
                    "line": {"color": MUTED, "width": 1.5, "dash": "dash"},
                }
                for level in settled
            ],
            margin={"l": 58, "r": 8, "t": 8, "b": 48},
            hovermode="closest",
            dragmode=False,
        ),
    }
