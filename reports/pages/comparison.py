"""The HTML page about a layer-wise comparison; `reports.pages.page` says what all pages have in common.

Everything that the page says is in its text and tables, and the figures only add to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from reports import format as fmt
from reports.figures import depth_figure, input_figure
from reports.pages import page
from reports.terminal import findings
from validate.layerwise import (
    Comparison,
    Execution,
    Judgement,
    LayerDifference,
    QuantizedInput,
    Thresholds,
    Unpaired,
    by_growth,
    by_isolated,
)
from validate.records import write_text

__all__ = [
    "WORST",
    "problems",
    "ranked",
    "render_comparison_page",
    "unpaired_groups",
    "worst_inputs",
    "write_comparison_page",
]

WORST = 25
"""Number of layers in the table of the worst."""
HISTOGRAMS = 6
"""Number of the worst layers that have a histogram of a quantized input."""
_FAILURES = 10
"""Number of failing layers that are shown at once; the others are collapsed."""


class _Histogram(NamedTuple):
    """A figure and what it is about."""

    name: str
    layer: LayerDifference
    quantized: QuantizedInput


def write_comparison_page(comparison: Comparison, judgement: Judgement, thresholds: Thresholds, path: Path) -> None:
    """Write the HTML page of a comparison; the file appears only when it is complete.

    Args:
        comparison: of two models, layer by layer.
        judgement: of the comparison by the thresholds.
        thresholds: of the judgement.
        path: of the page.
    """
    write_text(render_comparison_page(comparison, judgement, thresholds), path)


def render_comparison_page(comparison: Comparison, judgement: Judgement, thresholds: Thresholds) -> str:
    """Return the HTML page. The same comparison, judgement, thresholds and versions give the same page."""
    layers = comparison.layers
    failures = {verdict.tensor: verdict.failures for verdict in judgement.layers}
    # What makes no error of its own is worth a row only where something else is wrong with it.
    worst = [x for x in ranked(layers) if x.isolated is None or x.isolated.sqnr_db != math.inf or x.tensor in failures]
    worst.sort(key=lambda x: x.tensor not in failures)
    histograms = [
        _Histogram(f"histogram-{i}", layer, quantized)
        for i, (layer, quantized) in enumerate(worst_inputs(worst, HISTOGRAMS))
    ]
    depth, traces = depth_figure(comparison, failures, thresholds)
    return page.render(
        "comparison.html.jinja",
        figures={"depth": depth} | {x.name: input_figure(x.quantized) for x in histograms},
        filters=_FILTERS,
        comparison=comparison,
        judgement=judgement,
        findings=findings(comparison),
        infinity=math.inf,
        executions=_executions(comparison),
        failures=failures,
        shown_failures=_FAILURES,
        isolated=any(layer.isolated for layer in layers),
        executed=[layer for layer in layers if layer.runtime],
        beyond=sum(not x.runtime.excess_low_db <= 0 for x in layers if x.runtime),
        makes=next(iter(by_isolated(layers)), None),
        grows=next(iter(by_growth(layers)), None),
        worst=worst[:WORST],
        rest=len(layers) - len(worst[:WORST]),
        traces=traces,
        histograms=histograms,
        groups=unpaired_groups(comparison.unpaired),
        thresholds=thresholds.model_dump(mode="json", exclude_none=True),
    )


def ranked(layers: list[LayerDifference]) -> list[LayerDifference]:
    """Return the layers sorted by the error that each makes alone; where that was not measured, by growth of error."""
    return by_isolated(layers) or by_growth(layers)


def problems(layer: LayerDifference) -> list[str]:
    """Return why numbers of a layer could not be computed, each reason once with the views that it is about."""
    views = (layer.accumulated, layer.isolated, layer.runtime.difference if layer.runtime else None)
    names = ("accumulated", "isolated", "runtime")
    grouped: dict[str, list[str]] = {}
    for name, view in zip(names, views, strict=True):
        if view is not None and view.problem:
            grouped.setdefault(view.problem, []).append(name)
    return [f"{' and '.join(which)}: {problem}" for problem, which in grouped.items()]


def worst_inputs(layers: list[LayerDifference], limit: int) -> list[tuple[LayerDifference, QuantizedInput]]:
    """Return the first `limit` layers that have a histogram, each with its input that is clipped most."""
    found = []
    for layer in layers:
        known = [quantized for quantized in layer.quantized_inputs if quantized.histogram]
        if known:
            found.append((layer, max(known, key=lambda x: -1.0 if math.isnan(x.clipped_share) else x.clipped_share)))
    return found[:limit]


def unpaired_groups(unpaired: list[Unpaired]) -> list[tuple[str, str, list[Unpaired]]]:
    """Return the tensors without a counterpart, grouped by side and reason, the largest group first.

    Examples:
        >>> tensor = Unpaired(tensor="scores", node="softmax", side="candidate", reason="no tensor of that name")
        >>> [(side, reason, len(tensors)) for side, reason, tensors in unpaired_groups([tensor])]
        [('candidate', 'no tensor of that name', 1)]
    """
    groups: dict[tuple[str, str], list[Unpaired]] = {}
    for tensor in unpaired:
        groups.setdefault((tensor.side, tensor.reason), []).append(tensor)
    return [(*key, tensors) for key, tensors in sorted(groups.items(), key=lambda x: (-len(x[1]), x[0]))]


def _executions(comparison: Comparison) -> list[tuple[str, Execution]]:
    roles = {"reference": comparison.reference, "candidate": comparison.candidate, "runtime": comparison.runtime}
    return [(role, execution) for role, execution in roles.items() if execution is not None]


def _sentence(text: str) -> str:
    """Return a reason, which is written to follow a colon, as a sentence."""
    return f"{text[:1].upper()}{text[1:]}."


_FILTERS: dict[str, Callable[..., Any]] = {
    "cosine": lambda value: fmt.NOT_AVAILABLE if math.isnan(value) else fmt.minus(f"{value:.6f}"),
    "problems": problems,
    "growth": lambda value: fmt.minus(fmt.growth(value)),
    "sentence": _sentence,
    "share": fmt.share,
}
