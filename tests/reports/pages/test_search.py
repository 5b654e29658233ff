"""What the report and the terminal say of cost and of fallback's search."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import plotly.graph_objects as go  # type: ignore[import-untyped,unused-ignore]
import pytest
from rich.console import Console

from reports import format as fmt
from reports.figures import tradeoff as search_plots
from reports.pages import run as html
from reports.terminal import run as terminal
from validate.results import Cost, Results
from validate.results.pareto import FLOAT

Reader = Callable[[str], Any]
NOWHERE = Path("no/such/folder")  # a report is as well made of results alone
SCRIPT = "<script>alert(1)</script>"


def _text_of(source: str, read: Reader) -> str:
    text: str = read(source).text
    return text


def _sections(source: str) -> list[str]:
    return re.findall(r'<section id="([a-z]+)"', source)


def _with_cost(results: Results, basis: str, unit: str, scale: float = 1.0) -> Results:
    """Return the run with all costs of another kind."""

    def changed(record: Any) -> Any:
        cost = Cost(basis=basis, value=scale * record.cost.value, unit=unit, source="counted")  # type: ignore[arg-type]
        return record.model_copy(update={"cost": cost})

    return results.model_copy(
        update={"candidates": list(map(changed, results.candidates)), "pareto": list(map(changed, results.pareto))}
    )


def _printed(results: Results, width: int = 100) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(terminal.run_summary(results, Path("out"), None))
    return file.getvalue()


def test_an_estimate_is_called_one_wherever_it_is_shown(read: Reader, results: Results) -> None:
    text = _text_of(html.render_run_page(results, NOWHERE), read)
    assert "Cost in ms is an estimate and no measurement: roofline of an NVIDIA L4" in text
    assert "cost ms, estimate" in text
    assert search_plots.pareto_figure(results)["layout"]["xaxis"]["title"]["text"] == "ms, estimate"
    assert "est." in _printed(results)
    assert "ms, estimate: roofline of an NVIDIA L4" in _printed(results)


def test_a_measurement_is_not_called_an_estimate(read: Reader, results: Results) -> None:
    measured = _with_cost(results, "measured", "ms")
    page = html.render_run_page(measured, NOWHERE)
    section = page[page.index('id="speed"') : page.index("How many times as fast")]
    assert "estimate" not in section
    assert "Cost in ms is measured: counted." in section
    assert search_plots.pareto_figure(measured)["layout"]["xaxis"]["title"]["text"] == "ms, measured"
    assert "est." not in _printed(measured)


def test_every_model_is_a_row_with_its_cost(read: Reader, results: Results) -> None:
    text = _text_of(html.render_run_page(results, NOWHERE), read)
    for point in results.pareto:
        on_front = "yes" if point.on_front else "no"
        assert re.search(rf"{re.escape(point.name)} (selected )?{point.cost.value:.3f} .*? {on_front}", text)
    assert "float costs 1.97 x" in text


def test_speed_ups_say_how_they_are_known(read: Reader, results: Results) -> None:
    text = _text_of(html.render_run_page(results, NOWHERE), read)
    assert "FP16 1.31 yes estimate: roofline of an NVIDIA L4" in text
    assert "ONNX Runtime FP32 1.50 [1.44, 1.57] no measured: this CPU" in text


def test_trials_are_rows_with_what_came_of_them(read: Reader, results: Results) -> None:
    text = _text_of(html.render_run_page(results, NOWHERE), read)
    assert "percentile-99.99+1fp16 1 90.25% +4.00 [+1.00, +7.00] 120 stopped early missed 0.442" in text
    assert "percentile-99.99+5fp16 5 94.15% +0.10 [-0.50, +0.70] 400 met 0.562" in text
    assert "percentile-99.99+float selected 2 94.00% +0.25 [-0.46, +0.96] 400 met 0.472" in text


def test_search_says_its_target_its_work_and_its_end(read: Reader, results: Results) -> None:
    assert results.search is not None
    text = _text_of(html.render_run_page(results, NOWHERE), read)
    assert f"Target {results.search.target}" in text
    assert f"Why it ended {results.search.ended}" in text
    assert "5.9 passes over 32 calibration samples, 24 of which were used" in text
    assert "2.3 passes over 400 calibration samples that did not rank" in text
    assert "1 head/MatMul 0.0231 FP16" in text
    assert "3 blocks.1/Conv_10 0.00400 INT8" in text
    assert "20 of 41 layers" in text


def test_no_section_without_what_it_is_about(results: Results) -> None:
    assert {"speed", "search"} <= set(_sections(html.render_run_page(results, NOWHERE)))
    without = html.render_run_page(results.model_copy(update={"search": None, "pareto": results.pareto[:1]}), NOWHERE)
    assert not {"speed", "search"} & set(_sections(without))
    assert "#speed" not in without
    assert "plot-pareto" not in without


@pytest.mark.parametrize("missing", [{"search": None}, {"pareto": []}])
def test_either_section_stands_alone(results: Results, missing: dict[str, Any]) -> None:
    sections = _sections(html.render_run_page(results.model_copy(update=missing), NOWHERE))
    assert len({"speed", "search"} & set(sections)) == 1


def test_a_layer_called_script_is_text(read: Reader, results: Results) -> None:
    assert results.search is not None
    search = results.search.model_copy(update={"effects": {SCRIPT: 0.5}})
    source = html.render_run_page(results.model_copy(update={"search": search}), NOWHERE)
    page = read(source)
    assert f"1 {SCRIPT} 0.500 INT8" in page.text
    assert SCRIPT not in source
    assert len(page.scripts) == 3


def test_effects_that_are_no_number_have_no_bar_and_endless_ones_a_whole_one(results: Results) -> None:
    assert results.search is not None
    errors = {"a": math.inf, "b": 0.5, "c": 0.25, "d": 0.0, "e": math.nan}
    changed = results.model_copy(update={"search": results.search.model_copy(update={"effects": errors})})
    assert [effect.share for effect in html.effects(changed)] == [1.0, 1.0, 0.5, 0.0, 0.0]
    html.render_run_page(changed, NOWHERE)


@pytest.mark.parametrize("higher", [True, False])
def test_figure_has_front_margin_and_intervals_in_the_metric_s_direction(results: Results, higher: bool) -> None:
    accuracy = results.reference.accuracy.model_copy(update={"higher_is_better": higher})
    reference = results.reference.model_copy(update={"accuracy": accuracy})
    figure = search_plots.pareto_figure(results.model_copy(update={"reference": reference}))
    go.Figure(figure)
    traces = {trace["name"]: trace for trace in figure["data"]}
    best = [point for point in results.pareto if point.on_front]
    assert traces["front"]["x"] == [point.cost.value for point in best]
    assert traces["front"]["y"] == pytest.approx([100 * point.value for point in best])
    selected = traces["selected"]
    assert (selected["x"], selected["y"]) == ([pytest.approx(0.472)], [pytest.approx(94.0)])
    (line,) = figure["layout"]["shapes"]
    assert line["y0"] == line["y1"] == pytest.approx(93.25 if higher else 95.25)
    worst = max(results.candidates, key=lambda c: c.accuracy.drop)  # its drop has the bounds +1.65 and +5.85
    others = traces["not on the front"]
    row = others["y"].index(100 * worst.accuracy.value)
    bars = others["error_y"]["array"][row], others["error_y"]["arrayminus"][row]
    assert bars == (pytest.approx(2.1), pytest.approx(2.1))


def test_bars_of_a_lopsided_interval_reach_to_the_right_side(results: Results) -> None:
    lopsided = [
        point.model_copy(update={"ci_low": point.drop - 0.01, "ci_high": point.drop + 0.03}) for point in results.pareto
    ]
    figure = search_plots.pareto_figure(results.model_copy(update={"pareto": lopsided}))
    bars = figure["data"][-1]["error_y"]
    assert (bars["array"][0], bars["arrayminus"][0]) == (pytest.approx(1.0), pytest.approx(3.0))


def test_hover_has_all_that_is_known_of_a_model(results: Results) -> None:
    (selected,) = (trace for trace in search_plots.pareto_figure(results)["data"] if trace["name"] == "selected")
    (((hover,),),) = (selected["customdata"],)
    for fact in (
        "percentile-99.99+float",
        "0.472 ms, estimate",
        "94.00%",
        "drop +0.25",
        "85.00%",
        "10.9 MB",
        "9.91 ms",
    ):
        assert fact in hover


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_cannot_be_drawn_is_in_the_table_alone(read: Reader, results: Results, value: float) -> None:
    first = results.pareto[0].model_copy(update={"value": value, "ci_low": -value, "ci_high": value})
    changed = results.model_copy(update={"pareto": [first, *results.pareto[1:]]})
    drawn = sum(len(trace["x"]) for trace in search_plots.pareto_figure(changed)["data"] if trace["name"] != "front")
    assert drawn == len(results.pareto) - 1
    assert "n/a" in _text_of(html.render_run_page(changed, NOWHERE), read)


def test_costs_of_another_kind_are_not_on_the_same_axis(read: Reader, results: Results) -> None:
    other = Cost(basis="measured", value=0.1, unit="ms", source="an L4")
    changed = results.model_copy(
        update={"pareto": [results.pareto[0].model_copy(update={"cost": other}), *results.pareto[1:]]}
    )
    assert [point.name for point in search_plots.comparable(changed)] == [point.name for point in results.pareto[1:]]
    text = _text_of(html.render_run_page(changed, NOWHERE), read)
    assert "Costs that are known in different ways do not compare" in text
    assert "ms, measured" in text


def test_a_config_without_a_policy_has_no_margin(results: Results) -> None:
    figure = search_plots.pareto_figure(results.model_copy(update={"config": {}}))
    assert figure["layout"]["shapes"] == []


@pytest.mark.parametrize("width", [80, 100])
def test_terminal_says_what_the_search_did(results: Results, width: int) -> None:
    text = " ".join(_printed(results, width).split())
    assert "2 layers back to fp16, after 3 trials (1 stopped early): 5.9 passes over 32 samples" in text
    assert "search ended: no plan that is faster is left to try" in text
    assert "search ended" not in _printed(results.model_copy(update={"search": None}), width)


def test_table_fits_100_columns_whatever_the_cost_is(results: Results) -> None:
    macs = _with_cost(results, "multiply-accumulates", "INT8-equivalent MACs", 1e9)
    text = _printed(macs)
    (row,) = (line for line in text.splitlines() if line.startswith("*"))
    assert "472 M" in row
    assert "percentile-99.99+float" in row
    assert "MACs" in text
    (reference,) = (line for line in text.splitlines() if FLOAT in line)
    assert "930 M" in reference


Basis = Literal["measured", "estimate", "multiply-accumulates"]


@pytest.mark.parametrize(
    ("value", "unit", "basis", "expected"),
    [
        (0.4123, "ms", "estimate", "0.412 of ms, estimate"),
        (12.34, "ms", "measured", "12.3 of ms, measured"),
        (999.0, "MACs", "multiply-accumulates", "999 of MACs"),
        (1_816_000_000.0, "MACs", "multiply-accumulates", "1.816 G of MACs"),
        (2.5e15, "MACs", "multiply-accumulates", "2,500 T of MACs"),
    ],
)
def test_costs_are_written_with_their_basis(value: float, unit: str, basis: Basis, expected: str) -> None:
    cost = Cost(basis=basis, value=value, unit=unit, source="x")
    assert f"{fmt.cost(cost)} of {fmt.cost_unit(cost)}" == expected
