"""The output folder of a run: which files are ours, its log, and the order in which results are written."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from validate.exceptions import UsageError

if TYPE_CHECKING:
    from calibrate.observation import StoredStatistics
    from calibrate.plan import QuantizationPlan
    from validate.results import Illustrations, Results

__all__ = ["start_folder", "started_folder", "write_folder"]

_PACKAGES = ("calibrate", "reports", "validate")
_OURS = (
    "results.json",
    "samples.parquet",
    "plan.json",
    "plan.weights.npz",
    "plans",
    "statistics.npz",
    "model.int8.onnx",
    "model.int8.onnx.data",
    "model.engine",
    "model.engine.json",
    "illustrations.json",
    "report.html",
    "run.log",
)


def start_folder(folder: Path) -> None:
    """Remove an earlier run's files from the folder, so that no stale verdict can be read, and log this process.

    Cached evaluations stay, so that an interrupted run resumes: their names depend on all that they depend on.

    Raises:
        UsageError: the folder holds files that no run wrote, or cannot be written.
    """
    logging.basicConfig(level=logging.WARNING, handlers=[_emptied(folder)], force=True)
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)
    logging.captureWarnings(True)


@contextmanager
def started_folder(folder: Path) -> Iterator[None]:
    """Empty the folder as `start_folder` does, and log to it what is ours, in a process that logs as it likes."""
    handler, loggers = _emptied(folder), [logging.getLogger(package) for package in _PACKAGES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    except BaseException:
        logging.getLogger(__name__).exception("the job failed")
        raise
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
        handler.close()


def _emptied(folder: Path) -> logging.Handler:
    """Make the folder, or empty it of an earlier run's files, and return what logs to it; see `start_folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (folder / "run.log").is_file():
            raise UsageError(f"output folder {folder} holds files that no run wrote; name a new one with --output")
        for name in _OURS:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        handler = logging.FileHandler(folder / "run.log", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"output folder {folder} cannot be written: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


def write_folder(
    results: Results,
    plans: Sequence[QuantizationPlan],
    statistics: StoredStatistics,
    illustrations: Illustrations,
    candidates: Path,
    output: Path,
) -> None:
    """Write the output folder; results.json last, so that it is there only when all else is.

    Args:
        results: of the run.
        plans: of all candidates.
        statistics: of the calibration set.
        illustrations: histograms, curves and pictures of the report.
        candidates: folder with a subfolder for each candidate's ONNX file.
        output: folder to write.
    """
    from calibrate.observation import write_statistics
    from reports.pages import write_run_page
    from validate.results import ILLUSTRATIONS

    write_statistics(statistics, output / "statistics.npz")
    illustrations.write(output / ILLUSTRATIONS)
    (output / "plans").mkdir(parents=True, exist_ok=True)
    for plan in plans:
        plan.write(output / "plans" / f"{plan.name}.json")
    selected = next(plan for plan in plans if plan.name == results.selected)
    selected.write(output / "plan.json")
    for file in (candidates / selected.name).iterdir():  # a large model's weights are beside it
        if file.is_file():
            shutil.copyfile(file, output / file.name)
    write_run_page(results, output / "report.html")
    results.write(output / "results.json")
