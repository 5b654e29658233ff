"""Semantic segmentation: a class for every pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.special import log_softmax

from validate.data import as_image
from validate.tasks.base import (
    ClassRecords,
    Metric,
    Outputs,
    Records,
    Weights,
    first_output,
    log_probability_error,
    parse_labels,
)

__all__ = ["Segmentation"]


class Segmentation:
    """Mean intersection over union of the first output, logits (batch, classes, h, w) or classes (batch, h, w).

    A label is a map of classes, an array of integers or bools of shape (height, width) or an image of one channel, and
    shows what the model sees: where the preprocessing crops, the label must be cropped too. Logits of another size are
    resized to it (bilinearly), and classes by the nearest, as is usual for networks with a stride.

    The mIoU is that of the whole set, as Pascal VOC defines it (Everingham et al. 2015, section 4.1.5): for each class
    the intersections of all images over their unions, then the mean over classes that are in any label or answer. It is
    not the mean of IoUs per image, in which a class in few pixels of one image would weigh as much as all of
    another's. Each image has a record (of each class the intersection, the union, and what the label has of it), in
    pixels; images are what is resampled, as pixels of one image are not independent.

    Args:
        classes: how many there are; labels are 0 to classes - 1.
        ignored: label of pixels that are not scored.

    Examples:
        >>> task = Segmentation(classes=2)
        >>> classes, label = np.array([[[0, 1], [1, 1]]]), np.array([[0, 1], [0, 1]])
        >>> records = task.scores({"classes": classes}, [label])
        >>> records.tolist()  # per class the intersection, then the union, then the pixels of the label
        [[1.0, 2.0, 2.0, 3.0, 2.0, 2.0]]
        >>> round(task.metric.value(records), 4)  # the mean of 1/2 and 2/3
        0.5833
    """

    def __init__(self, classes: int, ignored: int = 255) -> None:
        self.name = "segmentation"
        self.metric = Metric(
            "miou", higher_is_better=True, is_rate=True, aggregate=self._miou, per_class=self._per_class
        )
        self.classes = classes
        self.ignored = ignored

    def scores(self, outputs: Outputs, labels: Sequence[Any]) -> NDArray[np.float64]:
        """Return intersections, unions and labels, shape (batch, 3 classes). A pixel with a NaN is of no class."""
        values = self._checked(outputs)
        if len(values) != len(labels):
            raise ValueError(f"{len(labels)} labels cannot be paired with an output of shape {values.shape}")
        return np.array([self._record(*both) for both in zip(values, parse_labels(labels, self._map), strict=True)])

    def errors(self, outputs: Outputs, reference: Outputs) -> NDArray[np.float64]:
        """Return the mean squared error of the log-probabilities, or of classes the share of pixels that differ."""
        found, wanted = self._checked(outputs), self._checked(reference)
        if found.ndim == 3:
            return np.asarray((found != wanted).mean(axis=(1, 2)), np.float64)
        return log_probability_error(log_softmax(found, axis=1), log_softmax(wanted, axis=1))

    def answers(self, outputs: Outputs) -> list[Any]:
        """Return the map of classes of each image, at the output's size."""
        smallest = np.uint8 if max(self.classes, self.ignored) < 256 else np.int32
        return [_classes(values, self.ignored).astype(smallest) for values in self._checked(outputs)]

    def label_counts(self, records: Records) -> NDArray[np.float64]:
        """Return the pixels that all labels have of each class, shape (classes,)."""
        return np.asarray(records[:, 2 * self.classes :].sum(axis=0))

    def _checked(self, outputs: Outputs) -> NDArray[Any]:
        values = first_output(outputs)
        is_map = values.ndim == 3 and np.issubdtype(values.dtype, np.integer)
        if not is_map and (values.ndim != 4 or values.shape[1] != self.classes):
            raise ValueError(
                f"segmentation needs logits of shape (batch, {self.classes}, height, width), or integer classes of "
                f"shape (batch, height, width), but the output is {values.dtype} of shape {values.shape}"
            )
        return values

    def _map(self, label: Any) -> NDArray[np.int64]:
        found = np.asarray(label if isinstance(label, np.ndarray | list) else as_image(label))
        if found.dtype == np.bool_:  # as of an image with one bit for each pixel
            found = found.astype(np.uint8)
        if found.ndim != 2 or not np.issubdtype(found.dtype, np.integer):
            raise ValueError(
                f"a label must be a map of classes, but this one has shape {found.shape} and type {found.dtype}"
            )
        wrong = (found != self.ignored) & ((found < 0) | (found >= self.classes))
        if wrong.any():
            raise ValueError(
                f"label {found[wrong][0]} is none of {self.classes} classes, nor task.ignored {self.ignored}"
            )
        return found.astype(np.int64)

    def _record(self, values: NDArray[Any], wanted: NDArray[np.int64]) -> NDArray[np.float64]:
        none = self.classes  # of an answer that is no class
        found = _classes(_resized(values, wanted.shape), none)
        found = np.where((found >= 0) & (found < self.classes), found, none)
        scored = wanted != self.ignored
        pairs = np.bincount(wanted[scored] * (none + 1) + found[scored], minlength=none * (none + 1))
        confusion = pairs.reshape(none, none + 1).astype(np.float64)  # rows: labels; columns: answers
        both = np.diag(confusion)
        labels = confusion.sum(axis=1)
        return np.concatenate([both, labels + confusion.sum(axis=0)[:none] - both, labels])

    def _per_class(self, records: Records) -> Iterator[ClassRecords]:
        for index in range(self.classes):
            own = np.zeros_like(records)
            own[:, index :: self.classes] = records[:, index :: self.classes]
            yield ClassRecords(str(index), np.asarray((own > 0).any(axis=1)), own)

    def _miou(self, records: Records, weights: Weights) -> NDArray[np.float64]:
        sums = weights @ records
        both, either = sums[:, : self.classes], sums[:, self.classes : 2 * self.classes]
        there = either > 0
        ratios = np.divide(both, either, out=np.zeros_like(both), where=there)
        with np.errstate(invalid="ignore"):
            return np.asarray(ratios.sum(axis=1) / there.sum(axis=1))


def _classes(values: NDArray[Any], none: int) -> NDArray[np.int64]:
    """Return the class of each pixel of logits (classes, h, w) or classes (h, w); `none` where a logit is NaN."""
    if values.ndim == 2:
        return values.astype(np.int64)
    return np.where(np.isnan(values).any(axis=0), none, values.argmax(axis=0))


def _resized(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if values.shape[-2:] == shape:
        return values
    size = (shape[1], shape[0])
    if values.ndim == 2:
        return np.asarray(Image.fromarray(values.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
    channels = [Image.fromarray(channel.astype(np.float32)) for channel in values]
    return np.stack([np.asarray(channel.resize(size, Image.Resampling.BILINEAR)) for channel in channels])
