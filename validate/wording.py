"""How the numbers of a verdict's reasons are written."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["score"]


def score(is_rate: bool) -> Callable[[float], str]:
    """Return what writes a metric or a drop: a rate as ``1.25%``, else four significant digits."""
    return _percent if is_rate else _plain


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _plain(value: float) -> str:
    return f"{value:.4g}"
