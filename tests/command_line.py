"""The command lines, run in this process: as a shell has them, without starting Python and importing all again.

What a process of its own would take with it when it ends, is put back here: the folder, the environment, standard
output and error, `logging`, `warnings`, the import path and the modules of the user's own files.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import typer

PROGRAMS = {
    "calibrate": ("calibrate.commands", "app"),
    "reports": ("reports.commands", "reports_app"),
    "validate": ("reports.commands", "validate_app"),
}
"""Where the Typer application of every ``python -m PROGRAM`` is."""


def run_in_process(
    program: str, arguments: Sequence[str], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m program arguments`` in this process; return what `subprocess.run` would.

    Args:
        program: ``calibrate``, ``reports`` or ``validate``.
        arguments: those of the command line.
        folder: the working directory; a relative path and an ``import`` of the user's code start there.
        environment: all environment variables.
    """
    module, name = PROGRAMS[program]
    app: typer.Typer = getattr(importlib.import_module(module), name)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with (
            _environment(environment),
            contextlib.chdir(folder),
            _imports_from(folder, [program, *arguments]),
            _output_to(1, out.fileno()) as sys_stdout,
            _output_to(2, err.fileno()) as sys_stderr,
            contextlib.redirect_stdout(sys_stdout),
            contextlib.redirect_stderr(sys_stderr),
            _logging_of_its_own(),
            _warnings_of_its_own(),
        ):
            code = _exit_code(app, arguments, f"python -m {program}")
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode("utf-8"))
    return subprocess.CompletedProcess([program, *arguments], code, *said)


def _exit_code(app: typer.Typer, arguments: Sequence[str], name: str) -> int:
    try:
        app(args=list(arguments), prog_name=name)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def _environment(environment: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update(environment)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _imports_from(folder: Path, argv: list[str]) -> Iterator[None]:
    """Import the user's own modules from a folder, and forget them: another folder has others of the same names."""
    path, before, arguments = sys.path[:], set(sys.modules), sys.argv
    sys.path.insert(0, str(folder))
    sys.argv = argv
    importlib.invalidate_caches()  # files that a test has just written
    try:
        yield
    finally:
        sys.path[:], sys.argv = path, arguments
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if name.startswith("_config_") or (file and Path(file).parent == folder):
                del sys.modules[name]


@contextlib.contextmanager
def _output_to(descriptor: int, file: int) -> Iterator[TextIO]:
    """Send a standard stream to a file, also what native libraries write; yield Python's side of it."""
    kept = os.dup(descriptor)
    try:
        os.dup2(file, descriptor)
        with os.fdopen(os.dup(file), "w", encoding="utf-8", buffering=1) as stream:
            yield stream
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)


@contextlib.contextmanager
def _logging_of_its_own() -> Iterator[None]:
    root = logging.getLogger()
    handlers, root.handlers[:] = root.handlers[:], []  # which basicConfig would close
    ours = [logging.getLogger(package) for package in PROGRAMS]
    others = [logger for logger in root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    levels = {logger: logger.level for logger in (root, *ours, *others)}
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = handlers
        for logger, level in levels.items():
            logger.setLevel(level)


@contextlib.contextmanager
def _warnings_of_its_own() -> Iterator[None]:
    """Write warnings to standard error, where Python does by itself and pytest does not."""

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: object) -> None:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))

    with warnings.catch_warnings():
        warnings.resetwarnings()
        for ignored in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", ignored)
        warnings.showwarning = show
        yield
