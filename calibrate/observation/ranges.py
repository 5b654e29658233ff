"""Ranges of activations, and the nodes that stay in FP32 because FP16 cannot hold their values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from calibrate.graph import is_always_fp32
from calibrate.journal import Journal
from calibrate.loading import CalibrationInputs
from calibrate.observation.epsilons import nodes_that_need_epsilons
from calibrate.observation.fp16_operators import nodes_inaccurate_in_fp16
from validate.backends import OnnxRuntimeModel, detach
from validate.data import Batch
from validate.number_formats import NUMBER_FORMATS
from validate.stats import Statistics

__all__ = ["FP16_LIMIT", "nodes_beyond_fp16", "observe_ranges", "wide_nodes"]

_LARGEST = NUMBER_FORMATS["fp16"].largest

FP16_LIMIT = _LARGEST / 2
"""Largest |x| of the samples that is taken to fit into FP16.

The largest value of data not seen yet is a little beyond that of the samples, hardly ever twice it. A margin that is
too wide costs a node's speed, and one that is too narrow costs the answer: an infinity, and soon NaN everywhere.
"""

_BOUNDS = frozenset({"Clip", "Max", "Min"})
"""Ops to which a constant beyond FP16's range is a bound that no value reaches, also where it is rounded to 65504."""

_PASSES_MASKS = frozenset(
    {
        "Add",
        "Cast",
        "Concat",
        "Expand",
        "Gather",
        "Identity",
        "Mul",
        "Reshape",
        "ScatterND",
        "Slice",
        "Squeeze",
        "Sub",
        "Tile",
        "Transpose",
        "Trilu",
        "Unsqueeze",
        "Where",
    }
)
"""Ops through which an attention mask goes from its constant to the Softmax."""


_SAMPLES = 16
"""Calibration samples for the ranges of tensors that `Statistics` do not cover."""


def nodes_beyond_fp16(
    inputs: CalibrationInputs, statistics: Mapping[str, Statistics], journal: Journal
) -> frozenset[str]:
    """Return the names of the nodes that stay in FP32 where others are FP16.

    They are those whose values FP16 cannot hold (`wide_nodes`), and those that kernels compute inaccurately in it
    (`nodes_inaccurate_in_fp16`).

    Args:
        inputs: the model, and its calibration set, of which 16 samples are run.
        statistics: over all calibration samples, of the tensors that have them.
        journal: counts the pass.
    """
    prepared, stream = inputs.model.prepared, inputs.calibration.limited(_SAMPLES)
    with journal.stage("ranges", "look for values beyond FP16"):
        ranges = observe_ranges(prepared, journal.forward("ranges", stream.batches()))
        return wide_nodes(prepared, ranges, statistics) | nodes_inaccurate_in_fp16(prepared)


def observe_ranges(prepared: ir.Model, batches: Iterable[Batch]) -> dict[str, tuple[float, float]]:
    """Return the exact minimum and maximum of every float activation, inputs among them; (inf, -inf) of no value.

    Only the two numbers leave the graph, so that memory is that of plain inference. Subgraphs (If, Loop, Scan) are
    left out, as they stay float32. A NaN does not show here; `observe` finds it.

    Every tensor of the graph counts, also a pre-activation that only a fused activation reads. A GPU computes that in
    its accumulator, in float32, and does not store it, if it fuses; but nothing promises that, and -inf from an
    unfused Conv is harmless to a Relu and NaN to x * sigmoid(x). What a kernel computes inside a node (the sum of a
    mean, the squares of a LayerNormalization) is no tensor: TensorRT does it in float32.

    Args:
        prepared: what `calibrate.graph.preparation` returned.
        batches: a few samples; `wide_nodes` adds the statistics of all samples.

    Examples:
        >>> from calibrate.graph import prepare
        >>> model = prepare(ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 19]>
        ...     net (float[N, 2] x) => (float[N, 2] y) { y = Mul(x, x) }'''))
        >>> batch = Batch({"x": np.array([[-3.0, 2.0]], np.float32)}, labels=[None], contents=[b""], first=0)
        >>> observe_ranges(model, [batch])["y"]
        (4.0, 9.0)
    """
    model, names = _reduced(prepared)
    session = OnnxRuntimeModel(detach(model), optimize=False)  # nothing fuses, and rearranging tensors takes memory
    ranges = dict.fromkeys(names, (np.inf, -np.inf))
    for batch in batches:
        outputs = session.run(batch.inputs)
        for name, (least, greatest) in names.items():
            low, high = ranges[name]
            ranges[name] = min(low, float(outputs[least])), max(high, float(outputs[greatest]))
    return ranges


def wide_nodes(
    prepared: ir.Model, ranges: Mapping[str, tuple[float, float]], statistics: Mapping[str, Statistics]
) -> frozenset[str]:
    """Return the names of the nodes that read or write values beyond `FP16_LIMIT`; see `QuantizationPlan.wide_nodes`.

    A reader of a constant beyond FP16's range is one of them too, since FP16 would round the constant to 65504. There
    are two exceptions, where that changes nothing: the bounds of Clip, Max and Min, and attention masks. A mask is
    computed from such a constant, goes only into Softmax, and is too low, not too high, for FP16: the weight
    is 0 for -3.4e38, for -65504 and for -inf. So a masked transformer keeps its attention in FP16. At the other end of
    its range, where FP16 rounds to 0, only constants of one element count; see `nodes_that_need_epsilons`.

    Args:
        prepared: what `calibrate.graph.preparation` returned.
        ranges: of its activations, by `observe_ranges`; one that is not there is taken to be in range.
        statistics: of some of them, over all calibration samples.

    Examples:
        >>> from calibrate.graph import prepare
        >>> model = prepare(ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 19]>
        ...     net (float[N, 2] x) => (float[N, 2] y) { [square] y = Mul(x, x) }'''))
        >>> sorted(wide_nodes(model, {"x": (-300.0, 200.0), "y": (0.0, 90000.0)}, {}))
        ['square']
    """
    constants = {value for value in prepared.graph.initializers.values() if _amax(value) > _LARGEST}
    masks, with_epsilons = _masks(prepared, constants), nodes_that_need_epsilons(prepared)

    def is_wide(node: ir.Node, value: ir.Value | None) -> bool:
        if value is None or value.dtype != ir.DataType.FLOAT:
            return False
        if value.is_initializer():
            makes_a_mask = all(output in masks for output in node.outputs)
            return value in constants and node.op_type not in _BOUNDS and not makes_a_mask
        low, high = ranges.get(str(value.name), (np.inf, -np.inf))
        if (seen := statistics.get(str(value.name))) is not None:
            low, high = min(low, seen.minimum), max(high, seen.maximum)
        return high > FP16_LIMIT or (low < -FP16_LIMIT and value not in masks)

    return frozenset(
        str(node.name)
        for node in prepared.graph
        if not is_always_fp32(node)
        and (node in with_epsilons or any(is_wide(node, value) for value in (*node.inputs, *node.outputs)))
    )


def _reduced(prepared: ir.Model) -> tuple[ir.Model, dict[str, tuple[str, str]]]:
    """Return a copy of the model whose outputs are the extremes of every float activation, and the outputs' names.

    The names are those of the minimum and the maximum, by the name of the activation.

    The reductions stand at the end, those of the first activations last: ONNX Runtime walks back from the last node
    on, and computes first what it finds first. In any other order it keeps all activations until the end (six times
    the memory of plain inference with ResNet-18).
    """
    model = prepared.clone()
    graph = model.graph
    graph.outputs.clear()
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    names = {}
    floats = [value for value in values if value.dtype == ir.DataType.FLOAT and value.name]
    for number, value in reversed(list(enumerate(floats))):
        names[str(value.name)] = f"minimum/{number}", f"maximum/{number}"
        for op_type, name in zip(("ReduceMin", "ReduceMax"), names[str(value.name)], strict=True):
            node = ir.node(op_type, [value], {"keepdims": 0}, name=name)
            output = node.outputs[0]
            output.name, output.dtype, output.shape = name, ir.DataType.FLOAT, ir.Shape([])
            graph.append(node)
            graph.outputs.append(output)
    return model, names


def _amax(value: ir.Value) -> float:
    """Return the largest |x| of a float constant; 0 of what is none."""
    if value.dtype != ir.DataType.FLOAT or value.const_value is None or value.const_value.size == 0:
        return 0.0
    array = value.const_value.numpy()
    return float(max(-array.min(), array.max()))


def _masks(prepared: ir.Model, constants: set[ir.Value]) -> set[ir.Value]:
    """Return the tensors that follow from `constants` and go into nothing but Softmax."""
    nodes = list(prepared.graph)
    only_softmax: set[ir.Value] = set()
    for node in reversed(nodes):
        for value in node.outputs:
            readers = [use.node for use in value.uses()]
            if (
                readers
                and not value.is_graph_output()
                and all(
                    reader.op_type == "Softmax"
                    or (reader.op_type in _PASSES_MASKS and all(output in only_softmax for output in reader.outputs))
                    for reader in readers
                )
            ):
                only_softmax.add(value)
    masks: set[ir.Value] = set()
    for node in nodes:
        if node.op_type in _PASSES_MASKS and any(value in constants or value in masks for value in node.inputs):
            masks.update(value for value in node.outputs if value in only_softmax)
    return masks
