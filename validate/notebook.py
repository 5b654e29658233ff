"""How results look in a notebook: compact HTML tables, in which every text is escaped."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Sequence
from html import escape
from typing import Protocol

__all__ = ["Scored", "accuracy_table", "can_show_progress", "paragraphs", "table"]


class Scored(Protocol):
    """An accuracy, with a drop where it is a candidate's."""

    @property
    def metric(self) -> str:
        """The metric's name."""
        ...

    @property
    def is_rate(self) -> bool:
        """Whether it is shown in percent."""
        ...

    @property
    def value(self) -> float:
        """Of the metric."""
        ...

    @property
    def n(self) -> int:
        """Samples."""
        ...


def table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as HTML.

    Examples:
        >>> table("A & B", ["name"], [["<x>"]])
        '<table><caption>A &amp; B</caption><tr><th>name</th></tr><tr><td>&lt;x&gt;</td></tr></table>'
    """
    lines = [("th", headings), *(("td", row) for row in rows)]
    cells = ("".join(f"<{tag}>{escape(text)}</{tag}>" for text in line) for tag, line in lines)
    return f"<table><caption>{escape(title)}</caption>{''.join(f'<tr>{line}</tr>' for line in cells)}</table>"


def paragraphs(texts: Iterable[str]) -> str:
    """Return each text as a paragraph of HTML."""
    return "".join(f"<p>{escape(text)}</p>" for text in texts)


def accuracy_table(title: str, models: Iterable[tuple[str, Scored]]) -> str:
    """Return a row per model with its value, and, of a candidate, the drop with its interval."""
    named = list(models)
    metric = named[0][1].metric if named else "metric"
    rows = [(name, _number(x.value, x.is_rate), *_drop(x), str(x.n)) for name, x in named]
    return table(title, ("model", metric, "drop", "interval of the drop", "samples"), rows)


def can_show_progress() -> bool:
    """Tell whether progress bars can be drawn: in a notebook, rich needs ipywidgets for them."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    in_notebook = shell is not None and type(shell).__name__ == "ZMQInteractiveShell"
    return not in_notebook or importlib.util.find_spec("ipywidgets") is not None


def _drop(scored: Scored) -> tuple[str, str]:
    drop, low, high = (getattr(scored, name, None) for name in ("drop", "ci_low", "ci_high"))
    if drop is None or low is None or high is None:
        return "", ""
    rate = scored.is_rate
    return _number(drop, rate), f"{_number(low, rate)} to {_number(high, rate)}"


def _number(value: float, is_rate: bool) -> str:
    return f"{100 * value:.2f}%" if is_rate else f"{value:.4g}"
