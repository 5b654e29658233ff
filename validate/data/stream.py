"""Data sources and streams of batches, decoded in worker threads.

Rows come from Hugging Face `datasets` or from a Python callable; a preprocessing turns each row into named
input arrays; batches are stacked from them. At no time are more than a few batches in memory.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Discriminator, Field, Tag, model_validator

from validate.data.memory import MemorySource, as_array
from validate.data.preprocessing import ImagePreprocessing, NamedPreprocessing, Preparation, Preprocess
from validate.data.source import DataSource
from validate.exceptions import JobError
from validate.references import CallableReference, load_object
from validate.settings import Section

__all__ = [
    "UNION_BRANCHES",
    "Batch",
    "DataConfig",
    "Sample",
    "SampleStream",
    "Split",
    "label_text",
    "repeats",
]

Array = NDArray[Any]
Row = Mapping[str, Any]
Split = Literal["calibration", "validation"]

UNION_BRANCHES: Mapping[tuple[str, ...], int] = {("data", "preprocess"): 2, ("data", "label"): 2}
"""Where pydantic puts the branch of a union into a location; see `validate.settings.read_settings`."""


def _named_or_code(value: Any) -> str:
    return "named" if isinstance(value, dict | NamedPreprocessing) else "code"


def _one_or_several(value: Any) -> str:
    return "several" if isinstance(value, list | tuple) else "one"


class DataConfig(Section):
    """Where samples come from and how a row becomes the model's input."""

    calibration: DataSource = Field(description="samples that scales are found and candidates ranked on")
    validation: DataSource = Field(description="labelled samples that the verdict is made on, and nothing else")
    label: (
        Annotated[
            Annotated[str, Tag("one")] | Annotated[tuple[str, ...], Tag("several")], Discriminator(_one_or_several)
        ]
        | None
    ) = Field(
        default="label",
        description="column of the label, or a list of columns of which the label is a mapping; null where there are "
        "none: agreement with the float model is then measured, and not accuracy",
    )
    slice: str | None = Field(
        default=None, description="column by which the validation set is sliced, for policy.slices; e.g. the camera"
    )
    image: ImagePreprocessing | None = Field(default=None, description="preprocessing of an image column")
    preprocess: (
        Annotated[
            Annotated[CallableReference, Tag("code")] | Annotated[NamedPreprocessing, Tag("named")],
            Discriminator(_named_or_code),
        ]
        | None
    ) = Field(
        default=None,
        description="module:name or file.py:name, row -> array, or mapping from input name to array, and a label in "
        "place of the row's under its column's name; or what a library knows: {torchvision: WEIGHTS}, {timm: MODEL}, "
        "{processor: FOLDER}, {tokenizer: FOLDER}",
    )
    batch_size: int = Field(default=8, ge=1, description="samples")
    allow_overlap: bool = Field(
        default=False, description="accept samples that are in both sets; the verdict then flatters the candidate"
    )
    allow_repeats: bool = Field(
        default=False,
        description="accept validation samples that repeat others, where the world repeats itself too; intervals then "
        "take every one for evidence of its own",
    )

    @model_validator(mode="after")
    def _one_preprocessing(self) -> DataConfig:
        if self.image is not None and self.preprocess is not None:
            raise ValueError("give image or preprocess, not both")
        return self

    @model_validator(mode="after")
    def _masked_tokens_are_labels(self) -> DataConfig:
        if self.label is None and isinstance(self.preprocess, NamedPreprocessing) and self.preprocess.mask is not None:
            raise ValueError("preprocess.mask makes the labels, which are the tokens that it masks; leave label out")
        return self

    def preparation(self) -> Preparation:
        """Return the preprocessing of the samples. Raises JobError where it cannot be loaded."""
        if isinstance(self.preprocess, NamedPreprocessing):
            return self.preprocess.prepare(self.label if isinstance(self.label, str) else None)
        if self.preprocess is not None:
            location, _, name = self.preprocess.rpartition(":")
            return Preparation(load_object(self.preprocess, Path()), f"{name} of {Path(location).name}")
        if self.image is not None:
            return Preparation(self.image, self.image.describe())
        return Preparation(None, "none: the columns that are called like the inputs")

    def repeats(self, split: Split, contents: Sequence[bytes]) -> str | None:
        """Return a warning about samples whose inputs are those of another sample; None where there are none.

        Args:
            split: which samples.
            contents: of each the hash of its inputs (`Sample.content`).

        Raises:
            JobError: they are validation samples, and `allow_repeats` is not set.
        """
        return repeats(split, contents, self.allow_repeats)

    def stream(self, split: Split, names: tuple[str, ...], batch_size: int) -> SampleStream:
        """Return a split as a stream of batches for a model with those inputs.

        Calibration samples may lack the label (it is None then): scales need none, and only fallback does.

        Args:
            split: which samples.
            names: the model's inputs.
            batch_size: of the model; where a sample is several rows of it, a batch has fewer samples.

        Raises:
            JobError: the preprocessing cannot be loaded, or its rows do not fit the batch.
        """
        preparation = self.preparation()
        if batch_size % preparation.rows:
            raise JobError(
                f"a sample is {preparation.rows} rows of the model's batch, which batches of {batch_size} cannot hold; "
                f"set data.batch_size, or export the model with a batch that is a multiple of {preparation.rows}"
            )
        return SampleStream(
            split,
            getattr(self, split),
            preparation,
            self.label,
            names,
            batch_size // preparation.rows,
            label_required=split == "validation",
            slice=self.slice if split == "validation" else None,
        )


def repeats(split: Split, contents: Sequence[bytes], allowed: bool) -> str | None:
    """Return what the user should know of repeated samples, None where there are none; see `DataConfig.repeats`."""
    number = len(contents) - len(set(contents))
    if number == 0:
        return None
    found = f"{number} of {len(contents)} {split} samples are repeats of others, by what goes into the model"
    if split == "calibration":
        return f"{found}; scales learn nothing new from them, and fallback takes each for evidence of its own"
    if allowed:
        return (
            f"{found}, as data.allow_repeats permits: intervals are narrower than {len(contents) - number} "
            "independent samples can make them, and the verdict is surer than the evidence"
        )
    raise JobError(f"{found}, and so are no independent evidence; remove them, or set data.allow_repeats: true")


@dataclass(frozen=True)
class Sample:
    """One preprocessed row: input arrays without the batch axis, its label, and the hash of its inputs."""

    inputs: dict[str, Array]
    label: Any
    content: bytes
    slice: Any = None


@dataclass(frozen=True)
class Batch:
    """Stacked samples: every input has the batch as axis 0, where a sample may be several rows.

    `first` is the index of the first sample.

    Examples:
        >>> batch = Batch({"x": np.zeros((2, 3, 8, 8))}, labels=[1, 0], contents=[b"a", b"b"], first=0)
        >>> len(batch)
        2
    """

    inputs: dict[str, Array]
    labels: list[Any]
    contents: list[bytes]
    first: int
    slices: list[Any] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.contents)


@dataclass(frozen=True)
class SampleStream:
    """The samples of one split, which can be streamed any number of times.

    The preprocessing maps a row to one array (a model with one input) or to a mapping from input name to array; without
    it, the columns that are called like the inputs are taken as they are.
    """

    name: str
    source: DataSource | MemorySource
    preparation: Preparation
    label: str | tuple[str, ...] | None
    input_names: tuple[str, ...]
    batch_size: int
    label_required: bool = True
    slice: str | None = None

    @property
    def preprocess(self) -> Preprocess | None:
        """The callable that maps a row to inputs; None where the columns are the inputs."""
        return self.preparation.call

    def limited(self, samples: int) -> SampleStream:
        """Return the same stream, cut after `samples` samples."""
        limit = samples if self.source.limit is None else min(samples, self.source.limit)
        return replace(self, source=self.source.model_copy(update={"limit": limit}))

    def batches(self) -> Iterator[Batch]:
        """Yield batches in order; the last one may be smaller. Raises JobError where a row is unusable."""
        first = 0
        samples = self._samples()
        while group := list(islice(samples, self.batch_size)):
            yield _stack(group, first, self.name, self.preparation.rows)
            first += len(group)
        if first == 0:
            raise JobError(f"the {self.name} set has no samples; check its source in the config")

    def _samples(self) -> Iterator[Sample]:
        """Preprocess rows in worker threads, in order, with a bounded number in flight."""
        workers = min(4, os.cpu_count() or 1)
        in_flight: deque[Future[Sample]] = deque()
        with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
            try:
                for index, row in enumerate(self._rows()):
                    in_flight.append(pool.submit(self._sample, row, index))
                    if len(in_flight) > 2 * max(workers, self.batch_size):
                        yield in_flight.popleft().result()
                while in_flight:
                    yield in_flight.popleft().result()
            finally:
                for future in in_flight:
                    future.cancel()

    def _rows(self) -> Iterator[Row]:
        try:
            yield from self.source.rows()
        except (OSError, ValueError) as error:  # what `datasets` raises on files and hubs that it cannot read
            raise JobError(f"the {self.name} set cannot be read: {' '.join(str(error).split())}") from error

    def _sample(self, row: Row, index: int) -> Sample:
        try:
            prepared = self.preprocess(row) if self.preprocess else {k: row[k] for k in self.input_names}
            label = self._label(row, prepared)
            sliced = row[self.slice] if self.slice is not None else None
        except KeyError as error:
            columns = ", ".join(sorted(map(str, row)))
            hint = "; where there are no labels, set data.label: null" if error.args == (self.label,) else ""
            raise JobError(
                f"sample {index} of the {self.name} set has no column {error}; its columns are {columns}{hint}"
            ) from error
        except Exception as error:  # it may be the user's code: anything may come out of it
            raise JobError(f"sample {index} of the {self.name} set cannot be preprocessed: {error}") from error
        if not isinstance(prepared, Mapping):
            if len(self.input_names) != 1:
                raise JobError(
                    f"the preprocessing returns one array but the model has inputs {', '.join(self.input_names)}; "
                    "return a mapping from input name to array"
                )
            prepared = {self.input_names[0]: prepared}
        if missing := set(self.input_names) - set(prepared):
            raise JobError(f"the preprocessing gives no array for model input {', '.join(sorted(missing))}")
        try:
            inputs = {key: as_array(prepared[key]) for key in self.input_names}
        except (TypeError, ValueError) as error:
            raise JobError(f"sample {index} of the {self.name} set holds no array: {error}") from error
        return Sample(inputs, label, _content_hash(inputs), sliced)

    def _label(self, row: Row, prepared: Any) -> Any:
        """Return the label, or a mapping of columns; what the preprocessing made of a column comes before the row's."""
        names = (self.label,) if isinstance(self.label, str) else self.label or ()
        made = prepared if isinstance(prepared, Mapping) else {}
        found = {name: made[name] for name in names if name in made and name not in self.input_names}
        missing = [name for name in names if name not in found and name not in row]
        if missing and self.label_required:
            raise KeyError(missing[0])
        if missing or not names:
            return None
        found = {name: found.get(name, row.get(name)) for name in names}
        return found[self.label] if isinstance(self.label, str) else found


def _stack(group: list[Sample], first: int, name: str, rows: int) -> Batch:
    join = np.stack if rows == 1 else np.concatenate
    for index, sample in enumerate(group, first):
        if rows > 1 and any(array.shape[:1] != (rows,) for array in sample.inputs.values()):
            raise JobError(f"sample {index} of the {name} set should have {rows} rows on axis 0 of every input")
    try:
        inputs = {key: join([sample.inputs[key] for sample in group]) for key in group[0].inputs}
    except ValueError as error:
        raise JobError(
            f"samples {first} to {first + len(group) - 1} of the {name} set differ in shape and cannot be "
            "batched; make the preprocessing give one shape, or set data.batch_size to 1"
        ) from error
    return Batch(
        inputs,
        [sample.label for sample in group],
        [sample.content for sample in group],
        first,
        [sample.slice for sample in group],
    )


def label_text(label: Any) -> str | None:
    """Return a label that can name a class, as text; None for boxes, masks, vectors and what is not there."""
    return str(label) if isinstance(label, str | bool | int | np.integer | np.bool_) else None


def _content_hash(inputs: Mapping[str, Array]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for key, array in inputs.items():
        digest.update(f"{key}{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()
