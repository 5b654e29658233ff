"""Workflow of a release pipeline: fetches results, judges them, shows the verdict, registers the model."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from reports import format as fmt
from reports.release.junit import write_junit
from reports.release.markdown import write_markdown
from reports.release.registry import Registry
from reports.terminal import verdict_panel
from reports.tracking import Destination, default_uri, log_results
from validate.exceptions import JobError, UsageError
from validate.passwords import without_passwords
from validate.results import Decision, Results
from validate.settings import read_settings
from validate.verdict import Champion, Policy, champion_at, judge_again

__all__ = ["ReleaseRequest", "release"]


@dataclass(frozen=True)
class ReleaseRequest:
    """Options of a release check.

    Attributes:
        results: path of results.json or of its folder; None where `mlflow_run` is given.
        mlflow_run: id of a job's run in MLflow; None where `results` is given.
        tracking_uri: of MLflow; None: the config's, else that of the environment.
        policy: path of a YAML file.
        baseline: alias, or NAME@ALIAS, of a registered model to compare with; None: no comparison.
        engine: path of the TensorRT engine that is to be deployed.
        junit, markdown: files to write.
        register: name of the registered model of which the job's model becomes a version.
    """

    results: Path | None
    mlflow_run: str | None
    tracking_uri: str | None
    policy: Path
    baseline: str | None = None
    engine: Path | None = None
    junit: Path | None = None
    markdown: Path | None = None
    register: str | None = None


def release(request: ReleaseRequest, console: Console) -> Decision:
    """Judge results that were measured before, print the verdict, write the files, and register the model.

    Args:
        request: options.
        console: to print on.

    Returns:
        The decision.

    Raises:
        UsageError: the options contradict each other, or a file of them cannot be read.
        JobError: a file is damaged, or MLflow fails.
    """
    if (request.results is None) == (request.mlflow_run is None):
        raise UsageError("gate needs either RESULTS or --mlflow-run")
    for option, path in (("--junit", request.junit), ("--markdown", request.markdown)):
        if path is not None and not path.parent.is_dir():
            raise UsageError(f"{option} {path}: there is no folder {path.parent}")
    policy = read_settings(Policy, request.policy)
    with tempfile.TemporaryDirectory(prefix="gate-") as temporary:
        if request.mlflow_run is not None:
            folder, uri = Path(temporary), default_uri(request.tracking_uri)
            if not Registry(uri).download(request.mlflow_run, folder):
                raise JobError(
                    f"run {request.mlflow_run} at {without_passwords(uri)} has no results.json; name the run of a job, "
                    "not one of its candidates, and complete it with python -m reports log"
                )
            results = Results.read(folder)
        else:
            assert request.results is not None
            results = Results.read(request.results)
            folder = request.results if request.results.is_dir() else request.results.parent
        champion = _champion(request, results) if request.baseline is not None else None
        judged = judge_again(results, folder, policy, request.engine, champion)
        if request.junit is not None:
            write_junit(judged, request.junit)
        if request.markdown is not None:
            write_markdown(judged, request.markdown)
        console.print(verdict_panel(judged))
        if request.register is not None:
            said = _register(request, request.register, results, folder, judged)
            console.print(Text(fmt.printable(said)), soft_wrap=True)
    return judged.verdict.decision


def _uri(request: ReleaseRequest, results: Results) -> str:
    """Return the server: for a run that was named, the one that it was found on."""
    if request.mlflow_run is not None:
        return default_uri(request.tracking_uri)
    return Destination.of(results, request.tracking_uri).uri


def _champion(request: ReleaseRequest, results: Results) -> Champion:
    name, _, alias = str(request.baseline).rpartition("@")
    name = name or request.register or str(results.config.get("name", ""))
    registry = Registry(_uri(request, results))
    live = registry.version_with_alias(name, alias)
    if live is None:
        return Champion(f"{name}@{alias}", problem=f"no version of {name} holds the alias {alias} yet", is_absent=True)
    if live.run_id is None:
        return Champion(live.label, problem="it came from no run, so that there are no samples to compare on")
    with tempfile.TemporaryDirectory(prefix="champion-") as temporary:
        if not registry.download(live.run_id, Path(temporary)):
            return Champion(live.label, problem="its run has no results.json, so that there is nothing to compare with")
        return champion_at(live.label, Path(temporary))


def _register(request: ReleaseRequest, name: str, results: Results, folder: Path, judged: Results) -> str:
    """Register the model of the job's run, which is completed first where it lacks something."""
    uri, run_id = _uri(request, results), request.mlflow_run
    registry = Registry(uri)
    if run_id is None:
        log_results(results, folder, Destination.of(results, uri))
        run_id = registry.run_of(results, folder)
    return registry.register(name, results, run_id, judged.verdict)
