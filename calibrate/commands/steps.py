"""The steps of a run as single commands: observe, plan, apply, inspect, and calibration caches.

Each step reads the files of the one before, and refuses those of another model or another version of this package.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from calibrate.config import Config
from calibrate.graph import apply_checked
from calibrate.journal import Journal
from calibrate.loading import FloatModel, load_inputs, load_model, onnx_file
from calibrate.observation import StoredStatistics, merged, observe_calibration_set, write_statistics
from calibrate.plan import Origin, QuantizationPlan, QuantizationRules, companion, read_cache, write_cache
from calibrate.strategies import make_plans, plan_of_scales, with_fp32_scales
from validate.backends import write_onnx
from validate.exceptions import JobError, UsageError

__all__ = ["apply", "export_cache", "import_cache", "inspect", "observe", "plan"]


def observe(config: Config, output: Path, console: Console) -> None:
    """Write the statistics of the calibration set to a file."""
    if not output.parent.is_dir():  # said before the work, not after it
        raise UsageError(f"{output} cannot be written: there is no folder {output.parent}")
    with tempfile.TemporaryDirectory(prefix="calibrate-") as folder, Journal(console) as journal:
        with journal.stage("load", "load and prepare the model"):
            inputs = load_inputs(config, config.quantization, Path(folder))
        found = observe_calibration_set(inputs, journal)
        if warning := config.data.repeats("calibration", found.fingerprint.order):
            journal.warn(warning)
        stored = StoredStatistics(found.observation, found.origin(inputs), found.samples)
        write_statistics(stored, output)
    console.print(f"{output}: {len(found.statistics)} tensors, {stored.samples} samples", highlight=False)


def plan(config: Config, statistics: Sequence[Path], output: Path, console: Console) -> None:
    """Write a plan for every strategy of the config, without inference.

    Args:
        config: its model and its section `quantization` are used.
        statistics: one file, or several of parts of the data.
        output: folder.
        console: where to say what was written.
    """
    stored = merged(statistics)
    with tempfile.TemporaryDirectory(prefix="calibrate-") as folder, Journal(console) as journal:
        model = load_model(onnx_file(config, Path(folder)), config.quantization, name=config.model.torch)
        stored.origin.require_model(f"statistics {statistics[0]}", model.info.sha256, model.info.path)
        observed = stored.observation.halves[0].keys()
        if missing := set(model.placement.tensors()) - observed:
            raise JobError(
                f"statistics {statistics[0]} lacks tensor {min(missing)}, which this config quantizes; observe again "
                "with this config"
            )
        plans = make_plans(config.quantization, stored.observation, model.placement, stored.origin, journal)
    output.mkdir(parents=True, exist_ok=True)
    for made in [with_fp32_scales(one, config.quantization, model) for one in plans]:
        path = output / f"{made.name}.json"
        made.write(path)
        console.print(f"{path}: {len(made.int8_layers)} of {len(made.layers)} layers in int8", highlight=False)


def apply(path: Path, model_path: Path, output: Path, console: Console) -> None:
    """Write the ONNX file that a plan makes of its model."""
    made = QuantizationPlan.read(path)
    model = load_model(model_path, made)
    made.origin.require_model(f"plan {path}", model.info.sha256, str(model_path))
    _require_layers(made, model, path)
    if output.resolve() == model_path.resolve():
        raise JobError(f"{output} is the float model itself; name another file with --output")
    write_onnx(apply_checked(made, model.prepared, model.placement, f"plan {path}"), output)
    console.print(
        f"{output}: {len(made.int8_layers)} of {len(made.layers)} layers in int8; "
        f"trtexec --onnx={output} --stronglyTyped",
        highlight=False,
        soft_wrap=True,
    )


def inspect(model_path: Path, console: Console) -> None:
    """Show which nodes can be quantized, and why the others cannot."""
    model = load_model(model_path, QuantizationRules())
    placement = model.placement
    layers = Table("layer", "op", "activation", "weight", "shape", "axis", title="can be int8", title_justify="left")
    values = model.prepared.graph.initializers
    for layer in placement.layers:
        weight = values[layer.weight].const_value
        assert weight is not None
        shape = "x".join(map(str, weight.shape.numpy()))
        layers.add_row(layer.node, layer.op_type, layer.activation, layer.weight, shape, str(layer.axis))
    console.print(layers)
    if placement.left_in_float:
        left = Table("node", "why", title="stays in float", title_justify="left")
        for node, why in placement.left_in_float.items():
            left.add_row(node, why)
        console.print(left)
    adds = {residual.node: residual.tensor for residual in reversed(placement.residuals)}
    for node, tensor in adds.items():
        console.print(f"residual Add {node}: its input {tensor} is quantized too", highlight=False, soft_wrap=True)
    for group in placement.scale_groups():
        console.print(f"one scale, joined by Concat: {', '.join(sorted(group))}", highlight=False, soft_wrap=True)
    others = model.info.nodes - len(placement.layers) - len(placement.left_in_float)
    console.print(
        f"{len(placement.layers)} of {model.info.nodes} nodes can be int8, {len(placement.left_in_float)} more are of "
        f"their kind but stay in float, and {others} are of kinds that have no int8 or follow their inputs "
        f"({len(placement.tensors())} activations would be quantized)",
        highlight=False,
        soft_wrap=True,
    )


def export_cache(path: Path, output: Path, tensorrt: str, console: Console) -> None:
    """Write a plan's scales as a calibration cache for TensorRT 10 or older."""
    made = QuantizationPlan.read(path)
    write_cache(made, output, tensorrt)
    console.print(
        f"{output}: {len(made.scales)} scales for TensorRT {tensorrt}, {companion(output).name} says what from; "
        f"trtexec --onnx=MODEL --int8 --calib={output}",
        highlight=False,
        soft_wrap=True,
    )
    if back := [name for name, precision in made.layers.items() if precision != "int8"]:
        specs = ",".join(f"{name}:{made.layers[name]}" for name in back)
        console.print(
            f"a cache holds no precisions; add --precisionConstraints=obey --layerPrecisions={specs}",
            highlight=False,
            soft_wrap=True,
        )


def import_cache(path: Path, model_path: Path, output: Path, console: Console) -> None:
    """Write the plan that a calibration cache makes of a model; layers without a scale stay in float."""
    cache = read_cache(path)
    rules = QuantizationRules()
    model = load_model(model_path, rules)
    if cache.origin is not None:
        cache.origin.require_model(f"calibration cache {path}", model.info.sha256, str(model_path))
    wanted = model.placement.tensors()
    scales = {name: cache.scales[name] for name in wanted if name in cache.scales}
    if not scales:
        raise JobError(
            f"calibration cache {path} has a scale for none of the {len(wanted)} activations of {model_path} (for "
            f"example {wanted[0]}); it is of another model, or of another export of it"
        )
    origin = cache.origin or Origin(model_sha256=model.info.sha256)
    made = plan_of_scales(path.stem, scales, model.placement, origin, rules)
    made.write(output)
    missing = [name for name in wanted if name not in scales]
    console.print(
        f"{output}: {len(made.int8_layers)} of {len(made.layers)} layers in int8"
        + (f"; no scale for {len(missing)} activations, as {missing[0]}" if missing else ""),
        highlight=False,
        soft_wrap=True,
    )


def _require_layers(made: QuantizationPlan, model: FloatModel, path: Path) -> None:
    """Check a plan against the model's layers and tensors, since people edit plans by hand; JobError where it fails."""
    placement = model.placement
    known = {layer.node for layer in placement.layers}
    if unknown := made.layers.keys() - known:
        raise JobError(f"plan {path} names layer {min(unknown)}, which the model does not have")
    needed = placement.tensors(made.int8_layers)
    if missing := set(needed) - made.scales.keys():
        raise JobError(f"plan {path} has no scale for {min(missing)}, an input of an int8 layer")
