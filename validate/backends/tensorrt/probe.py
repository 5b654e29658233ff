"""Probes what a TensorRT library does on this machine's GPU, by running tiny engines."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from validate.backends.gpu import Gpu, local_gpu
from validate.backends.tensorrt.library import Flavour, Library, UnavailableError, find_builder
from validate.exceptions import JobError

__all__ = ["needs_fp32_scales", "require_running", "why_not_running"]

_VALUE = 1.5

_K = 256
"""Terms of the probed INT8 product: 256 products of 127 x 127 are 4.1 million, beyond the 65504 of FP16."""
_ROWS = 32
_SCALE = 2.0**-10
"""Of both sides of it: a power of two, so that FP16 holds scales and inputs, and the answer of 3.94."""
# Here, since a network does not copy its constants.
_SCALE_CONSTANT = np.array(_SCALE, np.float16)
_SCALES = np.full(_ROWS, _SCALE, np.float16)
_WEIGHT = np.full((_K, _ROWS), 127, np.int8)
_NEEDS_FP32_SCALES: dict[Flavour, bool] = {
    # Seen: 1.6.1 on an H200 turns the accumulator into FP16 before it multiplies by FP16 scales.
    "tensorrt_rtx": True,
    # Its documentation fuses FP16 scales into the product.
    "tensorrt": False,
}
"""What is assumed where no engine can be run."""


def why_not_running(library: Library, gpu: Gpu) -> str | None:
    """Return why a library does not run engines on the GPU of this machine; None where it does.

    A table of compute capabilities would not tell: TensorRT-RTX 1.4 to 1.6 run on Hopper, which none of its lists
    names, and 1.7 builds there and refuses to run. So an engine that adds a number to itself is built, run, and
    its answer checked, once per process for a library, its version, the GPU and its driver.
    """
    return _why_not(library.flavour, library.version, gpu)


def require_running(library: Library, gpu: Gpu, model: str) -> None:
    """Raise JobError where a library does not run engines on the GPU of this machine; `model` is what to build anew."""
    if reason := why_not_running(library, gpu):
        raise JobError(
            f"{library} does not run engines on {gpu} ({reason}); install a TensorRT that does, such as pip install "
            f"tensorrt, and build the engine with that from {model}"
        )


def needs_fp32_scales() -> bool:
    """Return whether INT8 products are wrong with FP16 scales, in the TensorRT that would build here.

    An INT8 product is built with FP16 scales, run, and its answer checked, once per process for a library, its version,
    the GPU and its driver. Where it cannot be run, `tensorrt_rtx` is taken to need FP32 scales, and `tensorrt` is not.
    Where neither is installed the answer is False: nothing says that they are needed, and most files then go to a
    `tensorrt` elsewhere, which fuses FP16 scales.
    """
    try:
        library, _ = find_builder(compute_capability=None, gpu=None)
    except UnavailableError:
        return False
    gpu = local_gpu()
    found = None if gpu is None else _product_needs_fp32_scales(library.flavour, library.version, gpu)
    return _NEEDS_FP32_SCALES[library.flavour] if found is None else found


@functools.cache
def _product_needs_fp32_scales(flavour: Flavour, version: str, gpu: Gpu) -> bool | None:
    """Return whether the answer of an INT8 product with FP16 scales is wrong; None where it does not run."""
    library = Library(flavour, version)
    if why_not_running(library, gpu):
        return None
    with library.errors():
        try:
            answers = _run(library, _int8_product, (_ROWS, _K), 127 * _SCALE)
        except (RuntimeError, TypeError):
            return None
    right = _K * (127 * _SCALE) ** 2
    return None if answers is None else not all(abs(answer - right) < right / 100 for answer in answers)


@functools.cache
def _why_not(flavour: Flavour, version: str, gpu: Gpu) -> str | None:
    try:
        import torch
    except ImportError:
        return "engines run on PyTorch's CUDA tensors, and PyTorch is not installed"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA here"
    library = Library(flavour, version)
    with library.errors() as errors:
        try:
            answers = _run(library, _sum, (1,), _VALUE)
        except (RuntimeError, TypeError) as error:  # TypeError: pybind's, where CUDA does not start
            return errors[0] if errors else " ".join(str(error).split())
    if answers is None:
        return errors[0] if errors else "it gives no reason"
    return None if answers == [2 * _VALUE] else f"it computes {_VALUE} + {_VALUE} as {answers[0]:g}"


def _sum(trt: Any, network: Any, x: Any) -> Any:
    """Add an input to itself."""
    return network.add_elementwise(x, x, trt.ElementWiseOperation.SUM).get_output(0)


def _int8_product(trt: Any, network: Any, x: Any) -> Any:
    """Multiply an input in INT8 by a weight of 127 throughout, with scales and a product in FP16.

    The weight has a scale per column, as files have them. With one scale in all, 1.6.1 gives the right answer on an
    H200: then both scales are one number, by which it multiplies the accumulator at once.
    """
    scale = network.add_constant(_SCALE_CONSTANT.shape, _SCALE_CONSTANT).get_output(0)
    weight = network.add_constant(_WEIGHT.shape, _WEIGHT).get_output(0)
    half = network.add_cast(x, trt.float16).get_output(0)
    quantized = network.add_quantize(half, scale, trt.int8).get_output(0)
    left = network.add_dequantize(quantized, scale, trt.float16).get_output(0)
    scales = network.add_constant(_SCALES.shape, _SCALES).get_output(0)
    dequantize = network.add_dequantize(weight, scales, trt.float16)
    dequantize.axis = 1
    right = dequantize.get_output(0)
    none = trt.MatrixOperation.NONE
    product = network.add_matrix_multiply(left, none, right, none).get_output(0)
    return network.add_cast(product, trt.float32).get_output(0)


def _run(
    library: Library, define: Callable[[Any, Any, Any], Any], shape: tuple[int, ...], value: float
) -> list[float] | None:
    """Build an engine, run it on an input full of `value`, and return its output; None where TensorRT refuses a step.

    Args:
        library: that builds and runs it.
        define: adds layers to a network, from the module, the network and its input; returns the output, both float32.
        shape: of the input.
        value: of all its elements.
    """
    import torch

    trt = library.trt
    builder = trt.Builder(library.logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    y = define(trt, network, network.add_input("x", trt.float32, shape))
    y.name = "y"
    network.mark_output(y)
    serialized = builder.build_serialized_network(network, builder.create_builder_config())
    runtime = trt.Runtime(library.logger)
    engine = None if serialized is None else runtime.deserialize_cuda_engine(serialized)
    context = None if engine is None else engine.create_execution_context()
    if context is None:
        return None
    given = torch.full(shape, value, device="cuda")
    found = torch.zeros(tuple(y.shape), device="cuda")
    context.set_tensor_address("x", given.data_ptr())
    context.set_tensor_address("y", found.data_ptr())
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    done = context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    return found.flatten().tolist() if done else None
