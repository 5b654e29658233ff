"""Calibration caches of TensorRT 10 and older, held against what NVIDIA's own samples and documentation print."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from calibrate.plan.calibration_cache import companion, read_cache, write_cache
from calibrate.plan.origin import Origin
from calibrate.plan.quantization_plan import QuantizationPlan
from validate.exceptions import JobError, UsageError

ORIGIN = Origin(model_sha256="ab" * 32, data_sha256="cd" * 32, preprocessing_sha256="ef" * 32)

# The cache in the README of TensorRT's sampleINT8, of an MNIST network.
SAMPLE = """TRT-7000-EntropyCalibration2
data: 3c008912
conv1: 3c88edfc
pool1: 3c88edfc
conv2: 3ddc858b
pool2: 3ddc858b
ip1: 3db6bd6e
ip2: 3e691968
prob: 3c010a14
"""

# Bits of a float32 by IEEE 754, worked out by hand: sign, exponent, mantissa.
KNOWN = {
    1.0: "3f800000",
    0.5: "3f000000",
    2.0: "40000000",
    0.75: "3f400000",
    0.15625: "3e200000",
    1 + 2**-23: "3f800001",
    2.0**-126: "00800000",
    2.0**-149: "00000001",
    (2 - 2**-23) * 2.0**127: "7f7fffff",
    1 / 127: "3c010204",
}


def plan(scales: Mapping[str, float], origin: Origin = ORIGIN) -> QuantizationPlan:
    return QuantizationPlan(name="minmax", strategy="minmax", origin=origin, scales=dict(scales), layers={"a": "fp16"})


def written(path: Path, scales: Mapping[str, float], tensorrt: str = "8.6.1") -> list[str]:
    """Return the lines of a plan's cache."""
    write_cache(plan(scales), path, tensorrt)
    return path.read_text(encoding="utf-8").split("\n")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Return a file with NVIDIA's own cache."""
    path = tmp_path / "CalibrationTablemnist"
    path.write_text(SAMPLE, encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(JobError) as error:
        read_cache(path)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert str(path) in message
    return message


# NVIDIA's own cache


def test_nvidias_own_cache_is_read(cache: Path) -> None:
    found = read_cache(cache)
    assert list(found.scales) == ["data", "conv1", "pool1", "conv2", "pool2", "ip1", "ip2", "prob"]
    assert (found.unusable, found.origin) == ([], None)
    assert found.scales["pool1"] == found.scales["conv1"]
    assert 127 * found.scales["prob"] == pytest.approx(1, abs=0.001)  # a softmax
    assert 127 * found.scales["data"] == pytest.approx(1, abs=0.005)  # images in [0, 1]
    assert 127 * found.scales["ip2"] == pytest.approx(28.9, abs=0.05)  # logits


def test_nvidias_own_cache_is_written_again_to_the_byte(cache: Path, tmp_path: Path) -> None:
    write_cache(plan(read_cache(cache).scales), tmp_path / "again", "7.0.0")
    assert (tmp_path / "again").read_text(encoding="utf-8") == SAMPLE


def test_a_published_scale_has_its_published_bits(tmp_path: Path) -> None:
    assert written(tmp_path / "c", {"relu46": 0.0179033577})[1] == "relu46: 3c92aa10"
    assert read_cache(tmp_path / "c").scales == {"relu46": pytest.approx(0.0179033577, abs=5.1e-11)}


# Writing


@pytest.mark.parametrize(("scale", "digits"), KNOWN.items())
def test_a_scale_is_the_big_endian_hex_of_a_float32(tmp_path: Path, scale: float, digits: str) -> None:
    assert written(tmp_path / "c", {"t": scale})[1] == f"t: {digits}"
    assert read_cache(tmp_path / "c").scales == {"t": float(np.float32(scale))}


@pytest.mark.parametrize(
    ("version", "number"),
    [
        ("8.6.1", "8601"),
        ("8.5.10", "8510"),
        ("7.2.2", "7202"),
        ("7.0.0", "7000"),
        ("8.6.1.6", "8601"),
        ("10.3.0", "100300"),
        ("10.0.1", "100001"),
        ("10.13.3", "101303"),
        ("9.3.0", "9300"),
    ],
)
def test_the_header_names_the_version_as_tensorrt_does(tmp_path: Path, version: str, number: str) -> None:
    assert written(tmp_path / "c", {"t": 1.0}, version)[0] == f"TRT-{number}-EntropyCalibration2"


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("11.0.0", "reads no calibration cache; give it the ONNX file with Q/DQ"),
        ("12.1.3", "reads no calibration cache"),
        *((wrong, "should be written like 8.6.1") for wrong in ["8", "8.6", "8601", "", "8.6.x", "v8.6.1", "8.6.1 "]),
    ],
)
def test_a_version_without_caches_is_bad_usage_and_nothing_is_written(tmp_path: Path, version: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        write_cache(plan({"t": 1.0}), tmp_path / "c", version)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_holds_every_scale_once_in_the_plans_order(tmp_path: Path) -> None:
    scales = {f"t{i}": 0.01 * i for i in (3, 1, 2)}
    header, *lines, end = written(tmp_path / "c", scales)
    assert header.startswith("TRT-")
    assert [line.partition(": ")[0] for line in lines] == ["t3", "t1", "t2"]
    assert end == ""  # the last line ends as all do


# Round trip

_names = st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"]), min_size=1, max_size=30)
_scales = st.floats(2.0**-149, (2 - 2**-23) * 2.0**127, width=32)


@given(st.dictionaries(_names, _scales, max_size=8))
@example({"a: b": 1.0, "a": 2.0, "a: 3c010a14": 3.0, "a:": 4.0, ": ": 5.0})
@example({"TRT-8601-EntropyCalibration2": 1.0, " leading": 2.0, "trailing ": 3.0, "two  spaces": 4.0})
@example({"/model/conv.1/Conv_output_0": 1.0, "层/出力": 2.0, '"quoted"': 3.0, "[50, 3]{x}": 4.0})
@example({})
@settings(deadline=None, max_examples=60)
def test_what_is_read_is_what_was_written(tmp_path_factory: pytest.TempPathFactory, scales: dict[str, float]) -> None:
    path = tmp_path_factory.mktemp("cache") / "c"
    write_cache(plan(scales), path, "8.6.1")
    found = read_cache(path)
    assert list(found.scales.items()) == list(scales.items())
    assert (found.unusable, found.origin) == ([], ORIGIN)


def test_a_scale_is_rounded_to_the_nearest_float32(tmp_path: Path) -> None:
    scales = {f"t{i}": float(x) for i, x in enumerate(np.random.default_rng(0).lognormal(sigma=4, size=200))}
    written(tmp_path / "c", scales)
    assert read_cache(tmp_path / "c").scales == {name: float(np.float32(scale)) for name, scale in scales.items()}


# Reading what TensorRT writes


def test_a_scale_beyond_float32_is_the_nearest_that_it_holds(tmp_path: Path) -> None:
    assert written(tmp_path / "c", {"a": 1e39, "b": 1e-50})[1:-1] == ["a: 7f7fffff", "b: 00000001"]


@pytest.mark.parametrize("name", ["a\x85b", "a\u2028b", "a\x0cb"])
def test_only_a_newline_ends_a_line(tmp_path: Path, name: str) -> None:
    write_cache(plan({name: 1.0}), tmp_path / "c", "8.6.1")
    assert read_cache(tmp_path / "c").scales == {name: 1.0}


@pytest.mark.parametrize("name", ["a\nb", "a\rb"])
def test_a_name_that_the_format_cannot_hold_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot hold the name"):
        write_cache(plan({name: 1.0}), tmp_path / "c", "8.6.1")


def test_a_file_that_is_no_cache_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"weights")
    with pytest.raises(UsageError, match="is not a calibration cache"):
        write_cache(plan({"a": 1.0}), tmp_path / "model.onnx", "8.6.1")
    assert (tmp_path / "model.onnx").read_bytes() == b"weights"


def test_names_that_tensorrt_makes_up_are_kept(cache: Path) -> None:
    names = ["(Unnamed Layer* 12) [Convolution]_output", "(Unnamed ITensor* 3)", "583^bn", "model/relu:0"]
    cache.write_text("".join(["TRT-8601-EntropyCalibration2\n", *(f"{name}: 3f800000\n" for name in names)]))
    assert read_cache(cache).scales == dict.fromkeys(names, 1.0)


def test_an_entry_that_is_no_scale_is_set_apart(cache: Path) -> None:
    """TensorRT writes a scale of 0 for a tensor that was zero throughout."""
    entries = {"zero": 0.0, "minus zero": -0.0, "infinite": math.inf, "nan": math.nan, "negative": -1.0}
    lines = [f"{name}: {struct.pack('>f', value).hex()}" for name, value in entries.items()]
    cache.write_text("\n".join(["TRT-8601-MinMaxCalibration", *lines, "good: 3F800000"]))
    found = read_cache(cache)
    assert found.scales == {"good": 1.0}
    assert found.unusable == list(entries)


@pytest.mark.parametrize("change", ["crlf", "upper case", "blank lines", "no newline at the end"])
def test_what_an_editor_does_to_a_cache_does_not_matter(cache: Path, change: str) -> None:
    changed = {
        "crlf": SAMPLE.replace("\n", "\r\n"),
        "upper case": "".join(
            f"{name}: {value.upper()}\n" if value else f"{name}\n"
            for name, _, value in (line.partition(": ") for line in SAMPLE.splitlines())
        ),
        "blank lines": SAMPLE + "\n  \n\n",
        "no newline at the end": SAMPLE.rstrip(),
    }[change]
    before = read_cache(cache).scales
    assert changed != SAMPLE
    cache.write_bytes(changed.encode())
    assert read_cache(cache).scales == before


# Mistakes


@pytest.mark.parametrize(
    "line",
    [
        "pool",
        "pool:3c88edfc",
        "pool: 3c88edf",
        "pool: 3c88edfc0",
        "pool: 0x3c88edf",
        "pool: 3c88edfg",
        "pool: 0.0167",
        "pool: ",
        "pool: 3c88 edfc",
        "3c88edfc",
        "pool: \uff13c88edfc",
    ],
)
def test_a_malformed_line_is_named_by_its_number(cache: Path, line: str) -> None:
    cache.write_text(SAMPLE.replace("pool1: 3c88edfc", line), encoding="utf-8")
    assert refusal(cache) == f"calibration cache {cache}, line 4: not 'tensor: eight hex digits'"


@pytest.mark.parametrize("value", ["3c88edfc", "00000000"])
@pytest.mark.parametrize("again", ["3c88edfc", "00000000", "40000000"])
def test_a_tensor_that_is_there_twice_is_refused(cache: Path, value: str, again: str) -> None:
    cache.write_text(f"TRT-8601-EntropyCalibration2\nx: {value}\ny: 3f800000\nx: {again}\n")
    assert "line 4: tensor x is there twice" in refusal(cache)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "line 1 is not a header"),
        (b"TRT-8601-EntropyCalibration2\nx\xff: 3f800000\n", "it is no UTF-8 text"),
        (b"\n", "line 1 is not a header like TRT-8601-EntropyCalibration2"),
        (b"data: 3c008912\n", "line 1 is not a header"),
        (b"TRT-EntropyCalibration2\ndata: 3c008912\n", "line 1 is not a header"),
        (b"xTRT-8601-EntropyCalibration2\ndata: 3c008912\n", "line 1 is not a header"),
    ],
)
def test_something_else_than_a_cache_is_refused(cache: Path, content: bytes, said: str) -> None:
    cache.write_bytes(content)
    assert said in refusal(cache)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal(tmp_path / "absent")


# The companion


def test_the_companion_says_what_a_cache_was_made_from(tmp_path: Path) -> None:
    path = tmp_path / "model.cache"
    written(path, {"t": 0.5})
    assert {p.name for p in tmp_path.iterdir()} == {"model.cache", companion(path).name}
    assert json.loads(companion(path).read_text(encoding="utf-8"))["origin"] == ORIGIN.model_dump()
    companion(path).unlink()
    assert (read_cache(path).scales, read_cache(path).origin) == ({"t": 0.5}, None)


@pytest.mark.parametrize("edit", [("3f000000", "3f000001"), ("t: ", "u: "), ("8601", "8602"), ("\n", "\n\n")])
def test_the_companion_of_another_cache_is_refused(tmp_path: Path, edit: tuple[str, str]) -> None:
    path = tmp_path / "c"
    written(path, {"t": 0.5})
    path.write_text(path.read_text().replace(*edit))
    assert f"{companion(path)} belongs to another cache than {path}" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"cache_sha256": "0"}'])
def test_a_companion_that_says_nothing_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c"
    written(path, {"t": 0.5})
    companion(path).write_bytes(content)
    assert f"{companion(path)} does not say what {path} was made from" in refusal(path)


def test_a_cache_of_another_version_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    write_cache(plan({"t": 0.5}, ORIGIN.model_copy(update={"version": "99.0"})), path, "8.6.1")
    assert "was made by version 99.0" in refusal(path)
