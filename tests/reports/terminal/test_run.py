"""What the command line prints: everything is there at any width, and nothing in a name is obeyed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from reports import format as fmt
from reports.terminal import run as terminal
from validate.results import Decision, Results, Verdict

HINT = "mlflow ui --backend-store-uri sqlite:///mlflow.db"


def _print(renderable: RenderableType, width: int, colour: bool = False) -> str:
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=colour, legacy_windows=False).print(renderable)
    return file.getvalue()


def _verdict(decision: Decision) -> Verdict:
    return Verdict(decision=decision, reasons=["It was [bold]measured[/bold]."], rules=[])


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("decision", list(Decision))
def test_summary_names_every_candidate_and_the_decision(results: Results, width: int, decision: Decision) -> None:
    text = _print(
        terminal.run_summary(results.model_copy(update={"verdict": _verdict(decision)}), Path("runs/ppocr"), HINT),
        width,
    )
    assert all(candidate.name in text for candidate in results.candidates)
    assert decision.value.replace("_", "-") in text
    assert "[bold]measured[/bold]" in text
    assert max(map(len, text.splitlines())) <= width


def test_summary_says_where_to_look_next(results: Results) -> None:
    text = _print(terminal.run_summary(results, Path("runs/ppocr"), HINT), 80)
    assert str(Path("runs/ppocr/report.html")) in text
    assert "2 warnings" in text
    assert HINT in text


def test_summary_without_tracking_names_no_runs(results: Results) -> None:
    assert "mlflow" not in _print(terminal.run_summary(results, Path("out"), None), 80)


def test_table_shows_a_rate_in_percent_and_its_drop_in_points(results: Results) -> None:
    rows = _print(terminal.candidates_table(results), 100).splitlines()
    selected = next(row for row in rows if row.startswith("*"))
    assert selected.split() == [
        "*",
        results.selected,
        "94.00%",
        "+0.25",
        "[-0.46,",
        "+0.96]",
        "50/15/3",
        "0.472",
        "9.91",
        "yes",
    ]


def test_table_says_what_the_latency_is_the_latency_of(results: Results) -> None:
    text = " ".join(_print(terminal.candidates_table(results), 80).split())
    assert "Intel(R) Xeon(R) Platinum 8488C (2 cores), batch 1" in text
    assert "CPU latency says nothing about the GPU" in text


@pytest.mark.parametrize("width", [40, 80])
def test_numbers_are_never_folded(results: Results, width: int) -> None:
    long = results.candidates[0].model_copy(update={"name": "n" * 60})
    text = _print(terminal.candidates_table(results.model_copy(update={"candidates": [long]})), max(width, 64))
    assert "+3.75 [+1.65, +5.85]" in text
    assert text.count("n") >= 60  # folded, not cut


def test_markup_and_terminal_escapes_in_names_are_shown_and_not_obeyed(results: Results) -> None:
    hostile = results.candidates[0].model_copy(update={"name": "[red]x[/]\x1b[2J\u202e"})
    changed: dict[str, Any] = {
        "candidates": [hostile],
        "selected": hostile.name,
        "verdict": _verdict(Decision.GO),
    }
    text = _print(terminal.run_summary(results.model_copy(update=changed), Path("out"), None), 120, colour=True)
    assert "\x1b[2J" not in text
    assert "\u202e" not in text
    assert r"[red]x[/]\x1b[2J\u202e may be released." in text


def test_no_candidates(results: Results) -> None:
    changed: dict[str, Any] = {
        "candidates": [],
        "selected": None,
        "verdict": _verdict(Decision.NO_GO),
    }
    text = _print(terminal.run_summary(results.model_copy(update=changed), Path("out"), None), 80)
    assert "NO-GO" in text
    assert "No candidate may be released." in text


def _measured(results: Results, **changes: object) -> Results:
    """Return the run with the accuracies of all candidates and of the reference changed."""
    candidates = [
        candidate.model_copy(update={"accuracy": candidate.accuracy.model_copy(update=changes)})
        for candidate in results.candidates
    ]
    accuracy = results.reference.accuracy.model_copy(update=changes)
    reference = results.reference.model_copy(update={"accuracy": accuracy})
    return results.model_copy(update={"candidates": candidates, "reference": reference})


@pytest.mark.parametrize("is_rate", [True, False])
def test_only_a_rate_is_shown_in_percent(results: Results, is_rate: bool) -> None:
    changed = _measured(results, is_rate=is_rate)
    assert ("%" in _print(terminal.candidates_table(changed), 80)) is is_rate


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (fmt.metric_value(0.9425, True), "94.25%"),
        (fmt.metric_value(12.3456, False), "12.35"),
        (fmt.metric_value(float("nan"), True), "n/a"),
        (fmt.drop(-0.00001, True), "0.00"),  # neither better nor worse
        (fmt.drop(-0.0123, True), "-1.23"),
        (fmt.drop(0.01234, False), "+0.0123"),
        (fmt.interval(-0.001, 0.02, True), "[-0.10, +2.00]"),
        (fmt.milliseconds(0.41234), "0.412"),
        (fmt.milliseconds(1234.5), "1,234"),
        (fmt.seconds(99.96), "1 min 40 s"),
        (fmt.seconds(3725), "1 h 02 min"),
        (fmt.size(999), "999 B"),
        (fmt.size(999_960), "1.0 MB"),
        (fmt.decibels(float("inf")), "exact"),
        (fmt.decibels(float("-inf")), "n/a"),
        (fmt.decibels(-0.04), "0.0"),
        (fmt.level(31.24), "31.2 dB"),
        (fmt.level(float("inf")), "exact"),
        (fmt.level(float("nan")), "could not be computed"),
        (fmt.level(float("-inf")), "zero in the reference"),
        (fmt.growth(29.44), "+29.4"),
        (fmt.growth(float("inf")), "lost"),
        (fmt.share(0.0), "0"),
        (fmt.share(0.00002), "<0.01%"),
        (fmt.share(0.35567), "35.57%"),
        (fmt.share(float("nan")), "n/a"),
        (fmt.significant(0.00012345), "0.000123"),
        (fmt.timestamp("2026-11-23T22:27:38+01:00"), "2026-11-23 21:27 UTC"),
        (fmt.timestamp("yesterday"), "yesterday"),
        (fmt.file_name(r"C:\models\net.onnx"), "net.onnx"),
        (fmt.shorten("abcdefghij", 7), "ab...ij"),
    ],
)
def test_numbers_and_words(written: str, expected: str) -> None:
    assert written == expected
