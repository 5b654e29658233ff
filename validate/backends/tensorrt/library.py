"""Finds TensorRT, routes its messages to `logging`, and says why it cannot be used."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from validate.backends.gpu import Gpu
from validate.exceptions import JobError

__all__ = ["Flavour", "Library", "UnavailableError", "find_builder", "installed_libraries"]

Flavour = Literal["tensorrt", "tensorrt_rtx"]
_FLAVOURS: tuple[Flavour, ...] = ("tensorrt", "tensorrt_rtx")

log = logging.getLogger(__name__)
# What TensorRT says is for those who configure logging; errors that matter are in exceptions too.
log.addHandler(logging.NullHandler())


class UnavailableError(JobError):
    """No TensorRT that is installed here can do what is asked."""


@dataclass(frozen=True)
class Library:
    """One of the two libraries: `tensorrt` or `tensorrt_rtx`.

    Attributes:
        flavour: the name of its module.
        compute_capabilities: what TensorRT-RTX can build for, in ascending order; empty for `tensorrt`, which builds
            for the GPU of the machine.

    Examples:
        >>> rtx = Library("tensorrt_rtx", "1.7.1.116", ("8.6", "8.9"))
        >>> str(rtx), rtx.ahead_of_time
        ('tensorrt_rtx 1.7.1.116', True)
    """

    flavour: Flavour
    version: str
    compute_capabilities: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.flavour} {self.version}"

    @property
    def ahead_of_time(self) -> bool:
        """Whether it builds for GPUs that are not in this machine."""
        return self.flavour == "tensorrt_rtx"

    @property
    def trt(self) -> Any:
        """The module."""
        return importlib.import_module(self.flavour)

    @contextmanager
    def errors(self) -> Iterator[list[str]]:
        """Yield a list to which TensorRT's errors are added, one line each, while the context is open."""
        found: list[str] = []
        collecting = _logger(self.flavour).collecting
        collecting.append(found)
        try:
            yield found
        finally:
            # By identity: two lists that are both still empty are equal.
            collecting[:] = [one for one in collecting if one is not found]

    @property
    def logger(self) -> Any:
        """The `ILogger` of this process."""
        return _logger(self.flavour)


def installed_libraries() -> tuple[dict[Flavour, Library], list[str]]:
    """Return the libraries that can be imported, and for each other one the reason."""
    found: dict[Flavour, Library] = {}
    reasons = []
    for name in _FLAVOURS:
        try:
            trt: Any = importlib.import_module(name)
        except ModuleNotFoundError:
            reasons.append(f"{name} is not installed")
        except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: the package without its libraries
            reasons.append(f"{name} cannot start here ({' '.join(str(error).split())})")
        else:
            found[name] = Library(name, str(trt.__version__), _compute_capabilities(trt))
    return found, reasons


def find_builder(compute_capability: str | None, gpu: Gpu | None) -> tuple[Library, Any]:
    """Return a library that can build here, and its `Builder`: `tensorrt` where it finds a GPU, else `tensorrt_rtx`.

    Args:
        compute_capability: what the engine is for; None for whatever the library builds by default.
        gpu: the GPU for which `tensorrt` builds; `tensorrt` is passed over where `compute_capability` is another. None:
            that is not checked.

    Raises:
        UnavailableError: there is none, with the reason for each.
    """
    libraries, reasons = installed_libraries()
    for library in libraries.values():
        capability = compute_capability
        if library.ahead_of_time and capability is not None and capability not in library.compute_capabilities:
            reasons.append(f"{library} cannot build for compute capability {capability}")
            continue
        if not library.ahead_of_time and gpu and capability not in {None, gpu.compute_capability}:
            reasons.append(f"{library} builds for the GPU of this machine only, {gpu}")
            continue
        with library.errors() as errors:
            try:
                return library, library.trt.Builder(library.logger)
            except (RuntimeError, TypeError) as error:  # TypeError: pybind's, without a GPU
                reasons.append(f"{library.flavour} cannot start here ({errors[0] if errors else error})")
    raise UnavailableError(f"{' and '.join(reasons)} (tensorrt-rtx needs no GPU: pip install tensorrt-rtx)")


def _compute_capabilities(trt: Any) -> tuple[str, ...]:
    members = trt.ComputeCapability.__members__ if trt.__name__ == "tensorrt_rtx" else ()
    numbers = [name.removeprefix("SM") for name in members if name.startswith("SM")]
    return tuple(sorted((f"{digits[:-1]}.{digits[-1]}" for digits in numbers), key=_number))


def _number(compute_capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in compute_capability.split("."))


@functools.cache
def _logger(flavour: Flavour) -> Any:
    """Return one logger for the whole process: TensorRT keeps a pointer to the first that it is given."""
    trt: Any = importlib.import_module(flavour)

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Sends TensorRT's messages to `logging`, and its errors to whoever collects them."""

        def __init__(self) -> None:
            super().__init__()
            self.collecting: list[list[str]] = []

        def log(self, severity: Any, message: str) -> None:
            if severity > trt.ILogger.Severity.ERROR:
                log.debug("TensorRT: %s", message)
                return
            log.error("TensorRT: %s", message)
            for errors in self.collecting:
                errors.append(" ".join(message.split()))

    return Logger()
