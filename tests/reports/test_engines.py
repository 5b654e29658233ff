"""What reports say of engines: which basis a verdict has, first; and how an engine differs from its simulation."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from reports import format as fmt
from reports.pages.run import render_run_page
from reports.release import junit, markdown
from reports.terminal import run as terminal
from reports.tracking.records import job_record
from tests.reports.conftest import ENGINE_SHA256, PASSING, Page
from validate.results import Basis, Decision, Results

NOWHERE = Path("no/such/folder")
DEPARTURE = (
    "minmax is not its simulation: 384 of 6144 values are not finite, first at blocks.2/MatMul_9 (MatMul), after "
    "blocks.2/quantize, blocks.1/Add_5"
)


def printed(renderable: RenderableType, width: int = 100) -> str:
    file = io.StringIO()
    Console(file=file, width=width, legacy_windows=False).print(renderable)
    return " ".join(file.getvalue().replace("│", " ").split())


def judged_by(results: Results, basis: Basis | None, **candidate: Any) -> Results:
    candidates = [c.model_copy(update=candidate) for c in results.candidates]
    verdict = results.verdict.model_copy(update={"basis": basis})
    return results.model_copy(update={"candidates": candidates, "verdict": verdict})


@pytest.mark.parametrize(
    ("basis", "first"),
    [
        ("engine", f"By the engine: {PASSING} may be released."),
        ("simulation", f"By simulation: {PASSING} may be released."),
        ("kernels", f"By integer kernels: {PASSING} may be released."),
        (None, f"{PASSING} may be released."),  # results of older versions do not say it
    ],
)
def test_the_first_line_says_the_basis(results: Results, basis: Basis | None, first: str) -> None:
    judged = judged_by(results, basis, integer_kernels=None)
    assert fmt.headline(judged) == first
    assert printed(terminal.verdict_panel(judged)).split("╮")[1].strip().startswith(first)
    assert Page(render_run_page(judged, NOWHERE)).text.split("GO ", 1)[1].startswith(first)
    assert markdown.text(judged).splitlines()[2] == markdown.escaped(first)
    suite = re.search(r'<testsuite name="([^"]*)"', junit.text(judged))
    assert suite is not None
    assert suite[1] == ", ".join(filter(None, [f"policy on {PASSING}", fmt.basis(judged)]))


def test_the_cpus_kernels_are_named_where_the_cpu_is_the_target(results: Results) -> None:
    assert fmt.headline(judged_by(results, "simulation")).startswith("By integer kernels and simulation: ")


def test_a_notebook_says_the_basis(engines: Results) -> None:
    assert "<caption>GO, by the engine: that one</caption>" in engines.verdict._repr_html_()
    older = engines.verdict.model_copy(update={"basis": None, "decision": Decision.NO_GO})
    assert "<caption>NO_GO</caption>" in older._repr_html_()


def test_the_terminal_shows_engines_beside_their_simulation(engines: Results) -> None:
    text = printed(terminal.run_summary(engines, Path("runs/x"), None))
    assert f"{PASSING} 94.00% 93.12% 0.985 +0.25 81.25% 0.520" in text
    assert "TensorRT FP16 94.00% - 0.985 +0.25 0.299" in text
    assert "TensorRT BF16: TensorRT refuses it: no kernel for Conv" in text
    assert DEPARTURE in text
    assert f"Outputs of {PASSING}, SQNR in dB" in text
    assert "softmax_11.tmp_0 15.6 15.8 16.9 16.4" in text


@pytest.mark.parametrize("width", [80, 100])
def test_the_tables_of_engines_keep_to_the_width(engines: Results, width: int) -> None:
    file = io.StringIO()
    Console(file=file, width=width, legacy_windows=False).print(terminal.run_summary(engines, Path("runs/x"), None))
    assert max(map(len, file.getvalue().splitlines())) <= width


def test_the_page_shows_engines_beside_their_simulation(engines: Results) -> None:
    page = Page(render_run_page(engines, NOWHERE))
    text = page.text[page.text.index("What ships is an engine") :]
    assert (
        f"{PASSING} selected 94.00% +0.25 pp 93.12% +1.13 pp 0.985 81.25% 24 of 36 layers 7 0.021 of 0.520 ms" in text
    )
    assert "no 16 samples, 23 inner tensors" in text
    assert DEPARTURE in text
    assert "layers that did not run in INT8: head/MatMul" in text
    assert f"SHA-256 {ENGINE_SHA256}" in text
    assert f"{PASSING} softmax_11.tmp_0 15.6 15.8 16.9 16.4 0" in text
    assert "minmax softmax_11.tmp_0 n/a 15.8 n/a 16.4 384" in text
    assert "TensorRT FP16 94.00% +0.25 [-0.05, +0.55] 0.299" in text
    assert "TensorRT BF16 - - - TensorRT refuses it: no kernel for Conv" in text
    assert "No engine was run of percentile-99.99, entropy, mse: TensorRT built no engine of it" in page.text


def test_without_engines_there_is_nothing_about_them(results: Results) -> None:
    page = Page(render_run_page(results, NOWHERE))
    assert ("a", "href", "#engines") not in page.attributes
    assert "No engine was run" not in page.text
    assert "The engines" not in printed(terminal.run_summary(results, Path("runs/x"), None))


def test_names_in_engines_are_text(engines: Results) -> None:
    tag = "<script>alert(1)</script>"
    found = engines.candidate("minmax")
    assert found.engine is not None and found.engine.departure is not None
    departure = found.engine.departure.model_copy(update={"node": tag, "detail": tag})
    engine = found.engine.model_copy(update={"departure": departure})
    baselines = [x.model_copy(update={"name": tag, "reason": tag}) for x in engines.baselines]
    hostile = engines.model_copy(
        update={
            "candidates": [found.model_copy(update={"engine": engine})],
            "selected": "minmax",
            "baselines": baselines,
        }
    )
    page = Page(render_run_page(hostile, NOWHERE))
    assert page.text.count(tag) >= 4
    assert not any("alert(1)" in script for script in page.scripts[1:])


def test_latency_of_a_gpu_is_not_called_that_of_a_cpu(engines: Results, results: Results) -> None:
    for text in (printed(terminal.candidates_table(engines)), Page(render_run_page(engines, NOWHERE)).text):
        assert "NVIDIA H200" in text
        assert "CPU latency" not in text
        assert "CPU ms" not in text
    assert "CPU latency says nothing about the GPU" in printed(terminal.candidates_table(results))


def test_mlflow_gets_the_basis_and_what_engines_did(engines: Results, tmp_path: Path) -> None:
    record = job_record(engines, tmp_path)
    assert record.job.tags["gate.basis"] == "engine"
    metrics = {metric.key: metric.value for metric in record.job.metrics}
    assert metrics["eval/exact_match_tensorrt_fp16"] == pytest.approx(0.94)
    assert metrics["perf/tensorrt_fp16_latency_p50_ms"] == 0.299
    assert metrics["eval/exact_match_simulated"] == 0.9312
    runs = {run.name: run for run in record.plans}
    tags = {name: {key: run.tags[key] for key in run.tags if key.startswith("engine.")} for name, run in runs.items()}
    gpu = "NVIDIA H200 (compute capability 9.0)"
    none = {"engine.sha256": "none", "engine.gpu": "none", "engine.departs_at": "none"}
    assert tags[PASSING] == {"engine.sha256": ENGINE_SHA256, "engine.gpu": gpu, "engine.departs_at": "none"}
    assert tags["minmax"]["engine.departs_at"] == "blocks.2/MatMul_9"
    assert tags["entropy"] == none
    assert runs[PASSING].tags["eval.basis"] == "engine"
    assert runs["entropy"].tags["eval.basis"] == "simulation"
    found = {metric.key: metric.value for metric in runs[PASSING].metrics if metric.key.startswith("engine/")}
    assert found == {
        "engine/agreement": 0.985,
        "engine/int8_share": 0.8125,
        "engine/to_simulation_db": 16.9,
        "engine/floor_db": 16.4,
    }
