"""Records: immutable data in JSON files that are written whole or not at all, and refused with one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError, WithJsonSchema

from validate.exceptions import JobError, UsageError

__all__ = ["FileKind", "Number", "Record", "replacing", "write_text"]

Number = Annotated[
    float,
    WithJsonSchema({"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}, mode="serialization"),
]
"""A float that may be NaN or infinite; see `Record` for how JSON holds it."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to; what is there at the end takes the place of `path` at once.

    A reader sees the old file or the new one, and never half of one, even after a crash: the new file is on disk
    before it gets its name. Where the block raises, `path` stays as it was. A link is followed, and what is no file,
    such as a pipe, is written to directly.

    Args:
        path: its folder exists.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with replacing(Path(folder, "a.txt")) as partial:
        ...         _ = partial.write_text("whole")
        ...     [file.name for file in Path(folder).iterdir()]
        ['a.txt']
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        yield path
        return
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # two processes may write the same file
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    """Write a text in UTF-8, whole or not at all; see `replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(text.encode())


@dataclass(frozen=True)
class FileKind:
    """How the file of a record is named in sentences, and what is raised with them.

    Attributes:
        noun: stands before its path where it cannot be read; may be empty.
        is_not: what is said of a file that holds something else, e.g. ``is not a plan``.
        name: of the file where a folder is given instead; None where no folder may be.
        error: what is raised.
    """

    noun: str = ""
    is_not: str = "is not what was written"
    name: str | None = None
    error: type[JobError | UsageError] = JobError


class Record(BaseModel):
    """Base of every result: immutable, and strict about unknown keys so that a typo cannot hide.

    NaN and infinities are written as JSON strings, since JSON has no number for them and ``null`` would
    read as "not measured".

    Examples:
        >>> class Score(Record):
        ...     value: Number
        >>> Score(value=float("inf")).model_dump_json()
        '{"value":"Infinity"}'
        >>> Score.model_validate_json('{"value": "Infinity"}')
        Score(value=inf)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", protected_namespaces=())
    file_kind: ClassVar[FileKind] = FileKind()

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all; see `replacing`."""
        write_text(self.model_dump_json(indent=1) + "\n", path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote. Raises what `file_kind` says, JobError for most, where the file is not that."""
        kind = cls.file_kind
        if kind.name is not None and path.is_dir():
            path = path / kind.name
        try:
            return cls.model_validate_json(path.read_bytes(), context={"path": path})
        except OSError as error:
            raise kind.error(f"{kind.noun} {path} cannot be read: {error.strerror}".lstrip()) from error
        except ValidationError as error:
            raise kind.error(cls._mismatch(path, error)) from error

    @classmethod
    def _mismatch(cls, path: Path, error: ValidationError) -> str:
        """Return what is said of a file that holds something else."""
        first = error.errors()[0]
        where = "".join(f"{part}." for part in first["loc"]).rstrip(".")
        message = first["msg"].removeprefix("Value error, ")
        return f"{path} {cls.file_kind.is_not}: {f'{where}: ' if where else ''}{message}"
