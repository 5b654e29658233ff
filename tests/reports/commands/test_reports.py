"""``python -m reports``, as somebody types it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import run_in_process
from tests.conftest import Completed
from validate.exceptions import UsageError
from validate.results import Results

Reports = Callable[..., Completed]


@pytest.fixture
def reports(clean_environment: dict[str, str], tmp_path: Path) -> Reports:
    def run(*arguments: object) -> Completed:
        return run_in_process("reports", [*map(str, arguments)], tmp_path, clean_environment)

    return run


def test_html_makes_the_page_again_of_the_results_alone(results: Results, reports: Reports, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    results.write(folder / "results.json")
    (folder / "report.html").write_text("stale", encoding="utf-8")
    done = reports("html", folder)
    assert (done.returncode, done.stdout) == (0, f"report {folder}/report.html\n"), done.stderr
    assert results.selected is not None
    assert results.selected in (folder / "report.html").read_text(encoding="utf-8")
    assert reports("html", folder / "results.json", "--output", tmp_path / "other.html").returncode == 0
    assert (tmp_path / "other.html").read_bytes() == (folder / "report.html").read_bytes()


@pytest.mark.parametrize("command", ["html", "log"])
def test_what_is_no_results_is_refused_in_a_sentence(command: str, reports: Reports, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"schema_version": 2}', encoding="utf-8")
    refused = reports(command, tmp_path / "other.json")
    assert refused.returncode == 2
    assert "other.json is not the results.json of a run: created: Field required" in refused.stderr
    missing = reports(command, tmp_path)
    assert missing.returncode == 2
    assert f"results {tmp_path}/results.json cannot be read: No such file or directory" in missing.stderr
    assert "Traceback" not in refused.stderr + missing.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"other.json"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema_version": 99}, "results.json has schema_version 99, and this version reads 2"),
        ({"schema_version": 1, "created": None}, "results.json has schema_version 1, and this version reads 2"),
        ({"selected": "absent"}, "is not the results.json of a run: selected: no candidate is called absent"),
    ],
)
def test_results_that_this_version_does_not_understand_are_refused_in_a_sentence(
    results: Results, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(json.loads(results.model_dump_json()) | changes), encoding="utf-8")
    with pytest.raises(UsageError) as raised:
        Results.read(path)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_nothing_heavy_is_imported_to_say_what_there_is(clean_environment: dict[str, str]) -> None:
    heavy = {"mlflow", "numpy", "pydantic", "onnx", "plotly"}
    code = f"import sys, reports.commands.reports; print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
