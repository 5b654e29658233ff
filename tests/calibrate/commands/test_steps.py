"""The steps of a run, each alone and through the command line: what they write, and what they refuse."""

from __future__ import annotations

import copy
import json
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from calibrate.observation.statistics_file import merged, read_statistics
from calibrate.plan.quantization_plan import QuantizationPlan
from tests.command_line import run_in_process

if TYPE_CHECKING:
    from tests.conftest import Completed, Job, Run
    from tests.tiny_model import Models

NAMES = ["minmax", "percentile-99.9"]
ACTIVATIONS = {"stem": "image", "block": "r1", "last": "r2", "head": "features"}  # by layer


def calibrate(job: Job, *arguments: str | Path) -> Completed:
    """Run a command in the job's folder."""
    return run_in_process("calibrate", [*map(str, arguments)], job.folder, job.environment)


def done(job: Job, *arguments: str | Path) -> str:
    """Run a command that succeeds; return what it said."""
    completed = calibrate(job, *arguments)
    assert (completed.returncode, completed.stderr) == (0, "")
    return " ".join(completed.stdout.split())


def edited(path: Path, name: str, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """Write a plan that somebody edited beside it."""
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    (path.parent / name).write_text(json.dumps(content), encoding="utf-8")
    return path.parent / name


@pytest.fixture(scope="module")
def steps(go: Run, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Return a job that was done whole, in its output folder, and again step by step, in its own folder."""
    folder = tmp_path_factory.mktemp("steps") / "job"
    shutil.copytree(go.job.folder, folder)
    job = replace(go.job, folder=folder, config=copy.deepcopy(go.job.config))
    job.config["quantization"]["strategies"] = go.results["config"]["quantization"]["strategies"]
    job.command()  # writes the config
    done(job, "observe", "config.yaml")
    done(job, "plan", "config.yaml", "statistics.npz")
    done(job, "apply", f"plans/{go.results['selected']}.json", job.config["model"]["onnx"])
    return job


# Step by step, and at once


def test_the_steps_make_what_the_run_makes_to_the_byte(steps: Job) -> None:
    for name in ("statistics.npz", "model.int8.onnx", *(f"plans/{plan}.json" for plan in NAMES)):
        assert (steps.folder / name).read_bytes() == (steps.output / name).read_bytes(), name
    assert {path.name for path in (steps.folder / "plans").iterdir()} >= {f"{name}.json" for name in NAMES}
    assert {path.name for path in (steps.output / "plans").iterdir()} == {f"{name}.json" for name in NAMES}


def test_the_scales_of_a_plan_are_those_of_the_data(steps: Job, data_module: dict[str, Any]) -> None:
    plans = {name: QuantizationPlan.read(steps.folder / "plans" / f"{name}.json") for name in NAMES}
    image = np.abs([row["image"] for row in data_module["rows"](30, seed=1)])
    assert plans["minmax"].scales["image"] == float(image.max()) / 127
    assert plans["percentile-99.9"].scales["image"] == pytest.approx(np.percentile(image, 99.9) / 127, rel=1e-3)
    for plan in plans.values():
        assert set(plan.scales) == set(ACTIVATIONS.values())
        assert plan.layers == dict.fromkeys(ACTIVATIONS, "int8")


def test_the_deployed_file_holds_the_scales_of_its_plan(steps: Job) -> None:
    plan = QuantizationPlan.read(steps.output / "plan.json")
    model = onnx.load(steps.folder / "model.int8.onnx")
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    found = {
        node.input[0].removesuffix("/raw").removesuffix("/fp16"): float(constants[node.input[1]])
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }
    kind = np.float32 if plan.fp32_scales else np.float16
    assert found == {tensor: float(kind(scale)) for tensor, scale in plan.scales.items()}
    assert {p.key: p.value for p in model.metadata_props}["plan_sha256"] == plan.hash


def test_a_layer_that_a_plan_puts_back_stays_in_float(steps: Job, models: Models) -> None:
    plan = steps.folder / "plans" / "minmax.json"
    edited(plan, "mixed.json", lambda content: content["layers"].update(last="fp32"))
    said = done(steps, "apply", "plans/mixed.json", models.good, "--output", "mixed.onnx")
    assert "mixed.onnx: 3 of 4 layers in int8" in said
    model = onnx.load(steps.folder / "mixed.onnx")
    types = {tuple(i.dims): i.data_type for i in model.graph.initializer if len(i.dims) >= 2}
    float32, int8 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT8
    assert types == {(8, 3, 3, 3): int8, (8, 8, 3, 3): int8, (16, 8, 3, 3): float32, (16, 5): int8}


def test_parts_of_the_data_observed_apart_give_the_scales_of_the_whole(steps: Job) -> None:
    """The parts end where a batch ends."""
    parts = {"one.npz": (0, 16), "two.npz": (16, 14)}

    def observe(name: str) -> str:
        first, n = parts[name]
        override = f"data.calibration.arguments={{n: {n}, seed: 1, first: {first}}}"
        return done(steps, "observe", "config.yaml", "--output", name, "--set", override)

    one, two = map(observe, parts)
    assert "one.npz: 4 tensors, 16 samples" in one
    assert "two.npz: 4 tensors, 14 samples" in two
    done(steps, "plan", "config.yaml", "two.npz", "one.npz", "--output", "parts")
    whole = read_statistics(steps.folder / "statistics.npz").observation.statistics
    joint = merged([steps.folder / "one.npz", steps.folder / "two.npz"]).observation.statistics
    assert {n: s.bins.tobytes() for n, s in joint.items()} == {n: s.bins.tobytes() for n, s in whole.items()}
    for name in NAMES:
        apart, at_once = (QuantizationPlan.read(steps.folder / of / f"{name}.json") for of in ("parts", "plans"))
        assert apart.hash == at_once.hash
        assert apart.origin.data_sha256 != at_once.origin.data_sha256


# inspect

NETWORK = """net (float[2, 4, 8, 8] x, float[4, 4, 3, 3] k) => (float[2, 2] y, float[4, 3] z, float[2, 4, 6, 6] o)
{
    [stem] a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    [relu] b = Relu (a)
    [more] cat = Concat <axis = 1> (b, x)
    [wide] e = Conv (cat, w2)
    [again] o = Conv (b, w1)
    [dynamic] f = Conv (e, k)
    [small] p = MaxPool <kernel_shape = [3, 3], strides = [3, 3]> (f)
    [flat] g = Flatten (p)
    [swap] t = Transpose <perm = [1, 0]> (g)
    [scores] y = MatMul (g, t)
    [turned] z = Gemm <transA = 1> (g, w3)
}"""


def test_inspect_names_layers_and_reasons(job: Job) -> None:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 19]> {NETWORK}')
    random = np.random.default_rng(0)
    for name, shape in {"w1": (4, 4, 3, 3), "w2": (4, 8, 3, 3), "w3": (2, 3)}.items():
        model.graph.initializer.append(numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, job.folder / "net.onnx")
    completed = calibrate(job, "inspect", "net.onnx")
    assert (completed.returncode, completed.stderr) == (0, "")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in completed.stdout.splitlines() if "│" in line]
    assert rows == [
        ["stem", "Conv", "x", "w1", "4x4x3x3", "0"],
        ["wide", "Conv", "cat", "w2", "4x8x3x3", "0"],
        ["again", "Conv", "b", "w1", "4x4x3x3", "0"],
        ["dynamic", "its second input is computed, not a constant weight"],
        ["scores", "both its inputs are computed, as in attention; quantization.attention: true quantizes it"],
        ["turned", "its activation is transposed"],
    ]
    assert "one scale, joined by Concat: b, cat, x" in completed.stdout
    assert "3 of 11 nodes can be int8, 3 more are of their kind but stay in float, and 5 are" in completed.stdout


# Calibration caches


def test_a_cache_of_a_plan_gives_the_plan_again(steps: Job, models: Models) -> None:
    plan = edited(
        steps.folder / "plans" / "minmax.json", "back.json", lambda content: content["layers"].update(block="fp16")
    )
    said = done(steps, "export-cache", plan, "--tensorrt", "8.6.1", "--output", "back.cache")
    assert "back.cache: 4 scales for TensorRT 8.6.1" in said
    assert "--precisionConstraints=obey --layerPrecisions=block:fp16" in said
    scales = QuantizationPlan.read(plan).scales
    lines = (steps.folder / "back.cache").read_text(encoding="utf-8").splitlines()
    assert lines == [
        "TRT-8601-EntropyCalibration2",
        *(f"{tensor}: {struct.pack('>f', scale).hex()}" for tensor, scale in scales.items()),
    ]
    assert "4 of 4 layers in int8" in done(
        steps, "import-cache", "back.cache", models.good, "--output", "imported.json"
    )
    imported = QuantizationPlan.read(steps.folder / "imported.json")
    assert imported.scales == {tensor: float(np.float32(scale)) for tensor, scale in scales.items()}
    assert imported.origin == QuantizationPlan.read(plan).origin


def test_a_layer_without_a_scale_in_tensorrts_cache_stays_in_float(job: Job, models: Models) -> None:
    cache = (
        "TRT-8601-EntropyCalibration2\nimage: 3d000000\nr1: 00000000\nr2: 3d800000\nfeatures: 3c000000\nc1: 3d000000\n"
    )
    (job.folder / "foreign.cache").write_text(cache, encoding="utf-8")
    said = done(job, "import-cache", "foreign.cache", models.good, "--output", "foreign.json")
    assert "3 of 4 layers in int8; no scale for 1 activations, as r1" in said
    plan = QuantizationPlan.read(job.folder / "foreign.json")
    assert plan.layers == {"stem": "int8", "block": "fp32", "last": "int8", "head": "int8"}
    assert plan.scales == {"image": 2.0**-5, "r2": 2.0**-4, "features": 2.0**-7}


# Mistakes

MISTAKES: dict[str, tuple[Sequence[str], int, str]] = {
    "no statistics": (["plan", "config.yaml", "absent.npz"], 4, "statistics absent.npz cannot be read: No such file"),
    "statistics of another model": (
        ["plan", "config.yaml", "statistics.npz", "--set", "model.onnx=PLANTED"],
        4,
        "statistics statistics.npz is for another model than PLANTED",
    ),
    "another model": (
        ["apply", "plans/minmax.json", "PLANTED"],
        4,
        "plan plans/minmax.json is for another model than PLANTED",
    ),
    "an unknown layer": (
        ["apply", "plans/unknown.json", "GOOD"],
        4,
        "plan plans/unknown.json names layer stemm, which the model does",
    ),
    "a scale that was removed": (
        ["apply", "plans/lacking.json", "GOOD"],
        4,
        "plan plans/lacking.json has no scale for r2, an input of an int8",
    ),
    "over the model": (
        ["apply", "plans/minmax.json", "good.onnx", "--output", "good.onnx"],
        4,
        "good.onnx is the float model itself",
    ),
    "into a missing folder": (
        ["apply", "plans/minmax.json", "GOOD", "--output", "no/x.onnx"],
        2,
        "no/x.onnx cannot be written: No such file",
    ),
    "no caches in TensorRT 11": (
        ["export-cache", "plans/minmax.json", "--tensorrt", "11.0.0"],
        2,
        "TensorRT 11.0.0 reads no calibration cache",
    ),
}


@pytest.fixture(scope="module")
def mistakes(steps: Job, models: Models) -> dict[str, tuple[Completed, str]]:
    """Return how every mistake ended, and what was to be said."""
    plan = steps.folder / "plans" / "minmax.json"
    edited(plan, "unknown.json", lambda content: content["layers"].update(stemm="int8"))
    edited(plan, "lacking.json", lambda content: content["scales"].pop("r2"))
    shutil.copyfile(models.good, steps.folder / "good.onnx")

    def named(text: str) -> str:
        return text.replace("GOOD", str(models.good)).replace("PLANTED", str(models.planted))

    return {
        mistake: (calibrate(steps, *map(named, arguments)), named(said))
        for mistake, (arguments, _, said) in MISTAKES.items()
    }


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_with_its_code_and_one_sentence(
    mistakes: dict[str, tuple[Completed, str]], mistake: str
) -> None:
    completed, said = mistakes[mistake]
    assert completed.returncode == MISTAKES[mistake][1], completed.stderr
    assert said in completed.stderr
    assert len(completed.stderr.splitlines()) == 1, completed.stderr
    assert completed.stderr.startswith("error: ")
    assert "Traceback" not in completed.stdout + completed.stderr


def test_mistakes_write_nothing(mistakes: dict[str, tuple[Completed, str]], steps: Job, models: Models) -> None:
    assert mistakes
    assert (steps.folder / "good.onnx").read_bytes() == models.good.read_bytes()
    for name in ("statistics.npz", "model.int8.onnx"):
        assert (steps.folder / name).read_bytes() == (steps.output / name).read_bytes()
    assert not any((steps.folder / name).exists() for name in ("plan.json", "calibration.cache", "no"))
