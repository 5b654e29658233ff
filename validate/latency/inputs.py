"""Inputs of timed calls: batches of samples, or random ones of the shapes that a file declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from validate.backends import read_onnx
from validate.exceptions import UsageError
from validate.job import DataFile
from validate.settings import read_settings

__all__ = ["BATCHES", "Signature", "batches_of", "random_samples", "samples_from", "signature_of"]

BATCHES = 4
"""Batches that are cycled through."""
_SEED = 0

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Signature:
    """The inputs of an ONNX file.

    Attributes:
        shapes: without axis 0, the batch; None where an axis has no fixed size.
        types: NumPy's.
        fixed_batch: the batch size that the file is fixed to.
    """

    shapes: dict[str, tuple[int | None, ...]]
    types: dict[str, np.dtype[Any]]
    fixed_batch: int | None


def signature_of(path: Path) -> Signature:
    """Return the inputs of an ONNX file.

    Raises:
        JobError: it is not an ONNX file.
        UsageError: an input has no axis for the batch, or the inputs differ there.
    """
    shapes: dict[str, tuple[int | None, ...]] = {}
    types: dict[str, np.dtype[Any]] = {}
    sizes: set[int] = set()
    for value in read_onnx(path).graph.inputs:
        if value.is_initializer():
            continue
        name = str(value.name)
        if value.shape is None or len(value.shape) == 0 or value.dtype is None:
            raise UsageError(f"input {name} of {path} has no batch axis, so that no batches can be made for it")
        dimensions = [size if isinstance(size, int) else None for size in value.shape]
        if dimensions[0] is not None:
            sizes.add(dimensions[0])
        shapes[name], types[name] = tuple(dimensions[1:]), value.dtype.numpy()
    if len(sizes) > 1:
        raise UsageError(f"the inputs of {path} differ on axis 0, which should be the batch")
    return Signature(shapes=shapes, types=types, fixed_batch=next(iter(sizes), None))


def random_samples(signature: Signature, number: int) -> dict[str, NDArray[Any]]:
    """Return `number` samples: standard normal floats; integers and booleans that are 0 or 1. The seed is fixed.

    Raises:
        UsageError: an axis other than the batch has no fixed size.

    Examples:
        >>> signature = Signature({"x": (3, 8, 8)}, {"x": np.dtype(np.float32)}, fixed_batch=None)
        >>> {name: (array.shape, array.dtype.name) for name, array in random_samples(signature, 4).items()}
        {'x': ((4, 3, 8, 8), 'float32')}
    """
    rng = np.random.default_rng(_SEED)
    found = {}
    for name, shape in signature.shapes.items():
        sizes = [size for size in shape if size is not None]
        if len(sizes) < len(shape):
            raise UsageError(f"input {name} has axes without a fixed size, so that random inputs need --data")
        dtype = signature.types[name]
        whole = (number, *sizes)
        is_float = dtype == ir.DataType.BFLOAT16.numpy() or np.issubdtype(dtype, np.floating)
        values = rng.standard_normal(whole, np.float32) if is_float else rng.integers(0, 2, whole)
        found[name] = values.astype(dtype)
    return found


def samples_from(data: Path, names: Sequence[str] | None, number: int) -> dict[str, NDArray[Any]]:
    """Return up to `number` samples of a file.

    Args:
        data: an ``.npz`` with an array per input, samples on axis 0, or a config with a section data, of which the
            calibration samples are taken.
        names: the inputs; None takes all arrays of an ``.npz``.
        number: >= 1.

    Raises:
        UsageError: the file cannot be read, or has no such inputs.
        JobError: the samples of the config cannot be read.
    """
    if data.suffix == ".npz":
        return _from_npz(data, names, number)
    if names is None:
        raise UsageError(
            f"no ONNX file among the models says what the inputs are called; give one, or an .npz for {data}"
        )
    stream = read_settings(DataFile, data).data.stream("calibration", tuple(names), number)
    return next(iter(stream.limited(number).batches())).inputs


def batches_of(samples: Arrays, size: int) -> list[dict[str, NDArray[Any]]]:
    """Return up to `BATCHES` batches of `size` samples, no two alike where there is more than one sample.

    Each begins at another sample and goes around, so that few samples make many batches.

    Examples:
        >>> [batch["x"].tolist() for batch in batches_of({"x": np.arange(3)}, size=2)]
        [[0, 1], [1, 2], [2, 0]]
    """
    total = len(next(iter(samples.values())))
    number = min(BATCHES, total)
    picked = [(i * total // number + np.arange(size)) % total for i in range(number)]
    return [{name: np.ascontiguousarray(array[rows]) for name, array in samples.items()} for rows in picked]


def _from_npz(path: Path, names: Sequence[str] | None, number: int) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            wanted = file.files if names is None else [name for name in names if name in file.files]
            arrays = {name: file[name][:number] for name in wanted}
    except (OSError, ValueError, IndexError) as error:  # IndexError: an array without axes
        raise UsageError(f"{path} cannot be read as .npz: {' '.join(str(error).split())}") from error
    if missing := set(names or ()) - set(arrays):
        raise UsageError(f"{path} has no array called {', '.join(sorted(missing))}, an input of the model")
    lengths = {len(array) for array in arrays.values()}
    if len(lengths) != 1 or lengths == {0}:
        raise UsageError(f"the arrays in {path} should have the same number of samples, at least one, on axis 0")
    return arrays
