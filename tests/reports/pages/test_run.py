"""The HTML page: everything that a reader needs is in its text, and nothing in a name is obeyed."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped,unused-ignore]
import pytest

from reports.figures import run as plots
from reports.figures import tradeoff as search_plots
from reports.pages import run as html
from validate.results import Candidate, Decision, Results
from validate.results.fp16 import Fp16Check

NOWHERE = Path("no/such/folder")  # a report is as well made of results alone
HOSTILE = "</script><script>alert(1)</script>"
LINK = '<a href="https://example.com/">free</a>'

Reader = Callable[[str], Any]


def _renamed(candidate: Candidate, name: str) -> Candidate:
    """Return the candidate with `name` as that of its worst layer and of what fallback put back."""
    worst = html.sorted_layers(candidate)[0]
    layers = [
        layer.model_copy(update={"node": name, "op_type": name, "tensor": name}) if layer == worst else layer
        for layer in candidate.layers
    ]
    return candidate.model_copy(update={"layers": layers, "float_layers": [name]})


def _hostile(results: Results, name: str) -> Results:
    """Return a run in which everything that somebody else may have written is `name`."""
    candidates = [_renamed(candidate, name) for candidate in results.candidates]
    candidates[0] = candidates[0].model_copy(
        update={
            "name": name,
            "strategy": name,
            "latency": None,
            "latency_reason": name,
            "tensorrt_build": candidates[0].tensorrt_build.model_copy(update={"message": f"{name}\n{name}"}),
        }
    )
    assert results.search is not None
    cost = results.pareto[0].cost.model_copy(update={"source": name})
    trials = [trial.model_copy(update={"name": name, "float_layers": [name]}) for trial in results.search.trials]
    said = {"target": name, "ended": name, "precision": name, "effects": {name: 0.1}, "trials": trials}
    return results.model_copy(
        update={
            "candidates": candidates,
            "search": results.search.model_copy(update=said),
            "pareto": [point.model_copy(update={"name": name, "cost": cost}) for point in results.pareto],
            "task": name,
            "command": name,
            "warnings": [name],
            "environment": {name: name},
            "data": {name: {name: [name]}},
            "config": {name: name},
            "model": results.model.model_copy(update={"path": name}),
            "verdict": results.verdict.model_copy(update={"reasons": [name]}),
        }
    )


def test_page_is_whole_in_itself_and_small(read: Reader, results: Results, folder: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    html.write_run_page(results, folder / "report.html")
    source = (folder / "report.html").read_text(encoding="utf-8")
    assert len(source) < 8_000_000
    assert {path.name for path in folder.iterdir()} == before | {"report.html"}
    page = read(source)
    loading = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action")]
    assert all(value.startswith(("#", "data:")) for value in loading)
    assert any(value.startswith("data:image/jpeg") for value in loading)
    assert "url(" not in source[: source.index("</style>")]


def test_policy_permits_the_page_s_own_scripts_and_no_connection(read: Reader, results: Results) -> None:
    page = read(html.render_run_page(results, NOWHERE))
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and "script-src" in value)
    _, *scripts = page.scripts
    assert len(scripts) == 2
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in re.search(r"script-src[^;]*", policy)[0]  # type: ignore[index]


def test_same_results_give_the_same_page(results: Results) -> None:
    assert html.render_run_page(results, NOWHERE) == html.render_run_page(
        Results.model_validate_json(results.model_dump_json()), NOWHERE
    )


@pytest.mark.parametrize(
    ("decision", "word"),
    [(Decision.GO, "GO"), (Decision.NO_GO, "NO-GO"), (Decision.INCONCLUSIVE, "INCONCLUSIVE")],
)
def test_verdict_comes_first(read: Reader, results: Results, decision: Decision, word: str) -> None:
    verdict = results.verdict.model_copy(update={"decision": decision})
    source = html.render_run_page(results.model_copy(update={"verdict": verdict}), NOWHERE)
    assert f"<h1>{word}</h1>" in source
    assert f"<title>{word}: ch_PP-OCRv4_rec_infer.onnx</title>" in source
    text = read(source).text
    for reason in verdict.reasons:
        assert text.index(reason) < text.index("Candidates")
    for row in (
        "pass max_drop 0.0025 0.01 upper bound 0.96 pp, allowed 1.00 pp",
        "pass tensorrt_build - - tensorrt_rtx 1.4.0.76 builds it",
        "not measured optional min_speedup - 1.2 no GPU here",
    ):
        assert row in text


def test_text_has_every_part(read: Reader, results: Results) -> None:
    text = read(html.render_run_page(results, NOWHERE)).text
    assert results.command in text
    assert all(warning in text for warning in results.warnings)
    assert all(candidate.name in text for candidate in results.candidates)
    assert all(f"{key} {value}" in text for key, value in results.environment.items())
    assert "94.25% on 400 samples" in text
    assert "94.00% +0.25 [-0.46, +0.96] - 50 15 3 10.9 MB 9.91 1.50 x float speed yes" in text
    assert "tensorrt_rtx 1.4.0.76" in text
    assert "min_samples: 200" in text  # config
    assert "samples 400 digest c3c3" in text  # data
    assert "fallback 21 1,344" in text  # forward passes
    assert "evaluate 2 min 09 s" in text  # timings
    assert "89.25% -1.25 +5.00 [+2.90, +7.10]" in text  # integer kernels


def test_agreement_is_not_called_accuracy_and_preprocessing_is_said(read: Reader, results: Results) -> None:
    text = read(html.render_run_page(results, NOWHERE)).text
    assert "Preprocessing resized to 48 rows, (x - 127.5) / 127.5" in text
    assert "agreement" not in text
    accuracy = results.reference.accuracy.model_copy(update={"is_agreement": True})
    changed = results.model_copy(update={"reference": results.reference.model_copy(update={"accuracy": accuracy})})
    assert "it is agreement with the float model, and not accuracy" in read(html.render_run_page(changed, NOWHERE)).text


def test_what_fp16_costs_alone_is_said(read: Reader, results: Results) -> None:
    assert "Before INT8" not in read(html.render_run_page(results, NOWHERE)).text
    check = Fp16Check(
        precision="fp16",
        metric="top1",
        drop=0.14,
        drop_after=0.0,
        samples=128,
        fp32_nodes=["<sin>"],
        evaluations=9,
        misses=False,
        message="FP16 alone costs 14 points, and 0 with 1 more node in FP32 (<sin>)",
    )
    text = read(html.render_run_page(results.model_copy(update={"fp16": check}), NOWHERE)).text
    assert f"Before INT8 {check.message}" in text


def test_latency_that_was_not_measured_says_why(read: Reader, results: Results) -> None:
    text = read(html.render_run_page(results, NOWHERE)).text
    assert "Latency not measured for mse: the TensorRT build failed, so there is no engine to time" in text
    assert "CPU latency says nothing about the GPU" in text


def test_fallback_shows_what_its_layers_were_like_in_int8(results: Results) -> None:
    assert results.selected is not None
    first, second = html.float_layers(results, results.candidate(results.selected))
    assert [first.node, second.node] == results.candidate(results.selected).float_layers
    for layer in (first, second):
        assert layer.precision == "fp16"
        assert layer.int8_candidate == "percentile-99.99"  # of the same strategy, though minmax comes first
        assert layer.sqnr_db is not None
        assert layer.int8_sqnr_db is not None
        assert layer.sqnr_db > layer.int8_sqnr_db


def test_what_was_never_quantized_is_told_from_fallback(results: Results) -> None:
    assert results.selected is not None
    candidate = results.candidate(results.selected)
    rest = html.unquantized(candidate)
    assert {operator for _, operator, _ in rest} == {"HardSwish", "Softmax"}
    in_float = sum(layer.precision != "int8" for layer in candidate.layers)
    assert sum(number for _, _, number in rest) + len(candidate.float_layers) == in_float


def test_layers_are_lowest_first_and_what_has_no_number_is_last(results: Results) -> None:
    layers = html.sorted_layers(results.candidates[0])
    assert len(layers) == len(results.candidates[0].layers)
    assert {str(layer.sqnr_db) for layer in layers[-2:]} == {"nan", "-inf"}
    levels = [layer.sqnr_db for layer in layers[:-2]]
    assert levels == sorted(levels)
    assert levels[-1] == math.inf


def test_figures_are_what_plotly_takes(results: Results) -> None:
    for figure in (plots.drop_figure(results), plots.sqnr_figure(results), search_plots.pareto_figure(results)):
        go.Figure(figure)  # refuses what plotly does not know
        json.dumps(figure, allow_nan=False)


def test_layers_without_a_finite_sqnr_are_gaps(results: Results) -> None:
    *accumulated, isolated = plots.sqnr_figure(results)["data"]
    assert isolated["name"] == f"{results.selected}, isolated"
    for trace, candidate in zip(accumulated, results.candidates, strict=True):
        gaps = {depth for depth, level in zip(trace["x"], trace["y"], strict=True) if level is None}
        assert gaps == {layer.depth for layer in candidate.layers if not math.isfinite(layer.sqnr_db)} == {0, 20, 31}
        assert trace["connectgaps"] is False
        assert trace["visible"] == (True if candidate.name == results.selected else "legendonly")


def test_drop_figure_has_its_zero_and_every_interval(results: Results) -> None:
    figure = plots.drop_figure(results)
    axis = figure["layout"]["xaxis"]
    assert axis["zeroline"]
    assert axis["range"][0] < 0 < axis["range"][1]
    selected, others, integer = figure["data"]
    assert len(selected["x"]) == 1
    assert len(others["x"]) == len(results.candidates) - 1
    assert len(integer["x"]) == 2
    assert selected["x"][0] == pytest.approx(0.25)  # percentage points
    assert selected["error_x"]["array"][0] == pytest.approx(0.71)


@pytest.mark.parametrize("bound", [math.nan, math.inf])
def test_an_interval_without_end_is_no_error(read: Reader, results: Results, bound: float) -> None:
    accuracy = results.candidates[0].accuracy.model_copy(update={"ci_low": -bound, "ci_high": bound})
    candidate = results.candidates[0].model_copy(update={"accuracy": accuracy})
    changed = results.model_copy(update={"candidates": [candidate], "selected": candidate.name})
    go.Figure(plots.drop_figure(changed))
    assert "+3.75" in read(html.render_run_page(changed, NOWHERE)).text


@pytest.mark.parametrize("name", [HOSTILE, LINK, "a & b", "{{ 7 * 7 }}", "%{x}", "'\"", "line\u2028feed", "<!--"])
def test_hostile_names_are_text(read: Reader, results: Results, name: str) -> None:
    source = html.render_run_page(_hostile(results, name), NOWHERE)
    page = read(source)
    shown = name.replace("\u2028", "\\u2028")
    for part in (
        "may be released.",
        "Candidates",
        "Accuracy against speed",
        "Trials, in order",
        f"Layers of {results.selected}",
        "Environment",
    ):
        assert shown in page.text[page.text.index(part) :]
    assert len(page.scripts) == 3
    assert not any("alert(1)" in script for script in page.scripts[1:])
    assert json.loads(page.scripts[0])
    assert not any("example.com" in value for _, name, value in page.attributes if name == "href")


def test_figures_draw_names_as_text_too(results: Results) -> None:
    # plotly obeys <b>, <a href> and more in all that it draws.
    hostile = _hostile(results, LINK)
    figures = plots.drop_figure(hostile), plots.sqnr_figure(hostile), search_plots.pareto_figure(hostile)
    assert "<a" not in json.dumps(figures)
    assert "&lt;a href" in json.dumps(figures)


def test_control_characters_are_shown_as_escapes(read: Reader, results: Results) -> None:
    text = read(html.render_run_page(_hostile(results, "a\x00b\x1b[2J\u202e"), NOWHERE)).text
    assert r"a\x00b\x1b[2J\u202e" in text


def test_no_candidates(read: Reader, results: Results) -> None:
    changed = results.model_copy(update={"candidates": [], "selected": None, "warnings": []})
    assert "There are no candidates." in read(html.render_run_page(changed, NOWHERE)).text


def test_large_model_stays_below_the_limit(build_results: Any) -> None:
    assert len(html.render_run_page(build_results(layers=2000), NOWHERE)) < 8_000_000


def test_page_without_its_side_files_says_what_it_cannot_show(read: Reader, results: Results) -> None:
    text = read(html.render_run_page(results, NOWHERE)).text
    assert "There is no samples.parquet beside the results" in text
    assert "There is no illustrations.json beside the results" in text


def test_illustrations_of_another_run_are_not_shown(read: Reader, results: Results, folder: Path) -> None:
    assert "What the strategies clip" in read(html.render_run_page(results, folder)).text
    other = results.model_copy(update={"selected": "minmax"})
    text = read(html.render_run_page(other, folder)).text
    assert "illustrations.json beside the results is about another candidate" in text
    assert "What the strategies clip" not in text
    (folder / "illustrations.json").write_text('{"plan_hash": 3}', encoding="utf-8")
    assert "illustrations.json holds no illustrations: plan_hash" in read(html.render_run_page(results, folder)).text


def test_side_files_become_tables(read: Reader, results: Results, folder: Path) -> None:
    text = read(html.render_run_page(results, folder)).text
    assert f"Of 400 validation samples, {results.selected} scores 4 worse than the float model and 0 better" in text
    assert "c3 50 94.00% 86.00% +8.00 4 0 c0 50" in text  # what lost most is first
    assert "percentile-99.99 61 31.00% median 2.00% 7.75%" in text  # convergence
    assert "minmax 12.8 0 largest |x| 12.8" in text  # thresholds
    assert "tench night sample 17: score 1 -> 0" in text.replace("\N{RIGHTWARDS ARROW}", "->")
    assert "what a text input says" in text
