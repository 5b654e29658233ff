"""Operators that TensorRT's kernels round, or let overflow, inside in FP16; found by running each on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

__all__ = ["nodes_inaccurate_in_fp16"]

# Seen with TensorRT-RTX 1.6.1 on an NVIDIA H200, against float64: docs/fp16.md has the numbers and the command.

_ALWAYS = frozenset(
    {
        "CumSum",  # the running sum is rounded: 61 dB over 4,096 values
        "Elu",  # exp(x) - 1 is rounded before 1 is taken away: 46 dB near 0
        "GlobalLpPool",  # squares, or their sum, are infinite
        "LogSoftmax",  # computed as Softmax, which is rounded, and then its logarithm: most of 1,000 classes are -inf
        "LpNormalization",  # the sum of squares is infinite, and the result 0
        "LpPool",  # as GlobalLpPool
        "Mod",  # the quotient is rounded: 23 dB
        "ReduceLogSum",  # the sum is infinite
        "ReduceLogSumExp",  # the sum is infinite
        "Selu",  # as Elu
    }
)
"""Operators that are inaccurate by themselves."""

_OF_MANY = {
    "Mean": 2,  # all results were 0; why is not known
    "Sum": 3,  # every partial sum is rounded, and may be infinite where the whole is not
}
"""Operators that are inaccurate with so many inputs, or more."""

_FOLLOWED_BY = {
    # As LogSoftmax: 80 % of the outputs are -inf. Softmax alone is right, since 0 is near enough to what it rounds.
    "Softmax": frozenset({"Log"}),
}
"""Operators that are inaccurate where another reads their output; both are FP32 then."""

_VIEWS = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that may stand between the two."""


def nodes_inaccurate_in_fp16(prepared: ir.Model) -> frozenset[str]:
    """Return the names of the nodes that a GPU computes inaccurately in FP16, though FP16 holds what they give.

    Args:
        prepared: what `calibrate.graph.prepare` returned; not changed.

    Examples:
        >>> model = ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 19]>
        ...     net (float[N, 9] x) => (float[N, 9] y) { [exponents] p = Softmax(x) [logarithm] y = Log(p) }''')
        >>> sorted(nodes_inaccurate_in_fp16(model))
        ['exponents', 'logarithm']
    """
    return frozenset(str(found.name) for node in prepared.graph if node.domain == "" for found in _inaccurate(node))


def _inaccurate(node: ir.Node) -> Iterator[ir.Node]:
    if node.op_type in _ALWAYS or len(node.inputs) >= _OF_MANY.get(node.op_type, len(node.inputs) + 1):
        yield node
    for path in _paths(node, _FOLLOWED_BY.get(node.op_type, frozenset())):
        yield from path


def _paths(node: ir.Node, ends: frozenset[str]) -> Iterator[list[ir.Node]]:
    """Yield the nodes from `node` to every reader of its outputs whose operator is in `ends`, both included."""
    for use in node.outputs[0].uses() if ends else ():
        if use.node.op_type in ends:
            yield [node, use.node]
        elif use.node.op_type in _VIEWS:
            yield from ([node, *path] for path in _paths(use.node, ends))
