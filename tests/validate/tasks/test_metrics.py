"""Tasks whose metric is no mean per sample, against other people's code, brute force and published examples.

Every aggregate must give for weights what it gives for samples that are there as often as the weights say: that is what
makes a bootstrap by weights a bootstrap.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import stats
from sklearn import metrics as sklearn_metrics

from validate.tasks.agreement import Agreement, with_or_without_labels
from validate.tasks.base import Answering, CountsLabels, LabelError, Metric, Task
from validate.tasks.classification import Classification
from validate.tasks.detection import Detection, OutputNames
from validate.tasks.embedding import SentenceEmbedding
from validate.tasks.regression import Regression
from validate.tasks.segmentation import Segmentation
from validate.tasks.text_recognition import TextRecognition
from validate.tasks.tokens import TokenAccuracy, TokenLoss

Floats = NDArray[np.float64]
relaxed = settings(deadline=None, max_examples=60)


def out(array: Any) -> dict[str, NDArray[Any]]:
    return {"output": np.asarray(array)}


# --- detection: pycocotools itself on all images together ---

CLASSES = 4


def scene(rng: np.random.Generator, images: int) -> tuple[dict[str, NDArray[Any]], list[dict[str, Any]]]:
    """Return outputs (batch, n, 6) that are labels moved about, false alarms and padding; and the labels."""
    labels, outputs = [], np.full((images, 30, 6), -1.0)
    for image in range(images):
        n = int(rng.integers(0, 9))
        corner, side = rng.uniform(0, 80, (n, 2)), rng.uniform(4, 40, (n, 2))
        kinds = rng.integers(0, CLASSES - 1, n)  # the last class has no labels
        labels.append(
            {
                "bbox": np.hstack([corner, side]).tolist(),
                "category": kinds.tolist(),
                "iscrowd": (rng.uniform(size=n) < 0.15).astype(int).tolist(),
            }
        )
        found = []
        for c, s, k in zip(corner, side, kinds, strict=True):
            for _ in range(int(rng.integers(0, 3))):
                moved, grown = c + rng.normal(0, 1, 2), s * rng.uniform(0.9, 1.1, 2)
                kind = k if rng.uniform() < 0.9 else rng.integers(0, CLASSES)
                # Few distinct scores, so that ties are common.
                found.append([*moved, *(moved + grown), rng.integers(1, 8) / 8, kind])
        for _ in range(int(rng.integers(0, 5))):
            moved = rng.uniform(0, 80, 2)
            found.append([*moved, *(moved + rng.uniform(4, 40, 2)), rng.integers(1, 8) / 8, rng.integers(0, CLASSES)])
        for place, row in enumerate(found[:30]):
            outputs[image, place] = row
    return {"output": outputs}, labels


def coco_map(outputs: NDArray[Any], labels: list[dict[str, Any]], times: Any) -> float:
    """Return pycocotools' AP @[ IoU=0.50:0.95 | area=all | maxDets=100 ] of images that are there `times` often."""
    truth, found, images = [], [], []
    for image in np.repeat(np.arange(len(labels)), times):
        number = len(images) + 1
        images.append({"id": number})
        label = labels[image]
        for box, kind, crowd in zip(label["bbox"], label["category"], label["iscrowd"], strict=True):
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": number,
                    "category_id": kind,
                    "bbox": box,
                    "iscrowd": crowd,
                    "area": box[2] * box[3],
                }
            )
        for x0, y0, x1, y1, score, kind in outputs[image]:
            if score > 0:
                found.append(
                    {
                        "image_id": number,
                        "category_id": int(kind),
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "score": score,
                    }
                )
    with contextlib.redirect_stdout(io.StringIO()):
        gold = COCO()
        gold.dataset = {"images": images, "annotations": truth, "categories": [{"id": k} for k in range(CLASSES)]}
        gold.createIndex()
        evaluation = COCOeval(gold, gold.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


@pytest.mark.parametrize("seed", range(6))
def test_map_is_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    outputs, labels = scene(rng, 12)
    task = Detection(CLASSES)
    # In batches, as a stream gives them.
    parts = [task.scores(out(outputs["output"][i : i + 5]), labels[i : i + 5]) for i in (0, 5, 10)]
    records = np.concatenate(parts)
    assert task.metric.value(records) == pytest.approx(coco_map(outputs["output"], labels, 1), abs=1e-9)
    assert 0.1 < task.metric.value(records) < 0.9


@pytest.mark.parametrize("seed", range(3))
def test_map_of_resamples_is_pycocotools_on_images_that_are_there_several_times(seed: int) -> None:
    """Without ties, that is: pycocotools orders detections with the same score by their images' place."""
    rng = np.random.default_rng(100 + seed)
    outputs, labels = scene(rng, 10)
    outputs["output"][..., 4] *= rng.uniform(0.9, 1, outputs["output"].shape[:2])
    task = Detection(CLASSES)
    records = task.scores(outputs, labels)
    times = np.array([rng.multinomial(10, np.full(10, 0.1)) for _ in range(4)])
    expected = [coco_map(outputs["output"], labels, row) for row in times]
    assert task.metric.values(records, times.astype(float)) == pytest.approx(np.array(expected), abs=1e-9)


def test_map_by_hand() -> None:
    """One class, two labels: found at 0.9, a false alarm at 0.8, found at 0.7 with IoU 0.6.

    At IoU 0.5 to 0.6, precision is 1 up to recall 0.5 and 2/3 up to 1: (51 + 50 * 2/3) / 101. Above, the second is
    missed: 51 / 101. The thresholds are 0.50, 0.55, 0.60 against seven others.
    """
    boxes = [[[0, 0, 10, 10, 0.9, 0], [50, 50, 60, 60, 0.8, 0], [20, 20, 30, 26, 0.7, 0]]]
    labels = [{"bbox": [[0, 0, 10, 10], [20, 20, 10, 10]], "category": [0, 0]}]
    task = Detection(1)
    expected = (3 * (51 + 50 * 2 / 3) + 7 * 51) / 1010
    assert task.metric.value(task.scores(out(boxes), labels)) == pytest.approx(expected)


def test_formats_of_boxes_and_outputs_are_the_same_thing() -> None:
    outputs, labels = scene(np.random.default_rng(7), 6)
    array = outputs["output"]
    corners, scores, kinds = array[..., :4], array[..., 4], array[..., 5]
    sides = corners[..., 2:] - corners[..., :2]
    wanted = Detection(CLASSES).scores(outputs, labels)
    xywh = np.concatenate([corners[..., :2], sides], axis=-1)
    centred = np.concatenate([corners[..., :2] + sides / 2, sides], axis=-1)
    three = {"b": xywh, "s": scores, "c": kinds}
    names = OutputNames("b", "s", "c")
    for task, given_ in (
        (Detection(CLASSES, "xywh", names), three),
        (Detection(CLASSES, "cxcywh", names), three | {"b": centred}),
        (
            Detection(CLASSES, decode=lambda o: (o["x"][..., :4], o["x"][..., 4], o["x"][..., 5])),
            {"x": array, "y": sides},
        ),
    ):
        found = task.scores(given_, labels)
        assert found == pytest.approx(wanted, abs=1e-9)
    alone = Detection(CLASSES).scores({"boxes": corners[0], "scores": scores[0], "labels": kinds[0]}, labels[:1])
    assert (alone == wanted[:1]).all()


def test_labels_may_be_lists_as_in_coco() -> None:
    outputs, labels = scene(np.random.default_rng(8), 5)
    listed = [
        [dict(zip(("bbox", "category_id", "iscrowd"), one, strict=True)) for one in zip(*label.values(), strict=True)]
        for label in labels
    ]
    assert [] in listed
    task = Detection(CLASSES)
    assert (task.scores(outputs, listed) == task.scores(outputs, labels)).all()


def test_what_is_no_detection_is_left_out() -> None:
    labels = [{"bbox": [[0, 0, 10, 10]], "category": [0]}]
    good = [0, 0, 10, 10, 0.9, 0]
    task = Detection(1)
    for bad in ([math.nan, 0, 1, 1, 0.9, 0], [0, 0, 1, 1, math.nan, 0], [0, 0, 9, 9, 0, 0], [0, 0, 9, 9, 0.95, -1]):
        assert task.metric.value(task.scores(out([[bad, good]]), labels)) == 1.0
        assert task.metric.value(task.scores(out([[bad]]), labels)) == 0.0
    assert math.isnan(task.metric.value(task.scores(out([[good]]), [{"bbox": [], "category": []}])))


def test_only_the_surest_detections_count() -> None:
    labels = [{"bbox": [[0, 0, 10, 10]], "category": [0]}]
    rows = [[50, 50, 60, 60, 0.9 - i / 100, 0] for i in range(3)] + [[0, 0, 10, 10, 0.1, 0]]
    assert Detection(1, most=3).metric.value(Detection(1, most=3).scores(out([rows]), labels)) == 0.0
    assert Detection(1, most=4).metric.value(Detection(1, most=4).scores(out([rows]), labels)) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("label", "complaint"),
    [
        (3, "bbox and category"),
        (None, "bbox and category, but this one is None"),
        ([{"bbox": [0, 0, 1, 1], "category": 0}, None], "bbox and category"),
        ({"bbox": [[0, 0, 1, 1]], "category": [7]}, "category 7 of a label is none of 2 classes"),
        ({"bbox": [[0, 0, 1, 1]] * 2, "category": [1, -1]}, "category -1 of a label is none of 2 classes"),
        ({"bbox": [[0, 0, 1, 1]], "category": [0.5]}, "category 0.5 of a label is none of 2 classes"),
        ({"bbox": [[0, 0, 1, 1]], "category": [None]}, "category nan of a label is none of 2 classes"),
        ({"bbox": [[0, 0, 1, 1]], "category": None}, "category of a label must be numbers, but it is None"),
        ({"bbox": [[0, 0, 1, 1]], "category": ["car"]}, r"category of a label must be numbers, but it is \['car'\]"),
        ({"bbox": None, "category": [0]}, "bbox of a label must be numbers, but it is None"),
        ({"bbox": [None], "category": [0]}, r"bbox must hold four numbers for each box, but it has shape \(1,\)"),
        ({"bbox": [[0, 0, None, 1]], "category": [0]}, "left, top, width, height"),
        ({"bbox": [[0, 0, 1], [1]], "category": [0]}, "bbox of a label must be numbers"),
        ({"bbox": [[0, 0, 1, 1]], "category": [0], "iscrowd": ["no"]}, "iscrowd of a label must be numbers"),
        ({"bbox": [[0, 0, 1, 1]], "category": [0, 1]}, "1 boxes, but 2 categories"),
        ({"bbox": [[5, 5, -1, 1]], "category": [0]}, "left, top, width, height"),
    ],
)
def test_labels_of_boxes_that_cannot_be_used_are_refused(label: Any, complaint: str) -> None:
    with pytest.raises(LabelError, match=complaint) as caught:
        Detection(2).scores(out([[[0, 0, 1, 1, 0.5, 0]]] * 2), [{"bbox": [], "category": []}, label])
    assert caught.value.place == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("crowd", [None, [None, None], [0, None]])
def test_a_box_that_is_not_said_to_be_a_crowd_is_none(crowd: Any) -> None:
    boxes = {"bbox": [[0, 0, 10, 10], [50, 50, 10, 10]], "category": [0, 0]}
    found = out([[[0, 0, 10, 10, 0.9, 0]]])
    assert (Detection(1).scores(found, [{**boxes, "iscrowd": crowd}]) == Detection(1).scores(found, [boxes])).all()


def test_a_crowd_is_one_wherever_in_a_list_it_is_said() -> None:
    boxes = [{"bbox": [0, 0, 10, 10], "category": 0}, {"bbox": [50, 50, 10, 10], "category": 0, "iscrowd": 1}]
    records = Detection(1).scores(out([[[0, 0, 10, 10, 0.9, 0]]]), [boxes])
    assert records[0, 0] == 1  # the crowd is not to be found


def test_outputs_that_are_no_detections_are_refused() -> None:
    with pytest.raises(ValueError, match=r"task.decode"):
        Detection(2).scores(out(np.zeros((1, 84, 8400))), [{"bbox": [], "category": []}])
    with pytest.raises(ValueError, match="class 5 of a detection"):
        Detection(2).scores(out([[[0, 0, 1, 1, 0.5, 5]]]), [{"bbox": [], "category": []}])


def test_the_error_of_detections_grows_with_the_distance_and_is_one_without_overlap() -> None:
    task, base = Detection(2), np.array([[[0, 0, 10, 10, 0.9, 0], [20, 20, 40, 40, 0.6, 1]]], float)

    def moved(by: float) -> float:
        return float(task.errors(out(base + np.array([by, 0, by, 0, 0, 0])), out(base))[0])

    assert moved(0) == 0
    assert 0 < moved(0.1) < moved(1) < moved(5) < moved(100) == 1
    # Width 10: IoU 9/11 for the first (score .9), 19/21 for the second (.6).
    dice = (0.9 * 9 / 11 + 0.6 * 19 / 21) / 1.5
    assert moved(1) == pytest.approx((1 - dice) ** 2)
    nothing = np.full_like(base, -1)
    assert task.errors(out(nothing), out(base))[0] == 1
    assert task.errors(out(nothing), out(nothing))[0] == 0


# --- segmentation: scikit-learn on the pixels of all images together ---


@given(st.integers(0, 2**32 - 1))
@relaxed
def test_miou_is_scikit_learns_jaccard_score_of_all_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes, images = 5, 4
    logits = rng.normal(size=(images, classes, 6, 7)).astype(np.float32)
    labels = rng.integers(0, classes - 1, (images, 6, 7))  # not every class need be there
    labels[rng.uniform(size=labels.shape) < 0.2] = 255
    task = Segmentation(classes)
    records = task.scores(out(logits), list(labels))
    times = rng.multinomial(images, np.full(images, 1 / images), size=3)
    expected = []
    for row in [np.ones(images, int), *times]:
        scored = np.repeat(labels, row, axis=0) != 255
        wanted, found = (np.repeat(x, row, axis=0)[scored] for x in (labels, logits.argmax(axis=1)))
        seen = np.union1d(wanted, found)
        expected.append(sklearn_metrics.jaccard_score(wanted, found, labels=seen, average="macro"))
    weights = np.vstack([np.ones(images), times]).astype(float)
    assert task.metric.values(records, weights) == pytest.approx(np.array(expected))
    as_classes = task.scores(out(logits.argmax(axis=1)), list(labels))
    assert (as_classes == records).all()


def test_miou_is_not_the_mean_of_images() -> None:
    """Class 1 is one pixel of the first image, and wrong there; it is all of the second, and right."""
    answers = np.zeros((2, 10, 10), np.int64)
    labels = np.zeros((2, 10, 10), np.int64)
    labels[0, 0, 0] = 1
    labels[1] = answers[1] = 1
    task = Segmentation(2)
    assert task.metric.value(task.scores(out(answers), list(labels))) == pytest.approx((99 / 100 + 100 / 101) / 2)


def test_a_pixel_without_a_finite_answer_is_wrong() -> None:
    logits = np.zeros((1, 2, 1, 4))
    logits[0, 0] = 1
    logits[0, 1, 0, 3] = math.nan
    assert Segmentation(2).metric.value(Segmentation(2).scores(out(logits), [np.zeros((1, 4), int)])) == 0.75


def test_logits_of_a_stride_are_resized_as_pytorch_does() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 8, 10)).astype(np.float32)
    label = rng.integers(0, 3, (2, 32, 40))
    large = torch.nn.functional.interpolate(torch.from_numpy(logits), (32, 40), mode="bilinear", align_corners=False)
    task = Segmentation(3)
    found = task.metric.value(task.scores(out(logits), list(label)))
    assert found == pytest.approx(task.metric.value(task.scores(out(large.numpy()), list(label))), abs=0.002)


def test_a_label_may_be_an_encoded_image() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    task = Segmentation(3)
    records = task.scores(out(pixels[None].astype(np.int64)), [{"bytes": buffer.getvalue(), "path": None}])
    assert task.metric.value(records) == 1.0


@pytest.mark.parametrize("form", ["bool", "lists", "one bit", "path", "bytes", "palette", "16 bits"])
def test_a_mask_may_be_written_in_any_usual_way(tmp_path: Path, form: str) -> None:
    mask = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    buffer, grey = io.BytesIO(), Image.fromarray(mask)
    grey.save(buffer, "PNG")
    grey.save(tmp_path / "mask.png")
    colours = grey.copy()
    colours.putpalette([200, 0, 0, 0, 100, 200])
    label = {
        "bool": mask > 0,
        "lists": mask.tolist(),
        "one bit": Image.fromarray(mask > 0),
        "path": str(tmp_path / "mask.png"),
        "bytes": buffer.getvalue(),
        "palette": colours,
        "16 bits": Image.fromarray(mask.astype(np.uint16)),
    }[form]
    task = Segmentation(2)
    records = task.scores(out(mask[None].astype(np.int64)), [label])
    assert task.metric.value(records) == 1.0
    assert records[0].tolist() == [3, 3, 3, 3, 3, 3]


def test_classes_that_are_in_no_label_can_be_told() -> None:
    """A mask of 0 and 255 has no class 1: 255 is not scored."""
    labels = [np.array([[0, 255, 0]]), np.array([[255, 2, 0]])]
    task = Segmentation(3)
    records = task.scores(out(np.ones((2, 1, 3), np.int64)), labels)
    assert isinstance(task, CountsLabels)
    assert task.label_counts(records).tolist() == [3, 0, 1]


@pytest.mark.parametrize(
    ("output", "label", "complaint"),
    [
        (np.zeros((1, 3, 2, 2)), None, "must be encoded bytes, a path or an array, but it is None"),
        (np.zeros((1, 3, 2, 2)), {"bytes": None, "path": None}, "but it is None"),
        (np.zeros((1, 3, 2, 2)), b"nonsense", "no image in a format that Pillow knows is in its 8 bytes"),
        (np.zeros((1, 3, 2, 2)), "/no/such/mask.png", "the image cannot be read: .*/no/such/mask.png"),
        (np.zeros((1, 3, 2, 2)), [[0, 1], [2]], "inhomogeneous"),
        (np.zeros((1, 3, 2, 2)), np.full((2, 2), -1), "label -1 is none of 3 classes"),
        (np.zeros((1, 4, 2, 2)), np.zeros((2, 2), int), r"\(batch, 3, height, width\)"),
        (np.zeros((1, 3, 2, 2)), np.zeros((2, 2, 3), int), "map of classes"),
        (np.zeros((1, 3, 2, 2)), np.zeros((2, 2)), "map of classes"),
        (np.zeros((1, 3, 2, 2)), np.full((2, 2), 3), "label 3 is none of 3 classes"),
        (np.zeros((2, 3, 2, 2)), np.zeros((2, 2), int), "cannot be paired"),
    ],
)
def test_maps_that_cannot_be_used_are_refused(output: Any, label: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Segmentation(3).scores(out(output), [label])


# --- text: edit distance by brute force, and a published example ---


def edits(predicted: list[str], wanted: list[str]) -> tuple[TextRecognition, Floats]:
    """Return a task over the characters of both, and its records where those texts are what the model reads."""
    characters = ["", *sorted(set("".join(predicted + wanted)))]
    index = {c: i for i, c in enumerate(characters)}
    # A blank after each character, so that repeats stay.
    paths = np.zeros((len(predicted), 2 * max(map(len, predicted)) + 1), int)
    for row, text in zip(paths, predicted, strict=True):
        row[: 2 * len(text) : 2] = [index[c] for c in text]
    task = TextRecognition(characters, metric="character_error_rate")
    return task, task.scores(out(np.eye(len(characters))[paths]), wanted)


@given(st.text("ab ç", max_size=6), st.text("ab ç", max_size=6))
@settings(deadline=None, max_examples=200)
def test_edits_are_the_definition(a: str, b: str) -> None:
    @cache
    def distance(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return len(a) - i + len(b) - j
        swap = distance(i + 1, j + 1) + (a[i] != b[j])
        return min(swap, distance(i + 1, j) + 1, distance(i, j + 1) + 1)

    _, records = edits([a, b], [b, a])
    assert records.tolist() == [[distance(0, 0), len(b)], [distance(0, 0), len(a)]]


@pytest.mark.parametrize(("a", "b", "expected"), [("kitten", "sitting", 3), ("saturday", "sunday", 3), ("", "abc", 3)])
def test_edits_of_textbook_pairs(a: str, b: str, expected: int) -> None:
    assert edits([a], [b])[1].tolist() == [[expected, len(b)]]


def test_character_error_rate_is_edits_over_all_characters() -> None:
    """torchmetrics' documented example: CharErrorRate of these two pairs is 0.3415."""
    predicted = ["this is the prediction", "there is an other sample"]
    wanted = ["this is the reference", "there is another one"]
    task, records = edits(predicted, wanted)
    assert records[:, 1].tolist() == [len(text) for text in wanted]
    assert task.metric.value(records) == pytest.approx(0.3415, abs=5e-5)
    assert not task.metric.higher_is_better


def test_a_line_with_a_nan_is_an_error_in_every_character() -> None:
    batch = np.eye(3)[[[1, 0, 2]]]
    task = TextRecognition(["", "a", "b"], metric="character_error_rate")
    assert task.metric.value(task.scores(out(batch), ["ab"])) == 0
    batch[0, 0, 0] = math.nan
    assert task.metric.value(task.scores(out(batch), ["ab"])) == 1


# --- sentence pairs: scipy ---


@pytest.mark.filterwarnings("ignore::scipy.stats.ConstantInputWarning")
@given(st.integers(0, 2**32 - 1))
@relaxed
def test_spearman_is_scipys_in_each_dataset_and_resample(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = 30
    vectors = rng.normal(size=(2 * pairs, 4))
    scores = rng.integers(0, 4, pairs).astype(float)  # with many ties
    names = np.array(["STS-B", "SICK"])[rng.integers(0, 2, pairs)]
    labels = [{"score": s, "dataset": n} for s, n in zip(scores, names, strict=True)]
    task = SentenceEmbedding()
    records = np.concatenate([task.scores(out(vectors[:20]), labels[:10]), task.scores(out(vectors[20:]), labels[10:])])
    a, b = vectors[::2], vectors[1::2]
    cosines = np.array([float(x @ y / math.sqrt((x @ x) * (y @ y))) for x, y in zip(a, b, strict=True)])
    times = rng.multinomial(pairs, np.full(pairs, 1 / pairs), size=3)
    for row, found in zip(times, task.metric.values(records, times.astype(float)), strict=True):
        each = [
            stats.spearmanr(*(np.repeat(x[names == n], row[names == n]) for x in (cosines, scores))).statistic
            for n in np.unique(np.repeat(names, row))
        ]
        assert found == pytest.approx(np.mean(each), nan_ok=True)  # a resample may have only one pair of a dataset


def test_pooling_leaves_padding_out() -> None:
    rng = np.random.default_rng(0)
    tokens, mask = rng.normal(size=(4, 5, 3)), np.array([[1, 1, 0, 0, 0], [1] * 5, [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    means = np.stack([t[m > 0].mean(axis=0) for t, m in zip(tokens, mask, strict=True)])
    labels = [0.5, 0.9]
    wanted = SentenceEmbedding().scores(out(means), labels)
    found = SentenceEmbedding("mean").scores({"tokens": tokens, "attention_mask": mask}, labels)
    assert found == pytest.approx(wanted)
    assert SentenceEmbedding("cls").scores(out(tokens), labels) == pytest.approx(
        SentenceEmbedding().scores(out(tokens[:, 0]), labels)
    )
    with pytest.raises(ValueError, match="attention_mask"):
        SentenceEmbedding("mean").scores(out(tokens), labels)
    with pytest.raises(ValueError, match="set task"):
        SentenceEmbedding().scores(out(tokens), labels)


def test_a_correlation_that_is_not_defined_is_no_number() -> None:
    same = np.tile([1.0, 0.0], (8, 1))
    task = SentenceEmbedding()
    assert math.isnan(task.metric.value(task.scores(out(same), [1.0, 2.0, 3.0, 4.0])))
    broken = np.random.default_rng(0).normal(size=(8, 2))
    broken[3] = math.nan
    assert math.isnan(task.metric.value(task.scores(out(broken), [1.0, 2.0, 3.0, 4.0])))


@pytest.mark.parametrize("label", ["3", None, True, math.nan, {"dataset": "a"}])
def test_human_scores_must_be_numbers(label: Any) -> None:
    with pytest.raises(ValueError, match="a label must be a number"):
        SentenceEmbedding().scores(out(np.ones((2, 2))), [label])


# --- tokens: PyTorch's cross entropy ---


@pytest.mark.parametrize("metric", ["loss", "perplexity", "accuracy"])
def test_token_metrics_are_pytorchs_over_all_tokens_together(metric: Any) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (6, 9, 11)).astype(np.float32)
    labels = rng.integers(0, 11, (6, 9))
    labels[rng.uniform(size=labels.shape) < 0.6] = -100
    labels[2] = -100  # a sequence of which nothing is scored
    task = TokenAccuracy("masked_lm") if metric == "accuracy" else TokenLoss("masked_lm", metric)
    records = task.scores(out(logits), list(labels))
    times = rng.multinomial(6, np.full(6, 1 / 6), size=2)
    for row, found in zip(times, task.metric.values(records, times.astype(float)), strict=True):
        flat = torch.from_numpy(np.repeat(logits, row, axis=0).reshape(-1, 11))
        wanted = torch.from_numpy(np.repeat(labels, row, axis=0).reshape(-1))
        loss = float(torch.nn.functional.cross_entropy(flat, wanted, ignore_index=-100))
        hits = float((flat.argmax(dim=1) == wanted)[wanted != -100].float().mean())
        expected = {"loss": loss, "perplexity": math.exp(loss), "accuracy": hits}[metric]
        assert found == pytest.approx(expected, rel=1e-5)
    assert task.metric.higher_is_better == (metric == "accuracy")


def test_a_uniform_guess_among_n_has_perplexity_n() -> None:
    task = TokenLoss("masked_lm", "perplexity")
    assert task.metric.value(task.scores(out(np.zeros((2, 3, 50))), [[1, 2, 3], [-100, 4, -100]])) == pytest.approx(50)


def test_tokens_that_are_not_numbers_are_wrong_or_have_no_loss() -> None:
    logits = np.zeros((1, 2, 3))
    logits[0, :, 1] = 5
    logits[0, 0, 2] = math.nan
    hits = TokenAccuracy("token_classification")
    assert hits.metric.value(hits.scores(out(logits), [[1, 1]])) == 0.5
    loss = TokenLoss("token_classification", "loss")
    assert math.isnan(loss.metric.value(loss.scores(out(logits), [[1, 1]])))
    assert math.isfinite(loss.metric.value(loss.scores(out(logits), [[-100, 1]])))


@pytest.mark.parametrize(
    ("label", "complaint"),
    [
        ([1], "2 classes, one for each token"),
        ([1.0, 2.0], "2 classes"),
        ([1, 3], "label 3 is outside the model's 3 classes"),
        ([1, -1], "label -1 is outside the model's 3 classes"),
        ([[1], [1, 2]], "inhomogeneous"),
        (None, "shape"),
    ],
)
def test_token_labels_that_cannot_be_used_are_refused(label: Any, complaint: str) -> None:
    with pytest.raises(LabelError, match=complaint) as caught:
        TokenLoss("masked_lm", "loss").scores(out(np.zeros((2, 2, 3))), [[0, 1], label])
    assert caught.value.place == 1


# --- numbers ---


@given(st.integers(0, 2**32 - 1))
@relaxed
def test_errors_of_numbers_are_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found, wanted = rng.normal(size=(12, 3)), rng.normal(size=(12, 3))
    mae, rmse = Regression("mae"), Regression("rmse")
    assert mae.metric.value(mae.scores(out(found), list(wanted))) == pytest.approx(
        sklearn_metrics.mean_absolute_error(wanted, found)
    )
    times = rng.multinomial(12, np.full(12, 1 / 12))
    again = [np.repeat(x, times, axis=0) for x in (wanted, found)]
    values = rmse.metric.values(rmse.scores(out(found), list(wanted)), times[None].astype(float))
    assert values[0] == pytest.approx(math.sqrt(sklearn_metrics.mean_squared_error(*again)))


def test_one_number_needs_no_brackets_and_other_shapes_are_refused() -> None:
    task = Regression()
    assert task.scores(out([[1.0], [2.0]]), [1.5, 4]).tolist() == [0.5, 2.0]
    assert task.scores(out([1.0, 2.0]), [1.5, 4]).tolist() == [0.5, 2.0]
    for labels, complaint in (
        ([1.0], "cannot be paired"),
        ([[1, 2], [3, 4]], "labels of 2 numbers"),
        (["a", 1], "must be numbers, but this one is 'a'"),
        ([1, {"age": 3}], "must be numbers, but this one is {'age': 3}"),
        ([1, math.nan], "not finite"),
        ([None, 1], "not finite: None"),
    ):
        with pytest.raises(ValueError, match=complaint):
            task.scores(out([[1.0], [2.0]]), labels)


# --- agreement ---

_rng = np.random.default_rng(5)
_TOKENS, _PIXELS, _NUMBERS = _rng.normal(size=(4, 5, 6)), _rng.normal(size=(4, 3, 5, 5)), _rng.normal(size=(4, 3))
_TEXT = np.abs(_rng.normal(size=(4, 6, 3)))
TASKS: dict[str, tuple[Task, Any, float]] = {
    "classification": (Classification(), _NUMBERS, 1.0),
    "text": (TextRecognition(["", "a", "b"]), _TEXT, 1.0),
    "characters": (TextRecognition(["", "a", "b"], metric="character_error_rate"), _TEXT, 0.0),
    "segmentation": (Segmentation(3), _PIXELS, 1.0),
    "detection": (Detection(CLASSES), scene(np.random.default_rng(3), 4)[0]["output"], 1.0),
    "tokens": (TokenAccuracy("token_classification"), _TOKENS, 1.0),
    "embedding": (SentenceEmbedding(), _rng.normal(size=(8, 3)), 1.0),
    "regression": (Regression("rmse"), _NUMBERS, 0.0),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_model_agrees_with_itself_wholly_and_with_noise_less(name: str) -> None:
    task, outputs, itself = TASKS[name]
    assert isinstance(task, Task) and isinstance(task, Answering)
    agreement = with_or_without_labels(task, labelled=False)
    assert isinstance(agreement, Agreement)
    assert agreement.metric.name.startswith("agreement_") and agreement.metric.is_agreement
    assert "agreement with the float model" in agreement.name
    labels = [b"0", b"1", b"2", b"3"]
    agreement.learn(out(outputs), labels)
    assert agreement.metric.value(agreement.scores(out(outputs), labels)) == pytest.approx(itself)
    other = np.roll(outputs, 1, axis=0)
    own = agreement.scores(out(outputs), labels)
    assert agreement.metric.drop(own, agreement.scores(out(other), labels)) > 0.1
    surer = outputs * np.array([1, 1, 1, 1, 1.3, 1]) if name == "detection" else 3 * outputs
    assert agreement.metric.drop(own, agreement.scores(out(surer), labels)) > -1e-9
    # By content, not by place.
    half = [b"2", b"3"] if name != "embedding" else labels
    part = outputs[2:] if name != "embedding" else outputs
    assert agreement.metric.value(agreement.scores(out(part), half)) == pytest.approx(itself)
    assert agreement.errors(out(outputs), out(outputs)) == pytest.approx(np.zeros(4))


@pytest.mark.parametrize("metric", ["loss", "perplexity"])
def test_a_loss_is_no_agreement_as_a_surer_model_has_less_of_it(metric: Any) -> None:
    task = TokenLoss("masked_lm", metric)
    best = list(_TOKENS.argmax(axis=2))
    assert task.metric.drop(task.scores(out(_TOKENS), best), task.scores(out(3 * _TOKENS), best)) < -0.1
    assert not isinstance(task, Answering)
    assert with_or_without_labels(task, labelled=False) is task


def test_detections_without_an_area_are_no_answers() -> None:
    """No detection matches them, not even themselves, and with a negative side they are no labels."""
    rows = [[[0, 0, 10, 10, 0.9, 0], [5, 5, 5, 9, 0.8, 0], [9, 9, 3, 3, 0.7, 1]]]
    agreement = Agreement(Detection(2))
    agreement.learn(out(rows), [b"0"])
    assert agreement.metric.value(agreement.scores(out(rows), [b"0"])) == pytest.approx(1)


def test_a_sample_that_the_reference_never_saw_is_no_agreement() -> None:
    with pytest.raises(KeyError):
        Agreement(Classification()).scores(out([[1.0, 0.0]]), [b"unknown"])


def test_labels_are_used_where_they_are() -> None:
    task = Classification()
    assert with_or_without_labels(task, labelled=True) is task


def test_tokens_of_padding_do_not_agree_or_disagree() -> None:
    task = TokenAccuracy("token_classification")
    mask = np.array([[1, 1, 0, 0, 0]] * 4)
    answers = task.answers({"logits": _TOKENS, "attention_mask": mask})
    assert [(answer == -100).tolist() for answer in answers] == [[False, False, True, True, True]] * 4


# --- metrics ---


@pytest.mark.parametrize("higher", [True, False])
def test_a_drop_of_an_aggregate_is_positive_where_the_candidate_is_worse(higher: bool) -> None:
    metric = Metric("m", higher, is_rate=False, aggregate=lambda r, w: (w @ r)[:, 0] / w.sum(axis=1))
    low, high = np.array([[1.0], [2.0]]), np.array([[3.0], [4.0]])
    assert metric.drop(high, low) == (2.0 if higher else -2.0)
    assert math.isnan(metric.value(np.empty((0, 1))))


def test_the_mean_is_an_aggregate_like_any_other() -> None:
    metric, scores = Metric("m", higher_is_better=True, is_rate=True), np.array([1.0, 0.0, 1.0])
    assert metric.value(scores) == pytest.approx(2 / 3)
    for times in itertools.product(range(3), repeat=3):
        if sum(times):
            expected = np.repeat(scores, times).mean()
            assert metric.values(scores, np.array([times], float))[0] == pytest.approx(expected)
    assert math.isnan(metric.value(np.empty(0)))
