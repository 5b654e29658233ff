"""docs/tasks.md: every example loads, and makes the task that its section is about."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from calibrate.config import Config, load
from validate.tasks.base import Task

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
TASKS = """
import numpy as np
from validate.tasks.base import Metric
class MyTask:
    name = "mine"
    metric = Metric("mine", higher_is_better=True, is_rate=False)
    def scores(self, outputs, labels): ...
    def errors(self, outputs, reference): ...
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with everything that the examples name."""
    for name in ("images", "more_images", "tokenizer"):
        (tmp_path / name).mkdir()
    for name in ("model.onnx", "train.parquet", "validation.parquet"):
        (tmp_path / name).touch()
    (tmp_path / "characters.txt").write_text("a\nb\n")
    (tmp_path / "coco.py").write_text("def rows(split): ...\ndef letterbox(row): ...\n")
    (tmp_path / "faces.py").write_text("def to_input(row): ...\n")
    (tmp_path / "my_task.py").write_text(TASKS)
    return tmp_path


def loaded(folder: Path, example: str) -> Config:
    config: dict[str, Any] = {"model": {}, "policy": {"max_drop": 0.01}} | yaml.safe_load(example)
    config["model"]["onnx"] = "model.onnx"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return load(folder / "config.yaml")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: yaml.safe_load(e)["task"]["type"])
def test_every_example_loads(folder: Path, example: str) -> None:
    if "torchvision" in example:
        pytest.importorskip("torchvision")
    config = loaded(folder, example)
    task = config.task.make({})
    assert isinstance(task, Task)
    assert task.metric.is_rate == config.task.is_rate
    assert config.task.type in (task.name, "custom")


def test_there_is_an_example_of_every_task() -> None:
    shown = {yaml.safe_load(example)["task"]["type"] for example in EXAMPLES}
    listed = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    kinds = Config.model_json_schema()["properties"]["task"]["discriminator"]["mapping"].keys()
    assert shown == listed == set(kinds)
