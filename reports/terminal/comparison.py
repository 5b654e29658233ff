"""Output of ``python -m validate compare``: the worst layers, where error comes from, and what was not compared."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from reports import format as fmt
from validate.layerwise import Comparison, Judgement, LayerDifference, TensorDifference, by_growth, by_isolated

__all__ = ["comparison_summary", "findings", "worst_table"]

_ROWS = 10


def comparison_summary(comparison: Comparison, judgement: Judgement, folder: Path) -> RenderableType:
    """Return the output at the end of a comparison.

    Args:
        comparison: of two models, layer by layer.
        judgement: of the comparison.
        folder: with its files.
    """
    return Group(
        worst_table(comparison, judgement), Text(""), _verdict(comparison, judgement), _next(comparison, folder)
    )


def worst_table(comparison: Comparison, judgement: Judgement) -> Table:
    """Return a table of the layers that make the most error, worst first; those that fail are red."""
    failed = {verdict.tensor for verdict in judgement.layers}
    runtime = comparison.runtime is not None
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("layer", overflow="fold")
    table.add_column("op", overflow="fold")
    table.add_column("type")
    for heading in ("made by\nit, dB", "arrives\ndB", "grows\ndB", "clipped"):
        table.add_column(heading, justify="right", no_wrap=True)
    if runtime:
        table.add_column("runtime\ndB (floor)", justify="right", no_wrap=True)
    ranked = by_isolated(comparison.layers) or by_growth(comparison.layers)
    for layer in ranked[:_ROWS]:
        clipped = max((q.clipped_share for q in layer.quantized_inputs), default=math.nan)
        cells = [
            fmt.printable(layer.node),
            fmt.printable(layer.op_type),
            _precision(layer),
            _db(layer.isolated),
            _db(layer.accumulated),
            "-" if layer.growth_db is None else f"{layer.growth_db:.1f}",
            "-" if math.isnan(clipped) else f"{clipped:.2%}",
        ]
        if runtime:
            cells.append(_runtime(layer))
        table.add_row(*map(Text, cells), style="red" if layer.tensor in failed else "")
    if len(ranked) > _ROWS:
        table.caption = f"{len(ranked) - _ROWS} more layers are in layers.parquet and comparison.html"
        table.caption_justify = "left"
    return table


def findings(comparison: Comparison) -> list[str]:
    """Return sentences that name the worst layer of each view, and say if the scales or the runtime make the error."""
    sentences = []
    if makers := by_isolated(comparison.layers):
        made = _level(makers[0].isolated)
        sentences.append(f"most error is made by {_name(makers[0])}: {made} when fed the reference's inputs")
    if growing := by_growth(comparison.layers):
        growth, arrives = growing[0].growth_db, _level(growing[0].accumulated)
        by = f"by {growth:.1f} dB, to " if growth is not None and math.isfinite(growth) else ""
        sentences.append(f"error grows most at {_name(growing[0])}: {by}{arrives}")
    executed = [layer for layer in comparison.layers if layer.runtime is not None]
    if executed:
        last = executed[-1]
        assert last.runtime is not None
        beyond = sum(not x.runtime.excess_low_db <= 0 for x in executed if x.runtime)
        sentences.append(
            f"at {_name(last)}, quantization leaves {_level(last.accumulated)}; the runtime against the simulation: "
            f"{_level(last.runtime.difference)}, where rounding alone makes {fmt.level(last.runtime.floor_db)}; "
            f"{beyond} of {len(executed)} layers differ by more than rounding does"
        )
    return sentences


def _name(layer: LayerDifference) -> str:
    return f"{layer.node} ({layer.op_type})"


def _verdict(comparison: Comparison, judgement: Judgement) -> Panel:
    colour = "green" if judgement.passed else "red"
    lines = [Text(fmt.printable(reason), style="bold") for reason in judgement.reasons]
    lines += [Text("- " + fmt.printable(sentence)) for sentence in findings(comparison)]
    for verdict in judgement.layers[:3]:
        lines.append(Text(fmt.printable(f"- {verdict.node}: {'; '.join(verdict.failures)}")))
    if comparison.isolated_reason:
        lines.append(Text(f"- no isolated view: {comparison.isolated_reason}", style="yellow"))
    lines.append(Text(_paired(comparison), style="yellow" if comparison.unpaired else ""))
    title = " PASS " if judgement.passed else " FAIL "
    return Panel(
        Group(*lines),
        title=Text(title, style=f"bold reverse {colour}"),
        title_align="left",
        border_style=colour,
        padding=(1, 2),
    )


def _paired(comparison: Comparison) -> str:
    sides = Counter(tensor.side for tensor in comparison.unpaired)
    text = f"- {len(comparison.layers)} tensors were compared on {comparison.samples} samples"
    if not comparison.unpaired:
        return text + "; none was left out"
    reasons = Counter(f"{x.reason}" for x in comparison.unpaired).most_common(1)[0][0]
    left = " and ".join(f"{number} of the {side}" for side, number in sorted(sides.items(), reverse=True))
    return fmt.printable(f"{text}; {left} had no counterpart (for one: {comparison.unpaired[0].tensor}: {reasons})")


def _next(comparison: Comparison, folder: Path) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("reference", Text(fmt.printable(_execution(comparison, "reference"))))
    grid.add_row("candidate", Text(fmt.printable(_execution(comparison, "candidate"))))
    if comparison.runtime is not None:
        grid.add_row("runtime", Text(fmt.printable(_execution(comparison, "runtime"))))
    grid.add_row("report", Text(str(folder / "comparison.html")))
    grid.add_row("data", Text(f"{folder / 'comparison.json'}, {folder / 'layers.parquet'}"))
    return grid


def _execution(comparison: Comparison, role: str) -> str:
    execution = getattr(comparison, role)
    return f"{execution.model}, {execution.runtime} on {execution.device}"


def _runtime(layer: LayerDifference) -> str:
    if layer.runtime is None:
        return "-"
    return f"{_db(layer.runtime.difference)} ({fmt.decibels(layer.runtime.floor_db)})"


def _db(difference: TensorDifference | None) -> str:
    return "-" if difference is None else fmt.decibels(difference.sqnr_db)


def _level(difference: TensorDifference | None) -> str:
    """Return an SQNR with its unit, or why there is none."""
    return "-" if difference is None else difference.problem or fmt.level(difference.sqnr_db)


def _precision(layer: LayerDifference) -> str:
    return "-" if layer.precision == "other" else layer.precision
