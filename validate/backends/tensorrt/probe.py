"""Probes whether a TensorRT library runs engines on this machine's GPU, by running a tiny one."""

from __future__ import annotations

import functools

from validate.backends.gpu import Gpu
from validate.backends.tensorrt.library import Flavour, Library
from validate.exceptions import JobError

__all__ = ["require_running", "why_not_running"]

_VALUE = 1.5


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
            answer = _run_tiny_engine(library)
        except (RuntimeError, TypeError) as error:  # TypeError: pybind's, where CUDA does not start
            return errors[0] if errors else " ".join(str(error).split())
    if answer is None:
        return errors[0] if errors else "it gives no reason"
    return None if answer == 2 * _VALUE else f"it computes {_VALUE} + {_VALUE} as {answer:g}"


def _run_tiny_engine(library: Library) -> float | None:
    """Build and run an engine that adds its input to itself; None where TensorRT refuses a step."""
    import torch

    trt = library.trt
    builder = trt.Builder(library.logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    x = network.add_input("x", trt.float32, (1,))
    total = network.add_elementwise(x, x, trt.ElementWiseOperation.SUM).get_output(0)
    total.name = "y"
    network.mark_output(total)
    serialized = builder.build_serialized_network(network, builder.create_builder_config())
    runtime = trt.Runtime(library.logger)
    engine = None if serialized is None else runtime.deserialize_cuda_engine(serialized)
    context = None if engine is None else engine.create_execution_context()
    if context is None:
        return None
    given = torch.full((1,), _VALUE, device="cuda")
    found = torch.zeros(1, device="cuda")
    context.set_tensor_address("x", given.data_ptr())
    context.set_tensor_address("y", found.data_ptr())
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    done = context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    return float(found.item()) if done else None
