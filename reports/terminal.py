"""What the command line prints when a run is over: the candidates, the verdict, and where to look next.

Names come out of models and configs, so they go into `rich.text.Text` and never through rich's markup.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from reports import format as fmt
from validate.results import Decision, Latency, Results

__all__ = ["candidates_table", "summary"]

_COLOURS = {Decision.GO: "green", Decision.NO_GO: "red", Decision.INCONCLUSIVE: "yellow"}
_BUILD_COLOURS = {True: "green", False: "red", None: "dim"}
_OUTCOMES = {"fail": "red", "undecided": "yellow", "not_measured": "yellow", "pass": "green"}


def candidates_table(results: Results) -> Table:
    """Return a row for the float reference and one per candidate; the selected one is bold and starred.

    Fits 80 columns with names of up to 20 characters; longer ones fold, and numbers never do.
    """
    rate = results.reference.accuracy.is_rate
    unit = fmt.drop_unit(rate)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column(Text("  candidate"), overflow="fold")
    table.add_column(_heading(results.reference.accuracy.metric), justify="right", no_wrap=True)
    drop_heading = f"drop, {unit}\nand interval" if unit else "drop and\ninterval"
    table.add_column(Text(drop_heading), justify="right", no_wrap=True)
    table.add_column(Text("int8/\nfp16/\nfp32"), justify="right", no_wrap=True)
    table.add_column(Text("CPU\nms"), justify="right", no_wrap=True)
    table.add_column(Text("TRT\nbuild"), no_wrap=True)
    reference = results.reference
    table.add_row(
        Text("  float reference"),
        Text(fmt.metric_value(reference.accuracy.value, rate)),
        "",
        "",
        _latency(reference.latency),
        "",
        end_section=True,
    )
    accuracies = [candidate.accuracy for candidate in results.candidates]
    drops = _aligned([fmt.drop(a.drop, rate) for a in accuracies])
    intervals = _aligned([fmt.interval(a.ci_low, a.ci_high, rate) for a in accuracies])
    for candidate, drop, interval in zip(results.candidates, drops, intervals, strict=True):
        is_selected = candidate.name == results.selected
        nodes, build = candidate.nodes, candidate.tensorrt_build
        name = Text("* " if is_selected else "  ") + _text(candidate.name)
        table.add_row(
            name,
            Text(fmt.metric_value(candidate.accuracy.value, rate)),
            Text(f"{drop} {interval}"),
            Text(f"{nodes.int8}/{nodes.fp16}/{nodes.fp32}"),
            _latency(candidate.latency),
            Text("-" if build.ok is None else fmt.build_answer(build), style=_BUILD_COLOURS[build.ok]),
            style="bold" if is_selected else "",
        )
    table.caption = _caption(results)
    table.caption_justify = "left"
    return table


def summary(results: Results, output: Path, tracking_hint: str | None) -> RenderableType:
    """Return all that is printed at the end of a run.

    Args:
        results: the run.
        output: the run's folder, which holds ``report.html`` and ``results.json``.
        tracking_hint: the command that opens the run in MLflow, or None where nothing was logged.
    """
    return Group(candidates_table(results), Text(""), _verdict(results), _next(results, output, tracking_hint))


def _verdict(results: Results) -> Panel:
    colour = _COLOURS[results.verdict.decision]
    lines = [_text(fmt.headline(results), style="bold")]
    lines += [Text("- ") + _text(reason) for reason in results.verdict.reasons]
    counts = Counter[str](rule.outcome for rule in results.verdict.rules)
    rules = Text(", ").join(
        Text(f"{counts[name]} {fmt.outcome(name)}", style=style) for name, style in _OUTCOMES.items() if counts[name]
    )
    if rules:
        lines.append(Text("policy: ", style="dim") + rules)
    return Panel(
        Group(*lines),
        title=Text(f" {fmt.decision(results.verdict.decision)} ", style=f"bold reverse {colour}"),
        title_align="left",
        border_style=colour,
        padding=(1, 2),
    )


def _next(results: Results, output: Path, tracking_hint: str | None) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    report = _text(str(output / "report.html"))
    if results.warnings:
        number = len(results.warnings)
        report += Text(f" ({number} warning{'s' if number > 1 else ''})", style="yellow")
    grid.add_row("report", report)
    grid.add_row("results", _text(str(output / "results.json")))
    if tracking_hint is not None:
        grid.add_row("runs", _text(tracking_hint))
    return grid


def _heading(metric: str) -> Text:
    """Return a metric's name broken at its underscores, so that it takes no more room than its values."""
    return Text(fmt.printable(metric).replace("_", "_\n"))


def _aligned(texts: list[str]) -> list[str]:
    width = max(map(len, texts), default=0)
    return [text.rjust(width) for text in texts]


def _caption(results: Results) -> Text | None:
    """Return what the latency column is the latency of."""
    measured = [results.reference.latency, *(candidate.latency for candidate in results.candidates)]
    ways = dict.fromkeys(f"{x.device}, batch {x.batch_size}" for x in measured if x is not None)
    return _text(f"CPU ms: median call on {'; '.join(ways)}. CPU latency says nothing about the GPU.") if ways else None


def _latency(latency: Latency | None) -> Text:
    return Text("-", style="dim") if latency is None else Text(fmt.milliseconds(latency.p50_ms))


def _text(text: str, style: str = "") -> Text:
    """Return text that somebody else wrote: no markup, no terminal escapes."""
    return Text(fmt.printable(text), style=style)
