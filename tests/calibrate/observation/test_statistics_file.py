"""Statistics on disk: what is read is what was written, to the bit, and anything else is refused in one sentence."""

from __future__ import annotations

import itertools
import math
import re
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrate import __version__
from calibrate.observation.statistics_file import StoredStatistics, merged, read_statistics, write_statistics
from calibrate.observation.streaming import Observation
from calibrate.plan.origin import Origin
from validate.exceptions import JobError
from validate.stats.histograms import MAX_BINS, Statistics

ORIGIN = Origin(model_sha256="ab" * 32, data_sha256="cd" * 32, preprocessing_sha256="ef" * 32)
SMALLEST, LARGEST = float(np.finfo(np.float32).smallest_subnormal), float(np.finfo(np.float32).max)


def of(*values: float) -> Statistics:
    statistics = Statistics()
    statistics.update(np.array(values, np.float32))
    return statistics


def observation(seed: int = 0) -> Observation:
    """Two tensors that were seen, and all that is special: nothing seen, zeros alone, both ends of float32."""
    random = np.random.default_rng(seed)
    first = {
        "conv/out: 1": of(*random.laplace(size=5_000)),
        "relu": of(*np.maximum(random.normal(size=999), 0)),
        "never": Statistics(),
        "zero": of(0.0, -0.0),
        "extreme": of(LARGEST, -SMALLEST),
        "Ünïcode/層": of(0.1, -7.0),
    }
    second = {
        "conv/out: 1": of(*random.laplace(scale=9, size=70)),
        "relu": of(3.0),
        "never": Statistics(),
        "zero": of(0.0),
        "extreme": of(SMALLEST),
        "Ünïcode/層": Statistics(),
    }
    return Observation((first, second))


def bits(found: Observation) -> list[Any]:
    """Return everything that an observation holds, with the order of its tensors, such that -0.0 differs from 0.0."""
    return [
        (name, struct.pack("<2d", s.minimum, s.maximum), s.count, s.zeros, s.exponent, s.bins.dtype, s.bins.tobytes())
        for half in found.halves
        for name, s in half.items()
    ]


def stored(seed: int = 0, samples: int = 12, **origin: str) -> StoredStatistics:
    return StoredStatistics(observation(seed), ORIGIN.model_copy(update=origin), samples)


def written(path: Path, what: StoredStatistics | None = None) -> Path:
    write_statistics(what or stored(), path)
    return path


def rewritten(path: Path, **arrays: Any) -> None:
    """Replace arrays of a statistics file."""
    with np.load(path) as file:
        content = dict(file)
    np.savez(path, **{**content, **arrays})


def refusal(*paths: Path) -> str:
    """Return what is said of files that cannot be used: one line, which names the first or the last of them."""
    with pytest.raises(JobError) as error:
        merged(paths)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert any(str(path) in message for path in paths)
    return message


# Round trip


def test_what_is_read_is_what_was_written_to_the_bit(tmp_path: Path) -> None:
    given = stored()
    found = read_statistics(written(tmp_path / "s.npz", given))
    assert bits(found.observation) == bits(given.observation)
    assert bits(Observation((found.observation.statistics, {}))) == bits(
        Observation((given.observation.statistics, {}))
    )
    assert (found.origin, found.samples) == (given.origin, given.samples)
    assert found.origin.version == __version__


def test_what_was_read_can_be_observed_further(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(scale=20, size=500).astype(np.float32)
    given, found = stored().observation, read_statistics(written(tmp_path / "s.npz")).observation
    for statistics in (*given.halves[0].values(), *found.halves[0].values()):
        statistics.update(values)
    assert bits(found) == bits(given)


@pytest.mark.parametrize("name", ["s.npz", "s", "statistics.of.part-1"])
def test_the_file_has_the_name_that_was_asked_for_and_no_other_is_left(tmp_path: Path, name: str) -> None:
    written(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_writing_again_replaces_the_file(tmp_path: Path) -> None:
    path = written(written(tmp_path / "s.npz", stored(seed=1)), stored(seed=2))
    assert bits(read_statistics(path).observation) == bits(observation(2))


def test_an_empty_bin_costs_next_to_nothing(tmp_path: Path) -> None:
    """Bins are 64 kB for each tensor and half, nearly all of them empty."""
    names = [f"tensor{i}" for i in range(40)]
    few = Observation(({n: of(1.0, 2.0) for n in names}, {n: of(3.0) for n in names}))
    path = written(tmp_path / "s.npz", StoredStatistics(few, ORIGIN, 2))
    assert path.stat().st_size < 2 * len(names) * MAX_BINS * 8 / 50


# Parts


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_parts_merge_to_the_whole_in_any_order(tmp_path: Path, order: Sequence[int]) -> None:
    given = [stored(seed=i, samples=10 + i, data_sha256=f"data{i}") for i in range(3)]
    files = [written(tmp_path / f"{i}.npz", part) for i, part in enumerate(given)]
    found, straight = merged([files[i] for i in order]), merged(files)
    whole = {
        name: given[0]
        .observation.statistics[name]
        .merge(given[1].observation.statistics[name])
        .merge(given[2].observation.statistics[name])
        for name in given[0].observation.halves[0]
    }
    assert bits(Observation((found.observation.statistics, {}))) == bits(Observation((whole, {})))
    assert bits(found.observation) == bits(straight.observation)
    assert found.samples == 33
    assert found.origin == straight.origin
    assert found.origin.model_copy(update={"data_sha256": ORIGIN.data_sha256}) == ORIGIN
    assert found.origin.data_sha256 not in {"data0", "data1", "data2", merged(files[:2]).origin.data_sha256}


def test_one_part_is_itself(tmp_path: Path) -> None:
    found = merged([written(tmp_path / "s.npz")])
    assert (bits(found.observation), found.origin, found.samples) == (bits(observation()), ORIGIN, 12)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"model_sha256": "12" * 32, "data_sha256": "y"}, "is for another model than"),
        ({"preprocessing_sha256": "12" * 32, "data_sha256": "y"}, "different preprocessing"),
        ({"data_sha256": "x"}, "of the same samples as another one"),
        ({"data_sha256": "y", "version": "0.0.0-other"}, "was made by version 0.0.0-other and this is"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path, other: dict[str, str], said: str) -> None:
    first = written(tmp_path / "first.npz", stored(data_sha256="x"))
    second = written(tmp_path / "second.npz", stored(seed=1, **other))
    assert said in refusal(first, second)
    assert said in refusal(second, first)


@pytest.mark.parametrize("change", ["less", "renamed"])
def test_parts_of_other_tensors_are_refused(tmp_path: Path, change: str) -> None:
    halves = []
    for half in observation(1).halves:
        relu = half.pop("relu")
        halves.append(half if change == "less" else half | {"other": relu})
    other = StoredStatistics(Observation((halves[0], halves[1])), ORIGIN.model_copy(update={"data_sha256": "y"}), 3)
    first, second = written(tmp_path / "first.npz"), written(tmp_path / "second.npz", other)
    assert "different tensors" in refusal(first, second)
    assert "different tensors" in refusal(second, first)


# What is not a statistics file


def test_statistics_of_another_version_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "s.npz", stored(version="99.0"))
    assert re.search(rf"made by version 99\.0 and this is {re.escape(__version__)}", refusal(path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal(tmp_path / "absent.npz")
    assert "cannot be read: Is a directory" in refusal(tmp_path)


def test_a_flipped_bit_is_refused_wherever_it_is(tmp_path: Path) -> None:
    whole = bytearray(written(tmp_path / "s.npz").read_bytes())
    expected, path, refused = bits(read_statistics(tmp_path / "s.npz").observation), tmp_path / "flipped.npz", 0
    for index in range(0, 8 * len(whole), 97):
        flipped = bytearray(whole)
        flipped[index // 8] ^= 1 << index % 8
        path.write_bytes(flipped)
        try:
            found = bits(read_statistics(path).observation)
        except JobError as error:
            refused += "\n" not in str(error)
        else:  # a date, or a permission, in the archive
            assert found == expected
    assert refused > 200


@pytest.mark.parametrize("dtype", [np.float64, np.int32])
def test_arrays_of_another_type_are_refused(tmp_path: Path, dtype: Any) -> None:
    path = written(tmp_path / "s.npz")
    with np.load(path) as file:
        counts = file["counts"].astype(dtype)
    rewritten(path, counts=counts)
    assert "is damaged" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"hello\n", b"PK\x03\x04", bytes(range(256)), b"\x93NUMPY", b"\x80\x04N."])
def test_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.npz"
    path.write_bytes(content)
    assert "is not a statistics file; python -m calibrate observe writes one" in refusal(path)


@pytest.mark.parametrize("missing", ["header", "bins", "counts", "extremes"])
def test_an_archive_that_lacks_an_array_is_refused(tmp_path: Path, missing: str) -> None:
    with np.load(written(tmp_path / "s.npz")) as file:
        content = {name: file[name] for name in file.files if name != missing}
    np.savez(tmp_path / "s.npz", **content)
    assert "is not a statistics file" in refusal(tmp_path / "s.npz")


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    content = written(tmp_path / "s.npz").read_bytes()
    cut = tmp_path / "cut.npz"
    lengths = [1, 2, 4, 10, 100, *range(200, len(content), 501), *range(len(content) - 25, len(content))]
    for length in lengths:
        cut.write_bytes(content[:length])
        assert "is not a statistics file" in refusal(cut), length


@pytest.mark.parametrize(
    "arrays",
    [
        {"bins": np.zeros((2, 6, MAX_BINS // 2), np.int64)},
        {"bins": np.zeros((2, 5, MAX_BINS), np.int64)},
        {"counts": np.zeros((2, 6), np.int64)},
        {"counts": np.zeros((1, 6, 3), np.int64)},
        {"extremes": np.zeros((2, 7, 2))},
    ],
)
def test_arrays_that_do_not_fit_the_tensors_are_refused(tmp_path: Path, arrays: dict[str, Any]) -> None:
    path = written(tmp_path / "s.npz")
    rewritten(path, **arrays)
    assert "is damaged: its arrays are not those that were written" in refusal(path)


@pytest.mark.parametrize(
    "header", [b"", b"{}", b"[1]", b"not JSON", b'{"origin": {"model_sha256": "m"}, "samples": 0, "tensors": []}']
)
def test_a_header_of_something_else_is_refused(tmp_path: Path, header: bytes) -> None:
    path = written(tmp_path / "s.npz")
    rewritten(path, header=np.frombuffer(header, np.uint8))
    assert "is not a statistics file" in refusal(path)


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["header", "bins", "counts", "extremes"])
def test_pickled_content_is_never_loaded(tmp_path: Path, name: str) -> None:
    path, mark = written(tmp_path / "s.npz"), tmp_path / "mark"
    rewritten(path, **{name: np.array([Bomb(mark)], object)})
    with np.load(path, allow_pickle=True) as file:
        file[name]
    assert mark.exists(), "the bomb is a dud, and the test would prove nothing"
    mark.unlink()
    assert "is not a statistics file" in refusal(path)
    assert not mark.exists()


def test_a_pickle_alone_is_never_loaded(tmp_path: Path) -> None:
    path, mark = tmp_path / "s.npz", tmp_path / "mark"
    np.array([Bomb(mark)], object).dump(path)
    np.load(path, allow_pickle=True)
    assert mark.exists()
    mark.unlink()
    assert "is not a statistics file" in refusal(path)
    assert not mark.exists()


def test_the_file_is_an_archive_that_others_can_read(tmp_path: Path) -> None:
    """Documented as NumPy's format: its arrays can be looked at without this package."""
    path = written(tmp_path / "s.npz")
    assert zipfile.is_zipfile(path)
    with np.load(path, allow_pickle=False) as file:
        assert file["counts"][1, 1, 0] == 1
        assert file["extremes"][1, 1].tolist() == [3.0, 3.0]
        assert file["extremes"][0, 2].tolist() == [math.inf, -math.inf]
