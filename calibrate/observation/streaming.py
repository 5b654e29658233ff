"""One streaming pass over the calibration data: activations in, statistics out."""

from __future__ import annotations

import os
import queue
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from calibrate.observation.layout import keep_blocked
from validate.backends import OnnxRuntimeModel, detach, expose, weight_bytes, write_optimized
from validate.data import Batch
from validate.exceptions import JobError
from validate.stats import NonFiniteError, Statistics

__all__ = ["Observable", "Observation", "OnDoubling", "observable", "observe", "workers"]

Outputs = Mapping[str, NDArray[Any]]
OnDoubling = Callable[[int, Callable[[str], Statistics]], None]
"""Called with the number of samples so far, and with a function from a tensor's name to its statistics over them."""

_OPTIMIZED_BYTES = 1 << 30
"""Largest size of the weights for which the optimized graph is written to a file and read again."""


@dataclass(frozen=True)
class Observable:
    """A float model that has inner tensors among its outputs.

    Attributes:
        model: its outputs are the tensors and the model's own outputs. The values of a tensor may be in any order
            within a sample.
        outputs: names of the model's own outputs, in their order; their layout is unchanged.
        tensors: names of the tensors to observe, each with the name of the node that computes it ("" for an input).
    """

    model: OnnxRuntimeModel
    outputs: tuple[str, ...]
    tensors: Mapping[str, str]


@dataclass(frozen=True)
class Observation:
    """Statistics of every tensor, in two halves: one of the even batches and one of the odd batches.

    Scales of one half, compared with those of all, show whether they had converged. The halves are interleaved, since
    with sorted data (by class, for example) the first and the last half would differ.

    Examples:
        >>> import numpy as np
        >>> observation = Observation.empty(["x"])
        >>> for half, values in zip(observation.halves, ([1.0, -3.0], [2.0])):
        ...     half["x"].update(np.array(values))
        >>> observation.statistics["x"].amax, observation.statistics["x"].count
        (3.0, 3)
    """

    halves: tuple[dict[str, Statistics], dict[str, Statistics]]

    @property
    def statistics(self) -> dict[str, Statistics]:
        """The statistics over all samples."""
        first, second = self.halves
        return {name: statistics.merge(second[name]) for name, statistics in first.items()}

    def merge(self, other: Observation) -> Observation:
        """Return the observation of the samples of both; `other` must be of the same tensors."""
        first, second = (
            {name: statistics.merge(theirs[name]) for name, statistics in ours.items()}
            for ours, theirs in zip(self.halves, other.halves, strict=True)
        )
        return Observation((first, second))

    @classmethod
    def empty(cls, tensors: Iterable[str]) -> Observation:
        """Return the observation of no sample."""
        names = list(tensors)
        return cls(({name: Statistics() for name in names}, {name: Statistics() for name in names}))


def workers() -> tuple[int, int]:
    """Return how many batches this machine should run in parallel, and the threads for each."""
    cores = os.cpu_count() or 1
    side_by_side = min(4, cores)  # each holds the activations of a batch
    return side_by_side, cores // side_by_side


def observable(prepared: ir.Model, tensors: Sequence[str], threads: int = 1) -> Observable:
    """Return the model with `tensors` among its outputs; it runs hardly slower than without.

    Args:
        prepared: what `calibrate.graph.preparation` returned; not changed.
        tensors: names of activations.
        threads: intra-op threads.
    """
    producers = {str(value.name): str(node.name) for node in prepared.graph for value in node.outputs}
    outputs = tuple(str(value.name) for value in prepared.graph.outputs)
    exposed = detach(expose(prepared, tuple(tensors)))
    names = {tensor: producers.get(tensor, "") for tensor in tensors}
    if weight_bytes(prepared) < _OPTIMIZED_BYTES:
        with tempfile.TemporaryDirectory(prefix="calibrate-") as folder:
            path = Path(folder) / "optimized.onnx"
            write_optimized(exposed, path)
            optimized = ir.load(path)
        if keep_blocked(optimized, set(tensors) - set(outputs)):
            return Observable(OnnxRuntimeModel(detach(optimized), threads=threads, optimize=False), outputs, names)
    return Observable(OnnxRuntimeModel(exposed, threads=threads), outputs, names)


def observe(
    source: Observable,
    batches: Iterable[Batch],
    on_batch: Callable[[Batch, Outputs], None],
    workers: int = 1,
    split: str = "calibration",
    on_doubling: OnDoubling | None = None,
) -> Observation:
    """Return the statistics of every tensor over the batches, in constant memory.

    Statistics do not depend on the order of the batches, so that each worker keeps its own and they are merged:
    the result is the same, bit for bit, for any number of workers.

    Args:
        source: the model; see `observable`.
        batches: calibration data.
        on_batch: called after each batch, in order, with the model's own outputs.
        workers: how many batches to run in parallel.
        split: name of the split, for errors.
        on_doubling: called after 1, 2, 4, 8, ... batches, while none is running.

    Raises:
        JobError: a tensor holds a NaN or an infinity; the message names tensor, node and sample.

    Examples:
        >>> import numpy as np
        >>> from calibrate.graph import prepare
        >>> model = prepare(ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 19]>
        ...     net (float[N, 2] x) => (float[N, 2] y) { y = Mul(x, x) }'''))
        >>> batch = Batch({"x": np.array([[-3.0, 2.0]], np.float32)}, labels=[None], contents=[b""], first=0)
        >>> observation = observe(observable(model, ["y"]), [batch], on_batch=lambda batch, outputs: None)
        >>> observation.statistics["y"].maximum
        9.0
    """
    shards = [Observation.empty(source.tensors) for _ in range(workers)]
    idle: queue.SimpleQueue[Observation] = queue.SimpleQueue()
    for shard in shards:
        idle.put(shard)
    running: deque[tuple[Batch, Future[Outputs]]] = deque()

    def work(batch: Batch, half: int) -> Outputs:
        shard = idle.get()
        try:
            outputs = source.model.run(batch.inputs)
            for tensor, statistics in shard.halves[half].items():
                try:
                    statistics.update(outputs[tensor])
                except NonFiniteError as error:
                    raise _not_finite(source, tensor, batch, outputs[tensor], error.row, split) from error
        finally:
            idle.put(shard)
        return {name: outputs[name] for name in source.outputs}

    def finish(but: int) -> None:
        while len(running) > but:
            done, outputs = running.popleft()
            on_batch(done, outputs.result())

    def seen(tensor: str) -> Statistics:
        return reduce(Statistics.merge, (half[tensor] for shard in shards for half in shard.halves))

    with ThreadPoolExecutor(workers, thread_name_prefix="observe") as pool:
        samples = 0
        for number, batch in enumerate(batches):
            samples += len(batch)
            running.append((batch, pool.submit(work, batch, number % 2)))
            finish(but=workers)
            if on_doubling is not None and number & (number + 1) == 0:
                finish(but=0)
                on_doubling(samples, seen)
        finish(but=0)
    return reduce(Observation.merge, shards)


def _not_finite(source: Observable, tensor: str, batch: Batch, values: NDArray[Any], row: int, split: str) -> JobError:
    node = source.tensors[tensor]
    if values.ndim > 0 and len(values) == len(batch):
        where = f"{split} sample {batch.first + row}"
    else:  # rows that are not samples: tokens, for one
        where = f"one of {split} samples {batch.first} to {batch.first + len(batch) - 1}"
    return JobError(
        f"activation {tensor}, {f'the output of node {node}' if node else 'an input of the model'}, is not finite for "
        f"{where}; the float model overflows there, or the "
        "preprocessing is wrong"
    )
