"""Observation in the memory layout in which ONNX Runtime computes, without conversion back to NCHW."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

__all__ = ["keep_blocked"]

_REORDER = ("com.microsoft.nchwc", "ReorderOutput")
_LARGEST_BLOCK = 16  # channels to a block; 8 without AVX-512


def keep_blocked(optimized: ir.Model, tensors: Collection[str]) -> bool:
    """Give out `tensors` in the blocked layout that they have in memory, in place; return whether any was changed.

    On a CPU, ONNX Runtime computes convolutions with blocks of channels innermost (NCHWc), and reorders each output.
    That took a quarter of the time of a model with 50 outputs, and statistics do not depend on the order. A tensor
    whose channels do not fill their last block is still reordered, since its block is padded.

    Args:
        optimized: the graph as ONNX Runtime optimized it, with the tensors among its outputs.
        tensors: by name. Afterwards the output of that name holds the same values in another order on all axes but
            the first, which is still the batch.
    """
    changed = False
    for index, output in enumerate(optimized.graph.outputs):
        reorder = output.producer()
        if output.name not in tensors or reorder is None or (reorder.domain, reorder.op_type) != _REORDER:
            continue
        blocked = reorder.inputs[0]
        if blocked is None or reorder.attributes.get_int("channels", 1) % _LARGEST_BLOCK or blocked.is_graph_output():
            continue
        optimized.graph.outputs[index] = blocked
        name, output.name = output.name, f"{output.name}/reordered"
        blocked.name = name
        if not output.uses():
            optimized.graph.remove(reorder, safe=True)
        changed = True
    return changed
