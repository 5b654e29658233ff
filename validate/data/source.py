"""Where the samples of a split come from: a source of rows, as a config names it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from validate.references import CallableReference, ExistingPath, load_object

__all__ = ["DataSource"]

Row = Mapping[str, Any]


class DataSource(BaseModel):
    """Where the samples of one split come from: exactly one of the first four keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parquet: ExistingPath | None = Field(default=None, description="a parquet file, or a folder of them")
    imagefolder: ExistingPath | None = Field(
        default=None, description="a folder with one subfolder of images per class"
    )
    hub: str | None = Field(default=None, description="a data set on the Hugging Face hub, owner/name")
    callable: CallableReference | None = Field(
        default=None, description="module:name or file.py:name; called with `arguments`, returns rows (mappings)"
    )
    subset: str | None = Field(default=None, description="configuration of a hub data set")
    split: str = Field(default="train", description="split of a hub data set or an image folder")
    revision: str | None = Field(default=None, description="commit or tag of a hub data set; pin it")
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of `callable`")
    limit: int | None = Field(default=None, ge=1, description="take the first so many rows only")

    @model_validator(mode="after")
    def _one_source(self) -> DataSource:
        given = [key for key in ("parquet", "imagefolder", "hub", "callable") if getattr(self, key)]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise ValueError(f"give exactly one of parquet, imagefolder, hub and callable (found {found})")
        for key, owners in (("subset", {"hub"}), ("revision", {"hub"}), ("arguments", {"callable"})):
            if key in self.model_fields_set and given[0] not in owners:
                raise ValueError(f"{key} belongs to {' and '.join(owners)}, not to {given[0]}")
        if self.callable:
            try:
                inspect.signature(load_object(self.callable, Path())).bind(**self.arguments)
            except TypeError as error:
                raise ValueError(f"{self.callable} cannot be called with these arguments: {error}") from None
        return self

    def rows(self) -> Iterator[Row]:
        """Yield the rows in their order. Images stay undecoded: ``{"bytes": ..., "path": ...}``."""
        return islice(self._all_rows(), self.limit)

    def _all_rows(self) -> Iterator[Row]:
        if self.callable:
            return iter(load_object(self.callable, Path())(**self.arguments))
        import datasets

        options: dict[str, Any] = {"split": self.split, "streaming": True}
        if self.parquet:
            path = Path(self.parquet)
            files = sorted(map(str, path.glob("**/*.parquet"))) if path.is_dir() else [str(path)]
            loaded = datasets.load_dataset("parquet", data_files={self.split: files}, **options)
        elif self.imagefolder:
            loaded = datasets.load_dataset("imagefolder", data_dir=self.imagefolder, **options)
        else:
            loaded = datasets.load_dataset(str(self.hub), self.subset, revision=self.revision, **options)
        return iter(loaded.decode(False))
