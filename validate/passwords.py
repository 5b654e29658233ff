"""Keeps passwords out of results, reports and error messages."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator

__all__ = ["Published", "is_without_password", "without_passwords"]

T = TypeVar("T")

_MARK = "***"
_IN_ADDRESS = re.compile(r"(://[^:/@\s]*):[^@\s]*@(?:[^@/?#\s]*@)*")
"""SQLAlchemy ends a password at the first @, even behind a slash, and others at the last one before any slash."""
_IN_QUERY = re.compile(r"([?&]password=)[^&\s]*")


def without_passwords(value: Any) -> Any:
    """Return a text, or JSON data with texts in it, with ``***`` in place of the password of every URI.

    Examples:
        >>> without_passwords({"uri": "postgresql://me:secret@host/runs"})
        {'uri': 'postgresql://me:***@host/runs'}
    """
    match value:
        case str():
            return _IN_QUERY.sub(rf"\1{_MARK}", _IN_ADDRESS.sub(rf"\1:{_MARK}@", value))
        case list():
            return [without_passwords(item) for item in value]
        case dict():
            return {key: without_passwords(item) for key, item in value.items()}
    return value


def is_without_password(uri: str) -> bool:
    """Tell whether `without_passwords` took a password out of a URI, so that nothing can be opened by it.

    Examples:
        >>> is_without_password("postgresql://me:***@host/runs"), is_without_password("sqlite:///runs.db")
        (True, False)
    """
    return f":{_MARK}@" in uri or f"password={_MARK}" in uri


Published = Annotated[T, AfterValidator(without_passwords)]
"""A field that may name a database or a server, in a file that others get to see."""
