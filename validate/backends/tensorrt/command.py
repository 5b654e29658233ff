"""The engine commands: build an engine from an ONNX file, or adopt one that was built elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from validate.backends.gpu import local_gpu
from validate.backends.tensorrt.building import build_engine
from validate.backends.tensorrt.fingerprint import adopt
from validate.backends.tensorrt.library import installed_libraries
from validate.backends.tensorrt.options import BuildOptions, Profile
from validate.exceptions import JobError, UsageError
from validate.settings import read_settings

__all__ = ["adopt_engine", "build_from_onnx", "profile_of"]


def build_from_onnx(
    model: Path,
    output: Path,
    shapes: Sequence[str],
    options: Path | None,
    compute_capability: str | None,
    console: Console,
) -> None:
    """Build an engine, show its progress, and print what it was built for. Errors as `build_engine`."""
    if not model.is_file():
        raise UsageError(f"there is no file {model}")
    if not output.parent.is_dir():
        raise UsageError(f"{output} cannot be written: there is no folder {output.parent}")
    settings = read_settings(BuildOptions, options) if options else BuildOptions()
    if compute_capability is not None:
        settings = settings.model_copy(update={"compute_capability": compute_capability})
    with Progress(console=console, transient=True) as progress:
        bars: dict[str, TaskID] = {}

        def advance(phase: str, done: int, steps: int) -> None:
            if phase not in bars:
                bars[phase] = progress.add_task(phase)
            progress.update(bars[phase], completed=done, total=steps)

        made = build_engine(model, output, profile_of(shapes), settings, advance)
    target = made.gpu or f"compute capability {made.compute_capability or '8.0 and later'}"
    console.print(f"{output}: {made.flavour} {made.version}, for {target}; {output.name}.json says so", highlight=False)
    if settings.breaks_fusion:
        console.print("fusion is broken at the tensors that debug names, so that it is another engine than without")


def adopt_engine(engine: Path, console: Console) -> None:
    """Write the fingerprint of an engine that the user says was built here.

    Raises:
        JobError: there is no GPU or no TensorRT that it could have been built with, or it cannot be read.
    """
    gpu, (libraries, reasons) = local_gpu(), installed_libraries()
    if gpu is None:
        raise JobError(f"no GPU is found here, so that {engine} was not built here; adopt it where it was")
    if not libraries:
        raise JobError(f"no TensorRT can be used here ({' and '.join(reasons)}); install the one that built {engine}")
    library = next(iter(libraries.values()))
    adopt(engine, library, gpu)
    console.print(f"{engine}.json: built by {library} on {gpu}, as you say", highlight=False)


def profile_of(shapes: Sequence[str]) -> Profile:
    """Parse ``x=1x3x224x224:4x3x224x224:8x3x224x224``: smallest, usual and largest shape of an input.

    One shape alone stands for all three. Raises UsageError where the text is written otherwise.

    Examples:
        >>> profile_of(["x=1x3x32x32:4x3x32x32:8x3x32x32", "mask=1x16"])
        {'x': ((1, 3, 32, 32), (4, 3, 32, 32), (8, 3, 32, 32)), 'mask': ((1, 16), (1, 16), (1, 16))}
    """
    profile: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {}
    for text in shapes:
        name, separator, value = text.rpartition("=")
        parts = value.split(":")
        if not separator or len(parts) not in (1, 3) or not all(re.fullmatch(r"\d+(x\d+)*", part) for part in parts):
            raise UsageError(f"--shapes {text} should be written like x=1x3x224x224:4x3x224x224:8x3x224x224")
        low, usual, high = (tuple(map(int, part.split("x"))) for part in (parts * 3 if len(parts) == 1 else parts))
        profile[name] = (low, usual, high)
    return profile
