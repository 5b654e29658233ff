"""What an error says, in a sentence of ours."""

from __future__ import annotations

import pytest

from validate.exceptions import first_line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("\n one\ntwo"), "one"),
        (TimeoutError(), "TimeoutError"),
        (OSError(" \n"), "OSError"),
    ],
)
def test_the_first_line_or_the_name(error: Exception, said: str) -> None:
    assert first_line(error) == said
