"""docs/extending.md: what it shows is installed as a package, with real entry points, and used."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import yaml
from rich.console import Console

from calibrate.config import load
from calibrate.graph import Layer, Placement, apply
from calibrate.loading import load_inputs
from calibrate.observation.statistics_file import read_statistics
from calibrate.plan import Origin, QuantizationPlan
from calibrate.recovery import RecoveryInputs, recover
from calibrate.strategies import STRATEGIES, QuantizationConfig, make_plan
from tests.conftest import Job
from validate.accuracy.command import EvaluateRequest, evaluate_files
from validate.backends import Options, kind_of, open_model
from validate.backends.onnx_files import serialize
from validate.exceptions import UsageError
from validate.latency.runners import Spec
from validate.latency.runners import load as load_for_timing
from validate.stats import Statistics

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
PYTHON = {code.splitlines()[0].removeprefix("# "): code for language, code in BLOCKS if language == "python"}
SETTINGS = [yaml.safe_load(code) for language, code in BLOCKS if language == "yaml"]

LABELLED = """
import numpy as np
def rows(n):
    for i in range(n):
        x = np.random.default_rng(i).normal(size=3).astype(np.float32)
        yield {"x": x, "label": float(x @ [1, 2, 3]) + (i % 4 == 0)}
"""


def install(folder: Path) -> Path:
    """Write the page's package as an installer does; return the folder that belongs on the search path."""
    project = tomllib.loads(next(code for language, code in BLOCKS if language == "toml"))["project"]
    name, version = project["name"].replace("-", "_"), project["version"]
    for file, code in PYTHON.items():
        if file.endswith(".py"):
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(code, encoding="utf-8")
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {version}\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("site"))


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the package installed in this process."""
    monkeypatch.syspath_prepend(site)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_int8"]:
        del sys.modules[name]


def run_process(job: Job) -> subprocess.CompletedProcess[str]:
    """Do a job in a process of its own, since registries look for installed packages once in a process."""
    return subprocess.run(
        job.command(), cwd=job.folder, env=job.environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def finished(new_job: Callable[[], Job], site: Path) -> Job:
    """Return a job that was run with the page's strategy."""
    job = new_job()
    job.config["quantization"] = SETTINGS[0]["quantization"]
    path = os.pathsep.join([str(site), job.environment["PYTHONPATH"]])
    job.environment = job.environment | {"PYTHONPATH": path}
    done = run_process(job)
    assert done.returncode == 0, done.stderr
    return job


def test_a_run_has_the_strategy_for_a_candidate(finished: Job) -> None:
    results = json.loads((finished.output / "results.json").read_text(encoding="utf-8"))
    assert [candidate["name"] for candidate in results["candidates"]] == ["minmax", "headroom-1.25"]
    scales = {
        name: QuantizationPlan.read(finished.output / "plans" / f"{name}.json").scales
        for name in ("minmax", "headroom-1.25")
    }
    for tensor, scale in scales["minmax"].items():
        assert scales["headroom-1.25"][tensor] == pytest.approx(1.25 * scale)


def test_the_schema_lists_what_is_installed(finished: Job) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "calibrate", "schema"], env=finished.environment, capture_output=True, check=True
    )
    schema = json.loads(done.stdout)
    strategies = schema["$defs"]["QuantizationConfig"]["properties"]["strategies"]["items"]["anyOf"]
    assert "#/$defs/Headroom" in [branch.get("$ref") for branch in strategies]
    assert "within" in schema["properties"]["task"]["discriminator"]["mapping"]


@pytest.mark.usefixtures("installed")
def test_a_parameter_that_is_mistyped_is_named(finished: Job) -> None:
    text = (finished.folder / "config.yaml").read_text().replace("headroom: 1.25", "headroom: 0.5")
    (finished.folder / "mistyped.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"mistyped\.yaml, line \d+: quantization\.strategies\.1\.headroom: .* 1$"):
        load(finished.folder / "mistyped.yaml")


def test_a_notebook_adds_a_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STRATEGIES, "_things", dict(STRATEGIES.own))  # the others are not to see it
    exec(PYTHON["notebook"], {})
    settings = QuantizationConfig.model_validate({"strategies": ["half"]})
    statistics = Statistics()
    statistics.update(np.float32([-6, 1]))
    placement = Placement((Layer("layer", "Conv", "x", "w", 0, "y"),), (), (), {}, frozenset())
    plan = make_plan(settings.strategies[0], {"x": statistics}, placement, Origin(model_sha256="0"), settings)
    assert (plan.name, plan.scales) == ("half", {"x": 3 / 127})


@pytest.mark.usefixtures("installed")
def test_the_recovery_step_changes_the_file_that_the_plan_makes(finished: Job, tmp_path: Path) -> None:
    """Through the config, the plan on disk, and ONNX Runtime: the weights in the file are the clipped ones."""
    config = load(finished.folder / "config.yaml", [f"quantization={json.dumps(SETTINGS[1]['quantization'])}"])
    inputs = load_inputs(config, config.quantization, tmp_path)
    statistics = read_statistics(finished.output / "statistics.npz").observation.statistics
    plan = QuantizationPlan.read(finished.output / "plans" / "minmax.json")
    recovery = RecoveryInputs(inputs.model, statistics, inputs.calibration.batches, lambda found: found.amax)
    recovered = recover(plan, config.quantization.recovery, recovery)
    assert recovered.hash != plan.hash
    recovered.write(tmp_path / "plan.json")
    read = QuantizationPlan.read(tmp_path / "plan.json")
    assert (read, read.hash) == (recovered, recovered.hash)

    prepared, placement = inputs.model.prepared, inputs.model.placement
    by_hand = prepared.clone()
    for layer in placement.layers:
        constant = by_hand.graph.initializers[layer.weight]
        weight = constant.const_value.numpy()  # type: ignore[union-attr]
        constant.const_value = ir.tensor(np.clip(weight, -3 * weight.std(), 3 * weight.std()))
    image = next(inputs.calibration.batches()).inputs
    applied, expected, before = (
        onnxruntime.InferenceSession(serialize(model)).run(None, dict(image))[0]
        for model in (
            apply(read, prepared, placement, simulate=True),
            apply(plan, by_hand, placement, simulate=True),
            apply(plan, prepared, placement, simulate=True),
        )
    )
    np.testing.assert_array_equal(applied, expected)
    assert not np.allclose(applied, before, atol=1e-3)


def test_a_run_recovers_every_plan_before_it_is_measured(new_job: Callable[[], Job], finished: Job) -> None:
    job = new_job()
    job.config["quantization"] = {"strategies": ["minmax"], **SETTINGS[1]["quantization"]}
    job.environment = finished.environment
    done = run_process(job)
    assert done.returncode in {0, 1, 3}, done.stderr
    recovered, plain = (QuantizationPlan.read(x.output / "plans" / "minmax.json") for x in (job, finished))
    assert recovered.weight_edits
    assert recovered.scales == plain.scales
    candidates = json.loads((job.output / "results.json").read_text(encoding="utf-8"))["candidates"]
    assert candidates[0]["plan_hash"] == recovered.hash != plain.hash


@pytest.mark.usefixtures("installed")
def test_the_backend_and_the_task_score_a_file(tmp_path: Path) -> None:
    with (tmp_path / "model.linear").open("wb") as file:
        np.save(file, np.float32([[1], [2], [3]]))
    (tmp_path / "data.py").write_text(LABELLED)
    source = {"callable": "data.py:rows", "arguments": {"n": 120}}
    config: dict[str, Any] = {"data": {"calibration": source, "validation": source}, **SETTINGS[2]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    model = str(tmp_path / "model.linear")
    request = EvaluateRequest([model], tmp_path / "config.yaml", None, None, Options())
    (found,) = evaluate_files(request, "", Console(quiet=True)).models
    assert found.accuracy.value == 0.75  # every fourth label is 1 off
    assert found.accuracy.metric == "within"
    assert found.runtime.startswith("numpy")

    assert kind_of(model) == "linear"
    batch = {"x": np.float32([[1, 0, 0]])}
    assert open_model(model, Options()).load().run(batch)["y"].tolist() == [[1]]
    timed = load_for_timing(Spec("linear", model), "cpu", 1, "fp32", cuda_graph=False).timed([batch])
    assert timed(0) > 0


def test_the_number_format_rounds_as_its_type_does() -> None:
    names: dict[str, Any] = {}
    exec(PYTHON["number format"], names)
    fp8, codes = names["FP8"], names["codes"]
    assert codes.astype(float).tolist() == [0.3125, 448.0]  # 0.3 lies between 0.28125 and 0.3125
    assert codes.dtype == ml_dtypes.float8_e4m3fn
    finite = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    finite = finite[np.isfinite(finite)]
    assert (fp8.largest, fp8.lowest, fp8.smallest) == (finite.max(), finite.min(), finite[finite > 0].min())


def test_every_block_of_the_page_is_used() -> None:
    assert set(PYTHON) == {
        "my_int8/headroom.py",
        "notebook",
        "my_int8/clip_weights.py",
        "my_int8/within.py",
        "my_int8/linear.py",
        "number format",
    }
    assert len(SETTINGS) == 3
