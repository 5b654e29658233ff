"""``python -m calibrate``: the command line. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import shlex
import sys
from enum import IntEnum
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from reports.console import guarded, step

if TYPE_CHECKING:
    from rich.console import Console

    from calibrate.config import Config

__all__ = ["ExitCode", "app"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Decide whether a neural network may be released in INT8 on NVIDIA GPUs, and at what price.",
)


ConfigArgument = Annotated[Path, typer.Argument(help="the job, in YAML", show_default=False)]
OverridesOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key, e.g. policy.max_drop=0.01")
]
PlanArgument = Annotated[Path, typer.Argument(help="plan, as run and plan write it", show_default=False)]
ModelArgument = Annotated[Path, typer.Argument(help="float ONNX model", show_default=False)]


class ExitCode(IntEnum):
    """Exit code of the command line, for release pipelines."""

    GO = 0
    NO_GO = 1
    USAGE = 2
    INCONCLUSIVE = 3
    FAILED = 4


@app.callback()
def main() -> None:
    """Exit codes: 0 GO, 1 NO-GO, 2 bad usage or config, 3 INCONCLUSIVE, 4 the job failed.

    Steps other than run end with 0, 2 or 4.
    """


@app.command()
def run(
    config: ConfigArgument,
    overrides: OverridesOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="output folder [default: runs/NAME of the config]")
    ] = None,
) -> None:
    """Calibrate, compare, put back to FP16, judge: the whole job."""
    folder: Path | None = None

    def job(console: Console) -> ExitCode:
        nonlocal folder
        settings = _config(config, overrides)
        folder = output or Path("runs") / settings.name
        from calibrate.output_folder import start_folder

        start_folder(folder)
        return _run(settings, folder, console)

    def interrupted() -> str:
        if folder is not None and (folder / "results.json").exists():
            return f"the results are in {folder}, but MLflow may lack some: python -m reports log {folder} sends them"
        return "nothing was decided"

    guarded(job, lambda: folder, interrupted)


@app.command()
def observe(
    config: ConfigArgument,
    overrides: OverridesOption = None,
    output: Annotated[Path, typer.Option("--output", help="file to write")] = Path("statistics.npz"),
) -> None:
    """Write the statistics of the calibration set to a file."""
    step(lambda console: _commands().observe(_config(config, overrides), output, console))


@app.command()
def plan(
    config: ConfigArgument,
    statistics: Annotated[list[Path], typer.Argument(help="what observe wrote; several are merged")],
    overrides: OverridesOption = None,
    output: Annotated[Path, typer.Option("--output", help="folder of the plans")] = Path("plans"),
) -> None:
    """Make a plan from statistics for every strategy of the config, without inference."""
    step(lambda console: _commands().plan(_config(config, overrides), statistics, output, console))


@app.command()
def apply(
    plan: PlanArgument,
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", help="ONNX file to write")] = Path("model.int8.onnx"),
) -> None:
    """Write a plan into its float model, as Q/DQ nodes that TensorRT accepts."""
    step(lambda console: _commands().apply(plan, model, output, console))


@app.command()
def inspect(model: ModelArgument) -> None:
    """Show which nodes of a model can be quantized, which not, and why."""
    step(lambda console: _commands().inspect(model, console))


@app.command()
def export_cache(
    plan: PlanArgument,
    tensorrt: Annotated[str, typer.Option("--tensorrt", help="version that will read it, e.g. 8.6.1")],
    output: Annotated[Path, typer.Option("--output", help="file to write")] = Path("calibration.cache"),
) -> None:
    """Write a plan as a calibration cache for TensorRT 10 and older."""
    step(lambda console: _commands().export_cache(plan, output, tensorrt, console))


@app.command()
def import_cache(
    cache: Annotated[Path, typer.Argument(help="calibration cache of TensorRT 10 or older", show_default=False)],
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", help="plan to write")] = Path("plan.json"),
) -> None:
    """Make a plan from a calibration cache and its float model."""
    step(lambda console: _commands().import_cache(cache, model, output, console))


@app.command()
def schema() -> None:
    """Print the JSON Schema of the config, for editors and checks."""
    from calibrate.config import Config

    print(json.dumps(Config.model_json_schema(), indent=2))


def _config(path: Path, overrides: list[str] | None) -> Config:
    from calibrate.config import load

    return load(path, overrides or [])


def _commands() -> ModuleType:
    from calibrate.commands import steps as commands

    return commands


def _run(config: Config, folder: Path, console: Console) -> ExitCode:
    from calibrate.api import run_and_track
    from calibrate.journal import Journal
    from reports.terminal import run_summary

    command = shlex.join(["python", "-m", "calibrate", *sys.argv[1:]])
    console.print(f"[bold]calibrate[/] {config.name} -> {folder}", highlight=False)
    with Journal(console) as journal:
        results, hint = run_and_track(config, folder, command, journal)
    console.print(run_summary(results, folder, hint))
    return ExitCode[results.verdict.decision.value]
