"""Rendering of a self-contained HTML page, which opens from disk and loads nothing.

Text out of models and data sets is escaped wherever it goes, and the page's content security policy permits no
script but the two that it was written with, and no connection at all.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reports import format as fmt
from reports.figures import Figure
from validate.settings import to_yaml

__all__ = ["render"]


def render(
    template: str, figures: Mapping[str, Figure], filters: Mapping[str, Callable[..., Any]], **content: Any
) -> str:
    """Return an HTML page. The same content and versions give the same page.

    Args:
        template: name of a file in ``reports/templates``, which extends ``base.html.jinja``.
        figures: plotly figures, by their name in the template.
        filters: Jinja filters of this page, besides those of all pages.
        content: variables of the template.
    """
    environment = _environment()
    environment.filters.update(filters)
    plotly = importlib.import_module("plotly.offline")  # untyped, and 5 MB: imported where it is used
    return environment.get_template(template).render(
        figures=figures,
        plotlyjs=Markup(plotly.get_plotlyjs()),  # noqa: S704 - a constant of the package
        **content,
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Before escaping, and only what is not yet known to be HTML.
        finalize=lambda value: fmt.printable(value) if type(value) is str else value,
    )
    environment.filters.update(
        count=fmt.count,
        csp_hash=_csp_hash,
        db=lambda value: fmt.minus(fmt.decibels(value)),
        file_name=fmt.file_name,
        timestamp=fmt.timestamp,
        significant=lambda value: fmt.minus(fmt.significant(value)),
        yaml=to_yaml,
    )
    return environment


def _csp_hash(script: str) -> str:
    """Return the source expression that permits exactly this script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
