"""``python -m validate``: comparison, evaluation, benchmark, engine build and gate, on models from anywhere.

``validate/__main__.py`` finds `app` by the entry point of that name, so that `validate` imports nothing from here.
"""

from __future__ import annotations

import logging
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reports.console import guarded

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Compare and judge models: ONNX files, PyTorch modules and TensorRT engines.",
)

PASSED, FAILED_THRESHOLDS = 0, 1
DECISIONS = {"GO": 0, "NO_GO": 1, "INCONCLUSIVE": 3}


class Device(StrEnum):
    """Device that models run on."""

    CPU = "cpu"
    CUDA = "cuda"


class Precision(StrEnum):
    """Float type of a PyTorch model."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class SplitName(StrEnum):
    """Split of a config's data."""

    CALIBRATION = "calibration"
    VALIDATION = "validation"


@app.callback()
def main() -> None:
    """Exit codes: 0 done, and within the thresholds, 1 not, or nothing was compared, 2 bad usage, 4 the job failed.

    Of gate: 0 GO, 1 NO-GO, 3 INCONCLUSIVE, 2 bad usage, 4 it could not be judged.
    """
    logging.basicConfig(level=logging.CRITICAL, format="%(message)s", force=True)  # errors are said by `guarded`


@app.command()
def compare(
    reference: Annotated[
        str | None, typer.Argument(help="FILE.onnx, FILE.engine, FILE.pt2, module:name or FILE.py:name")
    ] = None,
    candidate: Annotated[str | None, typer.Argument(help="model that is compared with it")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="a config with a section data, or an .npz with an array per input")
    ] = None,
    split: Annotated[SplitName, typer.Option("--split", help="samples of the config")] = SplitName.CALIBRATION,
    samples: Annotated[int, typer.Option("--samples", min=1, help="how many at most")] = 16,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 4,
    runtime: Annotated[
        str | None,
        typer.Option("--runtime", help="'integer' (ONNX Runtime's kernels) or an engine: what executes the candidate"),
    ] = None,
    device: Annotated[Device, typer.Option("--device", help="of the candidate, unless it is an engine")] = Device.CPU,
    precision: Annotated[Precision, typer.Option("--precision", help="of a PyTorch candidate")] = Precision.FP32,
    mapping: Annotated[
        Path | None, typer.Option("--map", help="YAML, tensor of the reference: tensor of the candidate")
    ] = None,
    thresholds: Annotated[Path | None, typer.Option("--thresholds", help="YAML; see docs/compare.md")] = None,
    rejudge: Annotated[
        Path | None, typer.Option("--rejudge", help="folder of an earlier comparison: judge it again, run nothing")
    ] = None,
    output: Annotated[Path, typer.Option("--output", help="output folder")] = Path("runs/compare"),
) -> None:
    """Compare a model with a reference layer by layer, and name the layers that make the error."""

    def job(console: Console) -> int:
        from validate.exceptions import NothingComparedError, UsageError
        from validate.layerwise import CompareRequest, compare_files

        command = shlex.join(["python", "-m", "validate", *sys.argv[1:]])
        if rejudge is not None:
            return _report(rejudge, thresholds, rejudge, console)
        if reference is None or candidate is None or data is None:
            raise UsageError(
                "compare needs two models and --data, or --rejudge with the folder of an earlier comparison"
            )
        request = CompareRequest(
            reference=reference,
            candidate=candidate,
            data=data,
            split=split.value,
            samples=samples,
            batch_size=batch_size,
            runtime=runtime,
            device=device.value,
            precision=precision.value,
            mapping=mapping,
        )
        try:
            found = compare_files(request, command, console)
        except NothingComparedError as error:
            console.print(f"FAIL: {error}", highlight=False, markup=False, soft_wrap=True)
            return FAILED_THRESHOLDS
        output.mkdir(parents=True, exist_ok=True)
        found.write(output)
        return _report(output, thresholds, output, console)

    guarded(job, lambda: None, lambda: "nothing was decided")


@app.command()
def build(
    model: Annotated[Path, typer.Argument(help="ONNX file", show_default=False)],
    output: Annotated[Path, typer.Option("--output", help="engine to write")] = Path("model.engine"),
    shapes: Annotated[
        list[str] | None,
        typer.Option("--shapes", help="of a dynamic input, x=1x3x224x224:4x3x224x224:8x3x224x224 (min:usual:max)"),
    ] = None,
    options: Annotated[Path | None, typer.Option("--options", help="YAML; see docs/compare.md")] = None,
    compute_capability: Annotated[
        str | None, typer.Option("--compute-capability", help="what TensorRT-RTX builds for, e.g. 8.9")
    ] = None,
) -> None:
    """Build a TensorRT engine and say what GPU and version it is for."""

    def job(console: Console) -> int:
        from validate.backends.tensorrt import build_from_onnx

        build_from_onnx(model, output, shapes or [], options, compute_capability, console)
        return PASSED

    guarded(job, lambda: None, lambda: "no engine was written")


@app.command()
def adopt(engine: Annotated[Path, typer.Argument(help="engine that something else built here")]) -> None:
    """Vouch that an engine was built on this GPU by the TensorRT that is installed, so that it may be loaded."""

    def job(console: Console) -> int:
        from validate.backends.tensorrt import adopt_engine

        adopt_engine(engine, console)
        return PASSED

    guarded(job, lambda: None, lambda: "nothing was written")


@app.command()
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            help="FILE.onnx, FILE.engine, FILE.pt2, module:name or FILE.py:name; the first is the reference"
        ),
    ],
    config: Annotated[Path, typer.Option("--config", help="YAML with sections data and task, as of a run")],
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="the first so many validation samples; by default all")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="by default the config's, or what a model is fixed to")
    ] = None,
    device: Annotated[Device, typer.Option("--device", help="of all but engines")] = Device.CPU,
    precision: Annotated[Precision, typer.Option("--precision", help="of PyTorch modules")] = Precision.FP32,
    output: Annotated[Path, typer.Option("--output", help="JSON to write")] = Path("evaluation.json"),
) -> None:
    """Score models on a config's validation samples, and say with an interval how much worse than the first each is."""

    def job(console: Console) -> int:
        from reports.terminal import evaluation_summary
        from validate.accuracy import EvaluateRequest, evaluate_files
        from validate.backends import Options
        from validate.exceptions import UsageError

        if not output.parent.is_dir():
            raise UsageError(f"--output {output}: there is no folder {output.parent}")
        request = EvaluateRequest(models, config, samples, batch_size, Options(device.value, precision.value))
        found = evaluate_files(request, shlex.join(["python", "-m", "validate", *sys.argv[1:]]), console)
        found.write(output)
        console.print(evaluation_summary(found, output))
        return PASSED

    guarded(job, lambda: None, lambda: "nothing was written")


@app.command()
def benchmark(
    models: Annotated[
        list[str], typer.Argument(help="FILE.onnx, FILE.engine, module:name or FILE.py:name; the first is the baseline")
    ],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="a config with a section data, or an .npz with an array per input; else random"),
    ] = None,
    batch_sizes: Annotated[
        str | None, typer.Option("--batch-sizes", help="e.g. 1,8; by default what the ONNX file is fixed to, or 1")
    ] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="timed calls of each model at each batch size")] = 100,
    loads: Annotated[
        int, typer.Option("--loads", min=1, help="how often the models are loaded; with 1, intervals are of one load")
    ] = 5,
    device: Annotated[Device, typer.Option("--device", help="of all but engines")] = Device.CPU,
    precision: Annotated[Precision, typer.Option("--precision", help="of PyTorch modules")] = Precision.FP32,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="intra-op; by default one for each CPU it may use")
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="time PyTorch modules by torch.compile too")] = False,
    cuda_graph: Annotated[bool, typer.Option(help="replay PyTorch modules and engines on a GPU as CUDA graphs")] = True,
    output: Annotated[Path, typer.Option("--output", help="JSON to write")] = Path("latency.json"),
) -> None:
    """Time models in turns, and say with an interval how many times as long as the first each takes."""

    def job(console: Console) -> int:
        from reports.terminal import latency_summary
        from validate.exceptions import UsageError
        from validate.latency import BenchmarkRequest, benchmark_models, specs_of

        if not output.parent.is_dir():
            raise UsageError(f"--output {output}: there is no folder {output.parent}")
        sizes = None if batch_sizes is None else batch_sizes.split(",")
        if sizes is not None and not all(size.isascii() and size.isdigit() and int(size) for size in sizes):
            raise UsageError(f"--batch-sizes {batch_sizes} should be numbers from 1 on, with commas, such as 1,8")
        request = BenchmarkRequest(
            specs=specs_of(models, compiled),
            data=data,
            batch_sizes=None if sizes is None else [int(x) for x in sizes],
            runs=runs,
            loads=loads,
            device=device.value,
            precision=precision.value,
            threads=threads,
            cuda_graph=cuda_graph,
        )
        report = benchmark_models(request, shlex.join(["python", "-m", "validate", *sys.argv[1:]]), console)
        report.write(output)
        console.print(latency_summary(report, output))
        return PASSED

    guarded(job, lambda: None, lambda: "nothing was written")


@app.command()
def gate(
    results: Annotated[
        Path | None, typer.Argument(metavar="RESULTS", help="results.json, or the folder that a run wrote")
    ] = None,
    policy: Annotated[Path | None, typer.Option("--policy", help="YAML; see docs/gate.md", show_default=False)] = None,
    mlflow_run: Annotated[
        str | None, typer.Option("--mlflow-run", metavar="ID", help="run of a job in MLflow, in place of RESULTS")
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option("--tracking-uri", help="of MLflow [default: the run's, else MLFLOW_TRACKING_URI, else sqlite]"),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            metavar="[NAME@]ALIAS",
            help="compare with the registered model that holds an alias, e.g. champion; NAME is that of --register, or "
            "of the run's config",
        ),
    ] = None,
    engine: Annotated[Path | None, typer.Option("--engine", help="TensorRT engine that is to be deployed")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="JUnit XML to write")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Markdown summary to write")] = None,
    register: Annotated[
        str | None,
        typer.Option(
            "--register",
            metavar="NAME",
            help="make the model a version of this registered model, and on GO its champion",
        ),
    ] = None,
) -> None:
    """Judge the results of a run by a policy, without running anything again. Exits 0 GO, 1 NO-GO, 3 INCONCLUSIVE."""

    def job(console: Console) -> int:
        from reports.release import ReleaseRequest, release
        from validate.exceptions import UsageError

        if policy is None:
            raise UsageError("gate needs --policy with a YAML file; see docs/gate.md")
        request = ReleaseRequest(
            results=results,
            mlflow_run=mlflow_run,
            tracking_uri=tracking_uri,
            policy=policy,
            baseline=baseline,
            engine=engine,
            junit=junit,
            markdown=markdown,
            register=register,
        )
        return DECISIONS[release(request, console).value]

    guarded(job, lambda: None, lambda: "nothing was decided")


def _report(folder: Path, thresholds: Path | None, output: Path, console: Console) -> int:
    """Judge a saved comparison, write its page and print its table; return the exit code."""
    from reports.pages import write_comparison_page
    from reports.terminal import comparison_summary
    from validate.layerwise import Comparison, Thresholds, judge
    from validate.settings import read_settings

    comparison = Comparison.read(folder)
    limits = read_settings(Thresholds, thresholds) if thresholds else Thresholds()
    judgement = judge(comparison, limits)
    output = output if output.is_dir() else output.parent
    judgement.write(output / "judgement.json")
    write_comparison_page(comparison, judgement, limits, output / "comparison.html")
    console.print(comparison_summary(comparison, judgement, output))
    return PASSED if judgement.passed else FAILED_THRESHOLDS
