"""Output of ``python -m calibrate run``: the candidates, the verdict, and where the files are.

Names come from models and configs, so they go into `rich.text.Text` and never through rich's markup.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from reports import format as fmt
from reports.terminal.engines import engine_tables
from validate.results import FLOAT, Decision, Latency, Results

__all__ = ["candidates_table", "run_summary", "verdict_panel"]

_COLOURS = {Decision.GO: "green", Decision.NO_GO: "red", Decision.INCONCLUSIVE: "yellow"}
_BUILD_COLOURS = {True: "green", False: "red", None: "dim"}
_OUTCOMES = {"fail": "red", "undecided": "yellow", "not_measured": "yellow", "pass": "green"}


def candidates_table(results: Results) -> Table:
    """Return a table with the float reference and the candidates; the selected one is bold, with a star.

    It fits 80 columns with names of up to 18 characters, and 100 with 38; longer names wrap, and numbers never do.
    """
    rate = results.reference.accuracy.is_rate
    unit = fmt.drop_unit(rate)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("", no_wrap=True)
    table.add_column(Text("candidate"), overflow="fold")
    table.add_column(_heading(results.reference.accuracy.metric), justify="right", no_wrap=True)
    drop_heading = f"drop, {unit}\nand interval" if unit else "drop and\ninterval"
    table.add_column(Text(drop_heading), justify="right", no_wrap=True)
    table.add_column(Text("int8/\nfp16/\nfp32"), justify="right", no_wrap=True)
    table.add_column(_cost_heading(results), justify="right", no_wrap=True)
    table.add_column(Text("p50\nms"), justify="right", no_wrap=True)
    table.add_column(Text("TRT\nbuild"), no_wrap=True)
    reference = results.reference
    table.add_row(
        "",
        Text("float reference"),
        Text(fmt.metric_value(reference.accuracy.value, rate)),
        "",
        "",
        next((Text(fmt.cost(point.cost)) for point in results.pareto if point.name == FLOAT), ""),
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
        table.add_row(
            "*" if is_selected else "",
            _text(candidate.name),
            Text(fmt.metric_value(candidate.accuracy.value, rate)),
            Text(f"{drop} {interval}"),
            Text(f"{nodes.int8}/{nodes.fp16}/{nodes.fp32}"),
            Text(fmt.cost(candidate.cost)),
            _latency(candidate.latency),
            Text("-" if build.ok is None else fmt.build_answer(build), style=_BUILD_COLOURS[build.ok]),
            style="bold" if is_selected else "",
        )
    table.caption = _caption(results)
    table.caption_justify = "left"
    return table


def run_summary(results: Results, output: Path, tracking_hint: str | None) -> RenderableType:
    """Return the output at the end of a run.

    Args:
        results: of the run.
        output: the run's folder, with ``report.html`` and ``results.json``.
        tracking_hint: the command that opens the run in MLflow, or None where nothing was logged.
    """
    return Group(
        candidates_table(results),
        *_search(results),
        *(Padding(table, (1, 0, 0, 0)) for table in engine_tables(results)),
        Text(""),
        verdict_panel(results),
        _next(results, output, tracking_hint),
    )


def _search(results: Results) -> list[Text]:
    """Return a summary of the search in two lines; none where there was no search."""
    search = results.search
    if search is None:
        return []
    selected = results.selected_candidate
    back = len(selected.float_layers) if selected else 0
    early = sum(trial.stopped_early for trial in search.trials)
    trials = f"{len(search.trials)} trial{'' if len(search.trials) == 1 else 's'}"
    return [
        Text(""),
        _text(
            f"{back} layer{'' if back == 1 else 's'} back to {search.precision}, after {trials} "
            f"({early} stopped early): {fmt.passes(search.ranking_passes)} passes over {search.ranking_samples} "
            f"samples to rank, {fmt.passes(search.judging_passes)} over {search.judging_samples} to judge"
        ),
        _text(f"search ended: {search.ended}", style="dim"),
    ]


def verdict_panel(results: Results) -> Panel:
    """Return the decision with its reasons."""
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


_COST_HEADINGS = {"measured": "GPU\n{unit}", "estimate": "est.\n{unit}", "multiply-accumulates": "MACs"}


def _cost_heading(results: Results) -> Text:
    """Return the heading of the costs: their basis and unit, or just "cost" where these differ."""
    kinds = {(candidate.cost.basis, candidate.cost.unit) for candidate in results.candidates}
    if len(kinds) != 1:
        return Text("cost")
    basis, unit = kinds.pop()
    return _text(_COST_HEADINGS[basis].format(unit=unit))


def _caption(results: Results) -> Text | None:
    """Return the sources of the costs and latencies."""
    costs = dict.fromkeys(f"{fmt.cost_unit(c.cost)}: {c.cost.source}." for c in results.candidates)
    measured = [results.reference.latency, *(candidate.latency for candidate in results.candidates)]
    ways = dict.fromkeys(f"{x.device}, batch {x.batch_size}" for x in measured if x is not None)
    lines = list(costs)
    if ways:
        elsewhere = "" if fmt.timed_on_target(results) else " CPU latency says nothing about the GPU."
        lines.append(f"p50 ms: median call on {'; '.join(ways)}.{elsewhere}")
    return _text("\n".join(lines)) if lines else None


def _latency(latency: Latency | None) -> Text:
    return Text("-", style="dim") if latency is None else Text(fmt.milliseconds(latency.p50_ms))


def _text(text: str, style: str = "") -> Text:
    """Return a text of unknown origin without markup and terminal escapes."""
    return Text(fmt.printable(text), style=style)
