"""The page about a comparison: all that it says is in its text, and nothing in a name is obeyed."""

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

from reports.figures import comparison as compare_plots
from reports.pages import comparison as compare_html
from validate.layerwise.comparison import (
    Comparison,
    Execution,
    Histogram,
    LayerDifference,
    QuantizedInput,
    RuntimeDifference,
    TensorDifference,
    Unpaired,
)
from validate.layerwise.thresholds import Limits, Thresholds, judge

HOSTILE = "</script><script>alert(1)</script>"
LINK = '<a href="https://example.com/">free</a>'
Reader = Callable[[str], Any]
Visit = Callable[..., Any]
THRESHOLDS = Thresholds(isolated=Limits(min_sqnr_db=12.0), accumulated=Limits(max_growth_db=12.0))
FAULT, LOST = 9, 20
"""Depth of the layer with a scale that is too small, and of the one that holds NaN."""


def _difference(sqnr_db: float, problem: str | None = None) -> TensorDifference:
    noise = 10 ** (-sqnr_db / 20)
    return TensorDifference(
        elements=4096,
        sqnr_db=sqnr_db,
        cosine=math.nan if problem else 1 - noise**2 / 2,
        relative_l2=noise,
        max_abs=4 * noise,
        mean_abs=noise,
        match_share=float(sqnr_db == math.inf),
        reference_not_finite=0,
        other_not_finite=3 if problem else 0,
        first_not_finite=(0, 5) if problem else None,
        problem=problem,
    )


def _quantized(tensor: str, clipped: float = 0.0002, histogram: bool = True) -> QuantizedInput:
    counts = [int(1000 * math.exp(-i / 20)) for i in range(128)]
    return QuantizedInput(
        tensor=tensor,
        scale=0.0123,
        low=-1.57,
        high=1.56,
        clipped_share=clipped,
        amax=2.5,
        histogram=Histogram(width=0.02, counts=counts) if histogram else None,
    )


def _layer(depth: int, name: str, runtime: bool, isolated: bool) -> LayerDifference:
    accumulated, own, growth, problem, clipped = 44.0 - depth / 4, 38.0, 0.3, None, 0.00002
    if depth == 0:
        accumulated = own = math.inf
    if depth == FAULT:
        accumulated, own, growth, clipped = 5.5, 4.4, 29.4, 0.35
    if depth == LOST:
        accumulated, own, growth = math.nan, math.nan, math.inf
        problem = "it holds NaN or infinity (3 in the candidate), first in sample 0 at flat index 5"
    if depth == LOST + 1:
        accumulated = -math.inf
    return LayerDifference(
        tensor=name,
        candidate_tensor=name,
        node=f"node_{name}",
        op_type="Conv" if depth % 2 else "Add",
        depth=depth,
        precision="int8" if depth % 3 else "fp16",
        inputs=[],
        quantized_inputs=[_quantized(f"{name}_in{i}", clipped) for i in range(1 + depth % 2)],
        accumulated=_difference(accumulated, problem),
        growth_db=growth,
        isolated=_difference(own, problem) if isolated else None,
        runtime=RuntimeDifference(
            difference=_difference(math.inf if depth < 3 else 60.0 - depth),
            floor_db=58.0 - depth,
            excess_db=-2.0,
            excess_low_db=-3.0,
        )
        if runtime
        else None,
    )


def _comparison(
    layers: int = 50, runtime: bool = True, isolated: bool = True, name: str = "layer{}", other: str = "release"
) -> Comparison:
    """Return a comparison of which layers `FAULT` and `LOST` fail; `other` is in all that is not a layer's."""
    return Comparison(
        created="2026-11-24T09:27:38+00:00",
        command=f"python -m validate compare float.onnx {other}.onnx --data lines.npz",
        reference=Execution(model="float.onnx", runtime="onnxruntime 1.32.0 (float arithmetic)", device="AMD EPYC"),
        candidate=Execution(model=other, runtime="onnxruntime 1.32.0 (float arithmetic)", device=other),
        runtime=Execution(model="integer", runtime=other, device="AMD EPYC (with VNNI)") if runtime else None,
        samples=8,
        passes=6,
        layers=[_layer(depth, name.format(depth), runtime, isolated) for depth in range(layers)],
        unpaired=[
            *(
                Unpaired(tensor=f"{other}_{i}", node=f"{other}_fused_{i}", side="reference", reason=f"fused: {other}")
                for i in range(40)
            ),
            Unpaired(tensor="extra", node="", side="candidate", reason="the reference has no tensor of this name"),
        ],
        isolated_reason=None if isolated else f"{other} runs whole only",
        environment={"onnxruntime": "1.32.0", other: other},
    )


def _render(comparison: Comparison, thresholds: Thresholds = THRESHOLDS) -> str:
    return compare_html.render_comparison_page(comparison, judge(comparison, thresholds), thresholds)


def _figures(comparison: Comparison) -> list[dict[str, Any]]:
    failures = {verdict.tensor: verdict.failures for verdict in judge(comparison, THRESHOLDS).layers}
    depth, _ = compare_plots.depth_figure(comparison, failures, THRESHOLDS)
    inputs = compare_html.worst_inputs(compare_html.ranked(comparison.layers), 6)
    return [depth, *(compare_plots.input_figure(quantized) for _, quantized in inputs)]


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return _comparison()


@pytest.fixture(scope="module")
def source(comparison: Comparison) -> str:
    return _render(comparison)


def test_page_is_whole_in_itself_and_small(read: Reader, comparison: Comparison, tmp_path: Path) -> None:
    compare_html.write_comparison_page(
        comparison, judge(comparison, THRESHOLDS), THRESHOLDS, tmp_path / "comparison.html"
    )
    source = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert len(source) < 8_000_000
    assert [path.name for path in tmp_path.iterdir()] == ["comparison.html"]
    loading = [value for _, name, value in read(source).attributes if name in ("src", "href", "srcset", "action")]
    assert all(value.startswith(("#", "data:")) for value in loading)
    assert "url(" not in source[: source.index("</style>")]


def test_policy_permits_the_page_s_own_scripts_and_no_connection(read: Reader, source: str) -> None:
    page = read(source)
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and "script-src" in value)
    _, *scripts = page.scripts
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(x.encode()).digest()).decode()}'" for x in scripts]
    assert "default-src 'none'" in policy
    assert sorted(re.search(r"script-src ([^;]*)", policy)[1].split()) == sorted(hashes)  # type: ignore[index]


def test_same_comparison_gives_the_same_page(comparison: Comparison, source: str) -> None:
    assert source == _render(Comparison.model_validate_json(comparison.model_dump_json()))


def test_links_within_the_page_lead_somewhere(read: Reader, source: str) -> None:
    page = read(source)
    targets = {value for _, name, value in page.attributes if name == "id"}
    links = {value[1:] for _, name, value in page.attributes if name == "href" and value.startswith("#")}
    assert links <= targets
    assert {value.removeprefix("plot-") for value in targets if value.startswith("plot-")} == set(
        json.loads(page.scripts[0])
    )


def test_verdict_comes_first(read: Reader, comparison: Comparison, source: str) -> None:
    assert "<title>FAIL: release against float.onnx</title>" in source
    text = read(source).text
    said = text[: text.index("Layers that fail")]
    assert "2 of 50 layers fail, the first is node_layer9." in said
    assert "Most error is made by node_layer20 (Add)" in said
    passing = _comparison(layers=FAULT)
    assert "<h1>PASS</h1>" in _render(passing)
    assert "all 9 layers are within the thresholds" in read(_render(passing)).text.lower()


def test_every_failure_is_named_with_its_layer(read: Reader, comparison: Comparison) -> None:
    strict = Thresholds(isolated=Limits(min_sqnr_db=39.0))
    judgement = judge(comparison, strict)
    assert len(judgement.layers) > 40
    text = read(_render(comparison, strict)).text
    for verdict in judgement.layers:
        assert f"fail {verdict.node} {verdict.failures[0]}" in text


def test_table_has_the_numbers_of_the_worst_layers(read: Reader, comparison: Comparison, source: str) -> None:
    text = read(source).text
    table = text[text.index("scale node_") : text.index("Those that fail first, and within them")]
    fault = table[table.index("node_layer9 ") :]
    assert fault.startswith(
        "node_layer9 fails Conv, FP16, depth 9 4.4 5.5 +29.4 0.859081 0.531 2.12 51.0 49.0 35.00%35.00% 0.01230.0123"
    )
    assert table.count("depth") == compare_html.WORST
    assert table.index("node_layer20") < table.index("node_layer9 ") < table.index("node_layer1 ")


def test_what_could_not_be_computed_says_why(read: Reader, source: str) -> None:
    text = read(source).text
    row = text[text.index("node_layer20 fails Add, INT8, depth 20") :]
    problem = "it holds NaN or infinity (3 in the candidate), first in sample 0 at flat index 5"
    assert row.startswith(
        f"node_layer20 fails Add, INT8, depth 20 accumulated and isolated: {problem} n/a n/a lost n/a n/a n/a 40.0 38.0"
    )


def test_all_unpaired_tensors_are_listed_by_side_and_reason(read: Reader, comparison: Comparison, source: str) -> None:
    text = read(source).text
    listed = text[text.index("Tensors that were not compared") :]
    assert "40 of the reference: fused: release" in listed
    assert "1 of the candidate: the reference has no tensor of this name" in listed
    for tensor in comparison.unpaired:
        assert f" {tensor.tensor} " in listed
    groups = compare_html.unpaired_groups(comparison.unpaired)
    assert sum(len(tensors) for _, _, tensors in groups) == len(comparison.unpaired)


def test_executions_thresholds_environment_and_command(read: Reader, comparison: Comparison, source: str) -> None:
    text = read(source).text
    assert "Reference float.onnx onnxruntime 1.32.0 (float arithmetic) on AMD EPYC" in text
    assert "Runtime, which executes the candidate integer release on AMD EPYC (with VNNI)" in text
    assert "min_sqnr_db: 12.0" in text
    assert "onnxruntime 1.32.0 release release" in text
    assert comparison.command in text


def test_without_a_runtime_and_without_an_isolated_view(read: Reader) -> None:
    text = read(_render(_comparison(runtime=False, isolated=False))).text
    assert "No isolated view: release runs whole only." in text
    assert "after which error grows most." in text
    assert "beyond rounding" not in text
    assert "Runtime" not in text


def test_nothing_compared_is_a_page_too(read: Reader) -> None:
    text = read(_render(_comparison(layers=0))).text
    assert "FAIL No layer of release was compared. Nothing was compared." in text
    assert "release_39" in text


def test_figures_are_what_plotly_takes(comparison: Comparison) -> None:
    figures = _figures(comparison)
    assert len(figures) == 1 + compare_html.HISTOGRAMS
    for figure in [*figures, *_figures(_comparison(layers=0)), *_figures(_comparison(runtime=False))]:
        go.Figure(figure)  # refuses what plotly does not know
        json.dumps(figure, allow_nan=False)


def test_exact_layers_are_at_the_top_and_those_without_a_number_at_the_bottom(comparison: Comparison) -> None:
    figure = _figures(comparison)[0]
    line, edge = (trace for trace in figure["data"] if trace["name"] == "accumulated")
    assert {x for x, y in zip(line["x"], line["y"], strict=True) if y is None} == {0, LOST, LOST + 1} == set(edge["x"])
    level = dict(zip(edge["x"], edge["y"], strict=True))
    finite = [y for y in line["y"] if y is not None]
    assert level[0] > max(finite)
    assert level[LOST] == level[LOST + 1] < min(finite)
    low, high = figure["layout"]["yaxis"]["range"]
    assert low < level[LOST] < level[0] < high
    labels = {label["text"]: label["y"] for label in figure["layout"]["annotations"] if label["yref"] == "y"}
    assert labels["exact"] == level[0]
    assert labels["could not be computed"] == level[LOST]
    assert "accumulated: zero in the reference" in line["hovertext"][LOST + 1]


def test_failing_layers_are_ringed_and_hovers_say_all(comparison: Comparison) -> None:
    figure = _figures(comparison)[0]
    rings = next(trace for trace in figure["data"] if trace["name"] == "fails")
    assert rings["x"] == [FAULT, LOST]
    for part in (
        "node_layer9",
        "Conv, FP16",
        "isolated: 4.4 dB",
        "layer9_in1: scale 0.0123, 35.00% clipped",
        "fails: ",
    ):
        assert part in rings["hovertext"][0]


def test_boxes_show_the_traces_that_they_name(comparison: Comparison) -> None:
    figure, traces = compare_plots.depth_figure(comparison, {}, THRESHOLDS)
    assert [trace.name for trace in traces] == [
        "accumulated",
        "isolated",
        "runtime against simulation",
        "floor of rounding",
    ]
    for trace in traces:
        assert {figure["data"][i]["name"] for i in trace.indices} == {trace.name}


def test_histogram_marks_where_clipping_begins() -> None:
    figure = compare_plots.input_figure(_quantized("x"))
    assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [1.57]
    colours = figure["data"][0]["marker"]["color"]
    assert colours.index(colours[-1]) == math.ceil(1.57 / 0.02)
    uneven = _quantized("x").model_copy(update={"low": -0.5, "high": 2.6})
    assert [x["x0"] for x in compare_plots.input_figure(uneven)["layout"]["shapes"]] == [2.6, 0.5]
    half = _quantized("x").model_copy(update={"low": -0.006, "high": 3.1})
    assert [x["x0"] for x in compare_plots.input_figure(half)["layout"]["shapes"]] == [3.1]


def test_histogram_is_of_the_input_that_is_clipped_most(comparison: Comparison) -> None:
    layer = comparison.layers[1].model_copy(
        update={"quantized_inputs": [_quantized("a", math.nan), _quantized("b", 0.1), _quantized("c", 0.2, False)]}
    )
    assert [quantized.tensor for _, quantized in compare_html.worst_inputs([layer], 6)] == ["b"]


@pytest.mark.parametrize("name", [HOSTILE, LINK, "a & b", "{{ 7 * 7 }}", "%{x}", "'\"", "line\u2028feed", "<!--"])
def test_hostile_names_are_text(read: Reader, name: str) -> None:
    source = _render(_comparison(layers=25, name=name.replace("{", "{{").replace("}", "}}") + "{}", other=name))
    page = read(source)
    shown = name.replace("\u2028", "\\u2028")
    for part in ("FAIL", "Layers that fail", "What was compared", "Worst layers", "not compared", "Environment"):
        assert shown in page.text[page.text.index(part) :]
    assert len(page.scripts) == 3
    assert not any("alert(1)" in script for script in page.scripts[1:])
    assert json.loads(page.scripts[0])
    assert not any("example.com" in value for _, name, value in page.attributes if name == "href")


def test_figures_draw_names_as_text_too() -> None:
    # plotly obeys <b>, <a href> and more in all that it draws.
    drawn = json.dumps(_figures(_comparison(name=LINK + "{}")))
    assert "<a" not in drawn
    assert "&lt;a href" in drawn


def test_control_characters_are_shown_as_escapes(read: Reader) -> None:
    text = read(_render(_comparison(name="a\x00b\x1b[2J\u202e{}"))).text
    assert r"node_a\x00b\x1b[2J\u202e9" in text


def test_large_model_stays_below_the_limit() -> None:
    assert len(_render(_comparison(layers=2000))) < 10_000_000


@pytest.mark.parametrize("name", [None, HOSTILE])
def test_browser_draws_the_page_without_a_complaint(
    read: Reader, visit: Visit, comparison: Comparison, name: str | None, tmp_path: Path
) -> None:
    shown = comparison if name is None else _comparison(name=name + "{}", other=name)
    (tmp_path / "comparison.html").write_text(_render(shown), encoding="utf-8")
    tab = visit(tmp_path / "comparison.html")
    assert tab.locator("path.point").count() > 150
    assert tab.locator("g.trace.bars").count() == compare_html.HISTOGRAMS
    document = tab.content()
    assert "alert(1)" not in "".join(read(document).scripts[1:])
    if name is not None:
        assert name in read(document).text


def test_page_fits_a_narrow_screen_and_its_boxes_hide_a_view(visit: Visit, source: str, tmp_path: Path) -> None:
    (tmp_path / "comparison.html").write_text(source, encoding="utf-8")
    tab = visit(tmp_path / "comparison.html", viewport={"width": 360, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    traces = tab.locator("#plot-depth .scatterlayer .trace")
    before = traces.count()
    tab.locator("#traces input").first.uncheck()
    assert traces.count() == before - 2
