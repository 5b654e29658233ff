"""Progress bars, timings, forward passes and warnings of a run."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from validate.data import Batch
from validate.results import ForwardPasses

__all__ = ["Journal"]

log = logging.getLogger(__name__)


class Journal:
    """Records times of stages, forward passes and warnings, and draws progress bars. Use it as a context manager.

    Args:
        console: to draw on.

    Attributes:
        timings: seconds by stage.
        warnings: in order.
    """

    def __init__(self, console: Console, progress: bool = True) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not progress,
        )
        self.timings: dict[str, float] = defaultdict(float)
        self.warnings: list[str] = []
        self._passes: dict[str, int] = defaultdict(int)
        self._samples: dict[str, int] = defaultdict(int)

    def __enter__(self) -> Journal:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time of the block to that of stage `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.timings[name] += time.perf_counter() - started

    @contextmanager
    def bar(self, description: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Show a progress bar during the block, and yield a function that advances it by a number of steps.

        Args:
            description: shown beside the bar.
            total: number of steps; None where it is not known beforehand.
        """
        task = self._progress.add_task(escape(description), total=total)
        yield lambda steps: self._progress.advance(task, steps)
        completed = self._progress.tasks[task].completed or 1
        self._progress.update(task, total=completed, completed=completed)
        log.info("%s: done in %.1f s", description, self._progress.tasks[task].elapsed or 0.0)

    @contextmanager
    def stage(self, name: str, description: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Time a stage under `name` and show its bar."""
        with self.timed(name), self.bar(description, total) as advance:
            yield advance

    def forward(self, stage: str, batches: Iterable[Batch], models: int = 1) -> Iterator[Batch]:
        """Yield the batches, and count their samples, times `models`, as forward passes of `stage`."""
        self._passes[stage] += models
        for batch in batches:
            self._samples[stage] += models * len(batch)
            yield batch

    def forwarded(self, stage: str, samples: int) -> None:
        """Count one more forward pass of `stage`, over that many samples."""
        self._passes[stage] += 1
        self._samples[stage] += samples

    def warn(self, message: str) -> None:
        """Record a warning for the results, log it and print it."""
        self.warnings.append(message)
        log.warning(message)
        self._progress.console.print(f"[yellow]warning:[/] {escape(message)}", highlight=False)

    @property
    def forward_passes(self) -> list[ForwardPasses]:
        """Forward passes of every stage so far."""
        return [ForwardPasses(stage=s, passes=n, samples=self._samples[s]) for s, n in self._passes.items()]
