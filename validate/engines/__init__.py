"""What an engine did: where its time went, what ran in which type, and how far it is from its simulation.

Nothing here runs an engine; what one gave is data.
"""

from __future__ import annotations

from validate.engines.layer_times import NodeTimes, node_times

__all__ = ["NodeTimes", "node_times"]
