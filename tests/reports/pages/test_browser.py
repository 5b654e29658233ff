"""The report in a real browser: as a release engineer reads it, with mouse, keyboard or phone."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from reports.pages import run as html
from validate.results import Decision, Results
from validate.results.illustrations import ILLUSTRATIONS, Illustrations

SCRIPT = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
Visit = Callable[..., Any]

CONTRASTS = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const painted = (...colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => rgb.map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.unshift(getComputedStyle(e).backgroundColor);
    return layers;
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.checkVisibility() || element.closest("script, .modebar")) continue;
    const style = getComputedStyle(element);
    const colour = element.closest("svg") ? style.fill : style.color;
    const [a, b] = [luminance(painted(...behind(element))), luminance(painted(...behind(element), colour))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([ratio, texts.currentNode.data.trim().slice(0, 40)]);
  }
  return found.sort((x, y) => x[0] - y[0]);
}"""
"""WCAG 2.2, contrast ratio and relative luminance, of every text on the page against what is painted behind it."""


@pytest.fixture
def report(results: Results, folder: Path) -> Path:
    """Return the page."""
    html.write_run_page(results, folder / "report.html")
    return folder / "report.html"


def _nodes(tab: Any) -> list[str]:
    """Return the nodes in the table of layers, as they are seen."""
    texts: list[str] = tab.locator("#layers-table tbody tr:visible td.node").all_inner_texts()
    return [text.splitlines()[0] for text in texts]


def _column(tab: Any, number: int) -> list[str]:
    texts: list[str] = tab.locator(f"#layers-table tbody tr:visible td:nth-child({number})").all_inner_texts()
    return texts


def test_verdict_is_seen_without_scrolling_and_figures_are_drawn(visit: Visit, report: Path) -> None:
    tab = visit(report)
    assert tab.get_by_role("heading", level=1, name="GO").bounding_box()["y"] < 400
    assert tab.locator("path.point").count() > 100
    for figure in tab.locator(".plot").all():
        assert figure.locator("svg.main-svg").count() > 0
    assert tab.locator("#plot-histogram-0 g.trace.bars").count() == 1
    assert tab.locator(".samples img").evaluate("image => image.naturalWidth") == 96


def test_headers_sort_the_layers_and_say_so(visit: Visit, report: Path) -> None:
    tab = visit(report)
    table = tab.locator("#layers-table")
    before = _nodes(tab)
    scales = table.get_by_role("button", name="scale")
    for direction in ("ascending", "descending"):
        scales.click()
        assert table.locator("[aria-sort]").count() == 1
        assert table.get_by_role("columnheader", name="scale").get_attribute("aria-sort") == direction
        shown = _column(tab, 8)
        numbers = [float(text) for text in shown if text != "-"]
        assert numbers == sorted(numbers, reverse=direction == "descending")
        assert shown[len(numbers) :] == ["-"] * (len(shown) - len(numbers))  # what has none is last either way
        assert len(numbers) > 40
    table.get_by_role("button", name="depth").click()
    depths = [int(text) for text in _column(tab, 1)]
    assert depths == list(range(len(before)))  # as numbers: 9 before 10
    table.get_by_role("button", name="node").click()
    assert _nodes(tab)[0].startswith("blocks.0/")
    assert sorted(_nodes(tab)) == sorted(before)


def test_table_is_sorted_with_the_keyboard_alone(visit: Visit, report: Path) -> None:
    tab = visit(report)
    tab.locator("#layers-table").evaluate("table => table.querySelector('button').focus()")
    for _ in range(6):
        tab.keyboard.press("Tab")
    focused = "document.activeElement"
    assert tab.evaluate(f"{focused}.textContent") == "clipped"
    assert tab.evaluate(f"getComputedStyle({focused}).outlineStyle") == "solid"
    tab.keyboard.press("Enter")
    assert tab.evaluate(f"{focused}.closest('th').getAttribute('aria-sort')") == "ascending"
    tab.keyboard.press("Space")
    assert tab.evaluate(f"{focused}.closest('th').getAttribute('aria-sort')") == "descending"
    assert _column(tab, 7)[0] == "0.12%"


def test_every_control_is_reached_with_the_tab_key(visit: Visit, report: Path) -> None:
    tab = visit(report)
    controls = tab.evaluate("""() => {
        const all = [...document.querySelectorAll("main :is(a, button, input, select, summary), nav :is(a, button)")];
        all.forEach((control, i) => { control.dataset.control = i; });
        return all.length;
    }""")
    reached = set()
    for _ in range(controls + 60):  # and the regions that scroll
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.dataset.control"))
    assert {str(i) for i in range(controls)} <= reached


def test_filters_hide_rows_together_and_say_how_many_are_left(visit: Visit, report: Path) -> None:
    tab = visit(report)
    form = tab.get_by_role("search", name="Filter the layers")
    form.get_by_label("Precision").select_option("fp16")
    assert set(_column(tab, 4)) == {"FP16"}
    count = len(_nodes(tab))
    form.get_by_label("Find").fill("BLOCKS.2/")
    assert _nodes(tab)
    assert all(node.startswith("blocks.2/") for node in _nodes(tab))
    assert len(_nodes(tab)) < count
    assert form.get_by_role("status").inner_text() == f"{len(_nodes(tab))} of 68 shown"
    form.get_by_label("Find").press("Enter")  # does not leave the page
    form.get_by_label("Find").fill("no such layer")
    assert _nodes(tab) == []
    form.get_by_label("Find").fill("")
    form.get_by_label("Precision").select_option("")
    assert len(_nodes(tab)) == 68


def test_sorting_keeps_what_is_filtered_out_hidden(visit: Visit, report: Path) -> None:
    tab = visit(report)
    tab.get_by_label("Operator").select_option("MatMul")
    before = _nodes(tab)
    tab.locator("#layers-table").get_by_role("button", name="clipped").click()
    assert sorted(_nodes(tab)) == sorted(before)
    assert set(_column(tab, 3)) == {"MatMul"}


def test_hovering_tells_what_a_point_is(visit: Visit, report: Path, results: Results) -> None:
    tab = visit(report)
    tab.locator("#plot-pareto .scatterlayer .trace:last-child .point").last.hover(force=True)
    label = tab.locator("#plot-pareto .hoverlayer .hovertext")
    label.wait_for()
    assert results.selected in label.text_content()
    histogram = tab.locator("#plot-histogram-0")
    histogram.scroll_into_view_if_needed()
    histogram.locator(".bars .point").nth(20).hover(force=True, position={"x": 1, "y": 20})
    histogram.locator(".hovertext").wait_for()
    assert re.search(r"\|x\| near 2\.\d+: [\d,]+", histogram.locator(".hovertext").text_content())


def test_boxes_show_another_candidate_s_layers(visit: Visit, report: Path) -> None:
    tab = visit(report)
    traces = tab.locator("#plot-sqnr .scatterlayer .trace")
    assert traces.count() == 2  # the selected candidate's, accumulated and isolated
    tab.get_by_label("entropy", exact=True).check()
    assert traces.count() == 3
    tab.get_by_label("isolated").uncheck()
    assert traces.count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_theme_follows_the_system_until_the_reader_chooses(visit: Visit, report: Path, scheme: str) -> None:
    tab = visit(report, color_scheme=scheme)
    paper = "getComputedStyle(document.body).backgroundColor"
    colours = {"light": "rgb(253, 253, 252)", "dark": "rgb(18, 22, 26)"}
    other = {"light": "dark", "dark": "light"}[scheme]
    assert tab.evaluate(paper) == colours[scheme]
    toggle = tab.locator("#theme")
    assert toggle.inner_text() == f"{other.capitalize()} theme"
    toggle.press("Enter")
    assert tab.evaluate(paper) == colours[other]
    toggle.click()
    assert tab.evaluate(paper) == colours[scheme]


@pytest.mark.parametrize("decision", list(Decision))
def test_text_stands_out_from_what_is_behind_it(
    visit: Visit, results: Results, folder: Path, decision: Decision
) -> None:
    verdict = results.verdict.model_copy(update={"decision": decision})
    html.write_run_page(results.model_copy(update={"verdict": verdict}), folder / "report.html")
    tab = visit(folder / "report.html")
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        contrasts = tab.evaluate(CONTRASTS)
        assert len(contrasts) > 800
        assert [(ratio, text) for ratio, text in contrasts if ratio < 4.5] == []


def test_phone_scrolls_down_and_never_sideways(visit: Visit, report: Path) -> None:
    tab = visit(report, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert tab.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [360, 360]
    # Only what is in a region that scrolls by itself may be wider than the screen.
    cut = tab.evaluate("""() => [...document.querySelectorAll("main *, header *, nav *")]
        .filter((e) => e.checkVisibility() && !e.closest(".scroll, .plot") && e.getBoundingClientRect().right > 361)
        .map((e) => e.outerHTML.slice(0, 80))""")
    assert cut == []


@pytest.mark.parametrize(("width", "named"), [(360, {"selected"}), (1280, {"selected", "float"})])
@pytest.mark.parametrize("higher", [True, False])
def test_texts_of_the_figure_of_speed_are_whole_and_lie_apart(
    visit: Visit, results: Results, folder: Path, width: int, named: set[str], higher: bool
) -> None:
    """The selected candidate is as good as float here, and the policy's margin is a little below both."""
    source = (
        "roofline of an NVIDIA L4 (datasheet: NVIDIA L4 Tensor Core GPU datasheet, nvidia.com/en-us/data-center/l4)"
    )
    points = [
        point.model_copy(update={"cost": point.cost.model_copy(update={"source": source})}) for point in results.pareto
    ]
    accuracy = results.reference.accuracy.model_copy(update={"higher_is_better": higher})
    reference = results.reference.model_copy(update={"accuracy": accuracy})
    html.write_run_page(results.model_copy(update={"pareto": points, "reference": reference}), folder / "report.html")
    tab = visit(folder / "report.html", viewport={"width": width, "height": 740})
    texts = tab.evaluate("""() => {
        const place = document.getElementById("plot-pareto"), whole = place.getBoundingClientRect();
        return [...place.querySelectorAll(".annotation, .xtitle, .ytitle, .xtick text, .ytick text")]
          .filter((text) => text.checkVisibility({visibilityProperty: true})).map((text) => {
            const {left, right, top, bottom} = text.getBoundingClientRect();
            const box = [left - whole.left, whole.right - right, top - whole.top, whole.bottom - bottom];
            return [text.textContent, Math.min(...box), left, right, top, bottom];
          });
    }""")
    assert [text for text, least_room, *_ in texts if least_room < 0] == []
    names = {"selected": results.selected, "float": "float reference"}
    shown = {text for text, *_ in texts}
    assert {"the policy's margin", "ms, estimate"} <= shown
    assert {key for key, name in names.items() if name in shown} == named
    for (one, _, *a), (other, _, *b) in combinations(texts, 2):
        assert a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2], f"{one!r} lies on {other!r}"


def test_names_from_models_and_data_are_text_everywhere(visit: Visit, results: Results, folder: Path) -> None:
    assert results.selected_candidate is not None
    layers = [
        layer.model_copy(update={"node": SCRIPT, "op_type": SCRIPT, "tensor": SCRIPT})
        for layer in results.selected_candidate.layers
    ]
    candidate = results.selected_candidate.model_copy(update={"layers": layers})
    illustrations = Illustrations.read(folder / ILLUSTRATIONS)
    histograms = [x.model_copy(update={"tensor": SCRIPT, "layers": [SCRIPT]}) for x in illustrations.histograms]
    samples = [
        x.model_copy(update={"label": SCRIPT, "slice": SCRIPT, "text": SCRIPT}) for x in illustrations.worst_samples
    ]
    illustrations.model_copy(update={"histograms": histograms, "worst_samples": samples}).write(folder / ILLUSTRATIONS)
    html.write_run_page(results.model_copy(update={"candidates": [candidate]}), folder / "report.html")
    tab = visit(folder / "report.html")
    tab.on("dialog", lambda dialog: pytest.fail(dialog.message))
    assert set(_nodes(tab)) == {SCRIPT}
    assert tab.locator("#calibration h4").first.inner_text() == SCRIPT
    assert SCRIPT in tab.locator(".samples").inner_text()
    assert tab.locator("img[src=x]").count() == 0
    tab.locator("#plot-sqnr .point").nth(5).hover(force=True)
    tab.locator("#plot-sqnr .hovertext").wait_for()
    assert "<script>" in tab.locator("#plot-sqnr .hovertext").text_content()  # drawn, not obeyed
    assert tab.locator("script").count() == 3


def test_page_of_500_layers_is_painted_before_figures_are_drawn(visit: Visit, build_results: Any, folder: Path) -> None:
    html.write_run_page(build_results(layers=500), folder / "report.html")
    assert (folder / "report.html").stat().st_size < 8_000_000
    tab = visit(folder / "report.html")
    assert tab.locator("#layers-table tbody tr").count() == 500
    first, scripts = tab.evaluate("""[performance.getEntriesByName("first-contentful-paint")[0].startTime,
        performance.getEntriesByName("drawing")[0].startTime]""")
    assert first < scripts


def test_report_of_a_real_run(visit: Visit, new_job: Callable[[], Any]) -> None:
    job = new_job()
    assert job.run("quantization.strategies=[minmax, entropy]", "policy.max_drop=0.3").returncode == 0
    tab = visit(job.output / "report.html")
    assert tab.get_by_role("heading", level=1, name="GO").is_visible()
    assert set(_nodes(tab)) == {"stem", "block", "last", "head"}
    assert tab.locator("#by-label tbody tr").count() == 5  # classes
    assert tab.locator(".histograms .bars").count() == 4
    assert tab.locator("#plot-convergence .scatterlayer .trace").count() == 2
    pictures = tab.locator(".samples img")
    assert 0 < pictures.count() <= 12
    assert pictures.evaluate_all("images => images.every((image) => image.naturalWidth === 16)")


def test_without_scripts_no_number_is_missing(visit: Visit, report: Path) -> None:
    tab = visit(report, java_script_enabled=False)
    assert tab.locator("#layers-table tbody tr:visible").count() == 68
    assert tab.locator("form.filter:visible, #theme:visible, .plot:visible").count() == 0
    assert tab.locator(".undrawn:visible").count() > 3
