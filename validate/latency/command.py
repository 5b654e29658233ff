"""The benchmark command: times models in turns and reports what disturbed the machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import Progress

from validate.backends import kind_of
from validate.environment import environment
from validate.exceptions import UsageError
from validate.latency.clocks import (
    Load,
    available_cpus,
    busy_before,
    disturbances,
    pinned,
    read_clocks,
    read_machine,
)
from validate.latency.inputs import (
    BATCHES,
    Arrays,
    Signature,
    batches_of,
    random_samples,
    samples_from,
    signature_of,
)
from validate.latency.report import BatchTimings, Conditions, LatencyReport, ModelTiming
from validate.latency.rounds import (
    MIN_PAIRS,
    Batches,
    Blocks,
    Timed,
    calls_of_rounds,
    interleave,
    order,
    summarize,
    warm_up,
)
from validate.latency.runners import Loaded, Spec, load, torch_threads
from validate.number_formats import FloatPrecision

__all__ = [
    "BatchTimings",
    "BenchmarkRequest",
    "Conditions",
    "LatencyReport",
    "ModelTiming",
    "benchmark_models",
    "specs_of",
]

_P99_RUNS = 100
"""Below this no call need be beyond the 99th percentile."""


@dataclass(frozen=True)
class BenchmarkRequest:
    """Arguments of the benchmark command; see its options.

    Attributes:
        specs: the baseline first.
        batch_sizes: by default the one that an ONNX file is fixed to, or 1.
        runs: timed calls of each model at each batch size, over all loads.
        loads: how often the models are loaded; each time in another order, and so at other places in memory.
        threads: by default as many as the process may use CPUs.
    """

    specs: Sequence[Spec]
    data: Path | None = None
    batch_sizes: Sequence[int] | None = None
    runs: int = 100
    loads: int = 5
    device: Literal["cpu", "cuda"] = "cpu"
    precision: FloatPrecision = "fp32"
    threads: int | None = None
    cuda_graph: bool = True


def specs_of(models: Sequence[str], compiled: bool) -> list[Spec]:
    """Return a spec of each model, in the user's order.

    A model that is listed twice gets a number: timing a model against itself tests the benchmark.

    Args:
        models: see `kind_of`.
        compiled: put each PyTorch module compiled after itself.

    Raises:
        UsageError: one of them does not exist, or `compiled` is asked for and none is a module.

    Examples:
        >>> [spec.name for spec in specs_of(["models.py:resnet18", "models.py:resnet18"], compiled=False)]
        ['models.py:resnet18', 'models.py:resnet18 #2']
    """
    modules = [model for model in models if kind_of(model) == "pytorch"]
    if compiled and not modules:
        raise UsageError("--compile is for PyTorch modules (FILE.py:name), and none is given")
    found: list[Spec] = []
    for model in models:
        again = sum(spec.model == model and not spec.compiled for spec in found)
        name = f"{model} #{again + 1}" if again else model
        found.append(Spec(name, model))
        if compiled and model in modules:
            found.append(Spec(f"{name} (torch.compile)", model, compiled=True))
    return found


def benchmark_models(request: BenchmarkRequest, command: str, console: Console) -> LatencyReport:
    """Time the models in turns, and return the report.

    Raises:
        UsageError: a file, a name or a number is wrong.
        JobError: a model cannot be loaded or run.
    """
    kinds = [kind_of(spec.model) for spec in request.specs]
    threads = request.threads or available_cpus()
    if threads > available_cpus():
        raise UsageError(f"--threads {threads} is more than the {available_cpus()} CPUs that this process may use")
    files = [Path(spec.model) for spec, kind in zip(request.specs, kinds, strict=True) if kind == "onnx"]
    signatures = {path: signature_of(path) for path in files}
    sizes = _batch_sizes(request.batch_sizes, signatures)
    samples = _samples(request.data, signatures, max(sizes) * BATCHES)
    gpu = request.device == "cuda" or "engine" in kinds
    with ExitStack() as stack:
        # Before anything is loaded: threads that are there already would not be pinned.
        cpus = stack.enter_context(pinned(threads))
        machine = read_machine(threads, cpus)
        if "pytorch" in kinds and importlib.util.find_spec("torch"):
            stack.enter_context(torch_threads(threads))
        # It draws between rounds only; a thread that draws would be timed too.
        progress = stack.enter_context(Progress(console=console, transient=True, auto_refresh=False))
        inputs = {size: batches_of(samples, size) for size in sizes}
        found = _timed(request, threads, inputs, lambda: _ConditionsMonitor(cpus, gpu), progress)
    disturbed = [
        f"at batch size {each.batch_size}, {sentence}"
        for each in found
        for watched in each.loads
        for sentence in disturbances(watched.before, watched.after, watched.others)
    ]
    return LatencyReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        inputs=str(request.data) if request.data else "standard normal, shapes as the ONNX file declares",
        machine=machine,
        batch_sizes=found,
        warnings=list(dict.fromkeys([*busy_before(machine), *disturbed])),
        notes=_notes(request, found, kinds),
        environment=environment(),
    )


class _ConditionsMonitor:
    """Reads the clocks and the load of the machine before and after a timing."""

    def __init__(self, cpus: Sequence[int], gpu: bool) -> None:
        self._cpus, self._gpu = cpus, gpu
        self._before, self._load = read_clocks(cpus, gpu), Load(cpus)

    def end(self) -> Conditions:
        others = self._load.of_others()
        return Conditions(before=self._before, after=read_clocks(self._cpus, self._gpu), others=others)


def _timed(
    request: BenchmarkRequest,
    threads: int,
    inputs: Mapping[int, Batches],
    monitor: Callable[[], _ConditionsMonitor],
    progress: Progress,
) -> list[BatchTimings]:
    """Load the models again and again, and time them at every batch size each time."""
    loads = min(request.loads, request.runs)
    runs = [request.runs // loads + (number < request.runs % loads) for number in range(loads)]
    specs = {spec.name: spec for spec in request.specs}
    blocks: dict[int, list[dict[str, Blocks]]] = {size: [] for size in inputs}
    conditions: dict[int, list[Conditions]] = {size: [] for size in inputs}
    timed: dict[int, dict[str, Timed]] = {}
    loaded: dict[str, Loaded] = {}
    bar = progress.add_task("time", total=len(inputs) * sum(len(calls_of_rounds(calls)) for calls in runs))

    def advance() -> None:
        progress.advance(bar)
        progress.refresh()

    for number, calls in enumerate(runs):
        # Their memory is free before the models are loaded again, in another order.
        timed.clear()
        loaded.clear()
        for name in order(list(specs), number):
            loaded[name] = load(specs[name], request.device, threads, request.precision, request.cuda_graph)
        for size, batches in inputs.items():
            ready = {name: model.timed(batches) for name, model in loaded.items()}
            timed[size] = {name: ready[name] for name in specs}
            del ready
            for name in specs:
                warm_up(timed[size][name], len(batches))
            running = monitor()
            blocks[size].append(interleave(timed[size], len(batches), calls, advance))
            conditions[size].append(running.end())
    return [
        BatchTimings(
            batch_size=size,
            batches=len(batches),
            loads=conditions[size],
            models=[
                ModelTiming(
                    **dict(timing),
                    name=name,
                    model=specs[name].model,
                    timing=loaded[name].timing,
                    cuda_graph=getattr(timed[size][name], "cuda_graph", None),
                    note=getattr(timed[size][name], "reason", None),
                )
                for name, timing in summarize(timed[size], blocks[size], size).items()
            ],
        )
        for size, batches in inputs.items()
    ]


def _batch_sizes(wanted: Sequence[int] | None, signatures: dict[Path, Signature]) -> list[int]:
    fixed = {path: found.fixed_batch for path, found in signatures.items() if found.fixed_batch is not None}
    sizes = list(dict.fromkeys(wanted or sorted(set(fixed.values())) or [1]))
    for path, size in fixed.items():
        if sizes != [size]:
            raise UsageError(f"{path} takes batches of {size} and no other size; give --batch-sizes {size}")
    return sizes


def _samples(data: Path | None, signatures: dict[Path, Signature], number: int) -> Arrays:
    first = next(iter(signatures.values()), None)
    if data is not None:
        return samples_from(data, list(first.shapes) if first else None, number)
    if first is None:
        raise UsageError("random inputs are made by the shapes of an ONNX file; give one among the models, or --data")
    return random_samples(first, number)


def _notes(request: BenchmarkRequest, found: Sequence[BatchTimings], kinds: Sequence[str]) -> list[str]:
    notes = []
    if request.runs < _P99_RUNS:
        notes.append(f"{request.runs} calls hardly say what p99 is; ask for at least {_P99_RUNS} with --runs")
    several = len(request.specs) > 1
    pairs, by = len(found[0].models[0].p50s_ms), found[0].models[0].paired_by
    if several and pairs < MIN_PAIRS:
        notes.append(f"{pairs} {by}s give no interval; ask for at least {MIN_PAIRS} with --loads and --runs")
    elif several and by == "round":
        notes.append(
            "the intervals are of one load of the models; another load of one model was 5% faster on an "
            "H100 (docs/latency.md); --loads 5 has that in them"
        )
    if any(each.batches == 1 for each in found):
        notes.append("the data hold one sample, so that every call has the same inputs")
    if request.data is None:
        notes.append("random inputs: where the time depends on values, give real samples with --data")
    if len({model.timing for each in found for model in each.models}) > 1:
        notes.append("the models were not timed in the same way, and their ratios hold that difference too")
    if "pytorch" in kinds and request.device == "cuda" and request.precision == "fp32":
        notes.append("PyTorch's defaults hold: TF32 in convolutions, not in products of matrices")
    return notes
