"""Tables of the TensorRT engines of a run: the candidates', and the float model's, which they have to beat."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from reports import format as fmt
from validate.results import Candidate, OutputDistance, Results

__all__ = ["engine_tables"]


def engine_tables(results: Results) -> list[Table]:
    """Return a table of all engines, and one of the selected candidate's outputs; none where no engine was run."""
    selected = results.selected_candidate
    tables = [_engines(results)] if results.baselines or any(c.engine for c in results.candidates) else []
    return [*tables, _outputs(selected)] if selected is not None and selected.engine is not None else tables


def _engines(results: Results) -> Table:
    rate = results.reference.accuracy.is_rate
    table = _table("The engines")
    table.add_column(Text("engine"), overflow="fold")
    for heading in ("", "simu-\nlated", "agree-\nment", "drop", "int8 of\nMACs", "p50\nms"):
        text = heading or fmt.printable(results.reference.accuracy.metric).replace("_", "_\n")
        table.add_column(Text(text), justify="right", no_wrap=True)
    notes = []
    for baseline in results.baselines:
        accuracy, simulated, latency = baseline.accuracy, baseline.simulated, baseline.latency
        agreement = baseline.engine.agreement if baseline.engine else None
        table.add_row(
            _text(baseline.name),
            "-" if accuracy is None else fmt.metric_value(accuracy.value, rate),
            "-" if simulated is None else fmt.metric_value(simulated.value, rate),
            "-" if agreement is None else fmt.significant(agreement),
            "-" if accuracy is None else fmt.drop(accuracy.drop, rate),
            "",
            "-" if latency is None else fmt.milliseconds(latency.p50_ms),
        )
        if baseline.reason:
            notes.append(f"{baseline.name}: {baseline.reason}")
        if baseline.engine is not None and baseline.engine.departure is not None:
            notes.append(f"{baseline.name} is not its simulation: {baseline.engine.departure}")
    for candidate in results.candidates:
        if (ran := candidate.engine) is None:
            continue
        simulated, agreement, latency = candidate.simulated, ran.agreement, candidate.latency
        table.add_row(
            _text(candidate.name),
            fmt.metric_value(candidate.accuracy.value, rate),
            "-" if simulated is None else fmt.metric_value(simulated.value, rate),
            "-" if agreement is None else fmt.significant(agreement),
            fmt.drop(candidate.accuracy.drop, rate),
            "-" if ran.int8 is None else fmt.percent(ran.int8.share),
            "-" if latency is None else fmt.milliseconds(latency.p50_ms),
            style="bold" if candidate.name == results.selected else "",
        )
        if ran.departure is not None:
            notes.append(f"{candidate.name} is not its simulation: {ran.departure}")
    table.caption = _text("\n".join(notes)) if notes else None
    return table


def _outputs(candidate: Candidate) -> Table:
    """Return how far float model, simulation and engine are from each other, output by output."""
    assert candidate.engine is not None
    table = _table(f"Outputs of {candidate.name}, SQNR in dB")
    table.add_column(Text("output"), overflow="fold")
    for heading in ("engine\nto float", "simulation\nto float", "engine to\nsimulation", "rounding\nfloor"):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for found in candidate.engine.outputs:
        table.add_row(_text(found.tensor), *(Text(fmt.decibels(db)) for db in _three_ways(found)))
    return table


def _three_ways(found: OutputDistance) -> tuple[float, float, float, float]:
    return found.to_float_db, found.simulation_to_float_db, found.to_simulation_db, found.floor_db


def _table(title: str) -> Table:
    return Table(
        title=_text(title),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="dim",
    )


def _text(text: str) -> Text:
    """Return a text of unknown origin without markup and terminal escapes."""
    return Text(fmt.printable(text))
