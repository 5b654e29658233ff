"""Changes by class and slice, against the samples counted one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from reports.pages.samples import GroupChange, SampleScores, changes, read_scores
from validate.results import Results
from validate.results.samples import SampleTable
from validate.tasks.base import Metric
from validate.verdict.groups import by_name

LABELS = ["cat", "dog", "cat", "dog", "cat", None, "owl", "owl", "owl", "cat"]
REFERENCE = [1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, math.nan, 1.0]
CANDIDATE = [0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0]


def _changes(labels: Sequence[str | None], higher: bool = True) -> list[GroupChange]:
    metric = Metric("score", higher_is_better=higher, is_rate=True)
    return changes(metric, by_name(labels, (np.array(REFERENCE), np.array(CANDIDATE))))


@pytest.mark.parametrize("higher", [True, False])
def test_changes_are_those_of_every_sample_of_the_group(higher: bool) -> None:
    rows = _changes(LABELS, higher)
    for row in rows:
        pairs = [(r, c) for x, r, c in zip(LABELS, REFERENCE, CANDIDATE, strict=True) if x == row.name and r == r]
        assert row.samples == len(pairs)
        assert row.reference == pytest.approx(sum(r for r, _ in pairs) / len(pairs))
        assert row.candidate == pytest.approx(sum(c for _, c in pairs) / len(pairs))
        assert row.drop == pytest.approx((row.reference - row.candidate) * (1 if higher else -1))
        lower, raised = sum(c < r for r, c in pairs), sum(c > r for r, c in pairs)
        assert (row.worse, row.better) == ((lower, raised) if higher else (raised, lower))
    assert [row.name for row in rows] == (["dog", "cat", "owl"] if higher else ["owl", "cat", "dog"])


def test_labels_that_no_two_samples_share_make_no_groups() -> None:
    assert _changes([f"line {i}" for i in range(10)]) == []
    assert _changes([None] * 10) == []
    assert _changes(["all"] * 10) == []


def test_what_cannot_be_read_is_a_sentence(tmp_path: Path, build_results: Callable[..., Results]) -> None:
    table = SampleTable(["0"] * 10, LABELS, [None] * 10, np.array(REFERENCE), {"mse": np.array(CANDIDATE)})
    results = build_results(samples_sha256=table.write(tmp_path / "samples.parquet"))
    other, older = (results.model_copy(update={"samples_sha256": noted}) for noted in ("0" * 64, None))
    assert "There is no samples.parquet" in str(read_scores(results, "mse", tmp_path / "elsewhere"))
    assert str(read_scores(other, "mse", tmp_path)).startswith("samples.parquet is not of these results")
    assert "did not note which samples.parquet is theirs" in str(read_scores(older, "mse", tmp_path))
    assert "no scores of entropy" in str(read_scores(results, "entropy", tmp_path))
    found = read_scores(results, "mse", tmp_path)
    assert isinstance(found, SampleScores)
    assert found.groups["label"].keys() == {"cat", "dog", "owl"}
    assert (found.worse, found.better) == (4, 1)
    assert np.array_equal(found.reference, REFERENCE, equal_nan=True)


def test_classes_and_samples_of_a_segmentation(tmp_path: Path, build_results: Callable[..., Results]) -> None:
    """Records are intersections and unions of two classes: each class has an IoU, and so has each image."""
    reference = np.array([[8.0, 4, 10, 8], [6, 0, 6, 0], [0, 3, 0, 3]])
    candidate = np.array([[4.0, 4, 10, 10], [6, 0, 6, 0], [0, 3, 0, 3]])
    table = SampleTable(list("abc"), [None] * 3, [None] * 3, reference, {"mse": candidate})
    task = {"type": "segmentation", "classes": 2}
    results = build_results(samples_sha256=table.write(tmp_path / "samples.parquet"), config={"task": task})
    found = read_scores(results, "mse", tmp_path)
    assert isinstance(found, SampleScores)
    assert found.reference.tolist() == [(0.8 + 0.5) / 2, 1, 1]
    assert found.candidate.tolist() == [0.4, 1, 1]
    first, second = changes(found.metric, found.groups["class"])
    assert first == ("0", 2, 14 / 16, 10 / 16, 4 / 16, 1, 0)
    assert second == ("1", 2, 7 / 11, 7 / 13, pytest.approx(7 / 11 - 7 / 13), 1, 0)


def test_a_metric_of_a_task_of_the_users_own_has_no_changes(
    tmp_path: Path, build_results: Callable[..., Results]
) -> None:
    records = np.ones((10, 3))
    table = SampleTable(["0"] * 10, LABELS, [None] * 10, records, {"mse": records})
    results = build_results(
        samples_sha256=table.write(tmp_path / "samples.parquet"), config={"task": {"type": "custom"}}
    )
    assert "known only to the task" in str(read_scores(results, "mse", tmp_path))
