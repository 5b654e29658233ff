"""HTML pages: one self-contained file each, which opens from disk and needs no network.

One page is about a run, one about a layer-wise comparison.
"""

from __future__ import annotations

from reports.pages.comparison import write_comparison_page
from reports.pages.run import write_run_page

__all__ = [
    "write_comparison_page",
    "write_run_page",
]
