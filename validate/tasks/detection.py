"""Object detection: boxes with classes and scores."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from validate.tasks.average_precision import IOU_THRESHOLDS, mean_average_precision
from validate.tasks.base import (
    ClassRecords,
    Metric,
    Outputs,
    Records,
    parse_labels,
    shown,
)

__all__ = ["BoxFormat", "Detection", "Detections", "OutputNames"]

BoxFormat = Literal["xyxy", "xywh", "cxcywh"]
_ANSWER_SCORE = 0.5
"""A detection of the reference at least this sure is taken for a label where there are none."""


@dataclass(frozen=True)
class Detections:
    """The detections of a model in one image.

    Attributes:
        boxes: shape (n, 4), left, top, width and height.
        scores: shape (n,), in (0, 1].
        classes: shape (n,), whole numbers from 0.
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    classes: NDArray[np.int64]


@dataclass(frozen=True)
class OutputNames:
    """Names of the outputs of a model that has three, and not one array of shape (batch, n, 6)."""

    boxes: str = "boxes"
    scores: str = "scores"
    classes: str = "labels"


Decode = Callable[[Outputs], tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]
"""Outputs to boxes (batch, n, 4), scores (batch, n) and classes (batch, n)."""


@dataclass(frozen=True)
class _Coding:
    format: BoxFormat = "xyxy"
    names: OutputNames = field(default_factory=OutputNames)
    decode: Decode | None = None


class Detection:
    """COCO's mean average precision (cocodataset.org/#detection-eval): over classes and IoU thresholds 0.50 to 0.95.

    The model's output is what is left after non-maximum suppression: one array of shape (batch, n, 6) with box, score
    and class, or three outputs (see `OutputNames`), or any outputs that `decode` takes. Detections with a score of 0 or
    less, a negative class or a number that is not finite are padding.

    A label is a mapping with ``bbox`` (n boxes, left, top, width and height) and ``category`` (n classes; or
    ``category_id``), and perhaps ``iscrowd``, or a list of n such mappings, as in Hugging Face's data sets and in COCO.
    Boxes of labels and of the model must be in the same coordinates: where the preprocessing resizes or pads, it must
    give the label too (docs/tasks.md).

    mAP is no mean over images. Matching detections with labels, though, happens within an image, and is done by
    pycocotools. So each image has a record of what comes out of it: per class the number of labels, and per detection
    class, score and at which thresholds it is matched or ignored. mAP is a function of the records of a set of images,
    and so of any part of it: what an image contributes, and what a slice or a class has, is computed exactly.

    Args:
        classes: how many there are; classes are 0 to classes - 1.
        format: of the model's boxes.
        names: of the outputs.
        decode: for other outputs.
        most: detections that count in an image, those with the highest scores; COCO's limit is 100.

    Examples:
        >>> task = Detection(classes=2)
        >>> boxes = np.array([[[10.0, 10.0, 30.0, 30.0, 0.9, 1.0]]])  # left, top, right, bottom, score, class
        >>> records = task.scores({"boxes": boxes}, [{"bbox": [[10, 10, 20, 20]], "category": [1]}])
        >>> round(task.metric.value(records), 4)
        1.0
    """

    def __init__(
        self,
        classes: int,
        format: BoxFormat = "xyxy",  # noqa: A002  # its name in a config
        names: OutputNames | None = None,
        decode: Decode | None = None,
        most: int = 100,
    ) -> None:
        self.name = "detection"
        self.metric = Metric("map", higher_is_better=True, is_rate=True, aggregate=self._map, per_class=self._per_class)
        self.classes, self.most = classes, most
        self._coding = _Coding(format, names or OutputNames(), decode)

    def scores(self, outputs: Outputs, labels: Sequence[Any]) -> NDArray[np.float64]:
        """Return the record of each image, shape (batch, classes + 3 most): numbers of labels, then detections.

        A detection is class, score and code (see `validate.tasks.average_precision`); the rest is filled with class -1.
        """
        found = self._detections(outputs)
        if len(found) != len(labels):
            raise ValueError(f"{len(labels)} labels cannot be paired with detections of {len(found)} images")
        return _matched(found, parse_labels(labels, self._annotations), self.classes, self.most)

    def errors(self, outputs: Outputs, reference: Outputs) -> NDArray[np.float64]:
        """Return how far each image's detections are from the reference's, shape (batch,): 0 equal, 1 no overlap.

        It is ``(1 - 2 sum IoU min(p, q) / (sum p + sum q))**2`` over the best assignment of detections of the same
        class with scores p and q: a Dice coefficient (Dice 1945) weighted by scores and IoU, without a threshold. It is
        squared since independent errors of layers add up in squares.
        """
        return np.array(
            [_distance(a, b) for a, b in zip(self._detections(outputs), self._detections(reference), strict=True)]
        )

    def answers(self, outputs: Outputs) -> list[Any]:
        """Return the detections with a score of at least 0.5 as labels.

        Boxes without an area are left out, as nothing matches them.
        """
        answers = []
        for x in self._detections(outputs):
            sure = (x.scores >= _ANSWER_SCORE) & (x.boxes[:, 2:] > 0).all(axis=1)
            answers.append({"bbox": x.boxes[sure], "category": x.classes[sure]})
        return answers

    def _map(self, records: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return mean_average_precision(records[:, : self.classes], records[:, self.classes :], weights)

    def _per_class(self, records: Records) -> Iterator[ClassRecords]:
        kinds = records[:, self.classes :: 3]
        for index in range(self.classes):
            own = records.copy()
            own[:, : self.classes] = 0
            own[:, index] = records[:, index]
            own[:, self.classes :: 3] = np.where(kinds == index, kinds, -1)
            yield ClassRecords(str(index), (own[:, index] > 0) | (kinds == index).any(axis=1), own)

    def _detections(self, outputs: Outputs) -> list[Detections]:
        boxes, scores, classes = (np.asarray(x, np.float64) for x in self._decoded(outputs))
        if boxes.ndim != 3 or boxes.shape[2] != 4 or not boxes.shape[:2] == scores.shape == classes.shape:
            raise ValueError(
                f"detection needs boxes of shape (batch, n, 4), scores and classes of shape (batch, n), but they are "
                f"{boxes.shape}, {scores.shape} and {classes.shape}"
            )
        found = []
        for box, score, kind in zip(_to_xywh(boxes, self._coding.format), scores, classes, strict=True):
            real = (score > 0) & (kind >= 0) & np.isfinite(box).all(axis=1) & np.isfinite(score)
            order = np.flatnonzero(real)[np.argsort(-score[real], kind="stable")[: self.most]]
            if kind[order].size and kind[order].max() >= self.classes:
                raise ValueError(f"class {kind[order].max():g} of a detection is none of {self.classes} classes")
            found.append(Detections(box[order], score[order], kind[order].astype(np.int64)))
        return found

    def _decoded(self, outputs: Outputs) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        coding, names = self._coding, self._coding.names
        if coding.decode is not None:
            return coding.decode(outputs)
        if {names.boxes, names.scores, names.classes} <= outputs.keys():
            boxes, scores, classes = (np.asarray(outputs[x]) for x in (names.boxes, names.scores, names.classes))
            alone = boxes.ndim == 2  # torchvision's detectors, exported for one image
            return (boxes[None], scores[None], classes[None]) if alone else (boxes, scores, classes)
        only = next(iter(outputs.values()))
        if len(outputs) == 1 and only.ndim == 3 and only.shape[2] == 6:
            return only[..., :4], only[..., 4], only[..., 5]
        raise ValueError(
            f"the outputs are {', '.join(f'{k} {v.shape}' for k, v in outputs.items())}; detection needs one of shape "
            f"(batch, n, 6), or {names.boxes}, {names.scores} and {names.classes} (task.outputs), or task.decode"
        )

    def _annotations(self, label: Any) -> dict[str, NDArray[Any]]:
        if isinstance(label, list | tuple) and all(isinstance(one, Mapping) for one in label):
            keys = {key for one in label for key in one} if label else ("bbox", "category")
            label = {key: [one.get(key) for one in label] for key in keys}
        if isinstance(label, Mapping) and "category_id" in label and "category" not in label:
            label = {**label, "category": label["category_id"]}
        if not isinstance(label, Mapping) or not {"bbox", "category"} <= label.keys():
            raise ValueError(f"a label must be a mapping with bbox and category, but this one is {shown(label)}")
        boxes, classes = _numbers(label, "bbox"), _numbers(label, "category").reshape(-1)
        if boxes.size and boxes.shape[-1:] != (4,):
            raise ValueError(f"bbox must hold four numbers for each box, but it has shape {boxes.shape}")
        boxes = boxes.reshape(-1, 4)
        crowd = np.zeros(len(classes))
        if label.get("iscrowd") is not None:
            crowd = np.nan_to_num(_numbers(label, "iscrowd")).reshape(-1)  # none is no crowd, as pycocotools has it
        if not len(boxes) == len(classes) == len(crowd):
            raise ValueError(f"a label has {len(boxes)} boxes, but {len(classes)} categories and {len(crowd)} iscrowd")
        if not np.isfinite(boxes).all() or (boxes[:, 2:] < 0).any():
            raise ValueError("a label has a box with a negative or infinite side; bbox is left, top, width, height")
        wrong = classes[~np.isin(classes, range(self.classes))]
        if wrong.size:
            raise ValueError(f"category {wrong[0]:.15g} of a label is none of {self.classes} classes")
        return {"bbox": boxes, "category": classes.astype(np.int64), "iscrowd": crowd != 0}


def _numbers(label: Mapping[str, Any], key: str) -> NDArray[np.float64]:
    """Return what a label says under a key; NaN for each null in a list."""
    try:
        if label[key] is not None:
            return np.asarray(label[key], np.float64)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{key} of a label must be numbers, but it is {shown(label[key])}")


def _to_xywh(boxes: NDArray[np.float64], form: BoxFormat) -> NDArray[np.float64]:
    first, second = boxes[..., :2], boxes[..., 2:]
    if form == "xyxy":
        second = second - first
    elif form == "cxcywh":
        first = first - second / 2
    return np.concatenate([first, second], axis=-1)


def _matched(
    found: list[Detections], labels: list[dict[str, NDArray[Any]]], classes: int, most: int
) -> NDArray[np.float64]:
    """Match the detections of each image with its labels by pycocotools, and return the records."""
    records = np.zeros((len(found), classes + 3 * most))
    rows = records[:, classes:].reshape(len(found), most, 3)  # a view
    rows[..., 0] = -1
    used = [0] * len(found)
    for match in _coco(found, labels, most):
        image, kind = match["image_id"], match["category_id"]
        records[image, kind] += np.count_nonzero(np.asarray(match["gtIgnore"]) == 0)
        number = len(match["dtScores"])
        if number:
            ignored = np.asarray(match["dtIgnore"], np.bool_)
            bits = 2.0 ** np.arange(len(IOU_THRESHOLDS))[:, None]
            code = (bits * ((np.asarray(match["dtMatches"]) > 0) & ~ignored)).sum(axis=0)
            code += 2.0 ** len(IOU_THRESHOLDS) * (bits * ignored).sum(axis=0)
            into = rows[image, used[image] : used[image] + number]
            into[:, 0], into[:, 1], into[:, 2] = kind, match["dtScores"], code
            used[image] += number
    return records


def _coco(found: list[Detections], labels: list[dict[str, NDArray[Any]]], most: int) -> list[Any]:
    """Return COCOeval's matches, for every image and class that has labels or detections."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = range(len(found))
    truth = [
        {"image_id": i, "category_id": int(c), "bbox": b.tolist(), "area": float(b[2] * b[3]), "iscrowd": int(w)}
        for i, label in enumerate(labels)
        for b, c, w in zip(label["bbox"], label["category"], label["iscrowd"], strict=True)
    ]
    answers = [
        {
            "image_id": i,
            "category_id": int(c),
            "bbox": b.tolist(),
            "area": float(b[2] * b[3]),
            "iscrowd": 0,
            "score": float(s),
        }
        for i, x in enumerate(found)
        for b, s, c in zip(x.boxes, x.scores, x.classes, strict=True)
    ]
    kinds = sorted({x["category_id"] for x in truth + answers})
    if not kinds:
        return []
    sides = []
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        for annotations in (truth, answers):
            side = COCO()
            side.dataset = {
                "images": [{"id": i} for i in images],
                "categories": [{"id": k} for k in kinds],
                "annotations": [{**x, "id": number} for number, x in enumerate(annotations, 1)],
            }
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval(*sides, "bbox")
        evaluation.params.imgIds, evaluation.params.catIds = list(images), kinds
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0.0, 1e10]], ["all"]
        evaluation.params.maxDets = [most]
        evaluation.evaluate()
    return [match for match in evaluation.evalImgs if match is not None]


def _distance(a: Detections, b: Detections) -> float:
    total = a.scores.sum() + b.scores.sum()
    if total == 0:
        return 0.0
    shared = 0.0
    for kind in np.intersect1d(a.classes, b.classes):
        of_a, of_b = a.classes == kind, b.classes == kind
        gain = _iou(a.boxes[of_a], b.boxes[of_b]) * np.minimum(a.scores[of_a][:, None], b.scores[of_b])
        rows, columns = linear_sum_assignment(gain, maximize=True)
        shared += gain[rows, columns].sum()
    return float((1 - 2 * shared / total) ** 2)


def _iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the IoU of each of n with each of m boxes, shape (n, m)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, :2] + a[:, None, 2:], b[None, :, :2] + b[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=2)
    either = a[:, None, 2:].prod(axis=2) + b[None, :, 2:].prod(axis=2) - both
    return np.asarray(np.divide(both, either, out=np.zeros_like(both), where=either > 0))
