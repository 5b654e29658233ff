"""Output of ``python -m validate evaluate``: each model's metric, and its drop against the first model."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from reports import format as fmt
from validate.results import CandidateAccuracy, Evaluation, ModelEvaluation

__all__ = ["evaluation_summary", "evaluation_table"]


def evaluation_summary(evaluation: Evaluation, output: Path) -> RenderableType:
    """Return the output at the end of an evaluation; its file is `output`."""
    lines = [Text(f"warning: {fmt.printable(sentence)}", style="yellow") for sentence in evaluation.warnings]
    lines += [Text(fmt.printable(f"{m.model}: {m.runtime}, {m.device}"), style="dim") for m in evaluation.models]
    lines.append(Text(f"preprocessing: {fmt.printable(str(evaluation.data['preprocessing']))}", style="dim"))
    lines.append(Text(f"{len(evaluation.samples)} samples, {evaluation.task}; all of it is in {output}", style="dim"))
    return Group(evaluation_table(evaluation), Text(""), *lines)


def evaluation_table(evaluation: Evaluation) -> Table:
    """Return a table with a row per model; a positive drop is worse than the first model, whatever the metric.

    The columns that compare with the first model are left out where there is no other.
    """
    accuracy = evaluation.models[0].accuracy
    unit = fmt.drop_unit(accuracy.is_rate)
    headings = ["model", accuracy.metric]
    compared = [model.accuracy for model in evaluation.models if isinstance(model.accuracy, CandidateAccuracy)]
    if compared:  # all with one confidence
        headings += [f"drop, {unit}" if unit else "drop", f"{100 * compared[0].confidence:.4g}% interval"]
    agrees = any(model.agreement is not None for model in evaluation.models[1:])
    if agrees:
        headings.append(f"{accuracy.metric} against the first")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column(headings[0], overflow="fold")
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for model in evaluation.models:
        table.add_row(*map(Text, _cells(model, agrees)))
    return table


def _cells(model: ModelEvaluation, agrees: bool) -> list[str]:
    """Return the cells of a row; the first model is not compared with itself."""
    accuracy = model.accuracy
    cells = [fmt.printable(model.model), fmt.metric_value(accuracy.value, accuracy.is_rate)]
    if isinstance(accuracy, CandidateAccuracy):
        cells.append(fmt.drop(accuracy.drop, accuracy.is_rate))
        cells.append(fmt.interval(accuracy.ci_low, accuracy.ci_high, accuracy.is_rate))
        if agrees:
            value = model.agreement
            cells.append("" if value is None else fmt.metric_value(value, accuracy.is_rate))
    return cells
