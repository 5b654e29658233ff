"""Callbacks of TensorRT: build progress, layer times, inner tensors.

The bindings print an exception that leaves a callback to stderr and go on, so none may: what fails is kept, and raised
by whoever called TensorRT.
"""

from __future__ import annotations

import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Progress", "interruptions", "new_debug_listener", "new_monitor", "new_profiler"]

Progress = Callable[[str, int, int], None]
"""Called with a phase of the build, how many of its steps are done, and how many it has. Phases are nested and their
names are TensorRT's own; the outermost comes first."""


@contextmanager
def interruptions() -> Iterator[threading.Event]:
    """Set the event on Ctrl-C in place of raising, as an exception cannot pass through TensorRT.

    Python runs signal handlers in the main thread only, where a build in another thread is not disturbed.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def new_monitor(trt: Any, progress: Progress | None, stop: threading.Event) -> Any:
    """Return an `IProgressMonitor` that reports to `progress` and ends the build once `stop` is set.

    Its `failure` is what `progress` raised, which ends the build too.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.failure: Exception | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            self._report(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._report(phase_name, step + 1)
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._report(phase_name, self._steps[phase_name])

        def _report(self, phase: str, done: int) -> None:
            if progress is None or self.failure:
                return
            try:
                progress(phase, done, self._steps[phase])
            except Exception as failure:  # noqa: BLE001  the caller's code; raised again after the build
                self.failure = failure
                stop.set()

    return Monitor()


def new_profiler(trt: Any) -> Any:
    """Return an `IProfiler`; its `times` are the milliseconds that each layer took, run after run, by layer name."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.times: defaultdict[str, list[float]] = defaultdict(list)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times[layer_name].append(ms)

    return Profiler()


def new_debug_listener(trt: Any, copy: Callable[[int, Any, Any, tuple[int, ...], int], Any]) -> Any:
    """Return an `IDebugListener` that keeps copies of the tensors that are named in its set `wanted`.

    Args:
        trt: the module.
        copy: makes a host array of an address, a `TensorLocation`, a `DataType`, a shape and the handle of the stream
            that writes the buffer. It is called inside the callback, since the buffer is valid no longer.

    The listener's `found` holds the arrays by name, in every run anew what was emitted; `failures` what went wrong.
    """

    class Listener(trt.IDebugListener):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.wanted: frozenset[str] = frozenset()
            self.found: dict[str, Any] = {}
            self.failures: list[str] = []

        def process_debug_tensor(self, addr: int, location: Any, type: Any, shape: Any, name: str, stream: int) -> bool:  # noqa: A002
            if name not in self.wanted:
                return True
            if name in self.found:
                self.failures.append(f"tensor {name} is computed more than once in a run")
                return True
            try:
                self.found[name] = copy(addr, location, type, tuple(shape), stream)
            except Exception as failure:  # noqa: BLE001  raised again after the run
                self.failures.append(f"tensor {name} cannot be copied: {failure}")
            return True

    return Listener()
