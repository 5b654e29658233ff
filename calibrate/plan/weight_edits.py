"""What a plan changes of a model's constants, as data: recovery makes the edits, `calibrate.graph.apply` writes them.

Arrays do not belong in JSON: they stand in an .npz file beside the plan, whose digest is in the plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from validate.exceptions import DAMAGED_NPZ, JobError
from validate.records import replacing

__all__ = ["WeightEdit", "WeightEdits", "weights_file"]

_HEADER = "edits"


@dataclass(frozen=True, eq=False)
class WeightEdit:
    """A change of the constant that one node reads; other nodes that read the same one keep it as it is.

    Attributes:
        node: its name in the prepared model.
        input: index of the constant among the node's inputs.
        operation: multiply: by factors, as of channel equalization. add: a correction, as of a bias; where the node has
            no such input, it gets the values as one. replace: by new values.
        values: float32, finite, of a shape that NumPy broadcasts with the constant's.
    """

    node: str
    input: int
    operation: Literal["multiply", "add", "replace"]
    values: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Hold values as float32. Raises ValueError where one is not finite."""
        values = np.asarray(self.values, np.float32)
        if not np.isfinite(values).all():
            raise ValueError(f"an edit of input {self.input} of node {self.node} holds values that are not finite")
        object.__setattr__(self, "values", values)

    def edited(self, constant: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Return the new constant, float32. Raises ValueError where there is none to edit, or the shapes do not fit.

        Args:
            constant: what the node reads; None where it has no such input.

        Examples:
            >>> halve = WeightEdit("conv", 1, "multiply", np.float32([[0.5], [1]]))
            >>> halve.edited(np.ones((2, 2), np.float32)).tolist()
            [[0.5, 0.5], [1.0, 1.0]]
        """
        if self.operation == "replace" or (self.operation == "add" and constant is None):
            return self.values
        if constant is None:
            raise ValueError("there is no constant to be multiplied")
        return constant * self.values if self.operation == "multiply" else constant + self.values


@dataclass(frozen=True, eq=False)
class WeightEdits:
    """Edits in the order in which they are made. Those with the same digest are equal."""

    edits: tuple[WeightEdit, ...] = ()

    def __iter__(self) -> Iterator[WeightEdit]:
        return iter(self.edits)

    def __bool__(self) -> bool:
        return bool(self.edits)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WeightEdits) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    @cached_property
    def sha256(self) -> str:
        """Of all names, shapes and values; not of the file, which differs between systems."""
        digest = hashlib.sha256(self._header().encode())
        for edit in self.edits:
            digest.update(edit.values.astype("<f4").tobytes())
        return digest.hexdigest()

    def write(self, path: Path) -> None:
        """Write as .npz, whole or not at all: the array ``edits`` says in JSON what the arrays 0, 1, ... belong to."""
        arrays = {str(number): edit.values for number, edit in enumerate(self.edits)}
        header = np.frombuffer(self._header().encode(), np.uint8)
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, **{_HEADER: header}, **arrays)  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: Path) -> WeightEdits:
        """Read what `write` wrote. Raises OSError or ValueError where it is not there, or not that."""
        try:
            with np.load(path, allow_pickle=False) as file:
                described = json.loads(file[_HEADER].tobytes())
                edits = [
                    WeightEdit(node, index, how, file[str(i)]) for i, (node, index, how, _) in enumerate(described)
                ]
                return cls(tuple(edits))
        except DAMAGED_NPZ as error:
            raise ValueError(f"{path} holds no weight edits") from error

    def _header(self) -> str:
        return json.dumps([[e.node, e.input, e.operation, list(e.values.shape)] for e in self.edits])

    @classmethod
    def _validate(cls, value: Any, info: ValidationInfo) -> WeightEdits:
        if isinstance(value, WeightEdits):
            return value
        plan: Path | None = (info.context or {}).get("path")
        if plan is None:
            raise ValueError("edits of weights are in a file beside the plan's; read the plan from its file")
        companion = weights_file(plan)
        try:
            found = cls.read(companion)
        except FileNotFoundError:
            raise JobError(
                f"plan {plan} edits weights, and {companion}, which holds the edits, is not there; keep both together"
            ) from None
        except (OSError, ValueError) as error:
            raise JobError(f"{companion} cannot be read, and plan {plan} needs it: {error}") from error
        if found.sha256 != value:
            raise JobError(f"{companion} does not hold the weight edits of plan {plan}; copy both files from one place")
        return found

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            cls._validate, serialization=core_schema.plain_serializer_function_ser_schema(lambda edits: edits.sha256)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string"}


def weights_file(plan: Path) -> Path:
    """Return the file beside a plan's that holds its weight edits."""
    return plan.with_name(f"{plan.stem}.weights.npz")
