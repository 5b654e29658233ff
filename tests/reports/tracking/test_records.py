"""What is to be logged of results, as data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from reports.tracking.location import Destination, ui_command
from reports.tracking.records import JobRecord, job_record
from validate.exceptions import JobError, UsageError
from validate.results import Results


@pytest.fixture
def record(stored: tuple[Results, Path]) -> JobRecord:
    return job_record(*stored)


def test_every_plan_has_the_same_parameters_and_all_candidates_the_same_metrics(
    stored: tuple[Results, Path], record: JobRecord
) -> None:
    assert len({tuple(sorted(plan.params)) for plan in record.plans}) == 1
    assert len({tuple(sorted(plan.tags.keys() - {"mlflow.loggedArtifacts"})) for plan in record.plans}) == 1
    candidates = {candidate.name for candidate in stored[0].candidates}
    keys = {plan.name: {key for key, _, _ in plan.metrics} for plan in record.plans}
    optional = {"eval/selection_error", "eval/exact_match_integer_kernels"}
    assert len({frozenset(keys[name] - optional) for name in candidates}) == 1
    for name in keys.keys() - candidates:
        assert keys[name] < keys["minmax"]
        assert {"eval/exact_match", "eval/exact_match_drop", "perf/cost"} < keys[name]
    assert keys["minmax"] - {"layer_sqnr_db", "layer_isolated_sqnr_db", "layer_clipped_share"} < {
        key for key, _, _ in record.job.metrics
    } | {"eval/selection_error"}


def test_all_metrics_are_finite_and_the_rest_is_in_the_table(stored: tuple[Results, Path], record: JobRecord) -> None:
    layers = stored[0].candidates[0].layers
    assert {layer.sqnr_db for layer in layers} >= {math.inf, -math.inf}
    assert all(math.isfinite(value) for run in (record.job, *record.plans) for _, value, _ in run.metrics)
    table = json.loads(record.plans[0].texts["layers.json"])
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["depth"] for row in rows] == list(range(40))
    assert [row["exact"] for row in rows] == [layer.sqnr_db == math.inf for layer in layers]
    assert [row["sqnr_db"] for row in rows] == [x.sqnr_db if math.isfinite(x.sqnr_db) else None for x in layers]


def test_the_page_about_it_names_all_that_is_logged(record: JobRecord) -> None:
    page = (Path(__file__).parents[3] / "docs/mlflow.md").read_text(encoding="utf-8").replace("METRIC", "exact_match")
    for run in (record.job, *record.plans):
        keys = {*run.tags, *run.params, *run.texts, *(key for key, _, _ in run.metrics)}
        groups = ("mlflow.", "config.", "seconds/", "nodes/", "perf/speedup_")
        named = {key.removeprefix("eval/").removeprefix("perf/") for key in keys if not key.startswith(groups)}
        assert not {key for key in named if f"`{key}`" not in page and f"`layers/{key}`" not in page}
    assert all(f"`{group}" in page for group in ("config.*", "seconds/STAGE", "nodes/int8", "speedup_BASELINE"))
    assert all(f"`{path.name}`" in page for path in record.files)


def test_the_same_job_has_the_same_key_wherever_it_is_and_however_it_is_judged(
    stored: tuple[Results, Path], record: JobRecord, tmp_path: Path
) -> None:
    results, folder = stored
    again = job_record(Results.read(folder), tmp_path)
    assert (again.key, again.version) == (record.key, record.version)
    assert again.files == [] and again.model is None
    judged_again = results.model_copy(
        update={"verdict": results.verdict.model_copy(update={"reasons": ["Otherwise."]})}
    )
    other = job_record(judged_again, folder)
    assert other.key == record.key and other.version != record.version
    assert job_record(results.model_copy(update={"created": "2026-11-23T21:27:39Z"}), folder).key != record.key


@pytest.mark.parametrize(
    ("props", "said"),
    [({"plan_sha256": "f" * 64}, "was made from plan ffffffffffff"), ({}, "was made without a plan")],
)
def test_a_model_that_is_not_what_was_judged_is_not_logged(
    stored: tuple[Results, Path], tmp_path: Path, props: dict[str, str], said: str
) -> None:
    results, folder = stored
    model = onnx.load(folder / "model.int8.onnx")
    onnx.helper.set_model_props(model, props)
    onnx.save(model, tmp_path / "model.int8.onnx")
    with pytest.raises(JobError, match=said) as raised:
        job_record(results, tmp_path)
    assert str(tmp_path / "model.int8.onnx") in str(raised.value)
    with pytest.raises(JobError, match="the results are about no candidate"):
        job_record(results.model_copy(update={"selected": None}), folder)


def test_what_is_longer_than_a_server_takes_is_cut(build_results: Callable[..., Results], tmp_path: Path) -> None:
    config = {"data": {"arguments": {"a b:c" + "x" * 300: "y" * 7000}}}
    params = job_record(build_results(config=config), tmp_path).job.params
    cut = {key: value for key, value in params.items() if key.startswith("config.")}
    assert {(len(key), len(value)) for key, value in cut.items()} == {(250, 6000)}
    assert next(iter(cut)).startswith("config.data.arguments.a b_cxx")


def test_the_config_says_where_unless_something_else_is_asked_for(
    stored: tuple[Results, Path], build_results: Callable[..., Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert Destination.of(stored[0]) == Destination("sqlite:///mlflow.db", "from-a-test", "job")
    assert Destination.of(build_results()) == Destination("sqlite:///mlflow.db", "calibrate", "run")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://by-environment")
    assert Destination.of(stored[0], None, "e", "n") == Destination("http://by-environment", "e", "n")
    configured = build_results(config={"tracking": {"uri": "http://by-config"}})
    assert Destination.of(configured).uri == "http://by-config"
    assert Destination.of(configured, "http://asked-for").uri == "http://asked-for"


def test_a_password_that_results_do_not_hold_comes_from_elsewhere(
    build_results: Callable[..., Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = "postgresql://me:secret@host/db"
    results = Results(**dict(build_results(config={"tracking": {"uri": whole}})))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UsageError, match=r"password of postgresql://me:\*\*\*@host/db; .*MLFLOW_TRACKING_URI"):
        Destination.of(results)
    assert Destination.of(results, whole).uri == whole
    monkeypatch.setenv("MLFLOW_TRACKING_URI", whole)
    assert Destination.of(results).uri == whole


def test_a_password_is_not_shown(build_results: Callable[..., Results], tmp_path: Path) -> None:
    config = {"tracking": {"uri": "postgresql://me:secret@host/db"}}
    command = "run --set tracking.uri=postgresql://me:secret@host/db"
    results = Results(**dict(build_results(config=config, command=command)))
    assert "secret" not in repr(job_record(results, tmp_path))
    assert job_record(results, tmp_path).job.params["config.tracking.uri"] == "postgresql://me:***@host/db"
    assert ui_command("postgresql://me:secret@host/db") == "mlflow ui --backend-store-uri postgresql://me:***@host/db"
    assert ui_command("https://me:secret@host") == "https://me:***@host"
    assert ui_command("sqlite:///mlflow.db") == "mlflow ui --backend-store-uri sqlite:///mlflow.db"
