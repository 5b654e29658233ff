"""Terminal output of the command lines: results as tables and panels of rich.

One module per kind of result.
"""

from __future__ import annotations

from reports.terminal.comparison import comparison_summary, findings
from reports.terminal.evaluation import evaluation_summary
from reports.terminal.latency import latency_summary
from reports.terminal.run import run_summary, verdict_panel

__all__ = [
    "comparison_summary",
    "evaluation_summary",
    "findings",
    "latency_summary",
    "run_summary",
    "verdict_panel",
]
