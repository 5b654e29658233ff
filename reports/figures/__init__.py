"""The figures of reports as plain data: ``plotly.graph_objects.Figure(figure)`` makes the object.

No figure is drawn in Python; the page draws it with plotly.js.
"""

from __future__ import annotations

from reports.figures.comparison import depth_figure, input_figure
from reports.figures.illustrations import activation_figure, convergence_figure
from reports.figures.run import MUTED, Figure, colours, dashes, drop_figure, sqnr_figure
from reports.figures.tradeoff import comparable, margin, pareto_figure

__all__ = [
    "MUTED",
    "Figure",
    "activation_figure",
    "colours",
    "comparable",
    "convergence_figure",
    "dashes",
    "depth_figure",
    "drop_figure",
    "input_figure",
    "margin",
    "pareto_figure",
    "sqnr_figure",
]
