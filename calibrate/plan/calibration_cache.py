"""The calibration cache of TensorRT 10 and older, in both directions.

TensorRT 11 reads scales from the Q/DQ nodes of the model and has no calibrators. Before it, a builder with
`IInt8EntropyCalibrator2` (``trtexec --int8 --calib=FILE``) reads a text file: a header that names TensorRT's version
and the calibrator, then ``tensor: scale`` per line, the scale being ``|max dynamic range| / 127`` as the big-endian
hex of a float32 (TensorRT's sampleINT8 README, "Calibration file").
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field, ValidationError

from calibrate.plan.origin import Origin
from calibrate.plan.quantization_plan import QuantizationPlan
from validate.exceptions import JobError, UsageError
from validate.records import Record, replacing

__all__ = ["CalibrationCache", "companion", "read_cache", "write_cache"]

_HEADER = re.compile(r"TRT-\d+-\w+")
_HEX = re.compile(r"[0-9a-fA-F]{8}")


@dataclass(frozen=True)
class CalibrationCache:
    """Content of a calibration cache.

    Attributes:
        scales: by tensor, positive and finite; ``threshold / 127``.
        unusable: tensors whose entry is no positive, finite scale; TensorRT writes one where all values were zero.
        origin: what it was made from; None where it has no companion file.
    """

    scales: dict[str, float]
    unusable: list[str]
    origin: Origin | None


class _Companion(Record):
    """Content of the file beside a cache: the cache's origin, for which TensorRT's format has no place."""

    cache_sha256: str = Field(description="of the cache file, so that the two cannot be mixed up")
    origin: Origin


def companion(path: Path) -> Path:
    """Return the path of the file beside a cache that says what it was made from.

    Examples:
        >>> companion(Path("model.cache")).name
        'model.cache.json'
    """
    return path.with_name(f"{path.name}.json")


def write_cache(plan: QuantizationPlan, path: Path, tensorrt: str) -> None:
    """Write the activation scales of a plan as a calibration cache, and its origin beside it.

    Args:
        plan: its layers' precisions are not part of the format; TensorRT has to be given them by other means
            (``trtexec --layerPrecisions``).
        path: of the cache.
        tensorrt: the version that will read it, e.g. ``8.6.1``; TensorRT rejects a cache of another version.

    Raises:
        UsageError: no such version reads calibration caches, the format cannot hold a tensor's name or what the plan
            changes of weights, or `path` is a file that is no cache.
    """
    if plan.weight_edits:
        raise UsageError(
            f"plan {plan.name} edits weights, which a calibration cache cannot hold; export a plan without"
        )
    if path.exists() and not path.read_bytes()[:4] == b"TRT-":
        raise UsageError(f"{path} is there and is not a calibration cache; name another file with --output")
    if unwritable := [name for name in plan.scales if {"\n", "\r"} & set(name)]:
        raise UsageError(f"a calibration cache cannot hold the name {unwritable[0]!r}; rename the tensor in the model")
    lines = [f"TRT-{_version_number(tensorrt)}-EntropyCalibration2"]
    lines += [f"{tensor}: {struct.pack('>f', _single(scale)).hex()}" for tensor, scale in plan.scales.items()]
    content = ("\n".join(lines) + "\n").encode()
    with replacing(path) as partial:
        partial.write_bytes(content)
    _Companion(cache_sha256=hashlib.sha256(content).hexdigest(), origin=plan.origin).write(companion(path))


def read_cache(path: Path) -> CalibrationCache:
    """Read a calibration cache that TensorRT or `write_cache` wrote.

    Raises:
        JobError: the file is not one, or its companion says that it is another one or from another version.
    """
    try:
        content = path.read_bytes()
        header, *lines = content.decode("utf-8").split("\n")
    except OSError as error:
        raise JobError(f"calibration cache {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise JobError(f"{path} is not a calibration cache: it is no UTF-8 text") from error
    if not _HEADER.fullmatch(header.strip()):
        raise JobError(f"{path} is not a calibration cache: line 1 is not a header like TRT-8601-EntropyCalibration2")
    scales: dict[str, float] = {}
    unusable = []
    for number, line in enumerate(lines, 2):
        tensor, separator, value = line.rpartition(": ")  # a name may hold a colon
        if not line.strip():
            continue
        if not separator or not _HEX.fullmatch(value.strip()):
            raise JobError(f"calibration cache {path}, line {number}: not 'tensor: eight hex digits'")
        if tensor in scales or tensor in unusable:
            raise JobError(f"calibration cache {path}, line {number}: tensor {tensor} is there twice")
        scale = struct.unpack(">f", bytes.fromhex(value))[0]
        if math.isfinite(scale) and scale > 0:
            scales[tensor] = scale
        else:
            unusable.append(tensor)
    return CalibrationCache(scales, unusable, _read_companion(path, content))


def _single(scale: float) -> float:
    """Return the nearest scale that float32 can hold, neither zero nor infinite."""
    limits = np.finfo(np.float32)
    return min(max(scale, float(limits.smallest_subnormal)), float(limits.max))


def _read_companion(path: Path, content: bytes) -> Origin | None:
    beside = companion(path)
    if not beside.is_file():
        return None
    try:
        found = _Companion.model_validate_json(beside.read_bytes())
    except ValidationError as error:
        raise JobError(f"{beside} does not say what {path} was made from; remove it, or make both again") from error
    if found.cache_sha256 != hashlib.sha256(content).hexdigest():
        raise JobError(f"{beside} belongs to another cache than {path}; remove it, or make both again")
    found.origin.require_version(f"calibration cache {path}")
    return found.origin


def _version_number(tensorrt: str) -> int:
    """Return the number in a header: 8.6.1 is 8601, and from 10 on 10.3.0 is 100300 (NV_TENSORRT_VERSION)."""
    match = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)(\.\d+)?", tensorrt)
    if match is None:
        raise UsageError(f"TensorRT version {tensorrt} should be written like 8.6.1")
    major, minor, patch = (int(part) for part in match.groups()[:3])
    if major > 10:
        raise UsageError(f"TensorRT {tensorrt} reads no calibration cache; give it the ONNX file with Q/DQ")
    return (10_000 if major == 10 else 1_000) * major + 100 * minor + patch
