"""What an engine did: where its time went, what ran in which type, and how far it is from its simulation.

Nothing here runs an engine; what one gave is data.
"""

from __future__ import annotations

from typing import Any

from validate.engines.layer_times import NodeTimes, node_times


def compare_engine(**_: Any) -> Any:
    """Stand in until the branch that has it is merged."""
    raise NotImplementedError


def int8_in_engine(*_: Any) -> Any:
    """Stand in until the branch that has it is merged."""
    raise NotImplementedError


def reformat_nodes(*_: Any) -> Any:
    """Stand in until the branch that has it is merged."""
    raise NotImplementedError


__all__ = ["NodeTimes", "compare_engine", "int8_in_engine", "node_times", "reformat_nodes"]
