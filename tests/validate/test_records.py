"""Records on disk: what is written is read again, a reader never sees half a file, and refusals are one sentence."""

from __future__ import annotations

import math
import os
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field, field_validator

from validate.exceptions import JobError, UsageError
from validate.records import FileKind, Number, Record, replacing, write_text


class Measured(Record):
    file_kind: ClassVar[FileKind] = FileKind("measurement", "is not a measurement", name="measured.json")

    name: str
    values: list[Number] = Field(max_length=4)

    @field_validator("name")
    @classmethod
    def _lower(cls, name: str) -> str:
        if name != name.lower():
            raise ValueError(f"{name} is not in lower case")
        return name


def test_what_was_written_is_read_with_nan_and_infinities(tmp_path: Path) -> None:
    Measured(name="ünï", values=[1.5, math.inf, -math.inf, math.nan]).write(tmp_path / "measured.json")
    text = (tmp_path / "measured.json").read_text(encoding="utf-8")
    assert text == '{\n "name": "ünï",\n "values": [\n  1.5,\n  "Infinity",\n  "-Infinity",\n  "NaN"\n ]\n}\n'
    for path in (tmp_path / "measured.json", tmp_path):
        found = Measured.read(path)
        assert found.name == "ünï" and found.values[:3] == [1.5, math.inf, -math.inf] and math.isnan(found.values[3])
    assert [file.name for file in tmp_path.iterdir()] == ["measured.json"]


@pytest.mark.parametrize(
    ("content", "ending"),
    [
        (b'{"name": "a"}', "is not a measurement: values: Field required"),
        (b'{"name": "a", "values": [1, "x"]}', "is not a measurement: values.1: Input should be a valid number"),
        (b'{"name": "A", "values": []}', "is not a measurement: name: A is not in lower case"),
        (b'{"name": "a", "values": [], "valeus": []}', "is not a measurement: valeus: Extra inputs are not permitted"),
        (b"", "is not a measurement: Invalid JSON"),
        (b"\xff\xfe", "is not a measurement: Invalid JSON"),
    ],
)
def test_another_file_is_refused_with_one_sentence(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(JobError) as refused:
        Measured.read(path)
    assert str(refused.value).startswith(f"{path} {ending}")
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "measured.json"):
        with pytest.raises(JobError) as refused:
            Measured.read(path)
        assert (
            str(refused.value) == f"measurement {tmp_path / 'measured.json'} cannot be read: No such file or directory"
        )


def test_a_record_says_which_error_its_file_raises(tmp_path: Path) -> None:
    class Asked(Record):
        file_kind: ClassVar[FileKind] = FileKind(is_not="is not what was asked for", error=UsageError)

    with pytest.raises(UsageError) as refused:  # a folder, where none may be given
        Asked.read(tmp_path)
    assert str(refused.value) == f"{tmp_path} cannot be read: Is a directory"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as partial:
        partial.write_text("half of the new")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_process_that_is_killed_while_it_writes_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    script = f"""
        import os, signal
        from pathlib import Path
        from validate.records import replacing
        with replacing(Path({str(path)!r})) as partial:
            partial.write_text("half of the new")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False).returncode == -9
    assert path.read_text() == "old"


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path, long = tmp_path / "a.txt", 1_000_000
    write_text("0" * long, path)
    writing = threading.Thread(target=lambda: [write_text(str(k) * long, path) for k in range(10)])
    writing.start()
    seen = 0
    while writing.is_alive() or not seen:
        text = path.read_text()
        assert len(text) == long and len(set(text)) == 1
        seen += 1
    writing.join()
    assert path.read_text() == "9" * long


def test_a_new_file_has_the_mode_that_any_new_file_has(tmp_path: Path) -> None:
    write_text("a", tmp_path / "ours")
    (tmp_path / "theirs").write_text("a")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "theirs").stat().st_mode)


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "a.txt")
    write_text("new", tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "folder" / "a.txt").read_text() == "new"


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reading = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reading.start()
    write_text("through", tmp_path / "pipe")
    reading.join(timeout=30)
    assert read == ["through"] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
