"""Runs an engine. It needs a GPU, and is kept small: what needs none is elsewhere.

The calls are those of "Performing Inference" in TensorRT's developer guide (`set_input_shape`, `set_tensor_address`,
`execute_async_v3`); a test holds every one of them against the members and signatures of the installed library.
"""

from __future__ import annotations

import ctypes
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from validate.backends.tensorrt.fingerprint import Fingerprint
from validate.backends.tensorrt.inspection import Layer, parse_layers
from validate.backends.tensorrt.library import Library
from validate.backends.tensorrt.listeners import new_debug_listener, new_profiler
from validate.exceptions import JobError

if TYPE_CHECKING:
    import torch

__all__ = ["DEVICE", "Bound", "TensorRTEngine", "deserialize"]

DEVICE = "cuda"

_TORCH_TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "FP8": "float8_e4m3fn",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


def deserialize(path: Path, library: Library, fingerprint: Fingerprint) -> Any:
    """Return an engine file as an `ICudaEngine`. Raises JobError, with TensorRT's words, where it does not load it."""
    with library.errors() as errors:
        try:
            runtime = library.trt.Runtime(library.logger)
        except (RuntimeError, TypeError) as error:  # TypeError: pybind's, where CUDA does not start
            raise JobError(f"{library} cannot start here: {errors[0] if errors else error}") from error
        # A version-compatible engine brings the code of its own runtime along.
        runtime.engine_host_code_allowed = fingerprint.options.version_compatible
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        said = "; ".join(errors) or "without a message"
        raise JobError(f"{library} refuses {path} ({said}); build it again on this machine")
    return engine


@dataclass(frozen=True)
class Bound:
    """A call whose inputs and outputs are at fixed places on the GPU.

    Attributes:
        enqueue: puts one call on PyTorch's current stream, which may be capturing, and returns the outputs.
        feeds: what it reads, by name.
        batches: to be copied into `feeds`; they are on the GPU already.
    """

    enqueue: Callable[[], list[torch.Tensor]]
    feeds: dict[str, torch.Tensor]
    batches: list[dict[str, torch.Tensor]]


class TensorRTEngine:
    """A deserialized engine with an execution context of its own; see `Runnable`.

    Args:
        library: what deserialized the engine.
        engine: an `ICudaEngine`; several of these may share it.
        outputs: names of outputs of the engine, which are those of the model and the inner tensors that were named
            when it was built; and, where it was built `unfused`, of tensors that fusion left. By default all outputs.
        unfused: it was built to show the tensors that fusion left.
        device: name of the GPU.

    Raises:
        JobError: TensorRT makes no execution context.
    """

    def __init__(
        self,
        library: Library,
        engine: Any,
        outputs: Sequence[str] | None = None,
        unfused: bool = False,
        device: str = DEVICE,
    ) -> None:
        import torch

        self._trt = library.trt
        self._library = library
        self._engine = engine
        self._context = self._new_context()
        # Not the default stream, with which TensorRT would synchronize at every call.
        self._stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        self.input_names = tuple(name for name in names if modes[name] == self._trt.TensorIOMode.INPUT)
        self._results = tuple(name for name in names if modes[name] == self._trt.TensorIOMode.OUTPUT)
        self.output_names = self._results if outputs is None else tuple(outputs)
        self.runtime = f"{library} (strongly typed engine)"
        self.device = device
        # It may not refer to this object: the context holds it where Python's garbage collector cannot see.
        self._listener = new_debug_listener(self._trt, functools.partial(_copy, self._trt))
        self._listener.wanted = frozenset(self.output_names) - set(self._results)
        if self._listener.wanted:
            if not unfused:
                name = min(self._listener.wanted)
                raise JobError(f"the engine was not built to show tensor {name}; name it in debug and build again")
            self._context.set_debug_listener(self._listener)
            self._context.unfused_tensors_debug_state = True

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Runnable`. bfloat16 and float8 come back as float32, which holds them exactly; numpy has no such types.

        Raises:
            JobError: an input is missing or does not fit, or a tensor that was asked for did not come out.
        """
        self._listener.found, self._listener.failures = {}, []
        results = self._execute(self._context, inputs)
        if self._listener.failures:
            raise JobError(f"TensorRT ran the engine, but {'; '.join(self._listener.failures)}")
        found = {name: _to_numpy(value) for name, value in results.items()} | self._listener.found
        if absent := [name for name in self.output_names if name not in found]:
            raise JobError(f"TensorRT ran the engine and did not show tensor {', '.join(absent)}; it may be fused")
        return {name: found[name] for name in self.output_names}

    def layer_times(self, inputs: Mapping[str, NDArray[Any]], runs: int = 10) -> dict[str, float]:
        """Return the median time of each layer in milliseconds, over `runs` runs after one to warm up.

        A profiler slows an engine down (`IProfiler` in TensorRT's Python API), so that the sum is not its latency.
        """
        profiler = new_profiler(self._trt)
        context = self._new_context()
        context.profiler = profiler
        for _ in range(1 + runs):
            self._execute(context, inputs)
        return {layer: statistics.median(times[-runs:]) for layer, times in profiler.times.items()}

    def bind(self, batches: Sequence[Mapping[str, NDArray[Any]]]) -> Bound:
        """Return the engine with input and output buffers at fixed places on the GPU, to be timed; see `Bound`.

        Args:
            batches: one or more, all of one shape.

        Raises:
            JobError: an input is missing or does not fit, or is one that TensorRT reads on the host.
        """
        import torch

        if on_host := [name for name in self.input_names if self._place(name) != DEVICE]:
            raise JobError(f"engine input {', '.join(on_host)} is a shape, read on the host, so that no call is bound")
        context = self._new_context()
        with torch.cuda.stream(self._stream), self._library.errors():
            placed = [self._feeds(batch) for batch in batches]
            feeds = {name: feed.clone() for name, feed in placed[0].items()}
            results = self._address(context, feeds)
            self._stream.synchronize()

        def enqueue() -> list[torch.Tensor]:
            if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
                raise JobError(f"{self._library} cannot run the engine")
            return list(results.values())

        return Bound(enqueue, feeds, placed)

    def layers(self) -> list[Layer]:
        """Return the layers of the engine in the order in which they run; see `parse_layers`."""
        return parse_layers(self.inspection())

    def inspection(self) -> str:
        """Return what `EngineInspector` says of the engine, as JSON."""
        inspector = self._engine.create_engine_inspector()
        # With the context, shapes and formats are those of the last inputs where they are dynamic.
        inspector.execution_context = self._context
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def _new_context(self) -> Any:
        with self._library.errors() as errors:
            context = self._engine.create_execution_context()
        if context is None:
            raise JobError(f"{self._library} cannot prepare the engine to run: {'; '.join(errors) or 'out of memory?'}")
        return context

    def _execute(self, context: Any, inputs: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
        """Run once and return the engine's outputs. Copies and kernels are in one stream, and so in order."""
        import torch

        with torch.cuda.stream(self._stream), self._library.errors() as errors:
            feeds = self._feeds(inputs)  # held until the run is over
            results = self._address(context, feeds)
            done = context.execute_async_v3(self._stream.cuda_stream)
            self._stream.synchronize()
        if not done:
            raise JobError(f"{self._library} cannot run the engine: {'; '.join(errors) or 'it gives no reason'}")
        return results

    def _feeds(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
        if missing := set(self.input_names) - set(inputs):
            raise JobError(f"no array is given for engine input {', '.join(sorted(missing))}")
        return {name: self._feed(name, inputs[name]) for name in self.input_names}

    def _address(self, context: Any, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tell a context where its inputs are and where its outputs go, and return these."""
        for name, feed in feeds.items():
            if not context.set_input_shape(name, tuple(feed.shape)):
                raise JobError(self._misfit(name, feed))
            context.set_tensor_address(name, feed.data_ptr())
        results = {name: self._empty(context, name) for name in self._results}
        for name, result in results.items():
            context.set_tensor_address(name, result.data_ptr())
        return results

    def _feed(self, name: str, array: NDArray[Any]) -> torch.Tensor:
        import torch

        wanted = _torch_dtype(self._engine.get_tensor_dtype(name))
        given = torch.from_numpy(np.array(array, order="C"))  # a copy: torch takes no read-only and no reversed arrays
        if _kind(given.dtype) != _kind(wanted):
            raise JobError(f"engine input {name} is {wanted}, but the preprocessing gives {array.dtype}")
        return given.to(self._place(name), wanted)

    def _empty(self, context: Any, name: str) -> torch.Tensor:
        import torch

        shape = tuple(context.get_tensor_shape(name))
        if -1 in shape:
            raise JobError(
                f"the shape of engine output {name} depends on values (as after NonZero), which is not supported; "
                "cut the model before it"
            )
        dtype = _torch_dtype(self._engine.get_tensor_dtype(name))
        return torch.empty(shape, dtype=dtype, device=self._place(name))

    def _place(self, name: str) -> str:
        """Return where TensorRT wants a tensor: shapes that are computed with are on the host."""
        on_host = self._engine.get_tensor_location(name) == self._trt.TensorLocation.HOST
        return "cpu" if on_host else DEVICE

    def _misfit(self, name: str, feed: torch.Tensor) -> str:
        smallest, _, largest = (tuple(shape) for shape in self._engine.get_tensor_profile_shape(name, 0))
        return (
            f"engine input {name} takes shapes from {smallest} to {largest}, and {tuple(feed.shape)} is given; "
            "change the batch size, or build the engine with another profile"
        )


class _DeviceBuffer:
    """Bytes on the GPU that are another library's, as torch takes them (numba's CUDA Array Interface, version 3)."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}


def _copy(trt: Any, address: int, location: Any, dtype: Any, shape: tuple[int, ...], stream: int) -> NDArray[Any]:
    """Copy a buffer of TensorRT's to the host once the stream that writes it has done so."""
    import torch

    element = _torch_dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * element.itemsize
    if not size:
        return _to_numpy(torch.empty(shape, dtype=element))
    if location == trt.TensorLocation.HOST:
        host = torch.frombuffer(bytearray(ctypes.string_at(address, size)), dtype=torch.uint8)
    else:
        torch.cuda.ExternalStream(stream).synchronize()  # type: ignore[no-untyped-call]
        host = torch.as_tensor(_DeviceBuffer(address, size), device=DEVICE).cpu()
    return _to_numpy(host.view(element).reshape(shape))


def _torch_dtype(dtype: Any) -> torch.dtype:
    import torch

    if dtype.name not in _TORCH_TYPES:
        raise JobError(f"tensors of TensorRT's type {dtype.name} cannot be read; name others")
    found: torch.dtype = getattr(torch, _TORCH_TYPES[dtype.name])
    return found


def _kind(dtype: torch.dtype) -> str:
    if str(dtype) == "torch.bool":
        return "bool"
    return "float" if dtype.is_floating_point else "integer"


def _to_numpy(value: torch.Tensor) -> NDArray[Any]:
    host = value.detach().cpu()
    if str(host.dtype) in {"torch.bfloat16", "torch.float8_e4m3fn"}:
        host = host.float()
    found: NDArray[Any] = host.numpy()
    return found
