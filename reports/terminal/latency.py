"""Output of ``python -m validate benchmark``: latency of each model, and its ratio to the first with an interval."""

from __future__ import annotations

import math
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from reports import format as fmt
from validate.latency import LatencyReport, ModelTiming, Ratio

__all__ = ["latency_summary", "latency_table"]


def latency_summary(report: LatencyReport, output: Path) -> RenderableType:
    """Return the output at the end of a benchmark; its file is `output`."""
    machine = report.machine
    held = f"on CPUs {', '.join(map(str, machine.pinned_cpus))}" if machine.pinned_cpus else "not pinned to CPUs"
    hows = dict.fromkeys(f"{model.name}: {_how(model)}" for each in report.batch_sizes for model in each.models)
    lines = [Text(fmt.printable(how), style="dim") for how in hows]
    lines += [Text(f"warning: {sentence}", style="yellow") for sentence in report.warnings]
    lines += [Text(f"note: {sentence}", style="dim") for sentence in report.notes]
    lines.append(Text(f"{machine.threads} threads, {held}; all of it is in {output}", style="dim"))
    return Group(latency_table(report), Text(""), *lines)


def latency_table(report: LatencyReport) -> Table:
    """Return a table with a row per batch size and model; a ratio below 1 is faster than the first model."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("batch", justify="right")
    table.add_column("model", overflow="fold")
    for heading in ("p50 ms", "p90 ms", "p99 ms", "samples/s", "x first", "95% interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in report.batch_sizes:
        for i, model in enumerate(each.models):
            latency, last = model.latency, i + 1 == len(each.models)
            cells = [
                str(each.batch_size) if i == 0 else "",
                fmt.printable(model.name),
                fmt.milliseconds(latency.p50_ms),
                fmt.milliseconds(latency.p90_ms),
                fmt.milliseconds(latency.p99_ms),
                f"{model.samples_per_second:,.1f}",
                *_ratio(model.ratio),
            ]
            table.add_row(*map(Text, cells), end_section=last)
    return table


def _ratio(ratio: Ratio | None) -> tuple[str, str]:
    if ratio is None:
        return "1", ""
    known = math.isfinite(ratio.ci_high)
    return f"{ratio.value:.3f}", f"[{ratio.ci_low:.3f}, {ratio.ci_high:.3f}]" if known else "unknown"


def _how(model: ModelTiming) -> str:
    graph = {True: ", CUDA graph", False: ", no CUDA graph", None: ""}[model.cuda_graph]
    note = f" ({model.note})" if model.note else ""
    return f"{model.latency.runtime}, {model.latency.device}, {model.timing}{graph}{note}"
