"""Shared by the command lines: errors of a job become one sentence and an exit code."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["FAILED", "USAGE", "guarded", "plain", "step"]

USAGE, FAILED = 2, 4
"""Exit codes: bad usage or config, and a job that could not be finished."""


def guarded(
    job: Callable[[Console], int], folder: Callable[[], Path | None], interrupted: Callable[[], str]
) -> NoReturn:
    """Run a job and exit with its code; an error is printed as one sentence.

    Args:
        job: takes the console, returns the exit code.
        folder: where the job's log is, once there is one.
        interrupted: returns what to print when the job is interrupted.
    """
    from rich.console import Console

    from validate.exceptions import JobError, UsageError

    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a character must not end a job
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    console, errors = Console(), Console(stderr=True)
    try:
        code = job(console)
    except UsageError as error:
        errors.print(f"[red]error:[/] {plain(error)}", highlight=False, soft_wrap=True)
        code = USAGE
    except JobError as error:
        logging.getLogger(__name__).exception("the job failed")
        errors.print(f"[red]error:[/] {plain(error)}", highlight=False, soft_wrap=True)
        code = FAILED
    except KeyboardInterrupt:
        errors.print(f"[red]interrupted[/]: {interrupted()}", highlight=False, soft_wrap=True)
        code = FAILED
    except SystemExit as error:  # from the user's own callables; its status must not pass for a verdict
        errors.print(f"[red]error:[/] code that the config names called sys.exit({error.code!r})", highlight=False)
        code = FAILED
    except Exception as error:  # a bug of ours, or of the user's own callables: the traceback goes to the log
        logging.getLogger(__name__).critical("unexpected error", exc_info=True)
        log = folder()
        where = f"; the traceback is in {log / 'run.log'}" if log else ""
        errors.print(f"[red]error:[/] {type(error).__name__}: {plain(error)}{where}", highlight=False, soft_wrap=True)
        code = FAILED
    raise typer.Exit(code)


def step(job: Callable[[Console], None]) -> NoReturn:
    """Run a job that keeps no log, and exit: only an unexpected error shows its traceback. See `guarded`."""
    logging.basicConfig(level=logging.CRITICAL, format="%(message)s", force=True)

    def done(console: Console) -> int:
        try:
            job(console)
        except OSError as error:  # a file that cannot be written: those that are read have errors of their own
            from validate.exceptions import UsageError

            raise UsageError(f"{error.filename} cannot be written: {error.strerror}") from error
        return 0

    guarded(done, lambda: None, lambda: "nothing was written")


def plain(error: Exception) -> str:
    r"""Return the message with rich's markup escaped.

    Examples:
        >>> print(plain(ValueError("key [red] is unknown")))
        key \[red] is unknown
    """
    from rich.markup import escape

    return escape(str(error))
