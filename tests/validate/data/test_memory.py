"""Samples in memory: every kind of rows that a user may have gives the same inputs, and what is none is a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from validate import Samples
from validate.exceptions import JobError, UsageError

N = 20
X = np.random.default_rng(0).normal(size=(N, 3, 2)).astype(np.float32)
Y = np.arange(N) % 4


class MapStyle:
    """A data set in PyTorch's manner: it has a length and items, and does not end by itself."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return X[index % N], int(Y[index % N])


def loader(rows: Any, **options: Any) -> Any:
    torch = pytest.importorskip("torch")
    return torch.utils.data.DataLoader(rows, **options)


def tensors() -> Any:
    torch = pytest.importorskip("torch")
    return torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))


def hugging_face(streaming: bool) -> Any:
    datasets = pytest.importorskip("datasets")
    found = datasets.Dataset.from_dict({"x": list(X), "label": Y.tolist()})
    return found.to_iterable_dataset() if streaming else found.with_format("numpy")


LABELLED: dict[str, Callable[[], Any]] = {
    "list of tuples": lambda: list(zip(X, Y, strict=True)),
    "nested tuples": lambda: [((x,), y) for x, y in zip(X, Y, strict=True)],
    "mapping and label": lambda: [({"x": x}, y) for x, y in zip(X, Y, strict=True)],
    "list of mappings": lambda: [{"x": x, "label": y, "other": "text"} for x, y in zip(X, Y, strict=True)],
    "mapping of arrays": lambda: {"x": X, "label": Y},
    "generator": lambda: ({"x": x, "label": y} for x, y in zip(X, Y, strict=True)),
    "map-style data set": MapStyle,
    "Hugging Face": lambda: hugging_face(streaming=False),
    "Hugging Face, streaming": lambda: hugging_face(streaming=True),
    "DataLoader": lambda: loader(tensors(), batch_size=6),
    "DataLoader, batch sampler": lambda: loader(tensors(), batch_sampler=[[0, 1, 2], list(range(3, N))]),
    "DataLoader, unbatched": lambda: loader(MapStyle(), batch_size=None),
    "DataLoader of mappings": lambda: loader([{"x": x, "label": y} for x, y in zip(X, Y, strict=True)], batch_size=6),
}


@pytest.mark.parametrize("kind", LABELLED)
def test_every_kind_of_rows_gives_the_same_inputs_and_labels(kind: str) -> None:
    batches = list(Samples(LABELLED[kind]()).stream("validation", ("x",), label="label").batches())
    found = np.concatenate([batch.inputs["x"] for batch in batches])
    np.testing.assert_array_equal(found.astype(np.float32), X)
    assert [label for batch in batches for label in batch.labels] == Y.tolist()


@pytest.mark.parametrize("kind", LABELLED)
def test_labels_may_stay_where_none_are_needed(kind: str) -> None:
    batches = list(Samples(LABELLED[kind]()).stream("calibration", ("x",)).batches())
    np.testing.assert_array_equal(np.concatenate([b.inputs["x"] for b in batches]).astype(np.float32), X)
    assert {label for batch in batches for label in batch.labels} == {None}


@pytest.mark.parametrize("rows", [X, list(X), [(x,) for x in X], iter(X)], ids=["array", "list", "tuples", "iterator"])
def test_rows_may_be_arrays_alone(rows: Any) -> None:
    batches = list(Samples(rows).stream("calibration", ("x",)).batches())
    np.testing.assert_array_equal(np.concatenate([batch.inputs["x"] for batch in batches]), X)
    assert [len(batch) for batch in batches] == [8, 8, 4]


def test_tensors_with_gradients_are_arrays_too() -> None:
    torch = pytest.importorskip("torch")
    rows = torch.from_numpy(X.copy()).requires_grad_()
    (first, *_) = Samples(rows).stream("calibration", ("x",)).batches()
    np.testing.assert_array_equal(first.inputs["x"], X[:8])


def test_several_inputs_come_in_the_order_of_the_model_or_by_name() -> None:
    pairs = [(x, x.sum()) for x in X]
    named = [{"total": x.sum(), "x": x} for x in X]
    labelled = [(x, x.sum(), 1) for x in X]
    for rows in (pairs, named, labelled):
        (first, *_) = Samples(rows).stream("calibration", ("x", "total")).batches()
        np.testing.assert_array_equal(first.inputs["total"], [x.sum() for x in X[:8]])
    (first, *_) = Samples(labelled).stream("validation", ("x", "total"), label="label").batches()
    assert first.labels == [1] * 8


def test_a_loader_of_nested_batches_is_split_as_it_was_joined() -> None:
    torch = pytest.importorskip("torch")
    rows = [((torch.full((2,), i), torch.full((3,), -i)), {"name": f"n{i}", "size": i}) for i in range(5)]
    (batch,) = Samples(loader(rows, batch_size=2), batch_size=5).stream("validation", ("a", "b"), "label").batches()
    assert batch.labels == [{"name": f"n{i}", "size": i} for i in range(5)]
    np.testing.assert_array_equal(batch.inputs["b"], [[-i] * 3 for i in range(5)])


def test_a_loader_says_how_many_run_at_once_unless_the_user_does() -> None:
    assert Samples(loader(tensors(), batch_size=6)).stream("calibration", ("x",)).batch_size == 6
    assert Samples(loader(tensors(), batch_size=6), batch_size=3).stream("calibration", ("x",)).batch_size == 3
    assert Samples(X).stream("calibration", ("x",), fixed_batch=5).batch_size == 5


def test_a_preprocessing_gets_the_inputs_of_a_row_and_mappings_whole() -> None:
    def twice(x: Any) -> Any:
        return 2 * x

    def of_mapping(row: Any) -> Any:
        return {"x": 2 * row["picture"]}

    for rows, preprocess in (
        (X, twice),
        (list(zip(X, Y, strict=True)), twice),
        ([{"picture": x, "label": y} for x, y in zip(X, Y, strict=True)], of_mapping),
    ):
        stream = Samples(rows, preprocess).stream("calibration", ("x",))
        np.testing.assert_array_equal(next(iter(stream.batches())).inputs["x"], 2 * X[:8])
    assert "twice" in stream.preparation.description or "of_mapping" in stream.preparation.description


def test_the_first_samples_of_an_iterator_can_be_looked_at_before_the_one_pass() -> None:
    stream = Samples(iter(X)).stream("calibration", ("x",))
    for limit in (1, 8, 16, 3):
        found = np.concatenate([batch.inputs["x"] for batch in stream.limited(limit).batches()])
        np.testing.assert_array_equal(found, X[:limit])
    assert sum(len(batch) for batch in stream.batches()) == N
    assert sum(len(batch) for batch in stream.limited(16).batches()) == 16
    with pytest.raises(UsageError, match="gives them only once, and several passes are needed; give a list"):
        list(stream.batches())


def test_an_iterator_that_has_none_left_says_so() -> None:
    rows = iter(X)
    list(rows)
    with pytest.raises(UsageError, match="has none left: it gives them only once"):
        list(Samples(rows).stream("calibration", ("x",)).batches())


def test_an_iterator_is_not_read_further_than_asked() -> None:
    taken = []

    def endless() -> Iterator[Any]:
        for i in range(10**9):
            taken.append(i)
            yield X[i % N]

    stream = Samples(endless()).stream("calibration", ("x",))
    assert sum(len(batch) for batch in stream.limited(5).batches()) == 5
    assert len(taken) == 5
    assert sum(len(batch) for batch in stream.limited(40).batches()) == 40
    assert len(taken) == 40


@pytest.mark.parametrize(
    ("rows", "label", "sentence"),
    [
        ("images/", None, "'images/' holds no samples; give an iterable of arrays"),
        (7, None, "a int holds no samples"),
        (np.float32(1), None, "holds no samples"),
        ({"x": X, "y": Y[:3]}, None, "an array for every column, all with as many rows"),
        (list(X), "label", "a row is a ndarray without a label"),
        ([(x, 1, 2) for x in X], "label", "a row is a tuple of 3, and the model has 1 input; give"),
        ([(x, x, x) for x in X], None, "a sample has 3 inputs, and the model 1, which are x"),
    ],
)
def test_what_gives_no_samples_is_a_sentence(rows: Any, label: str | None, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence.replace("(", r"\(")):
        list(Samples(rows).stream("validation", ("x",), label).batches())


def test_a_column_that_is_not_there_is_named() -> None:
    rows = [{"picture": x, "label": 0} for x in X]
    with pytest.raises(JobError, match="sample 0 of the calibration set has no column 'x'; its columns are label, pic"):
        list(Samples(rows).stream("calibration", ("x",)).batches())
    with pytest.raises(JobError, match=r"has no column 'digit'.*where there are no labels, set data.label: null"):
        list(Samples({"x": X}).stream("validation", ("x",), "digit").batches())
