"""The tutorials run from beginning to end in a copy, and show what their text says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
Notebook = nbformat.NotebookNode


def shown(notebook: Notebook) -> str:
    """Return all that the cells have put out, as text."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(x.text if x.output_type == "stream" else x.data.get("text/plain", "") for x in outputs)


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, clean_environment: dict[str, str]
) -> Callable[[str], tuple[str, Path]]:
    """Return what runs a notebook in a copy, and returns what it shows and the folder that it ran in."""

    def execute(name: str) -> tuple[str, Path]:
        copy = tmp_path_factory.mktemp("copy")
        for folder in ("examples", "datasets", "notebooks"):
            shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("output", "mlruns"))
        path = copy / "notebooks" / name
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = []
        client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}})
        client.execute(env=clean_environment)  # raises where a cell does
        return shown(notebook), path.parent

    return execute


@pytest.mark.slow
def test_calibrate_and_read_a_result(run: Callable[[str], tuple[str, Path]]) -> None:
    text, folder = run("calibrate_and_read_a_result.ipynb")
    assert "GO for minmax+" in text
    assert "layers in float, meets the target: True" in text
    assert "Counter({'int8': " in text
    assert {path.name for path in (folder / "output/quickstart").iterdir()} >= {"report.html", "model.int8.onnx"}


@pytest.mark.slow
def test_compare_experiments_in_mlflow(run: Callable[[str], tuple[str, Path]]) -> None:
    text, _ = run("compare_experiments_in_mlflow.ipynb")
    for job in ("per-channel", "few-samples", "per-tensor"):
        assert f"{job}: GO" in text
    assert "12 of 12 runs are on the same validation samples" in text
    here, logged = text.split(" in MLflow")[0].splitlines()[-1].split(" here, ")
    assert here == logged
    assert "everything was there already" in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_was_run_in_order_and_is_small(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [x for cell in cells for x in cell.outputs if x.output_type == "error"]
    assert path.stat().st_size < 200_000
    source = path.read_text(encoding="utf-8")
    assert not [place for place in ("/tmp/", "/work/", "/home/", "/root/", "http://", "https://") if place in source]


def test_both_tutorials_are_there() -> None:
    assert [path.name for path in NOTEBOOKS] == [
        "calibrate_and_read_a_result.ipynb",
        "compare_experiments_in_mlflow.ipynb",
    ]
