"""Attributes times of an engine's layers to ONNX nodes.

Not yet seen on times of a real engine: what it reads is what TensorRT documents. `IProfiler` reports by the layer names
that `EngineInspector` shows, and the inspector's metadata name the ONNX nodes that became a layer ("IProfiler" in the
Python API; "Engine Inspector" in the developer guide). The engine has to be built with detailed profiling verbosity, as
`build_engine` does; with none, names are numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from validate.backends.tensorrt import Layer
from validate.exceptions import JobError

__all__ = ["NodeTimes", "node_times"]

_REFORMAT = "Reformat"
"""`LayerType` of a layer that TensorRT itself puts between two others."""


@dataclass(frozen=True)
class NodeTimes:
    """Where the time of one inference goes, in milliseconds; the three add up to the sum of all layers' times.

    Attributes:
        nodes: by ONNX node, those that were asked about and that the engine names.
        reformat_ms: of layers that do nothing but change a type or a memory layout.
        rest_ms: of all others.
    """

    nodes: dict[str, float]
    reformat_ms: float
    rest_ms: float


def node_times(
    layers: Sequence[Layer],
    times: Mapping[str, float],
    weights: Mapping[str, float],
    reformats: Collection[str] = (),
) -> NodeTimes:
    """Return the time of every ONNX node that `weights` names.

    A layer's time goes to the one of these nodes that is fused in it. Where there are several, which TensorRT does
    with whole parts of a transformer and tells no more about, they share it in proportion to their weights.

    Args:
        layers: of the engine: `TensorRTEngine.layers`.
        times: milliseconds by layer of the engine: `TensorRTEngine.layer_times`.
        weights: by ONNX node, positive: its multiply-accumulates, for one.
        reformats: names of the QuantizeLinear, DequantizeLinear and Cast nodes of the ONNX file. A layer that is made
            of such nodes alone is a reformat.

    Raises:
        JobError: the times are those of another engine, or of one that was built without the names of its layers.

    Examples:
        >>> fused = Layer("conv1 + conv2", "conv", ("conv1", "conv2"), (), (), (), ())
        >>> node_times([fused], times={"conv1 + conv2": 4.0}, weights={"conv1": 3e6, "conv2": 1e6}).nodes
        {'conv1': 3.0, 'conv2': 1.0}
    """
    known = {layer.name: layer for layer in layers}
    if strange := sorted(times.keys() - known.keys()):
        raise JobError(
            f"layer {strange[0]} was timed, and the engine shows no layer of that name; build it with detailed "
            "profiling verbosity"
        )
    nodes: dict[str, float] = {}
    reformat_ms = rest_ms = 0.0
    for name, ms in times.items():
        layer = known[name]
        asked = [node for node in dict.fromkeys(layer.nodes) if node in weights]
        total = sum(weights[node] for node in asked)
        if asked:
            for node in asked:
                nodes[node] = nodes.get(node, 0.0) + ms * weights[node] / total
        elif layer.kind == _REFORMAT or (layer.nodes and set(layer.nodes) <= set(reformats)):
            reformat_ms += ms
        else:
            rest_ms += ms
    return NodeTimes(nodes, reformat_ms, rest_ms)
