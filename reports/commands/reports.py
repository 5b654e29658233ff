"""``python -m reports``: shows results that are on disk, without running anything again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reports.console import guarded, step

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Show the results of a run again, without running anything.",
)

ResultsArgument = Annotated[
    Path, typer.Argument(metavar="RESULTS", help="results.json, or the folder that a run wrote", show_default=False)
]


@app.callback()
def main() -> None:
    """Exit codes: 0 done, 2 bad usage, 4 it could not be done."""


@app.command()
def html(
    results: ResultsArgument,
    output: Annotated[
        Path | None, typer.Option("--output", help="file to write [default: report.html beside the results]")
    ] = None,
) -> None:
    """Write the HTML report."""

    def job(console: Console) -> None:
        from reports.pages import write_run_page
        from validate.results import Results

        path = output or _folder(results) / "report.html"
        write_run_page(Results.read(results), path, _folder(results))
        console.print(f"report {path}", highlight=False, markup=False, soft_wrap=True)

    step(job)


@app.command()
def log(
    results: ResultsArgument,
    tracking_uri: Annotated[
        str | None,
        typer.Option("--tracking-uri", help="[default: the config's, else MLFLOW_TRACKING_URI, else sqlite]"),
    ] = None,
    experiment: Annotated[str | None, typer.Option("--experiment", help="[default: the config's]")] = None,
    name: Annotated[str | None, typer.Option("--name", help="of the run [default: the config's]")] = None,
    retry_seconds: Annotated[
        float, typer.Option("--retry-seconds", min=0, help="how long a server that fails is tried again")
    ] = 20,
) -> None:
    """Send the results to MLflow; what an earlier attempt has sent is completed, and never sent twice."""
    logging.basicConfig(level=logging.CRITICAL, format="%(message)s", force=True)

    def job(console: Console) -> int:
        from reports.tracking import Destination, log_results, ui_command
        from validate.results import Results

        read = Results.read(results)
        destination = Destination.of(read, tracking_uri, experiment, name)
        sent = log_results(read, _folder(results), destination, retry_seconds)
        done = "logged" if sent else "everything was there already"
        console.print(f"{done}: {ui_command(destination.uri)}", highlight=False, markup=False, soft_wrap=True)
        return 0

    guarded(job, lambda: None, lambda: "MLflow may lack some; the same command completes it")


def _folder(results: Path) -> Path:
    return results if results.is_dir() else results.parent
