"""A verdict as Markdown, for the summary page of a CI job or a comment on a merge request."""

from __future__ import annotations

import re
import string
from pathlib import Path

from reports import format as fmt
from validate.records import write_text
from validate.results import Results, Rule

__all__ = ["escaped", "text", "write_markdown"]

_PLAIN = set(",;%/'\".()-+=:!?")  # ASCII punctuation that has no meaning within a line, once the rest is escaped
_SPECIAL = str.maketrans({char: f"\\{char}" for char in set(string.punctuation) - _PLAIN})
_MARKERS = re.compile(r"^([-+=]|\d+(?=[.)]))|(:)(?=\S)")
"""Of lists and headings at the start of a line, and colons, which GitHub reads as links and emojis."""


def write_markdown(results: Results, path: Path) -> None:
    """Write the verdict as Markdown, in UTF-8; see `text`."""
    write_text(text(results), path)


def text(results: Results) -> str:
    """Return the decision, its reasons, and a table of all rules (GitHub's and GitLab's Markdown)."""
    verdict = results.verdict
    lines = [f"## {fmt.decision(verdict.decision)}", "", escaped(fmt.headline(results)), ""]
    lines += [f"- {escaped(reason)}" for reason in verdict.reasons]
    lines += ["", "| rule | outcome | measured | threshold |", "| --- | --- | ---: | ---: |"]
    lines += [_row(rule) for rule in verdict.rules]
    lines += ["", f"Model {escaped(fmt.file_name(results.model.path))}, {escaped(results.created)}.", ""]
    return "\n".join(lines)


def _row(rule: Rule) -> str:
    outcome = fmt.outcome(rule.outcome) + (" (optional)" if rule.outcome == "not_measured" and rule.optional else "")
    cells = [rule.name, outcome, fmt.quantity(rule.value, rule.unit), fmt.quantity(rule.threshold, rule.unit)]
    return f"| {' | '.join(map(escaped, cells))} |"


def escaped(text: str) -> str:
    r"""Return a text of unknown origin escaped, so that Markdown shows it as it is, in one line.

    Examples:
        >>> print(escaped("conv_1 | **bold**"))
        conv\_1 \| \*\*bold\*\*
    """
    line = " ".join(fmt.printable(text).split())
    return _MARKERS.sub(_escaped_marker, line.translate(_SPECIAL))


def _escaped_marker(found: re.Match[str]) -> str:
    marker = found[0]
    return f"{marker}\\" if marker.isdigit() else f"\\{marker}"
