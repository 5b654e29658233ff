"""samples.parquet: what other programs read of it, and what comes back."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from validate.exceptions import JobError
from validate.results.samples import SampleTable, paired_rows


@pytest.fixture
def table() -> SampleTable:
    return SampleTable(
        ["aa", "bb", "cc"],
        ["0", None, "cat"],
        [None, "day", "night"],
        np.array([1.0, 0.5, math.nan]),
        {"mse": np.array([0.0, 0.25, 1.0]), "mse+2fp16": np.array([1.0, 1.0, -math.inf])},
    )


def test_other_programs_find_these_columns(table: SampleTable, tmp_path: Path) -> None:
    table.write(tmp_path / "samples.parquet")
    found = pq.read_table(tmp_path / "samples.parquet")
    assert [(field.name, field.type) for field in found.schema] == [
        ("index", pa.int64()),
        ("content", pa.string()),
        ("label", pa.string()),
        ("slice", pa.string()),
        ("reference", pa.float64()),
        ("candidate/mse", pa.float64()),
        ("candidate/mse+2fp16", pa.float64()),
    ]
    assert found["index"].to_pylist() == [0, 1, 2]
    assert found["label"].to_pylist() == ["0", None, "cat"]
    assert found["reference"].null_count == 0  # a NaN is a score that could not be computed, not a missing one
    assert list(tmp_path.iterdir()) == [tmp_path / "samples.parquet"]


def test_what_was_written_comes_back(table: SampleTable, tmp_path: Path) -> None:
    table.write(tmp_path / "samples.parquet")
    back = SampleTable.read(tmp_path / "samples.parquet")
    assert (back.contents, back.labels, back.slices) == (table.contents, table.labels, table.slices)
    np.testing.assert_array_equal(back.reference, table.reference)
    assert list(back.candidates) == list(table.candidates)
    for name, scores in table.candidates.items():
        np.testing.assert_array_equal(back.candidates[name], scores)


def test_records_come_back_in_their_shape(tmp_path: Path) -> None:
    records = np.arange(12.0).reshape(4, 3)
    table = SampleTable(list("abcd"), [None] * 4, [None] * 4, records, {"mse": records + 1})
    table.write(tmp_path / "samples.parquet")
    back = SampleTable.read(tmp_path / "samples.parquet")
    np.testing.assert_array_equal(back.reference, records)
    np.testing.assert_array_equal(back.candidates["mse"], records + 1)


def test_what_is_no_table_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "samples.parquet"
    with pytest.raises(JobError, match="cannot be read"):
        SampleTable.read(path)
    path.write_text("not parquet")
    with pytest.raises(JobError, match="is not a table of samples"):
        SampleTable.read(path)
    pq.write_table(pa.table({"content": ["a"], "label": ["b"]}), path)
    with pytest.raises(JobError, match="no column reference, slice"):
        SampleTable.read(path)


def test_a_null_score_is_no_good_score(tmp_path: Path) -> None:
    path = tmp_path / "samples.parquet"
    text = pa.array([None, None], pa.string())
    pq.write_table(
        pa.table({"content": ["a", "b"], "label": text, "slice": text, "reference": pa.array([1.0, None])}), path
    )
    assert math.isnan(SampleTable.read(path).reference[1])


def test_samples_are_paired_by_content_however_often_they_are_there() -> None:
    def of(contents: str) -> SampleTable:
        n = len(contents)
        return SampleTable(list(contents), [None] * n, [None] * n, np.zeros(n), {})

    ours, theirs = paired_rows(of("abacxa"), of("zaacb"))
    pairs = {(int(i), int(j)) for i, j in zip(ours, theirs, strict=True)}
    assert pairs == {(0, 1), (1, 4), (2, 2), (3, 3)}
    nothing = paired_rows(of("ab"), of("cd"))
    assert [len(rows) for rows in nothing] == [0, 0]
