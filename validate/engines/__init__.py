"""What an engine did: where its time went, what ran in which type, and how far it is from its simulation.

`compare_engine` runs one; to all else here, what one gave is data.
"""

from __future__ import annotations

from validate.engines.distance import EngineComparison, Showing, compare_engine
from validate.engines.graph import quantized_layers, reformat_nodes
from validate.engines.int8_layers import int8_in_engine
from validate.engines.layer_times import NodeTimes, node_times

__all__ = [
    "EngineComparison",
    "NodeTimes",
    "Showing",
    "compare_engine",
    "int8_in_engine",
    "node_times",
    "quantized_layers",
    "reformat_nodes",
]
