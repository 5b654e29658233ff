"""Times calls on an NVIDIA GPU with CUDA events, as a CUDA graph where the model can be captured.

An event is a moment on the GPU's own timeline ("Event Management" in the CUDA Runtime API, resolution about half a
microsecond), so that a time holds neither the copy of the inputs nor Python's wait for the end. It does hold what the
GPU waits for the host to launch, which a graph takes away. Importing this file imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from validate.exceptions import JobError

__all__ = ["EVENTS", "CudaTimed"]

EVENTS = "CUDA events, inputs and outputs on the GPU"
_BEFORE_CAPTURE = 3
"""Calls on the stream before it is captured, in which libraries choose kernels and allocate ("CUDA Graphs" in PyTorch's
notes); TensorRT wants one after its input shapes were set ("CUDA Graphs" in its developer guide)."""
_AGREE = 1e-2
"""Relative L2 error up to which a graph computes what the model does; float16 sums may come in another order."""


class CudaTimed:
    """A model with its batches on the GPU; see `validate.latency.rounds.Timed`.

    Args:
        launch: enqueues a call on PyTorch's current stream, and returns its outputs, in any nesting.
        feeds: what it reads, at fixed places on the GPU.
        batches: of the same names, shapes and types; copied into `feeds` before a call, outside of its time.
        runtime, device: what runs it.
        graph: capture the call, where that works and the graph computes the same on two of the batches.

    Attributes:
        cuda_graph: whether a CUDA graph is timed.
        reason: why none is, where `graph` asked for one.
    """

    def __init__(
        self,
        launch: Callable[[], Any],
        feeds: Mapping[str, torch.Tensor],
        batches: Sequence[Mapping[str, torch.Tensor]],
        runtime: str,
        device: str,
        graph: bool = True,
    ) -> None:
        self._launch, self._feeds, self._batches = launch, feeds, batches
        self.runtime, self.device = runtime, device
        # Not the default stream, which cannot be captured and with which TensorRT would synchronize.
        self._stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()  # feeds and batches were made on another stream
        self._graph: torch.cuda.CUDAGraph | None = None
        self.reason = self._capture() if graph else None
        self.cuda_graph = self._graph is not None

    def __call__(self, batch: int) -> float:
        """Run a batch and return the GPU's milliseconds from before its first kernel to after its last."""
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            self._fill(batch)
            self._start.record()
            if self._graph is None:
                self._launch()
            else:
                self._graph.replay()
            self._end.record()
            self._end.synchronize()
            return float(self._start.elapsed_time(self._end))

    def _fill(self, batch: int) -> None:
        for name, feed in self._feeds.items():
            feed.copy_(self._batches[batch][name])
        # The GPU must be idle when the call begins, or the copy would hide the launch of the first kernels.
        self._stream.synchronize()

    def _capture(self) -> str | None:
        """Capture the call; return why it cannot be."""
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            for _ in range(_BEFORE_CAPTURE):
                self._launch()
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, stream=self._stream):
                    captured = _leaves(self._launch())
            except (RuntimeError, JobError) as error:  # PyTorch's errors of CUDA are RuntimeErrors
                torch.cuda.synchronize()
                return f"no CUDA graph: {_first_line(error)}"
            for batch in range(min(2, len(self._batches))):
                self._fill(batch)
                expected = [tensor.clone() for tensor in _leaves(self._launch())]
                graph.replay()
                self._stream.synchronize()
                if not all(map(_agree, expected, captured)):
                    return "no CUDA graph: on another batch it does not compute what the model does"
        self._graph = graph
        return None


def _leaves(value: Any) -> list[torch.Tensor]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in _leaves(part)]
    return [value] if isinstance(value, torch.Tensor) else []


def _agree(expected: torch.Tensor, found: torch.Tensor) -> bool:
    a, b = (tensor.double().nan_to_num() for tensor in (expected, found))
    return bool(torch.linalg.vector_norm(a - b) <= _AGREE * torch.linalg.vector_norm(a))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
