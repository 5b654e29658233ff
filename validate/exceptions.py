"""Errors that a user can cause. Each message is one sentence: what is wrong, where, what to do."""

from __future__ import annotations

import tokenize
import zipfile
import zlib

__all__ = ["DAMAGED_NPZ", "JobError", "NothingComparedError", "UsageError", "first_line"]

DAMAGED_NPZ = (
    AttributeError,
    EOFError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile raise on an .npz file that is something else, or has a bit flipped."""


class UsageError(Exception):
    """The command line or the config is wrong; nothing was run and nothing was written (exit code 2)."""


class JobError(Exception):
    """The job could not be finished: the model, the data or a library failed (exit code 4)."""


class NothingComparedError(JobError):
    """There was nothing to compare, which is never a pass (exit code 1 of ``python -m validate``)."""


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message, for a sentence; the error's class where the message is empty.

    Examples:
        >>> first_line(ValueError("shapes differ\nsee above")), first_line(KeyError())
        ('shapes differ', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
