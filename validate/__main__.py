"""``python -m validate``: runs the command line that an installed package offers for it.

It shows results, which is the work of `reports`, a package above this one: so it is found by its entry point, and not
imported.
"""

import sys
from importlib.metadata import entry_points

found = entry_points(group="int8_gate.command_lines", name="validate")
if not found:
    sys.exit("error: python -m validate needs the package to be installed: pip install -e .")
next(iter(found)).load()(prog_name="python -m validate")
