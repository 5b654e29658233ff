"""Which layers an engine ran in INT8, by what EngineInspector says of its kernels."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from validate.backends.tensorrt import Layer
from validate.results import Int8InEngine

__all__ = ["int8_in_engine"]

_GENERATED = "kgen"
"""`LayerType` of kernels that TensorRT generates for what stands between products. The one behind a product, which
scales it, names the product too."""


def int8_in_engine(
    layers: Sequence[Layer],
    planned: Collection[str],
    macs: Mapping[str, float],
    reformat_nodes: Collection[str],
    times: Mapping[str, float] | None = None,
) -> Int8InEngine:
    """Say which of the planned INT8 (or FP8) layers ran with inputs of that type.

    Several layers may be one kernel (Q, K and V of attention), and one layer several kernels. Where one of these is a
    product of the library's, it decides, and else any of those that TensorRT generated. A kernel decides by the type of
    its activations; INT8 weights alone are no INT8 product.

    Args:
        layers: of the engine: `TensorRTBackend.layers`.
        planned: names of the nodes that the plan has in INT8.
        macs: multiply-accumulates of one sample, by node; those of all planned.
        reformat_nodes: names of the nodes of the ONNX file that only quantize or cast; see `reformat_nodes`.
        times: milliseconds by layer of the engine: `TensorRTEngine.layer_times`.

    Examples:
        >>> product = Layer("q+k", "gemm", ("q", "k"), ("x",), ("y",), ("Float",), ("",), input_types=("Int8",))
        >>> found = int8_in_engine([product], ["q", "k", "o"], {"q": 2e6, "k": 1e6, "o": 1e6}, reformat_nodes=[])
        >>> found.ran, found.share, found.not_run
        (2, 0.75, ['o'])
    """
    ran = [node for node in planned if _ran_in_int8([layer for layer in layers if node in layer.nodes])]
    others = sorted(set(planned) - set(ran), key=lambda node: (-macs[node], node))
    total = sum(macs[node] for node in planned)
    stray = [layer for layer in layers if _is_stray(layer, reformat_nodes)]
    return Int8InEngine(
        planned=len(planned),
        ran=len(ran),
        share=sum(macs[node] for node in ran) / total if total else 0.0,
        not_run=others,
        stray_kernels=len(stray),
        stray_ms=None if times is None else sum(times.get(layer.name, 0.0) for layer in stray),
        total_ms=None if times is None else sum(times.values()),
    )


def _ran_in_int8(kernels: Iterable[Layer]) -> bool:
    kernels = list(kernels)
    products = [kernel for kernel in kernels if kernel.kind != _GENERATED] or kernels
    return any(kind.startswith(("Int8", "FP8")) for kernel in products for kind in kernel.input_types[:1])


def _is_stray(layer: Layer, reformat_nodes: Collection[str]) -> bool:
    """Return whether a kernel only moves or converts: no node of the ONNX file is in it, or none that computes."""
    return bool(layer.inputs) and set(layer.nodes) <= set(reformat_nodes)
