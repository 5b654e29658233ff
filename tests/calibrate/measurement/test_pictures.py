"""What a run keeps for its report: against the values themselves, and pictures as PIL reads them back."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibrate.graph.placement import Layer, Placement
from calibrate.measurement.pictures import tensor_histograms, thumbnail, worst_samples
from calibrate.plan.origin import Origin
from calibrate.plan.quantization_plan import QuantizationPlan
from calibrate.strategies.convergence import ScaleHistory
from validate.data.preprocessing import ImagePreprocessing
from validate.data.stream import DataConfig
from validate.results import LayerError
from validate.stats.histograms import Statistics

ROWS = """
import numpy as np

def rows(n, kind):
    for i in range(n):
        image = np.full((3, 40, 60), i, np.uint8)
        yield {"image": {"image": image, "text": f"line {i}", "ids": np.arange(9)}[kind], "label": i % 3, "camera": "b"}
"""


def _read(encoded: str | None) -> Image.Image:
    assert encoded is not None
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def _file(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


RED = Image.new("RGB", (1000, 500), (200, 10, 10))
CHANNELS_FIRST = np.zeros((3, 50, 100), np.float32)
CHANNELS_FIRST[0] = 4.5
CHANNELS_FIRST[1:] = -1.5


@pytest.mark.parametrize(
    "value",
    [
        RED,
        {"bytes": _file(RED), "path": None},
        _file(RED),
        np.asarray(RED),
        np.asarray(RED).transpose(2, 0, 1),
        np.dstack([np.asarray(RED), np.full((500, 1000), 255, np.uint8)]),
    ],
)
def test_an_image_in_any_form_becomes_a_small_picture_of_it(value: Any) -> None:
    image = _read(thumbnail(value))
    assert image.size == (192, 96)
    assert np.asarray(image)[48, 96] == pytest.approx((200, 10, 10), abs=4)
    assert len(str(thumbnail(value))) < 20_000


def test_an_input_of_a_model_is_stretched_to_what_can_be_seen() -> None:
    image = _read(thumbnail(CHANNELS_FIRST))
    assert image.size == (100, 50)
    assert np.asarray(image)[20, 20] == pytest.approx((255, 0, 0), abs=4)


def test_a_path_is_opened(tmp_path: Path) -> None:
    RED.save(tmp_path / "red.png")
    assert thumbnail({"bytes": None, "path": str(tmp_path / "red.png")}) is not None
    assert thumbnail(str(tmp_path / "red.png")) is not None


def test_a_picture_is_turned_no_more_than_what_the_model_sees(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera says: to be turned by 90 degrees
    RED.save(tmp_path / "red.jpg", exif=exif)
    image = _read(thumbnail(str(tmp_path / "red.jpg")))
    seen = ImagePreprocessing()({"image": str(tmp_path / "red.jpg")})
    assert seen.shape[1:] == (500, 1000)
    assert image.size == (192, 96)
    assert 0x0112 not in image.getexif()


def test_a_picture_of_16_bits_is_stretched_to_what_can_be_seen(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(1000, 5000, 64), (32, 1)).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    pixels = np.asarray(_read(thumbnail({"bytes": None, "path": str(tmp_path / "grey.png")})), np.float64)[16, :, 0]
    assert pixels[[0, 32, 63]] == pytest.approx([0, 128, 255], abs=6)


@pytest.mark.parametrize(
    "value",
    [
        "text",
        7,
        None,
        {"bytes": b"no image", "path": None},
        {"bytes": None, "path": "/no/such/file.png"},
        {"a": 1},
        [[0.0, 0.0, 9.0, 9.0]],
        "text " * 9000,
        np.arange(9),
        np.zeros((7, 40, 60)),
        np.zeros((2, 512)),
        np.array([["a", "b"]]),
    ],
)
def test_what_is_no_image_has_no_picture(value: Any) -> None:
    assert thumbnail(value) is None


def test_values_that_are_not_finite_or_all_alike_are_no_error() -> None:
    assert thumbnail(np.full((1, 8, 8), np.nan, np.float32)) is not None
    assert thumbnail(np.full((8, 8), 3.0)) is not None


@pytest.mark.parametrize("kind", ["image", "text", "ids"])
def test_worst_samples_are_those_that_lost_most_with_what_they_show(kind: str, tmp_path: Path) -> None:
    (tmp_path / "rows.py").write_text(ROWS, encoding="utf-8")
    source = {"callable": f"{tmp_path}/rows.py:rows", "arguments": {"n": 50, "kind": kind}}
    config = DataConfig.model_validate({"calibration": source, "validation": source, "slice": "camera"})
    stream = config.stream("validation", ("image",), 8)
    reference, candidate = np.ones(50), np.ones(50)
    candidate[[5, 9, 30]] = [0.2, 0.0, np.nan]
    candidate[40] = 1.5
    found = worst_samples(stream, reference - candidate, reference, candidate)
    assert [sample.index for sample in found] == [30, 9, 5]  # a score that is no number is the worst
    assert [sample.label for sample in found] == ["0", "0", "2"]
    assert {sample.slice for sample in found} == {"b"}
    assert [sample.candidate for sample in found][1:] == [0.0, 0.2]
    if kind == "image":
        assert [round(np.asarray(_read(sample.picture)).mean()) for sample in found] == [30, 9, 5]
    else:
        said = {"text": "line 9", "ids": "No picture: the row has image (an array of shape (9,))."}[kind]
        assert (found[1].picture, found[1].text) == (None, said)


def test_without_a_loss_no_row_is_read() -> None:
    def rows() -> Iterator[Any]:
        raise AssertionError

    stream: Any = type("Stream", (), {"source": type("Source", (), {"rows": staticmethod(rows)})})
    assert worst_samples(stream, np.zeros(4), np.ones(4), np.ones(4)) == []


def _layer(node: str, sqnr: float, precision: Any = "int8") -> LayerError:
    return LayerError(
        node=node,
        op_type="Conv",
        tensor=f"{node}.out",
        depth=0,
        precision=precision,
        sqnr_db=1.0,
        isolated_sqnr_db=sqnr,
        clipped_share=0.0,
    )


def test_histograms_are_of_the_worst_layers_and_their_shares_those_of_the_values() -> None:
    random = np.random.default_rng(0)
    values = {name: np.maximum(random.standard_t(3, 40_000), 0).astype(np.float32) for name in ("x", "y", "z")}
    statistics = {name: Statistics() for name in [*values, "dead"]}
    for name, array in values.items():
        statistics[name].update(array)
    statistics["dead"].update(np.zeros(5, np.float32))
    layers = tuple(
        Layer(node, "Conv", tensor, f"{node}.w", 0, f"{node}.out")
        for node, tensor in [("a", "x"), ("b", "y"), ("c", "y"), ("d", "z"), ("e", "dead")]
    )
    origin = Origin(model_sha256="0" * 64, data_sha256=None, preprocessing_sha256=None)
    names = dict.fromkeys(values, 2.0 / 127)
    plans = [
        QuantizationPlan(name=name, strategy=name, origin=origin, scales=dict.fromkeys(names, t / 127), layers={})
        for name, t in (("wide", 8.0), ("narrow", 2.0))
    ]
    errors = [_layer("a", 30.0), _layer("b", 12.0), _layer("c", 50.0), _layer("d", 5.0, "fp16"), _layer("e", 1.0)]
    found = tensor_histograms(errors, Placement(layers, (), (), {}, frozenset()), statistics, plans)
    assert [(x.tensor, x.layers) for x in found] == [("y", ["b", "c"]), ("x", ["a"])]
    for tensor in found:
        array = np.abs(values[tensor.tensor])
        assert sum(tensor.histogram.counts) == np.count_nonzero(array)
        assert len(tensor.histogram.counts) <= 128
        edges = np.arange(len(tensor.histogram.counts) + 1) * tensor.histogram.width
        assert tensor.histogram.counts == np.histogram(array[array > 0], edges)[0].tolist()
        assert [x.candidate for x in tensor.thresholds] == ["narrow", "wide"]
        for threshold in tensor.thresholds:
            limit, width = threshold.value * 127.5 / 127, statistics[tensor.tensor].width  # 127.49 rounds to 127
            assert (array > limit).mean() <= threshold.clipped_share <= (array > limit - width).mean()
            assert threshold.clipped_share > 0


def test_convergence_is_that_of_the_scales_of_the_first_samples() -> None:
    random = np.random.default_rng(1)
    values = {name: random.normal(0, 1, (32, 50)).astype(np.float32) for name in ("x", "y")}
    values["late"] = np.zeros((32, 50), np.float32)
    values["late"][20] = 1
    values["dead"] = np.zeros((32, 50), np.float32)

    def first(samples: int) -> dict[str, Statistics]:
        made = {name: Statistics() for name in values}
        for name, array in values.items():
            made[name].update(array[:samples])
        return made

    history = ScaleHistory(["minmax"], list(values))
    for samples in (8, 16, 32):
        history.note(samples, first(samples).__getitem__)
    (curve,) = history.curves(first(32), 32)
    assert (curve.strategy, curve.tensors, [x.samples for x in curve.points]) == ("minmax", 3, [8, 16])
    for point in curve.points:
        seen = {name: float(np.abs(array[: point.samples]).max()) for name, array in values.items()}
        changes = [abs(seen[name] / float(np.abs(values[name]).max()) - 1) for name in ("x", "y", "late")]
        assert (point.median, point.most) == pytest.approx(tuple(np.quantile(changes, [0.5, 0.9])))
        assert max(changes) == 1.0  # a tensor that had no scale yet
