"""The command lines of `validate` and `reports`.

They are here because they print results: `reports` is the lowest package that may import `validate` and show results.
"""

from reports.commands.reports import app as reports_app
from reports.commands.validate import app as validate_app

__all__ = ["reports_app", "validate_app"]
