"""The public functions of `calibrate` on objects in memory, of which the command line is a client."""

from __future__ import annotations

import hashlib
import inspect
import logging
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import onnx
import onnx_ir as ir
from pydantic import ValidationError
from rich.console import Console

from calibrate import pipeline
from calibrate.config import Config, load
from calibrate.graph import apply, apply_checked, export_module
from calibrate.journal import Journal
from calibrate.loading import CalibrationInputs, FloatModel, load_model
from calibrate.observation import StoredStatistics, nodes_beyond_fp16, observe_calibration_set, write_statistics
from calibrate.output_folder import started_folder
from calibrate.plan import Exclusion, QuantizationPlan
from calibrate.strategies import PercentileStrategy, QuantizationConfig, make_plans, with_fp32_scales
from reports import tracking
from validate.backends import OnnxRuntimeModel, kind_of, model_name, module_of, parameter_names, read_onnx, write_onnx
from validate.data import Samples, SampleStream, repeats
from validate.exceptions import UsageError, first_line
from validate.notebook import can_show_progress, paragraphs, table
from validate.number_formats import FloatPrecision
from validate.passwords import without_passwords
from validate.results import Results
from validate.stats import Statistics

__all__ = ["Quantized", "quantize", "run", "run_and_track"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, repr=False)
class Quantized:
    """A model with a quantization plan: to save and deploy, and to judge with `validate.evaluate` and `compare`.

    Attributes:
        plan: scales, precisions, and the hash of the model that they are for.
        model: the float model, prepared.
        stored: what the calibration pass saw; `write_statistics` puts it on disk.
        warnings: what the user should know, as sentences.
    """

    plan: QuantizationPlan
    model: FloatModel
    stored: StoredStatistics
    warnings: tuple[str, ...]
    _files: Any  # a folder that a prepared model's large weights may still be read from

    @property
    def name(self) -> str:
        """What results call it: the plan's name."""
        return self.plan.name

    @cached_property
    def statistics(self) -> Mapping[str, Statistics]:
        """Statistics of every tensor that a plan may quantize, over all calibration samples."""
        return self.stored.observation.statistics

    def deployed(self) -> ir.Model:
        """Return the model to deploy, strongly typed, with Q/DQ pairs. Raises JobError where TensorRT's rules break."""
        return apply_checked(self.plan, self.model.prepared, self.model.placement, f"plan {self.name}")

    def simulation(self) -> ir.Model:
        """Return the float32 model that computes what the deployed one computes; accuracy is judged by it."""
        return apply(self.plan, self.model.prepared, self.model.placement, simulate=True)

    def to_onnx(self) -> onnx.ModelProto:
        """Return the model to deploy as a protobuf, which may have 2 GB at most."""
        return ir.to_proto(self.deployed())

    def save(self, path: Path | str) -> None:
        """Write the model to deploy as an ONNX file; weights of 1 GB or more go beside it, to ``NAME.data``.

        Raises UsageError where the file cannot be written, or is the float model itself.
        """
        file = Path(path)
        if not file.parent.is_dir():
            raise UsageError(f"{file} cannot be written: there is no folder {file.parent}")
        if file.resolve() == self.model.path.resolve():
            raise UsageError(f"{file} is the float model itself; name another file")
        deployed = self.deployed()
        try:
            write_onnx(deployed, file)
        except OSError as error:
            raise UsageError(f"{file} cannot be written: {error.strerror}") from error

    def save_statistics(self, path: Path | str) -> None:
        """Write the statistics, of which ``python -m calibrate plan`` makes further plans."""
        write_statistics(self.stored, Path(path))

    def __repr__(self) -> str:
        layers = f"{len(self.plan.int8_layers)} of {len(self.plan.layers)} layers in int8"
        return f"<Quantized: {self.name} of {self.model.info.path}, {layers}>"

    def _repr_html_(self) -> str:
        plan, placement = self.plan, self.model.placement
        rows = [
            ("model", self.model.info.path),
            ("strategy", plan.strategy),
            ("layers in int8", f"{len(plan.int8_layers)} of {len(plan.layers)}"),
            ("everything else", plan.float_precision),
            ("nodes that stay in float", str(len(placement.left_in_float))),
            ("calibration samples", str(self.stored.samples)),
        ]
        return table(plan.name, ("", ""), rows) + paragraphs(f"warning: {warning}" for warning in self.warnings)


def quantize(
    model: object,
    samples: Any,
    strategy: str | PercentileStrategy | Mapping[str, float] = "mse",
    *,
    float_precision: FloatPrecision = "fp16",
    weights: Literal["per_channel", "per_tensor"] = "per_channel",
    attention: bool = False,
    fp32_scales: Literal["auto", "always", "never"] = "auto",
    exclude: Exclusion | None = None,
    input_names: Sequence[str] | None = None,
    progress: bool = True,
) -> Quantized:
    """Quantize a float model to INT8, with scales that one pass over calibration samples gives.

    Args:
        model: path of an ONNX file, an `onnx.ModelProto`, or a `torch.nn.Module`, which is exported (a copy of it, in
            eval mode).
        samples: calibration samples, see `Samples`; labels are not needed. A few hundred are usual.
        strategy: how a tensor's range is chosen: minmax, entropy, mse, auto, or ``{"percentile": 99.99}``.
        float_precision: type of all that is not INT8. Nodes whose values FP16 cannot hold are found, and stay in FP32.
        weights: one scale per output channel, or one in all.
        attention: quantize products of two activations too.
        fp32_scales: keep scales in float32 where the rest is FP16; auto: where the TensorRT that is installed needs it,
            and where FP16 does not hold them to 1 %.
        exclude: nodes that stay in float.
        input_names: of a module, in the order of forward(); by default the names of its parameters.
        progress: show progress bars.

    Returns:
        the quantized model, which `validate.evaluate`, `validate.compare` and `save` take.

    Raises:
        UsageError: an argument is wrong.
        JobError: the model cannot be read, exported or quantized, or the samples cannot be read.

    Examples:
        >>> import numpy as np, onnx.parser
        >>> model = onnx.parser.parse_model('''
        ...     <ir_version: 9, opset_import: ["": 19]> small (float[N, 2] x) => (float[N, 2] y)
        ...     <float[2, 2] w = {1, 2, 3, 4}> { [dense] y = MatMul(x, w) }''')
        >>> samples = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
        >>> quantized = quantize(model, samples, "minmax", progress=False)
        >>> sorted(quantized.plan.int8_layers)
        ['dense']
        >>> bool(np.isclose(quantized.plan.scales["x"] * 127, abs(samples).max()))
        True
    """
    settings = _settings(
        strategies=[strategy],
        float_precision=float_precision,
        weights=weights,
        attention=attention,
        fp32_scales=fp32_scales,
        exclude=exclude or Exclusion(),
    )
    files = tempfile.TemporaryDirectory(prefix="calibrate-")
    with Journal(Console(), progress and can_show_progress()) as journal:
        with journal.stage("load", "load and prepare the model"):
            inputs = _calibration_inputs(model, Samples.of(samples), settings, input_names, Path(files.name))
        calibration = observe_calibration_set(inputs, journal)
        if warning := repeats("calibration", calibration.fingerprint.order, allowed=True):
            journal.warn(warning)
        origin, placement = calibration.origin(inputs), inputs.model.placement
        with journal.stage("plan", "find scales"):
            (plan,) = make_plans(settings, calibration.observation, placement, origin, journal)
        wide = nodes_beyond_fp16(inputs, calibration.statistics, journal)
    return Quantized(
        with_fp32_scales(plan.model_copy(update={"wide_nodes": wide}), settings, inputs.model),
        inputs.model,
        StoredStatistics(calibration.observation, origin, calibration.samples),
        tuple(journal.warnings),
        files,
    )


def run(
    config: Config | Path | str,
    output: Path | str | None = None,
    *,
    overrides: Sequence[str] = (),
    progress: bool = True,
) -> Results:
    """Do the whole job of a config, as ``python -m calibrate run`` does, and write its folder.

    Args:
        config: the job, or the path of its YAML file.
        output: folder; by default runs/NAME of the config.
        overrides: ``dotted.key=value``, as with ``--set``; of a file only.
        progress: show progress bars.

    Returns:
        the results, with the verdict; they are in ``results.json`` too, and in MLflow.

    Raises:
        UsageError: the config or the folder is wrong.
        JobError: the job cannot be finished; the log is ``run.log`` in the folder.
    """
    if isinstance(config, Config):
        settings, command = config, "calibrate.run(config)"
        if overrides:
            raise UsageError("overrides are for a config in a file; change the config itself")
    else:
        settings = load(Path(config), overrides)
    folder = Path("runs") / settings.name if output is None else Path(output)
    if not isinstance(config, Config):
        sets = [argument for override in overrides for argument in ("--set", override)]
        command = shlex.join(["python", "-m", "calibrate", "run", str(config), "--output", str(folder), *sets])
    with started_folder(folder), Journal(Console(), progress and can_show_progress()) as journal:
        return run_and_track(settings, folder, command, journal)[0]


def run_and_track(config: Config, folder: Path, command: str, journal: Journal) -> tuple[Results, str | None]:
    """Do the whole job in a folder that was started, and log it to MLflow.

    Returns:
        the results, and the command that shows them in MLflow; None where it did not take them, which costs a warning
        only: the verdict is on disk and stands.
    """
    results = pipeline.run(config, folder, command, journal)
    with journal.stage("tracking", "log to MLflow", 1):
        # Of the config itself, since results hold no password.
        destination = tracking.Destination.of(results, config.tracking.uri)
        return results, _track(results, folder, destination, config.tracking.retry_seconds, journal)


def _track(
    results: Results, folder: Path, destination: tracking.Destination, retry_seconds: float, journal: Journal
) -> str | None:
    """Log to MLflow; return the command that shows it there, or None where it was not taken."""
    try:
        tracking.log_results(results, folder, destination, retry_seconds)
    except Exception as error:  # whatever comes out of the clients of servers and of artifact stores
        log.exception("MLflow did not take the results")
        later = f"python -m reports log {shlex.quote(str(folder))}"
        journal.warn(f"{without_passwords(first_line(error))}; nothing is lost: {later} sends them")
        return None
    return tracking.ui_command(destination.uri)


def _settings(**settings: Any) -> QuantizationConfig:
    try:
        return QuantizationConfig(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else "quantize()"
        message = first["msg"].removeprefix("Value error, ")
        name = "strategy" if key == "strategies" else key
        raise UsageError(f"{name} {first['input']!r}: {message[:1].lower()}{message[1:]}") from error


def _calibration_inputs(
    model: object, samples: Samples, settings: QuantizationConfig, input_names: Sequence[str] | None, folder: Path
) -> CalibrationInputs:
    """Bring the model to a file, in `folder` where it is none, and open both."""
    kind, name = kind_of(model), model_name(model)
    stream: SampleStream | None = None
    if isinstance(model, str | Path) and kind == "onnx":
        path = Path(model)
    elif isinstance(model, onnx.ModelProto):
        path = folder / "model.onnx"
        onnx.save(model, path)
    elif kind == "pytorch":
        import torch

        path, module = folder / "model.onnx", module_of(model)
        if isinstance(module, torch.export.ExportedProgram):
            raise UsageError(f"{name} is an exported program; give the torch.nn.Module, or the ONNX file made of it")
        names = tuple(input_names or ()) or parameter_names(module)
        if names is None:
            raise UsageError(f"the inputs of {name} have no names; give input_names")
        stream = samples.stream("calibration", names)
        example = next(iter(stream.limited(stream.batch_size).batches()))
        export_module(module, example.inputs, path, name)
    else:
        raise UsageError(f"{name} cannot be quantized; give an ONNX file, an onnx.ModelProto or a torch.nn.Module")
    graph, reference = read_onnx(path), OnnxRuntimeModel(path)
    return CalibrationInputs(
        model=load_model(path, settings, graph, name),
        reference=reference,
        calibration=stream or samples.stream("calibration", reference.input_names, fixed_batch=reference.fixed_batch),
        preprocessing_sha256=_code_hash(samples.preprocess),
    )


def _code_hash(preprocess: Callable[[Any], Any] | None) -> str:
    """Return the SHA-256 of what turns a row into inputs: its name, and its source where that can be had."""
    digest = hashlib.sha256()
    if preprocess is not None:
        digest.update(getattr(preprocess, "__qualname__", type(preprocess).__qualname__).encode())
        try:
            digest.update(inspect.getsource(preprocess).encode())
        except (OSError, TypeError):
            log.info("the source of the preprocessing cannot be had, so that its name alone stands for it")
    return digest.hexdigest()
