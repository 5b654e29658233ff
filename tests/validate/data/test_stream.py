"""From rows to batches: sources, order, bounds on memory, preprocessing, identity of samples, and errors."""

from __future__ import annotations

import io
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from validate.data.preprocessing import ImagePreprocessing, Preparation, Preprocess
from validate.data.source import DataSource
from validate.data.stream import SampleStream
from validate.exceptions import JobError
from validate.references import load_object, resolve_path


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def source(base: Path, **keys: Any) -> DataSource:
    return DataSource.model_validate(keys, context={"base": base})


def stream(data: DataSource, preprocess: Preprocess | None = None, rows: int = 1, **changes: Any) -> SampleStream:
    options: dict[str, Any] = {"name": "validation", "label": "label", "input_names": ("x",), "batch_size": 4}
    return SampleStream(source=data, preparation=Preparation(preprocess, "", rows), **options | changes)


def png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def numbered(first: int, last: int) -> list[dict[str, Any]]:
    return [{"x": [[i, i + 0.5]], "label": i} for i in range(first, last)]


@pytest.fixture
def rows_file(tmp_path: Path) -> Callable[[str], Path]:
    """Return what writes a data file, given the body of its function ``rows``."""

    def write(body: str) -> Path:
        path = tmp_path / "data.py"
        path.write_text(f"import numpy as np\n\ndef rows(**arguments):\n{body}")
        return path

    return write


TEN = "    for i in range(10):\n        yield {'x': np.full((1, 2), i, np.float32), 'label': i}\n"


# Sources


def test_a_parquet_file_is_read_in_its_order(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", numbered(0, 10))
    batches = list(stream(source(tmp_path, parquet="a.parquet")).batches())
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert [batch.first for batch in batches] == [0, 4, 8]
    assert [label for batch in batches for label in batch.labels] == list(range(10))
    values = np.concatenate([batch.inputs["x"] for batch in batches])
    np.testing.assert_array_equal(values, [[[i, i + 0.5]] for i in range(10)])


def test_a_folder_of_parquet_files_is_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data" / "b.parquet", numbered(5, 8))
    write_parquet(tmp_path / "data" / "a.parquet", numbered(0, 5))
    batches = stream(source(tmp_path, parquet="data")).batches()
    assert [label for batch in batches for label in batch.labels] == list(range(8))


def test_an_image_folder_has_its_subfolders_as_labels(tmp_path: Path) -> None:
    for label, name in enumerate(["ants", "bees"]):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(3):
            pixels = np.full((4, 6, 3), 100 * label + i, np.uint8)
            (tmp_path / "images" / name / f"{i}.png").write_bytes(png(pixels))
    raw = ImagePreprocessing(rescale=1, mean=(0, 0, 0), std=(1, 1, 1))
    batches = list(stream(source(tmp_path, imagefolder="images"), preprocess=raw, input_names=("image",)).batches())
    assert [label for batch in batches for label in batch.labels] == [0, 0, 0, 1, 1, 1]
    values = np.concatenate([batch.inputs["image"] for batch in batches])
    assert values.shape == (6, 3, 4, 6)
    np.testing.assert_array_equal(values[:, 0, 0, 0], [0, 1, 2, 100, 101, 102])


def test_images_in_parquet_stay_encoded_until_they_are_preprocessed(tmp_path: Path) -> None:
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    write_parquet(tmp_path / "a.parquet", [{"image": {"bytes": png(pixels), "path": "a.png"}, "label": 1}])
    data = source(tmp_path, parquet="a.parquet")
    assert next(data.rows())["image"]["bytes"] == png(pixels)
    raw = ImagePreprocessing(rescale=1, mean=(0, 0, 0), std=(1, 1, 1))
    batch = next(stream(data, preprocess=raw, input_names=("image",)).batches())
    np.testing.assert_array_equal(batch.inputs["image"][0], pixels.transpose(2, 0, 1))


def test_a_callable_gets_its_arguments(tmp_path: Path, rows_file: Callable[[str], Path]) -> None:
    rows_file("    yield {'x': np.zeros(arguments['size']), 'label': arguments['label']}\n")
    batch = next(stream(source(tmp_path, callable="data.py:rows", arguments={"size": 3, "label": "cat"})).batches())
    assert batch.inputs["x"].shape == (1, 3)
    assert batch.labels == ["cat"]


@pytest.mark.parametrize("limit", [1, 4, 7, 10, 99])
def test_a_limit_takes_the_first_rows(tmp_path: Path, rows_file: Callable[[str], Path], limit: int) -> None:
    rows_file(TEN)
    data = source(tmp_path, callable="data.py:rows", limit=limit)
    labels = [label for batch in stream(data).batches() for label in batch.labels]
    assert labels == list(range(min(limit, 10)))


@pytest.mark.parametrize(("limit", "samples", "expected"), [(None, 3, 3), (5, 3, 3), (2, 3, 2)])
def test_a_limited_stream_never_grows(
    tmp_path: Path, rows_file: Callable[[str], Path], limit: int | None, samples: int, expected: int
) -> None:
    rows_file(TEN)
    limited = stream(source(tmp_path, callable="data.py:rows", limit=limit)).limited(samples)
    assert sum(len(batch) for batch in limited.batches()) == expected


def test_a_stream_can_be_read_again(tmp_path: Path, rows_file: Callable[[str], Path]) -> None:
    rows_file(TEN)
    twice = stream(source(tmp_path, callable="data.py:rows"))
    first, second = ([content for batch in twice.batches() for content in batch.contents] for _ in range(2))
    assert first == second
    assert len(set(first)) == 10


@pytest.mark.parametrize(
    ("keys", "found"),
    [({}, "found none"), ({"parquet": "data.py", "callable": "data.py:rows"}, "found parquet and callable")],
)
def test_there_is_exactly_one_source(
    tmp_path: Path, rows_file: Callable[[str], Path], keys: dict[str, str], found: str
) -> None:
    rows_file(TEN)
    with pytest.raises(ValidationError, match=found):
        source(tmp_path, **keys)


# Batches, order, and memory


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(1, [1] * 10), (3, [3, 3, 3, 1]), (5, [5, 5]), (10, [10]), (64, [10])]
)
def test_batches_hold_every_row_once_and_the_last_may_be_smaller(
    tmp_path: Path, rows_file: Callable[[str], Path], batch_size: int, sizes: list[int]
) -> None:
    rows_file(TEN)
    batches = list(stream(source(tmp_path, callable="data.py:rows"), batch_size=batch_size).batches())
    assert [len(batch) for batch in batches] == sizes
    assert [batch.first for batch in batches] == [sum(sizes[:i]) for i in range(len(sizes))]
    assert [label for batch in batches for label in batch.labels] == list(range(10))
    assert [batch.inputs["x"].shape for batch in batches] == [(size, 1, 2) for size in sizes]


@pytest.mark.skipif(os.cpu_count() == 1, reason="one core gets one worker")
def test_worker_threads_keep_the_order(tmp_path: Path, rows_file: Callable[[str], Path]) -> None:
    """Every even row waits for the odd one after it, so workers finish out of order."""
    rows_file("    for i in range(60):\n        yield {'i': i, 'label': i}\n")
    done = [threading.Event() for _ in range(60)]
    finished: list[int] = []

    def out_of_order(row: dict[str, Any]) -> NDArray[np.int64]:
        i = row["i"]
        if i % 2 == 0:
            assert done[i + 1].wait(timeout=30)
        finished.append(i)
        done[i].set()
        return np.array([i])

    batches = stream(source(tmp_path, callable="data.py:rows"), preprocess=out_of_order).batches()
    values = np.concatenate([batch.inputs["x"] for batch in batches]).ravel()
    np.testing.assert_array_equal(values, np.arange(60))
    assert finished != sorted(finished)


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_a_consumer_that_stops_early_has_caused_few_reads(
    tmp_path: Path, rows_file: Callable[[str], Path], batch_size: int
) -> None:
    rows_file(
        "    for i in range(10_000):\n"
        "        arguments['counter'].append(i)\n"
        "        yield {'x': np.zeros(1), 'label': i}\n"
    )
    pulled: list[int] = []
    data = source(tmp_path, callable="data.py:rows").model_copy(update={"arguments": {"counter": pulled}})
    batches = stream(data, batch_size=batch_size).batches()
    next(batches)
    batches.close()
    assert batch_size <= len(pulled) <= 4 * max(4, batch_size) + 1


def test_an_endless_source_can_be_cut_by_a_limit(tmp_path: Path, rows_file: Callable[[str], Path]) -> None:
    rows_file("    i = 0\n    while True:\n        yield {'x': np.zeros(1), 'label': i}\n        i += 1\n")
    data = source(tmp_path, callable="data.py:rows", limit=6)
    assert [label for batch in stream(data).batches() for label in batch.labels] == list(range(6))


# Inputs


def test_without_preprocessing_columns_are_inputs_by_their_names(
    tmp_path: Path, rows_file: Callable[[str], Path]
) -> None:
    rows_file("    yield {'b': np.ones(2), 'a': np.zeros(3), 'other': 1, 'label': 0}\n")
    batch = next(stream(source(tmp_path, callable="data.py:rows"), input_names=("a", "b")).batches())
    assert {name: array.shape for name, array in batch.inputs.items()} == {"a": (1, 3), "b": (1, 2)}


def test_a_preprocessing_may_give_every_input_by_its_name(tmp_path: Path, rows_file: Callable[[str], Path]) -> None:
    rows_file(TEN)
    split = stream(
        source(tmp_path, callable="data.py:rows"),
        preprocess=lambda row: {"b": row["x"] + 1, "a": row["x"]},
        input_names=("a", "b"),
    )
    batch = next(split.batches())
    np.testing.assert_array_equal(batch.inputs["b"], batch.inputs["a"] + 1)


def test_a_stream_without_labels_needs_no_label_column(tmp_path: Path, rows_file: Callable[[str], Path]) -> None:
    rows_file("    yield {'x': np.zeros(1)}\n")
    batch = next(stream(source(tmp_path, callable="data.py:rows"), label=None).batches())
    assert batch.labels == [None]


# Identity


def contents(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> list[bytes]:
    (tmp_path / "identity.py").write_text("def rows(given):\n    return given\n")
    data = source(tmp_path, callable="identity.py:rows", arguments={"given": rows})
    return [content for batch in stream(data, batch_size=1, **options).batches() for content in batch.contents]


def test_content_is_what_the_model_sees_and_nothing_else(tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32)
    same = [
        {"x": x, "label": 0},
        {"x": x.copy(), "label": 1, "path": "elsewhere.png"},
        {"x": np.repeat(x, 2)[::2], "label": 0},  # not contiguous
    ]
    assert len(set(contents(tmp_path, same))) == 1


def test_contents_differ_where_the_model_would_see_another_input(tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32)
    nudged = x.copy()
    nudged[-1] = np.nextafter(nudged[-1], np.float32(99))
    others = [x, nudged, x[::-1], x.reshape(2, 3), x.reshape(3, 2), x.astype(np.float64), x.view(np.int32), x[:5]]
    found = contents(tmp_path, [{"x": array, "label": 0} for array in others])
    assert len(set(found)) == len(others)


def test_content_tells_inputs_apart(tmp_path: Path) -> None:
    one, two = np.zeros(2), np.ones(2)
    rows = [{"a": one, "b": two, "label": 0}, {"a": two, "b": one, "label": 0}]
    assert len(set(contents(tmp_path, rows, input_names=("a", "b")))) == 2


def test_content_does_not_depend_on_the_encoding_of_an_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "BMP")
    rows = [
        {"image": {"bytes": png(pixels), "path": "a.png"}, "label": 0},
        {"image": {"bytes": buffer.getvalue(), "path": "b.bmp"}, "label": 0},
        {"image": Image.fromarray(pixels), "label": 0},
        {"image": pixels, "label": 0},
    ]
    found = contents(tmp_path, rows, preprocess=ImagePreprocessing(), input_names=("image",))
    assert len(set(found)) == 1


@pytest.mark.parametrize("kind", ["bytes", "path"])
def test_a_column_of_bytes_or_of_paths_is_an_image(tmp_path: Path, kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    (tmp_path / "a.png").write_bytes(png(pixels))
    image = png(pixels) if kind == "bytes" else str(tmp_path / "a.png")
    write_parquet(tmp_path / "a.parquet", [{"image": image, "label": 0}])
    raw = ImagePreprocessing(rescale=1, mean=(0, 0, 0), std=(1, 1, 1))
    split = stream(source(tmp_path, parquet="a.parquet"), preprocess=raw, input_names=("image",))
    np.testing.assert_array_equal(next(split.batches()).inputs["image"][0], pixels.transpose(2, 0, 1))


# Image preprocessing


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_an_image_of_more_than_eight_bits_is_refused(tmp_path: Path, dtype: Any) -> None:
    """Pillow makes white of all above 255, and how it is scaled is part of how a model was trained."""
    image: Any = Image.fromarray(np.full((4, 4), 4000, dtype))
    if dtype is np.uint16:
        image.save(tmp_path / "a.png")
        image = str(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"more than 8 bits for a pixel \(Pillow's mode .*data.preprocess"):
        ImagePreprocessing()({"image": image})


def test_the_orientation_of_the_camera_is_not_looked_at_as_torchvision_does(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    (tmp_path / "class").mkdir()
    picture(40, 24).save(tmp_path / "class" / "a.png", exif=exif)
    theirs, _ = datasets.ImageFolder(tmp_path)[0]
    ours = ImagePreprocessing(rescale=1, mean=(0, 0, 0), std=(1, 1, 1))({"image": str(tmp_path / "class" / "a.png")})
    np.testing.assert_array_equal(ours, np.asarray(theirs).transpose(2, 0, 1))
    assert ours.shape == (3, 24, 40)


def picture(width: int, height: int) -> Image.Image:
    """Return a smooth picture with some noise, different in every channel."""
    rng = np.random.default_rng([width, height])
    y, x = np.mgrid[:height, :width]
    waves = [127 + 80 * np.sin(x / 9 + k) * np.cos(y / 7 - k) for k in range(3)]
    noisy = np.stack(waves, axis=-1) + rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(61, 40), (40, 61), (33, 33), (97, 50), (51, 52)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resize_and_crop_are_torchvisions(size: tuple[int, int], interpolation: str) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    reference = transforms.Compose(
        [
            transforms.Resize(32, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(28),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    ours = ImagePreprocessing(resize=32, crop=28, interpolation=interpolation, mean=mean, std=std)
    expected = reference(picture(*size)).numpy()
    found = ours({"image": picture(*size)})
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_values_are_rescaled_then_normalised_per_channel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    mean, std = (1.0, 2.0, 3.0), (4.0, 5.0, 8.0)
    found = ImagePreprocessing(rescale=0.5, mean=mean, std=std)({"image": pixels})
    assert found.shape == (3, 5, 7)
    for channel in range(3):
        expected = (pixels[..., channel] * 0.5 - mean[channel]) / std[channel]
        np.testing.assert_allclose(found[channel], expected, rtol=1e-6)


def test_bgr_turns_the_channels_before_they_are_normalised() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[..., 0] = 200  # red
    found = ImagePreprocessing(channels="BGR", rescale=1, mean=(0, 0, 100), std=(1, 1, 4))({"image": pixels})
    np.testing.assert_array_equal(found[:, 0, 0], [0, 0, 25])


def test_the_crop_is_the_centre() -> None:
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[3:7, 8:12] = 255
    found = ImagePreprocessing(crop=4, rescale=1, mean=(0, 0, 0), std=(1, 1, 1))({"image": pixels})
    assert found.shape == (3, 4, 4)
    assert (found == 255).all()


def test_a_grey_image_has_three_equal_channels() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    found = ImagePreprocessing(rescale=1, mean=(0, 0, 0), std=(1, 1, 1))({"image": Image.fromarray(pixels)})
    np.testing.assert_array_equal(found, np.stack([pixels] * 3))


def test_the_column_of_the_image_can_be_named() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    assert ImagePreprocessing(column="photo")({"photo": pixels}).shape == (3, 2, 2)


# Errors


def failure(split: SampleStream) -> str:
    with pytest.raises(JobError) as caught:
        for _ in split.batches():
            pass
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("changes", "column"), [({"label": "class"}, "class"), ({"input_names": ("pixels",)}, "pixels")]
)
def test_a_missing_column_is_named_with_those_that_are_there(
    tmp_path: Path, rows_file: Callable[[str], Path], changes: dict[str, Any], column: str
) -> None:
    rows_file(TEN)
    message = failure(stream(source(tmp_path, callable="data.py:rows"), **changes))
    hint = "; where there are no labels, set data.label: null" if column == "class" else ""
    assert message == f"sample 0 of the validation set has no column '{column}'; its columns are label, x{hint}"


def test_shapes_that_do_not_fit_into_a_batch_are_named_by_their_samples(
    tmp_path: Path, rows_file: Callable[[str], Path]
) -> None:
    rows_file("    for i in range(8):\n        yield {'x': np.zeros(3 + (i == 6)), 'label': i}\n")
    message = failure(stream(source(tmp_path, callable="data.py:rows")))
    assert message.startswith("samples 4 to 7 of the validation set differ in shape")


@pytest.mark.parametrize("content", [b"no image", b"", png(np.zeros((9, 9, 3), np.uint8))[:40]])
def test_an_unreadable_image_is_named_by_its_sample(tmp_path: Path, content: bytes) -> None:
    good = png(np.zeros((4, 4, 3), np.uint8))
    encoded = [good, good, content, good]
    write_parquet(tmp_path / "a.parquet", [{"image": {"bytes": b, "path": None}, "label": 0} for b in encoded])
    split = stream(source(tmp_path, parquet="a.parquet"), preprocess=ImagePreprocessing(), input_names=("image",))
    assert failure(split).startswith("sample 2 of the validation set cannot be preprocessed: ")


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (None, "must be encoded bytes, a path or an array, but it is None"),
        ({"bytes": None, "path": None}, "but it is None"),
        ({"url": "http"}, "but it is None"),
        ({"bytes": None, "path": "/no/such.png"}, "/no/such.png"),
        ("text", "No such file or directory: "),
        (b"no image", "no image in a format that Pillow knows is in its 8 bytes"),
        (np.zeros((4, 4), np.int64), "an array of shape (4, 4) and type int64 is no image"),
    ],
    ids=str,
)
def test_a_row_without_an_image_is_named_by_its_sample(
    tmp_path: Path, rows_file: Callable[[str], Path], image: Any, complaint: str
) -> None:
    rows_file(TEN)
    split = stream(
        source(tmp_path, callable="data.py:rows"),
        preprocess=lambda row: ImagePreprocessing()({"image": image}),
    )
    message = failure(split)
    assert message.startswith("sample 0 of the validation set cannot be preprocessed: ")
    assert complaint in message


def test_what_a_preprocessing_raises_is_named_by_the_sample(tmp_path: Path, rows_file: Callable[[str], Path]) -> None:
    rows_file(TEN)
    data = source(tmp_path, callable="data.py:rows")
    message = failure(stream(data, preprocess=lambda row: row["x"] * (1 // (7 - row["label"]))))
    assert message.startswith("sample 7 of the validation set cannot be preprocessed: ")
    assert "zero" in message


def test_one_array_for_two_inputs_is_an_error(tmp_path: Path, rows_file: Callable[[str], Path]) -> None:
    rows_file(TEN)
    data = source(tmp_path, callable="data.py:rows")
    message = failure(stream(data, preprocess=lambda row: row["x"], input_names=("a", "b")))
    assert "has inputs a, b" in message


def test_an_input_that_the_preprocessing_forgets_is_named(tmp_path: Path, rows_file: Callable[[str], Path]) -> None:
    rows_file(TEN)
    data = source(tmp_path, callable="data.py:rows")
    message = failure(stream(data, preprocess=lambda row: {"a": row["x"]}, input_names=("a", "b")))
    assert message == "the preprocessing gives no array for model input b"


def test_a_set_without_samples_is_an_error(tmp_path: Path, rows_file: Callable[[str], Path]) -> None:
    rows_file("    return []\n")
    assert "the validation set has no samples" in failure(stream(source(tmp_path, callable="data.py:rows")))


def test_a_file_that_is_no_parquet_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"nonsense")
    assert failure(stream(source(tmp_path, parquet="a.parquet"))).startswith("the validation set cannot be read: ")


def test_a_folder_without_parquet_files_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert failure(stream(source(tmp_path, parquet="empty"))).startswith("the validation set cannot be read: ")


def test_a_split_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "images" / "ants").mkdir(parents=True)
    (tmp_path / "images" / "ants" / "0.png").write_bytes(png(np.zeros((2, 2, 3), np.uint8)))
    split = stream(source(tmp_path, imagefolder="images", split="nowhere"), input_names=("image",))
    assert "nowhere" in failure(split)


# Objects and files that a config names


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the name of a module in `tmp_path` that can be imported."""
    name = "module_of_a_test"
    (tmp_path / f"{name}.py").write_text("value = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_an_object_is_loaded_from_a_module_or_a_file(tmp_path: Path, module: str) -> None:
    (tmp_path / "plain.py").write_text("value = 4\n")
    assert load_object(f"{module}:value", tmp_path) == 3
    assert load_object("plain.py:value", tmp_path) == 4
    assert load_object(f"{tmp_path}/plain.py:value", Path("/")) == 4
    assert load_object("itertools:chain", tmp_path) is itertools.chain


def test_a_file_may_define_a_dataclass(tmp_path: Path) -> None:
    """`dataclasses` looks its module up in sys.modules while the file runs."""
    (tmp_path / "with_dataclass.py").write_text(
        "from __future__ import annotations\nimport dataclasses\n\n@dataclasses.dataclass\nclass A:\n    x: int = 1\n"
    )
    assert load_object("with_dataclass.py:A", tmp_path)().x == 1


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("plain", "module:name or path/to/file.py:name"),
        ("plain.py:", "module:name or path/to/file.py:name"),
        ("plain.py:value", "there is no file"),
        ("no_such_module:value", "module 'no_such_module' cannot be imported"),
        ("itertools:no_such_name", "has nothing called 'no_such_name'"),
        (".relative:value", "cannot be imported"),
        ("broken.py:value", "SyntaxError"),
        ("exits.py:value", "SystemExit"),
    ],
)
def test_an_object_that_cannot_be_loaded_is_a_sentence(tmp_path: Path, reference: str, words: str) -> None:
    (tmp_path / "broken.py").write_text("value = (\n")
    (tmp_path / "exits.py").write_text("raise SystemExit(0)\n")
    with pytest.raises(ValueError, match=words) as caught:
        load_object(reference, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_path_is_resolved_against_its_base(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert resolve_path("file", tmp_path) == tmp_path / "file"
    assert resolve_path("file", tmp_path / ".." / tmp_path.name) == tmp_path / "file"
    assert resolve_path(str(tmp_path / "file"), Path("/")) == tmp_path / "file"
    assert resolve_path("package:PIL/Image.py", tmp_path) == Path(Image.__file__)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("absent", "absent does not exist"),
        ("package:no_such_package/file", "package 'no_such_package' is not installed"),
        ("package:no_such.sub/file", "package 'no_such.sub' is not installed"),
        ("package:PIL/no_such_file", "no_such_file does not exist"),
        ("package:itertools/file", "package 'itertools' is not installed"),
    ],
)
def test_a_path_that_does_not_exist_is_a_sentence(tmp_path: Path, reference: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        resolve_path(reference, tmp_path)
