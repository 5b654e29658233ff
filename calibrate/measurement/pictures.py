"""Illustrations of a report: histograms of the activations that INT8 hurts most, and pictures of the worst samples."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.graph import Placement
from calibrate.measurement.candidates import CandidateBench, MeasuredCandidate
from calibrate.observation import clipped_share
from calibrate.plan import QuantizationPlan
from calibrate.strategies import ScaleHistory
from validate.data import SampleStream, as_image
from validate.number_formats import INT8
from validate.results import Histogram, Illustrations, LayerError, Results, TensorHistogram, Threshold, WorstSample
from validate.stats import Statistics

__all__ = ["illustrate", "tensor_histograms", "thumbnail", "worst_samples"]

HISTOGRAMS = 8
SAMPLES = 12
"""Largest number of histograms, and of worst samples."""
_BINS = 128
_LEVELS = INT8.largest
_SIZE = (320, 96)
"""Largest width and height of a picture, in pixels; wide, for lines of text."""
_TEXT = 400
"""Characters of a text that are kept."""


def illustrate(
    results: Results,
    bench: CandidateBench,
    candidates: Sequence[MeasuredCandidate],
    history: ScaleHistory,
) -> Illustrations:
    """Return the illustrations of a report: histograms, convergence of scales, and the worst samples.

    Args:
        results: of the run.
        bench: that measured the candidates.
        candidates: of the run.
        history: of the scales.
    """
    selected = next(candidate for candidate in candidates if candidate.record.name == results.selected)
    of_strategies = [c for c in candidates if c.record.selection_error is not None]
    int8 = next(c for c in of_strategies if c.plan.strategy == selected.plan.strategy)
    calibration, metric = bench.calibration, bench.inputs.task.metric
    scores = [metric.each(x) for x in (bench.reference.scores, selected.scores)]
    worst = worst_samples(bench.inputs.validation, metric.worsening(*scores), *scores)
    return Illustrations(
        plan_hash=selected.record.plan_hash,
        histograms=tensor_histograms(
            int8.record.layers,
            bench.inputs.model.placement,
            calibration.statistics,
            [candidate.plan for candidate in of_strategies],
        ),
        convergence=history.curves(calibration.statistics, calibration.samples),
        worst_samples=worst,
    )


def tensor_histograms(
    layers: Sequence[LayerError],
    placement: Placement,
    statistics: Mapping[str, Statistics],
    plans: Sequence[QuantizationPlan],
) -> list[TensorHistogram]:
    """Return histograms of the inputs of the layers with the lowest isolated SQNR, and where each plan clips them.

    Args:
        layers: of a candidate that has them all in int8.
        placement: of the model.
        statistics: over all calibration samples.
        plans: one of each strategy.

    Returns:
        The worst first, at most 8.
    """
    inputs = {layer.node: layer.activations for layer in placement.layers}
    int8 = [layer for layer in layers if layer.precision == "int8"]
    worst = sorted(int8, key=lambda layer: (not np.isnan(layer.isolated_sqnr_db), layer.isolated_sqnr_db))
    tensors = dict.fromkeys(name for layer in worst for name in inputs[layer.node])
    readers = {name: [layer for layer, its in inputs.items() if name in its] for name in tensors}
    return [
        _tensor_histogram(name, readers[name], statistics[name], plans)
        for name in islice((name for name in tensors if statistics[name].amax > 0), HISTOGRAMS)
    ]


def _tensor_histogram(
    tensor: str, layers: list[str], statistics: Statistics, plans: Sequence[QuantizationPlan]
) -> TensorHistogram:
    counts = statistics.histogram().copy()
    counts[0] -= statistics.zeros  # exact in any scale, and after ReLU most of all values
    scales = {plan.name: plan.scales[tensor] for plan in plans if tensor in plan.scales}
    thresholds = [
        Threshold(candidate=name, value=_LEVELS * scale, clipped_share=clipped_share(statistics, scale))
        for name, scale in scales.items()
    ]
    joined = 1 << max(0, int(np.ceil(np.log2(counts.size / _BINS))))
    drawn = np.pad(counts, (0, -counts.size % joined)).reshape(-1, joined).sum(axis=1)
    return TensorHistogram(
        tensor=tensor,
        layers=layers,
        amax=statistics.amax,
        histogram=Histogram(width=statistics.width * joined, counts=drawn.tolist()),
        thresholds=sorted(thresholds, key=lambda threshold: threshold.value),
    )


def worst_samples(
    stream: SampleStream, worse: NDArray[np.float64], reference: NDArray[np.float64], candidate: NDArray[np.float64]
) -> list[WorstSample]:
    """Return the samples that lost most, worst first, at most 12, with their pictures. Reads the data once more.

    Args:
        stream: the validation set.
        worse: how much worse the candidate scores, shape (n,); see `Metric.worsening`.
        reference: scores of the float model, shape (n,).
        candidate: scores of the candidate, shape (n,).
    """
    loss = np.where(np.isnan(worse), np.inf, worse)  # a score that is no number is the worst
    loss = np.where(np.isnan(reference), 0, loss)  # unless the sample has none by itself: nothing to find in an image
    order = [int(i) for i in np.argsort(-loss, kind="stable")[:SAMPLES] if loss[i] > 0]
    if not order:
        return []
    wanted, rows = set(order), {}
    with contextlib.suppress(OSError, ValueError):  # without its pictures, a verdict is as good
        rows = {i: row for i, row in enumerate(islice(stream.source.rows(), max(order) + 1)) if i in wanted}
    return [
        WorstSample(
            index=i,
            reference=float(reference[i]),
            candidate=float(candidate[i]),
            **_display_fields(rows.get(i, {}), stream),
        )
        for i in order
    ]


def _display_fields(row: Mapping[str, Any], stream: SampleStream) -> dict[str, str | None]:
    """Return a row's label, and its picture or its text."""
    names = (stream.label,) if isinstance(stream.label, str) else stream.label or ()
    labels = [str(row[name]) for name in names if name in row]
    inputs = {name: value for name, value in row.items() if name not in (*names, stream.slice)}
    shown = next((image for image in map(thumbnail, inputs.values()) if image), None)
    text = "\n".join(value for value in inputs.values() if isinstance(value, str))
    if not (shown or text):
        kinds = ", ".join(f"{name} ({_kind(value)})" for name, value in inputs.items())
        text = f"No picture: the row has {kinds}." if row else "The row could not be read again."
    return {
        "label": _shortened(", ".join(labels)) if labels else None,
        "slice": None if stream.slice is None or row.get(stream.slice) is None else _shortened(str(row[stream.slice])),
        "picture": shown,
        "text": _shortened(text) or None,
    }


def thumbnail(value: Any) -> str | None:
    """Return a JPEG of at most 320 x 96 pixels, in base64; None where the value is no image.

    Args:
        value: an image as `validate.data.as_image` takes it; or an array of shape (height, width),
            (channels, height, width) or (height, width, channels) with 1, 3 or 4 channels: uint8 as it is, other types
            scaled so that the least value is black and the largest white.

    Examples:
        >>> import base64, io
        >>> from PIL import Image
        >>> Image.open(io.BytesIO(base64.b64decode(thumbnail(np.zeros((640, 640, 3), np.uint8))))).size
        (96, 96)
        >>> thumbnail("a sentence") is None
        True
    """
    image = _to_image(value)
    if image is None:
        return None
    image = image.convert("RGB")
    image.thumbnail(_SIZE)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return base64.b64encode(file.getvalue()).decode()


def _to_image(value: Any) -> Any:
    from PIL import Image

    if isinstance(value, Image.Image | Mapping | bytes | str):
        try:
            image = as_image(value)
        except ValueError:  # it is text, or whatever
            return None
        if not image.mode.startswith(("I", "F")):
            return image
        value = np.asarray(image)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "uif" or value.ndim not in (2, 3):
        return None
    array = value
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3:
        if array.shape[2] not in (1, 3, 4):
            return None
        array = array[:, :, 0] if array.shape[2] == 1 else array[:, :, :3]
    if min(array.shape[:2]) < 4:  # a table of numbers, not an image
        return None
    if array.dtype != np.uint8:
        array = np.nan_to_num(array.astype(np.float64))
        low, high = array.min(), array.max()
        array = ((array - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array))


def _shortened(text: str) -> str:
    return text if len(text) <= _TEXT else text[: _TEXT - 3] + "..."


def _kind(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"an array of shape {tuple(shape)}"
