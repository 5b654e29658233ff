"""The compare command: opens both models, reads data, pairs tensors, compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from validate.backends import Backend, Options, kind_of, open_model
from validate.data import Samples, SampleStream, Split
from validate.exceptions import UsageError
from validate.job import DataFile
from validate.layerwise.comparison import Comparison
from validate.layerwise.model_pair import Pair, compare_pair
from validate.number_formats import FloatPrecision
from validate.settings import read_settings, read_yaml

__all__ = ["CompareRequest", "compare_files"]


@dataclass(frozen=True)
class CompareRequest:
    """Arguments of the compare command; see its options."""

    reference: str
    candidate: str
    data: Path
    split: Split = "calibration"
    samples: int = 16
    batch_size: int = 4
    runtime: str | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    precision: FloatPrecision = "fp32"
    mapping: Path | None = None


def compare_files(request: CompareRequest, command: str, console: Console) -> Comparison:
    """Compare two models tensor by tensor on the samples of a file.

    Raises:
        UsageError: a file or a name is wrong.
        NothingComparedError: there was nothing to compare.
        JobError: a model cannot be opened or run.
    """
    models = Pair(
        request.reference,
        request.candidate,
        Options(request.device, request.precision),
        _runtime(request),
        _mapping(request.mapping),
    )

    def stream(names: tuple[str, ...], fixed_batch: int | None) -> SampleStream:
        size = fixed_batch or request.batch_size
        if request.data.suffix == ".npz":
            rows = _npz(request.data, names)
            return Samples(rows, batch_size=size).stream(request.split, names).limited(request.samples)
        data = read_settings(DataFile, request.data).data
        return data.stream(request.split, names, size).limited(request.samples)

    with Progress(console=console, transient=True) as bars:
        return compare_pair(models, stream, request.samples, command, bars)


def _runtime(request: CompareRequest) -> tuple[str, Backend] | None:
    """Return what executes the candidate, and its name."""
    if request.runtime is None:
        return None
    if kind_of(request.candidate) != "onnx":
        raise UsageError("--runtime says what executes an ONNX candidate, and this one is none")
    if request.runtime == "integer":
        return request.runtime, open_model(request.candidate, Options(request.device, arithmetic="integer"))
    if kind_of(request.runtime) != "engine":
        raise UsageError(f"--runtime {request.runtime} should be 'integer' or an engine made from the candidate")
    return request.runtime, open_model(request.runtime, Options())


def _mapping(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    found, _ = read_yaml(path)
    if not isinstance(found, dict) or not all(isinstance(x, str) for pair in found.items() for x in pair):
        raise UsageError(f"{path} should hold lines like 'tensor of the reference: tensor of the candidate'")
    return found


def _npz(path: Path, inputs: tuple[str, ...]) -> Mapping[str, NDArray[Any]]:
    """Read an array for every input; samples are on axis 0."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in inputs if name in file.files}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as .npz: {' '.join(str(error).split())}") from error
    if missing := set(inputs) - set(arrays):
        raise UsageError(f"{path} has no array called {', '.join(sorted(missing))}, an input of the model")
    if len({len(array) for array in arrays.values()}) != 1:
        raise UsageError(f"the arrays in {path} differ in their number of samples, which is axis 0")
    return arrays
