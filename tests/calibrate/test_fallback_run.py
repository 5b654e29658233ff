"""Fallback in whole runs: of models with a fixed batch, with other targets and types, and where no label can judge."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import onnx
import pytest

if TYPE_CHECKING:
    from tests.conftest import Job, Models


def results_of(job: Job, *overrides: str) -> dict[str, Any]:
    done = job.run("latency.runs=0", "data.calibration.arguments={n: 60, seed: 1}", *overrides)
    path = job.output / "results.json"
    assert path.is_file(), done.stdout + done.stderr
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_a_model_that_takes_batches_of_four_is_searched_like_any_other(job: Job, models: Models) -> None:
    model = onnx.load(models.planted)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, job.folder / "four.onnx")
    found = results_of(job, "model.onnx=four.onnx", "data.batch_size=4")
    assert found["search"]["trials"][-1]["meets_target"] is True
    assert found["search"]["trials"][-1]["float_layers"][0] == "block"


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_layers_go_back_to_the_type_of_the_config(job: Job, models: Models, precision: str) -> None:
    found = results_of(
        job, f"model.onnx={models.planted}", f"fallback.precision={precision}", "fallback.max_relative_drop=0.05"
    )
    selected = next(c for c in found["candidates"] if c["name"] == found["selected"])
    assert found["verdict"]["decision"] == "GO"
    assert "block" in selected["float_layers"]
    assert selected["nodes"][precision] >= len(selected["float_layers"])
    assert selected["tensorrt_build"]["ok"] is True


def test_every_model_of_the_front_was_built_and_the_fastest_comes_first(job: Job, models: Models) -> None:
    found = results_of(job, f"model.onnx={models.planted}")
    built = {c["name"]: c["tensorrt_build"]["ok"] for c in found["candidates"]}
    assert all(built[point["name"]] for point in found["pareto"] if point["name"] in built)
    assert {point["name"] for point in found["pareto"]} == {*built, "float reference"}
    costs = [point["cost"]["value"] for point in found["pareto"]]
    assert costs == sorted(costs)


def test_without_labels_for_the_trials_nothing_is_put_back_and_a_warning_says_so(job: Job, models: Models) -> None:
    (job.folder / "unlabelled.py").write_text(
        "from data import rows\n\n\ndef unlabelled(n, seed):\n    for row in rows(n, seed):\n"
        "        yield {'image': row['image']}\n",
        encoding="utf-8",
    )
    job.config["data"]["calibration"] = {"callable": "unlabelled.py:unlabelled", "arguments": {"n": 60, "seed": 1}}
    found = results_of(job, f"model.onnx={models.planted}")
    assert found["search"] is None
    assert any("the calibration samples have no labels" in warning for warning in found["warnings"])


def test_a_rule_that_no_search_is_made_for_is_named(job: Job) -> None:
    found = results_of(job, "policy.min_layer_sqnr_db=100", "policy.classes={max_drop: 0.6}")
    assert found["verdict"]["decision"] == "NO_GO"
    assert found["search"] is None
    (warning,) = (x for x in found["warnings"] if "no layers were put back to float" in x)
    assert warning.endswith("not for what misses it: worst layer")


def test_labels_that_cannot_judge_are_no_reason_to_lose_the_run(job: Job, models: Models) -> None:
    found = results_of(
        job, f"model.onnx={models.planted}", "data.calibration.arguments={n: 60, seed: 1, label_offset: 3}"
    )
    assert found["search"] is None
    assert any("labels cannot judge trials" in warning for warning in found["warnings"])
