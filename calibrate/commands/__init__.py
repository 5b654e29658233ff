"""The command line of `calibrate`.

`app` is the Typer application, and `steps` does the work of every command but ``run``.
"""

from __future__ import annotations

from calibrate.commands.app import app

__all__ = [
    "app",
]
