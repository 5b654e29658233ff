"""The compare command: opens both models, reads data, pairs tensors, compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from validate.backends import Backend, OnnxRuntimeBackend, Options, kind_of, open_model, open_pytorch
from validate.data import Batch, Split
from validate.environment import environment
from validate.exceptions import UsageError
from validate.job import DataFile
from validate.layerwise.comparator import compare, subjects_of
from validate.layerwise.comparison import Comparison, Execution
from validate.layerwise.pairing import pair
from validate.number_formats import FloatPrecision
from validate.settings import read_settings, read_yaml

__all__ = ["CompareRequest", "compare_files"]

_FLOORS = 2
"""Simulations that the runtime's rounding floor is measured with."""


@dataclass(frozen=True)
class CompareRequest:
    """What the user asked for; see the command's options."""

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
    """Do the comparison.

    Raises:
        UsageError: a file or a name is wrong.
        NothingComparedError: there was nothing to compare.
        JobError: a model cannot be opened or run.
    """
    kinds = kind_of(request.reference), kind_of(request.candidate)
    if "onnx" not in kinds:
        raise UsageError("one of the two models must be an ONNX file: its graph says which layer is which")
    names = request.reference, request.candidate
    options = Options(), Options(request.device, request.precision)
    opened: dict[int, Backend] = {i: open_model(names[i], options[i]) for i in (0, 1) if kinds[i] != "pytorch"}
    first = next(model for model in opened.values() if isinstance(model, OnnxRuntimeBackend))
    size = first.fixed_batch or request.batch_size
    for i in {0, 1} - opened.keys():
        example = next(_batches(request, first.input_names, 1)).inputs
        opened[i] = open_pytorch(names[i], options[i], first, example)
    reference, candidate = opened[0], opened[1]
    found = pair(reference, candidate, _mapping(request.mapping))
    runtime = _runtime(request)
    subjects = subjects_of(reference, candidate, found.pairs, runtime, _FLOORS if runtime else 0)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(f"compare {len(found.pairs)} tensors", total=request.samples)
        findings = compare(subjects, _batches(request, first.input_names, size), lambda n: progress.advance(bar, n))
    executions = {
        role: Execution(model=model, runtime=findings.executions[role][0], device=findings.executions[role][1])
        for role, model in zip(("reference", "candidate", "runtime"), (*names, request.runtime), strict=True)
        if role in findings.executions and model is not None
    }
    return Comparison(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        reference=executions["reference"],
        candidate=executions["candidate"],
        runtime=executions.get("runtime"),
        samples=findings.samples,
        passes=findings.passes,
        layers=findings.layers,
        unpaired=found.unpaired,
        isolated_reason=findings.isolated_reason,
        environment=environment(),
    )


def _runtime(request: CompareRequest) -> Backend | None:
    if request.runtime is None:
        return None
    if kind_of(request.candidate) != "onnx":
        raise UsageError("--runtime says what executes an ONNX candidate, and this one is none")
    if request.runtime == "integer":
        return open_model(request.candidate, Options(request.device, arithmetic="integer"))
    if kind_of(request.runtime) != "engine":
        raise UsageError(f"--runtime {request.runtime} should be 'integer' or an engine made from the candidate")
    return open_model(request.runtime, Options())


def _mapping(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    found, _ = read_yaml(path)
    if not isinstance(found, dict) or not all(isinstance(x, str) for pair in found.items() for x in pair):
        raise UsageError(f"{path} should hold lines like 'tensor of the reference: tensor of the candidate'")
    return found


def _batches(request: CompareRequest, inputs: tuple[str, ...], size: int) -> Iterator[Batch]:
    """Yield the samples, in batches of `size`."""
    if request.data.suffix == ".npz":
        yield from _npz_batches(request.data, inputs, size, request.samples)
    else:
        data = read_settings(DataFile, request.data).data
        yield from data.stream(request.split, inputs, size).limited(request.samples).batches()


def _npz_batches(path: Path, inputs: tuple[str, ...], size: int, samples: int) -> Iterator[Batch]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: Mapping[str, NDArray[Any]] = {name: file[name][:samples] for name in inputs if name in file.files}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as .npz: {' '.join(str(error).split())}") from error
    if missing := set(inputs) - set(arrays):
        raise UsageError(f"{path} has no array called {', '.join(sorted(missing))}, an input of the model")
    if len({len(array) for array in arrays.values()}) != 1:
        raise UsageError(f"the arrays in {path} differ in their number of samples, which is axis 0")
    total = len(next(iter(arrays.values())))
    for first in range(0, total, size):
        part = {name: array[first : first + size] for name, array in arrays.items()}
        number = min(size, total - first)
        yield Batch(part, [None] * number, [b"%d" % i for i in range(first, first + number)], first)
