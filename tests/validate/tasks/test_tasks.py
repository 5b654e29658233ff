"""Tasks against slow decoders and counters, and what they do with labels and numbers that cannot be used."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from validate.exceptions import JobError
from validate.tasks.base import Metric, Task, log_probability_error
from validate.tasks.classification import Classification
from validate.tasks.settings import TextRecognitionSpec
from validate.tasks.text_recognition import TextRecognition

relaxed = settings(deadline=None, max_examples=200)

CHARACTERS = ["", "a", "b", "ß", " "]


def out(array: Any) -> dict[str, NDArray[Any]]:
    return {"output": np.asarray(array)}


# --- what a metric is ---


@pytest.mark.parametrize(("higher_is_better", "expected"), [(True, [1.0, -1.0, 0.0]), (False, [-1.0, 1.0, 0.0])])
def test_worsening_is_positive_where_the_candidate_is_worse(higher_is_better: bool, expected: list[float]) -> None:
    metric = Metric("m", higher_is_better=higher_is_better, is_rate=True)
    assert metric.worsening(np.array([1.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0])).tolist() == expected


@pytest.mark.parametrize("task", [Classification(), Classification(5), TextRecognition(CHARACTERS)])
def test_tasks_keep_the_protocol(task: Task) -> None:
    assert isinstance(task, Task)
    assert task.metric.higher_is_better
    assert task.metric.is_rate


# --- classification ---

# Few distinct values, so that ties are common.
_logits = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 8)),
    elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0, 1e30, -math.inf, math.nan]),
)


@given(_logits, st.integers(1, 9), st.data())
@relaxed
def test_top_k_is_counted_class_by_class(logits: NDArray[np.float32], k: int, data: st.DataObject) -> None:
    """A label is hit where fewer than k classes are before it: higher ones, and equal ones of a lower index."""
    rows, classes = logits.shape
    assume(k < classes)
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows))
    expected = []
    for row, label in zip(logits.tolist(), labels, strict=True):
        before = sum(v > row[label] or (v == row[label] and i < label) for i, v in enumerate(row))
        expected.append(float(before < k and not any(map(math.isnan, row))))
    scores = Classification(k).scores(out(logits), labels)
    assert scores.tolist() == expected
    assert scores.dtype == np.float64


def test_of_equal_logits_the_lower_class_wins() -> None:
    tie = [[3.0, 7.0, 7.0, 7.0]]
    assert [Classification(1).scores(out(tie), [label])[0] for label in range(4)] == [0, 1, 0, 0]
    assert [Classification(2).scores(out(tie), [label])[0] for label in range(4)] == [0, 1, 1, 0]


@pytest.mark.parametrize("k", [4, 5])
def test_a_top_k_that_every_answer_meets_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"top_k is {k}, but the model has only 4 classes"):
        Classification(k).scores(out([[1.0, 2.0, 3.0, 4.0]]), [0])


@pytest.mark.parametrize("label", [0, 1, 2])
def test_a_sample_with_a_nan_logit_is_wrong_and_others_are_not(label: int) -> None:
    logits = [[math.nan, 0.0, 0.0], [math.nan] * 3, [0.0, 0.0, math.nan], np.eye(3)[label]]
    for k in (1, 2):
        assert Classification(k).scores(out(logits), [label] * 4).tolist() == [0, 0, 0, 1]


def test_the_metric_is_named_by_k_and_is_the_mean_of_the_scores() -> None:
    task = Classification(5)
    assert task.metric.name == "top5"
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(4000, 50)), random.integers(0, 50, 4000)
    assert task.scores(out(logits), labels.tolist()).mean() == pytest.approx(5 / 50, abs=0.02)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.uint64])
def test_labels_of_any_integer_type_are_usable(dtype: type) -> None:
    assert Classification().scores(out(np.eye(3)), np.array([0, 1, 1], dtype)).tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ([0, -1, 1], "label -1 is outside the model's 3 classes"),
        ([0, 3, 1], "label 3 is outside the model's 3 classes"),
        ([0.0, 1.0, 2.0], "class indices"),
        (["0", "1", "2"], "class indices"),
        ([True, False, True], "class indices"),
        ([None, 1, 2], "class indices"),
        ([[0], [1], [2]], "class indices"),
        ([0, 1, {"id": 3}], "class indices, but this one is {'id': 3}"),
        ([0, 1, "a" * 900], f"this one is '{'a' * 79}$"),
        ([0], "cannot be paired"),
        ([0, 1], "cannot be paired"),
        ([0, 1, 2, 0], "cannot be paired"),
    ],
    ids=str,
)
def test_labels_that_cannot_be_used_are_refused(labels: list[Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Classification().scores(out(np.eye(3)), labels)


def test_one_output_for_many_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        Classification().scores(out([[1.0, 0.0]]), [0, 0, 1])


@pytest.mark.parametrize("shape", [(3,), (3, 2, 1), (3, 4, 1, 1)])
def test_an_output_that_is_no_row_of_classes_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape \(batch, classes\)"):
        Classification().scores(out(np.zeros(shape)), [0, 0, 0])


# --- text ---


def ctc(path: list[int]) -> str:
    """Decode a path symbol by symbol, by the definition: merge repeats, then drop blanks."""
    text = ""
    for index, symbol in enumerate(path):
        repeats = index > 0 and symbol == path[index - 1]
        text += "" if repeats or symbol == 0 else CHARACTERS[symbol]
    return text


def probabilities(paths: list[list[int]], peak: float = 0.9) -> NDArray[np.float32]:
    classes = len(CHARACTERS)
    return np.where(np.eye(classes)[np.array(paths)] > 0, peak, (1 - peak) / (classes - 1)).astype(np.float32)


_paths = st.integers(1, 10).flatmap(
    lambda steps: st.lists(
        st.lists(st.integers(0, len(CHARACTERS) - 1), min_size=steps, max_size=steps), min_size=1, max_size=4
    )
)


@given(_paths)
@relaxed
def test_decoding_is_ctcs(paths: list[list[int]]) -> None:
    task, batch = TextRecognition(CHARACTERS), probabilities(paths)
    texts = [ctc(path) for path in paths]
    assert task.decode(batch) == texts
    assert task.scores(out(batch), texts).tolist() == [1.0] * len(texts)
    assert task.scores(out(batch), [f"{text}." for text in texts]).tolist() == [0.0] * len(texts)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ([0, 0, 0], ""),
        ([1, 1, 1], "a"),
        ([1, 0, 1], "aa"),
        ([0, 1, 1, 0, 0, 1, 2, 2], "aab"),
        ([3, 4, 4, 3], "ß ß"),
        ([2], "b"),
    ],
)
def test_decoding_of_known_paths(path: list[int], text: str) -> None:
    assert TextRecognition(CHARACTERS).decode(probabilities([path])) == [text]


def test_the_blank_may_be_another_class() -> None:
    task = TextRecognition(["a", "b", "?"], blank=2)
    assert task.decode(np.eye(3)[[[0, 2, 0, 0, 1, 2]]]) == ["aab"]


@given(_paths, st.permutations(range(4)))
@relaxed
def test_a_sample_is_decoded_alone(paths: list[list[int]], order: list[int]) -> None:
    task, batch = TextRecognition(CHARACTERS), probabilities(paths)
    picked = [i for i in order if i < len(paths)]
    assert task.decode(batch[picked]) == [task.decode(batch[i : i + 1])[0] for i in picked]


@pytest.mark.parametrize("place", [(0, 0), (0, 4), (3, 0), (3, 4)])
def test_a_line_with_a_nan_is_wrong_and_others_are_not(place: tuple[int, int]) -> None:
    paths = [[0, 0, 0, 0], [1, 2, 1, 0], [0, 0, 0, 0]]
    batch = probabilities(paths)
    batch[0][place] = math.nan
    labels = TextRecognition(CHARACTERS).decode(batch)
    assert TextRecognition(CHARACTERS).scores(out(batch), labels).tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("label", ["A", "a ", " a", "", "aa"])
def test_a_match_is_exact(label: str) -> None:
    assert TextRecognition(CHARACTERS).scores(out(probabilities([[1, 1, 0]])), [label]).tolist() == [0.0]


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 4, 6), (4, 5), (1, 1, 4, 5)])
def test_an_output_of_another_alphabet_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape \(batch, steps, 5\)"):
        TextRecognition(CHARACTERS).scores(out(np.zeros(shape)), ["a"])


@pytest.mark.parametrize("labels", [["a"], ["a", "b", "a"]])
def test_texts_that_cannot_be_paired_are_refused(labels: list[str]) -> None:
    with pytest.raises(ValueError, match="zip"):
        TextRecognition(CHARACTERS).scores(out(probabilities([[1], [2]])), labels)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_characters_come_from_a_file_with_or_without_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "characters.txt").write_text("a\nß\n", encoding=encoding)
    spec = TextRecognitionSpec(type="text_recognition", characters=str(tmp_path / "characters.txt"), append_space=True)
    task = spec.make({})
    assert task.scores(out(np.eye(4)[[[1, 3, 2, 0]]]), ["a ß"]).tolist() == [1.0]


def test_characters_in_another_encoding_are_refused(tmp_path: Path) -> None:
    (tmp_path / "characters.txt").write_text("a\nß\n", encoding="latin-1")
    spec = TextRecognitionSpec(type="text_recognition", characters=str(tmp_path / "characters.txt"))
    with pytest.raises(JobError, match=r"characters\.txt is no text in UTF-8"):
        spec.make({})


@pytest.mark.parametrize("label", [7, None, 1.5, b"a", ["a"]])
def test_a_label_that_is_no_text_is_refused(label: Any) -> None:
    """It would be wrong for the reference and for every candidate, and so no candidate would seem worse."""
    with pytest.raises(ValueError, match="labels must be texts"):
        TextRecognition(CHARACTERS).scores(out(probabilities([[1], [2]])), ["a", label])


# --- errors against the reference's outputs ---


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


_distributions = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.just(len(CHARACTERS))),
    elements=st.floats(-6, 6, width=32),
).map(softmax)


@given(_distributions)
@relaxed
def test_errors_are_zero_where_equal(p: NDArray[np.float64]) -> None:
    assert TextRecognition(CHARACTERS).errors(out(p), out(p.copy())).tolist() == [0.0] * len(p)
    logits = np.log(p[:, 0])
    assert Classification().errors(out(logits), out(logits.copy())).tolist() == [0.0] * len(p)


@given(_distributions, st.data())
@relaxed
def test_errors_are_positive_in_the_sample_that_differs_and_only_there(
    p: NDArray[np.float64], data: st.DataObject
) -> None:
    sample = data.draw(st.integers(0, len(p) - 1))
    symbol = data.draw(st.integers(0, len(CHARACTERS) - 1))
    changed = np.log(p)
    changed[sample, -1, symbol] += data.draw(st.sampled_from([-1.0, -0.01, 0.01, 1.0]))
    differs = [i == sample for i in range(len(p))]
    text = TextRecognition(CHARACTERS).errors(out(softmax(changed)), out(p))
    assert (text > 1e-9).tolist() == differs  # taking the log and back rounds
    assert TextRecognition(CHARACTERS).errors(out(p), out(softmax(changed))) == pytest.approx(text)
    logits = Classification().errors(out(changed[:, -1]), out(np.log(p[:, -1])))
    assert (logits > 1e-9).tolist() == differs


@given(_distributions, _distributions)
@relaxed
def test_errors_are_the_mean_square_of_log_probabilities(p: NDArray[np.float64], q: NDArray[np.float64]) -> None:
    rows, steps = min(len(p), len(q)), min(p.shape[1], q.shape[1])
    p, q = p[:rows, :steps], q[:rows, :steps]
    expected = [
        np.mean(
            [
                (max(math.log(a), -20) - max(math.log(b), -20)) ** 2
                for a, b in zip(p[i].ravel(), q[i].ravel(), strict=True)
            ]
        )
        for i in range(rows)
    ]
    assert TextRecognition(CHARACTERS).errors(out(p), out(q)) == pytest.approx(np.array(expected), rel=1e-9)
    assert log_probability_error(np.log(p), np.log(q)) == pytest.approx(np.array(expected), rel=1e-9)


def test_errors_of_logits_do_not_see_a_shift() -> None:
    """The same shift of all logits changes no probability."""
    logits = np.random.default_rng(0).normal(size=(3, 10))
    assert Classification().errors(out(logits + 5), out(logits)) == pytest.approx(np.zeros(3), abs=1e-25)


def test_errors_see_no_difference_where_no_decision_depends_on_it() -> None:
    sure, surer = np.array([[[1.0, 1e-12]]]), np.array([[[1.0, 0.0]]])
    task = TextRecognition(["", "a"])
    assert task.errors(out(sure), out(surer)).tolist() == [0.0]
    assert np.isfinite(task.errors(out(surer), out(np.array([[[0.0, 1.0]]])))).all()
    assert Classification().errors(out([[50.0, 0.0]]), out([[90.0, 0.0]])).tolist() == [0.0]
    assert np.isfinite(Classification().errors(out([[0.0, -math.inf]]), out([[0.0, 3.0]]))).all()


@pytest.mark.parametrize("side", [0, 1])
def test_errors_of_a_nan_are_nan_for_its_sample_alone(side: int) -> None:
    p = np.full((3, 2, len(CHARACTERS)), 0.2)
    pair = [p.copy(), p.copy()]
    pair[side][1, 0, 2] = math.nan
    assert np.isnan(TextRecognition(CHARACTERS).errors(out(pair[0]), out(pair[1]))).tolist() == [False, True, False]
    first = [array[:, 0] for array in pair]
    assert np.isnan(Classification().errors(out(first[0]), out(first[1]))).tolist() == [False, True, False]
