"""Changes by class and slice, against the samples counted one by one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from reports.samples import SampleScores, changes, read_scores
from validate.results import Results
from validate.samples import SampleTable

LABELS = ["cat", "dog", "cat", "dog", "cat", None, "owl", "owl", "owl", "cat"]
REFERENCE = [1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, math.nan, 1.0]
CANDIDATE = [0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0]


def _scores(labels: list[str | None] = LABELS) -> SampleScores:
    return SampleScores(np.array(REFERENCE), np.array(CANDIDATE), {"label": labels})


@pytest.mark.parametrize("higher", [True, False])
def test_changes_are_those_of_every_sample_of_the_group(higher: bool) -> None:
    rows = changes(_scores(), "label", higher)
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
    assert changes(_scores([f"line {i}" for i in range(10)]), "label", True) == []
    assert changes(_scores([None] * 10), "label", True) == []
    assert changes(_scores(["all"] * 10), "label", True) == []


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
    assert found.groups["label"] == LABELS
    assert np.array_equal(found.reference, REFERENCE, equal_nan=True)


def test_records_of_samples_are_no_scores(tmp_path: Path, build_results: Callable[..., Results]) -> None:
    records = np.ones((10, 3))
    table = SampleTable(["0"] * 10, LABELS, [None] * 10, records, {"mse": records})
    results = build_results(samples_sha256=table.write(tmp_path / "samples.parquet"))
    assert "not made of scores of single samples" in str(read_scores(results, "mse", tmp_path))
