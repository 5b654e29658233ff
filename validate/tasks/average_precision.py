"""COCO's average precision, from records of single images with any weights."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["IOU_THRESHOLDS", "mean_average_precision"]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""Those of pycocotools."""
_RECALLS = np.linspace(0.0, 1.0, 101)
"""Recalls at which COCO reads the precision."""


def mean_average_precision(
    labels: NDArray[np.float64], detections: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return COCO's mAP of each weighing of the images, shape (b,); NaN where no image that counts has a label.

    It is what `pycocotools.cocoeval.COCOeval.accumulate` computes: per class and IoU threshold, precision over recall
    of all detections by falling score, precision made to fall with recall and read at 101 recalls; then the mean of
    these, over thresholds, and over classes with labels. An image with weight 2 counts as if it were there twice,
    each detection beside its double: among equal scores the order matters, here as in pycocotools.

    Args:
        labels: number of labels of each class in each image, shape (n, classes); those of crowds not counted.
        detections: shape (n, 3 most), three numbers per detection: class (-1 where there is none), score, and a
            code in which bit t says that it is matched at threshold t, and bit 10 + t that it is ignored there.
        weights: whole numbers >= 0, shape (b, n).

    Examples:
        >>> every_threshold = 2**10 - 1  # matched at all ten IoU thresholds
        >>> labels = np.array([[1.0], [1.0]])  # two images with one box of class 0 each
        >>> detections = np.array([[0, 0.9, every_threshold], [-1, 0, 0]])  # the second box is not found
        >>> mean_average_precision(labels, detections, np.ones((1, 2))).round(4).tolist()  # 51 of 101 recalls
        [0.505]
    """
    rows = detections.reshape(len(detections), -1, 3)
    image, place = np.nonzero(rows[..., 0] >= 0)
    kind, score, code = rows[image, place].T
    order = np.lexsort((-score, kind))  # stable: images in their order where scores are equal, as in pycocotools
    starts = np.searchsorted(kind[order], np.arange(labels.shape[1] + 1))
    positives = weights @ labels
    found = _mean(image[order], code[order].astype(np.int64), starts, positives, weights, _RECALLS, len(IOU_THRESHOLDS))
    return np.where((positives > 0).any(axis=1), found, np.nan)


@numba.njit(cache=True, nogil=True)
def _mean(
    image: NDArray[np.int64],
    code: NDArray[np.int64],
    starts: NDArray[np.int64],
    positives: NDArray[np.float64],
    weights: NDArray[np.float64],
    recalls: NDArray[np.float64],
    thresholds: int,
) -> NDArray[np.float64]:
    """Walk through the sorted detections of each class, once per weighing, at all thresholds together.

    Only where a detection is right does recall grow and can precision be at its highest for a recall, so that only
    those are kept; most detections are wrong at every threshold.
    """
    result = np.zeros(len(weights))
    longest = 0
    for k in range(len(starts) - 1):
        longest = max(longest, starts[k + 1] - starts[k])
    recall, precision = np.empty((thresholds, longest)), np.empty((thresholds, longest))
    right, ignored = np.empty(thresholds), np.empty(thresholds)
    number = np.empty(thresholds, np.int64)
    for b in range(len(weights)):
        total, classes = 0.0, 0
        for k in range(len(starts) - 1):
            if positives[b, k] == 0:
                continue
            classes += 1
            right[:], ignored[:], number[:], seen = 0.0, 0.0, 0, 0.0
            for d in range(starts[k], starts[k + 1]):
                weight = weights[b, image[d]]
                seen += weight
                if weight == 0 or code[d] == 0:
                    continue
                for t in range(thresholds):
                    if (code[d] >> (thresholds + t)) & 1:
                        ignored[t] += weight
                    elif (code[d] >> t) & 1:
                        right[t] += weight
                        recall[t, number[t]] = right[t] / positives[b, k]
                        precision[t, number[t]] = right[t] / (seen - ignored[t])
                        number[t] += 1
            for t in range(thresholds):
                n, i, area = number[t], 0, 0.0
                for j in range(n - 1, 0, -1):
                    precision[t, j - 1] = max(precision[t, j - 1], precision[t, j])
                for r in recalls:
                    while i < n and recall[t, i] < r:
                        i += 1
                    if i == n:
                        break
                    area += precision[t, i]
                total += area / len(recalls)
        if classes:
            result[b] = total / (classes * thresholds)
    return result
