"""Runners: load the model that a user names, so that its calls can be timed (`Timed`).

The time of a call begins with inputs that are where the runtime computes, and ends when its outputs are there: host
arrays on a CPU, device memory on a GPU. Copies to and from a GPU are in no time.

- ONNX Runtime and PyTorch on a CPU: the clock on the wall.
- ONNX Runtime on a GPU: the clock on the wall around a run with bound memory (IOBinding), which ends synchronized.
- PyTorch on a GPU and TensorRT: CUDA events, and a CUDA graph where the model can be captured (`cuda.py`).
"""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from validate.backends import OnnxRuntimeModel, Options, Runnable, cpu_name, from_reference, kind_of, open_model
from validate.exceptions import JobError, UsageError
from validate.latency.rounds import Batches, Timed

if TYPE_CHECKING:
    import torch

    from validate.backends.tensorrt import TensorRTEngine

__all__ = ["WALL", "Loaded", "Spec", "load", "torch_threads"]

Device = Literal["cpu", "cuda"]
WALL = "wall time"


@dataclass(frozen=True)
class Spec:
    """A model to be timed, as the user named it.

    Attributes:
        name: what it is called in the report; of one report, all differ.
        model: see `validate.backends.opening.kind_of`.
        compiled: by torch.compile; of a PyTorch module only.
    """

    name: str
    model: str
    compiled: bool = False


class Loaded(Protocol):
    """A loaded model, which can be timed."""

    timing: str
    """What is in a time."""

    def timed(self, batches: Batches) -> Timed:
        """Return the model with batches of one size. Raises JobError where it cannot run them."""
        ...


def load(spec: Spec, device: Device, threads: int, precision: str, cuda_graph: bool) -> Loaded:
    """Load a model.

    Args:
        spec: which.
        device: of ONNX files and modules; an engine is always on the GPU.
        threads: intra-op, of ONNX Runtime; those of PyTorch are the process's, see `torch_threads`.
        precision: of a PyTorch module: fp32, fp16 or bf16.
        cuda_graph: capture what can be captured.

    Raises:
        UsageError: there is no such model, or it is of a kind that is not timed.
        JobError: it cannot be loaded.
    """
    kind = kind_of(spec.model)
    if kind == "onnx":
        return _Onnx(Path(spec.model), threads, device)
    if kind == "engine":
        from validate.backends.tensorrt import TensorRTBackend

        return _Engine(TensorRTBackend(Path(spec.model)).load(), cuda_graph)
    if kind != "pytorch":
        return _Other(open_model(spec.model, Options(device)).load())
    if spec.model.endswith(".pt2"):
        raise UsageError(f"{spec.model} is an exported program, which is not what is deployed; time the module itself")
    return _Module(spec, device, precision, cuda_graph)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Set PyTorch's intra-op threads, which are those of the whole process, while the context is open.

    Examples:
        >>> import torch
        >>> with torch_threads(1):
        ...     torch.get_num_threads()
        1
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class _Wall:
    """See `Timed`."""

    call: Callable[[int], object]
    runtime: str
    device: str

    def __call__(self, batch: int) -> float:
        started = time.perf_counter()
        self.call(batch)
        return 1e3 * (time.perf_counter() - started)


class _Onnx(OnnxRuntimeModel):
    """An ONNX file with the kernels that it would be deployed with."""

    def __init__(self, path: Path, threads: int, device: Device) -> None:
        super().__init__(path, "integer", threads=threads, device=device)
        self.timing = WALL if device == "cpu" else f"{WALL}, inputs and outputs bound on the GPU"

    def timed(self, batches: Batches) -> Timed:
        """See `Loaded`."""
        self.run(batches[0])  # whatever does not fit is a sentence
        names = [self._output_names[name] for name in self.output_names]
        feeds = [{name: self._convert(name, batch[name]) for name in self.input_names} for batch in batches]
        if not self._on_gpu:
            return _Wall(lambda i: self._session.run(names, feeds[i]), self.runtime, self.device)
        bindings = [self._bound(names, feed) for feed in feeds]

        def call(i: int) -> None:
            self._session.run_with_iobinding(bindings[i])
            bindings[i].synchronize_outputs()

        return _Wall(call, self.runtime, self.device)

    def _bound(self, names: list[str], feed: Mapping[str, NDArray[Any]]) -> Any:
        binding = self._session.io_binding()
        for name, array in feed.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
        for name in names:
            binding.bind_output(name, "cuda", 0)
        binding.synchronize_inputs()
        return binding


class _Other:
    """A model of a backend that an installed package brings; copies of its own are in the time."""

    timing = WALL

    def __init__(self, model: Runnable) -> None:
        self._model = model

    def timed(self, batches: Batches) -> Timed:
        """See `Loaded`."""
        self._model.run(batches[0])  # whatever does not fit is a sentence
        return _Wall(lambda i: self._model.run(batches[i]), self._model.runtime, self._model.device)


class _Engine:
    """A TensorRT engine. Not run anywhere yet: see docs/latency.md."""

    def __init__(self, engine: TensorRTEngine, cuda_graph: bool) -> None:
        from validate.latency.cuda import EVENTS

        self.timing = EVENTS
        self._engine, self._graph = engine, cuda_graph

    def timed(self, batches: Batches) -> Timed:
        """See `Loaded`."""
        from validate.latency.cuda import CudaTimed

        bound = self._engine.bind(batches)
        return CudaTimed(
            bound.enqueue, bound.feeds, bound.batches, self._engine.runtime, self._engine.device, self._graph
        )


class _Module:
    """A PyTorch module, eager or compiled, with PyTorch's own defaults of arithmetic."""

    def __init__(self, spec: Spec, device: Device, precision: str, cuda_graph: bool) -> None:
        made = from_reference(spec.model)
        import torch

        from validate.latency.cuda import EVENTS

        if device == "cuda" and not torch.cuda.is_available():
            raise JobError("PyTorch finds no CUDA GPU here; take --device cpu, or a machine with one and a CUDA build")
        assert isinstance(made, torch.nn.Module)  # programs are refused above
        self._spec, self._place, self._graph = spec, device, cuda_graph
        self._dtype: torch.dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
        module = copy.deepcopy(made).eval().to(device=device, dtype=self._dtype)
        parameters = inspect.signature(module.forward).parameters.values()
        self._parameters = {p.name for p in parameters if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}}
        self._module: Any = torch.compile(module, dynamic=False) if spec.compiled else module
        self.runtime = f"torch {torch.__version__} ({precision}, {'torch.compile' if spec.compiled else 'eager'})"
        self.device = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
        self.timing = EVENTS if device == "cuda" else WALL

    def timed(self, batches: Batches) -> Timed:
        """See `Loaded`."""
        import torch

        placed = [{name: self._tensor(array) for name, array in batch.items()} for batch in batches]
        try:
            with torch.inference_mode():
                self._call(placed[0])
        except Exception as error:  # the user's code: anything may come out of it
            shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in placed[0].items())
            said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise JobError(f"PyTorch cannot run {self._spec.name} on {shapes}: {said}") from error
        if self._place == "cpu":
            return _Wall(lambda i: self._inferred(placed[i]), self.runtime, self.device)
        from validate.latency.cuda import CudaTimed

        with torch.inference_mode():
            feeds = {name: tensor.clone() for name, tensor in placed[0].items()}
        return CudaTimed(lambda: self._call(feeds), feeds, placed, self.runtime, self.device, self._graph)

    def _inferred(self, feeds: Mapping[str, torch.Tensor]) -> None:
        import torch

        with torch.inference_mode():
            self._call(feeds)

    def _call(self, feeds: Mapping[str, torch.Tensor]) -> Any:
        return self._module(**feeds) if feeds.keys() <= self._parameters else self._module(*feeds.values())

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        import torch

        tensor = torch.from_numpy(np.array(array, order="C"))
        return tensor.to(self._place, self._dtype if tensor.is_floating_point() else None)
