"""Mistakes in the sections task and data: one sentence each, with the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibrate.config import load
from validate.exceptions import UsageError

BASE = """\
model:
  onnx: model.onnx
data:
  calibration: {callable: 'data.py:rows'}
  validation: {callable: 'data.py:rows'}
  label: label
task: {type: classification}
policy: {max_drop: 0.01}
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "sentence"),
    [
        ("type: classification", "type: detection", 7, "task.classes is missing"),
        (
            "type: classification",
            "type: detection, classes: 3, boxes: xxyy",
            7,
            "task.boxes: input should be 'xyxy', 'xywh' or 'cxcywh'",
        ),
        (
            "type: classification",
            "type: detection, classes: 3, outputs: {box: a}",
            7,
            "task.outputs.box is not a known key; did you mean boxes?",
        ),
        (
            "type: classification",
            "type: detection, classes: 3, decode: 'data.py:nothing'",
            7,
            "task.decode: 'data.py' has nothing called 'nothing'",
        ),
        (
            "type: classification",
            "type: segmentation, classes: 0",
            7,
            "task.classes: input should be greater than or equal to 1",
        ),
        (
            "type: classification",
            "type: masked_lm, metric: perplexty",
            7,
            "task.metric: input should be 'accuracy', 'loss' or 'perplexity'",
        ),
        (
            "type: classification",
            "type: regression, metrics: mae",
            7,
            "task.metrics is not a known key; did you mean metric?",
        ),
        (
            "type: classification",
            "type: sentence_embedding, pooling: max",
            7,
            "task.pooling: input should be 'none', 'mean' or 'cls'",
        ),
        ("label: label", "label: 5", 6, "data.label: input should be a valid string"),
        ("label: label", "label: [score, 5]", 6, "data.label.1: input should be a valid string"),
        (
            "  onnx: model.onnx\n",
            "  onnx: model.onnx\n  expected_metric: 75\n",
            1,
            "model.expected_metric is 75, which is above 100%; 75 percent are written 0.75",
        ),
        (
            "  onnx: model.onnx\n",
            "  onnx: model.onnx\n  expected_metric: high\n",
            3,
            "model.expected_metric: input should be a valid number, unable to parse string as a number",
        ),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, old: str, new: str, line: int, sentence: str) -> None:
    (tmp_path / "model.onnx").touch()
    (tmp_path / "data.py").write_text("def rows():\n    return []\n")
    path = tmp_path / "my.yaml"
    assert old in BASE
    path.write_text(BASE.replace(old, new))
    with pytest.raises(UsageError) as caught:
        load(path)
    message = str(caught.value)
    assert message.endswith(sentence)
    assert message.removesuffix(sentence) == f"{path}, line {line}: "


def test_expectations_need_labels(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    (tmp_path / "data.py").write_text("def rows():\n    return []\n")
    path = tmp_path / "my.yaml"
    path.write_text(BASE.replace("label: label", "label: null"))
    assert load(path).data.label is None
    with pytest.raises(UsageError, match=r"model.expected_metric needs labels, and data.label is null"):
        load(path, ["model.expected_metric=0.7"])


@pytest.mark.parametrize(
    ("task", "refused"),
    [
        ("masked_lm", "perplexity"),
        ("masked_lm, metric: loss", "loss"),
        ("token_classification, metric: perplexity", "perplexity"),
        ("masked_lm, metric: accuracy", None),
        ("token_classification", None),
        ("regression, metric: rmse", None),
    ],
)
def test_a_loss_needs_labels(tmp_path: Path, task: str, refused: str | None) -> None:
    (tmp_path / "model.onnx").touch()
    (tmp_path / "data.py").write_text("def rows():\n    return []\n")
    path = tmp_path / "my.yaml"
    path.write_text(BASE.replace("classification", task))
    assert load(path).data.label == "label"
    path.write_text(path.read_text().replace("label: label", "label: null"))
    if refused is None:
        assert load(path).data.label is None
        return
    with pytest.raises(UsageError) as caught:
        load(path)
    assert f"task.metric is {refused}, which needs labels, and data.label is null" in str(caught.value)
    assert str(caught.value).endswith("set task.metric: accuracy")


def test_masked_tokens_are_labels_themselves(tmp_path: Path) -> None:
    """Else all tokens would be compared, most of which a model need only copy."""
    (tmp_path / "model.onnx").touch()
    (tmp_path / "data.py").write_text("def rows():\n    return []\n")
    path = tmp_path / "my.yaml"
    path.write_text(
        BASE.replace("classification", "masked_lm, metric: accuracy").replace(
            "  label: label\n", "  label: null\n  preprocess: {tokenizer: owner/name, mask: 0.15}\n"
        )
    )
    with pytest.raises(UsageError, match=r"line 3: data: preprocess.mask makes the labels.* leave label out$"):
        load(path)
    path.write_text(path.read_text().replace("  label: null\n", ""))
    assert load(path).data.label == "label"


def test_a_metric_that_is_no_rate_may_drop_by_more_than_one(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    (tmp_path / "data.py").write_text("def rows():\n    return []\n")
    path = tmp_path / "my.yaml"
    path.write_text(BASE.replace("classification", "regression").replace("0.01", "3.5"))
    assert load(path, ["model.expected_metric=12"]).policy.max_drop == 3.5
    path.write_text(path.read_text().replace("regression", "segmentation, classes: 3"))
    with pytest.raises(UsageError, match="five percentage points"):
        load(path)
