"""The fingerprint of an engine: GPU, TensorRT version, driver and hashes, in ``model.engine.json``.

An engine is bound to the GPU and to the version of TensorRT that it was built for ("Engine Compatibility" in the
developer guides of TensorRT and of TensorRT-RTX). TensorRT notices most of what does not fit, in its own words and at
its own time, but not all: between two models of one architecture it only warns. So `require` decides before TensorRT
sees a byte.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from validate.backends.gpu import Gpu
from validate.backends.tensorrt.library import Flavour, Library
from validate.backends.tensorrt.options import BuildOptions, Shapes
from validate.exceptions import JobError
from validate.records import Record

__all__ = ["Fingerprint", "adopt", "fingerprint_path", "hardware_fits", "require", "sha256", "version_fits"]


_AHEAD_OF_TIME: Flavour = "tensorrt_rtx"


class Fingerprint(Record):
    """Where an engine came from and where it may run."""

    gpu: str | None = Field(description="name of the GPU that it was built on; null where it was built ahead of time")
    compute_capability: str | None = Field(description="e.g. 8.9; null: every one that TensorRT-RTX supports")
    flavour: Flavour
    version: str = Field(description="of TensorRT, e.g. 1.7.1.116")
    driver: str | None = Field(description="newest CUDA version of the driver that it was built with; for the record")
    model: str | None = Field(description="name of the ONNX file; null where that is not known")
    model_sha256: str | None = Field(description="SHA-256 of the ONNX file and of its external data, in that order")
    plan_sha256: str | None = Field(description="the quantization plan that made the ONNX file, by its metadata")
    engine_sha256: str
    profile: dict[str, Shapes] = Field(description="smallest, usual and largest shape of inputs that are dynamic")
    outputs: tuple[str, ...] = Field(
        default=(), description="the model's outputs in its order, which the engine need not keep; empty: not known"
    )
    options: BuildOptions

    def write(self, path: Path) -> None:
        """Write the fingerprint of an engine beside it."""
        super().write(fingerprint_path(path))

    @classmethod
    def read(cls, path: Path) -> Fingerprint:
        """Read the fingerprint beside an engine. Raises JobError where there is none, or it is something else."""
        beside = fingerprint_path(path)
        try:
            return super().read(beside)
        except JobError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise JobError(f"{beside} is not the fingerprint of an engine; build {path.name} again") from error
            raise JobError(
                f"{path} has no fingerprint {beside.name} beside it, and nothing else says which GPU and TensorRT it "
                "is for; build it again with build_engine, or vouch for it with adopt if it was built on this machine"
            ) from error


def fingerprint_path(engine: Path) -> Path:
    """Return where the fingerprint of an engine is.

    Examples:
        >>> fingerprint_path(Path("resnet18.engine")).name
        'resnet18.engine.json'
    """
    return engine.with_name(engine.name + ".json")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file. Raises JobError where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise JobError(f"{path} cannot be read: {error.strerror}") from error


def adopt(engine: Path, library: Library, gpu: Gpu, options: BuildOptions | None = None) -> Fingerprint:
    """Write the fingerprint of an engine that another tool built; what the caller says of it is not checked.

    Args:
        engine: the file; `trtexec` or any other builder made it.
        library: what built it.
        gpu: what it was built on.
        options: how it was built, as far as that decides where it runs and which tensors can be asked for.
    """
    made = Fingerprint(
        gpu=None if library.ahead_of_time else gpu.name,
        compute_capability=gpu.compute_capability,
        flavour=library.flavour,
        version=library.version,
        driver=gpu.driver,
        model=None,
        model_sha256=None,
        plan_sha256=None,
        engine_sha256=sha256(engine),
        profile={},
        options=options or BuildOptions(),
    )
    made.write(engine)
    return made


def require(engine: Path, gpu: Gpu | None, libraries: Mapping[Flavour, Library]) -> Fingerprint:
    """Check that an engine may run here, and return its fingerprint.

    Args:
        engine: the file.
        gpu: the GPU that is to run it; None where there is none.
        libraries: what is installed here.

    Raises:
        JobError: the engine is damaged, or for another TensorRT or GPU; the message says what to rebuild.
    """
    found = Fingerprint.read(engine)
    if sha256(engine) != found.engine_sha256:
        raise JobError(
            f"{engine} is not the file that was built, since its SHA-256 is not that of its fingerprint; copy it here "
            f"again, or build it again from {_model(found)}"
        )
    if gpu is None:
        wanted = found.gpu or f"an NVIDIA GPU of compute capability {found.compute_capability or '8.0 or later'}"
        raise JobError(f"no GPU is found here, and {engine} needs one to run; take a machine with {wanted}")
    library = libraries.get(found.flavour)
    if library is None or not version_fits(found, library.version):
        here = library or " and ".join(map(str, libraries.values())) or "no TensorRT"
        package = found.flavour.replace("_", "-")
        raise JobError(
            f"{engine} was built by {found.flavour} {found.version} and {here} is installed here; "
            f"pip install {package}=={found.version}, or {_rebuild(found, engine, gpu, library)}"
        )
    if not hardware_fits(found, gpu.name, gpu.compute_capability):
        built = f"{found.gpu or 'a GPU'} (compute capability {found.compute_capability or '8.0 or later'})"
        raise JobError(
            f"{engine} was built for {built} and the GPU here is {gpu}; {_rebuild(found, engine, gpu, library)}"
        )
    return found


def version_fits(found: Fingerprint, version: str) -> bool:
    """Tell whether a version of the library that built an engine may load it.

    Without version compatibility all four numbers must be equal. With it, later versions of the same major may, and
    TensorRT 11 loads what 10 built; no other pair of major versions does ("Support Matrix" of TensorRT 11.4, "Engine
    Portability"). TensorRT-RTX has no version compatibility.

    Examples:
        >>> options = BuildOptions(version_compatible=True)
        >>> built = Fingerprint.model_construct(flavour="tensorrt", version="10.9.0.34", options=options)
        >>> version_fits(built, "11.0.0.114"), version_fits(built, "10.8.0.43")
        (True, False)
    """
    if found.version == version:
        return True
    if found.flavour == _AHEAD_OF_TIME or not found.options.version_compatible:
        return False
    built, here = _numbers(found.version), _numbers(version)
    return built <= here and (built[0] == here[0] or (built[0], here[0]) == (10, 11))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", version)[:4])


def hardware_fits(found: Fingerprint, gpu: str | None, compute_capability: str) -> bool:
    """Tell whether the engine runs on a GPU ("Hardware Compatibility" in TensorRT's developer guide).

    Without hardware compatibility TensorRT's engines need the same model of GPU. On another one TensorRT only warns,
    and this function refuses: kernels were chosen by their times on the first, and its memory may not be there. A
    TensorRT-RTX engine without a target is for Ampere and later ("CPU-Only AOT and TensorRT-RTX Engines").

    Args:
        found: of the engine.
        gpu: its name; None where any with this compute capability is meant.
        compute_capability: e.g. 8.9.

    Examples:
        >>> gpu = {"gpu": "NVIDIA L4", "compute_capability": "8.9"}
        >>> built = Fingerprint.model_construct(flavour="tensorrt", options=BuildOptions(), **gpu)
        >>> hardware_fits(built, "NVIDIA L4", "8.9"), hardware_fits(built, "NVIDIA L40", "8.9")
        (True, False)
    """
    from_ampere_on = int(compute_capability.split(".")[0]) >= 8
    same = found.compute_capability == compute_capability
    if found.flavour == _AHEAD_OF_TIME:
        return same or (found.compute_capability is None and from_ampere_on)
    if found.options.hardware_compatible == "ampere_plus":
        return from_ampere_on
    return same and (found.options.hardware_compatible == "same_compute_capability" or gpu in (None, found.gpu))


def _model(found: Fingerprint) -> str:
    return found.model or "its ONNX file"


def _rebuild(found: Fingerprint, engine: Path, gpu: Gpu, library: Library | None) -> str:
    """Say what to build for a GPU; `library` is what it is built with, as far as known."""
    target = ""
    if library and gpu.compute_capability in library.compute_capabilities:
        target = f" --compute-capability {gpu.compute_capability}"
    command = f"python -m validate build {found.model or 'MODEL.onnx'} --output {engine.name}{target}"
    return f"build it again from {_model(found)} for {gpu}: {command}"
