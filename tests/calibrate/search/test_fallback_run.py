"""Fallback in whole runs: of models with a fixed batch, with other targets and types, and where little can be tried."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

if TYPE_CHECKING:
    from tests.conftest import Job
    from tests.tiny_model import Models


@pytest.fixture
def job(job: Job) -> Job:
    """Return the job with calibration samples enough to search by."""
    job.config["data"]["calibration"]["arguments"]["n"] = 60
    return job


def results_of(job: Job, *overrides: str) -> dict[str, Any]:
    done = job.run("latency.runs=0", *overrides)
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


def test_minutes_count_the_ranking_and_the_beginning(job: Job, models: Models) -> None:
    found = results_of(job, f"model.onnx={models.planted}", "fallback.minutes=0.0001")
    assert found["search"]["ended"] == "the budget of 0.0001 minutes was used up"
    assert found["search"]["screened"] == 0
    assert [trial["float_layers"] for trial in found["search"]["trials"]] == [[]]


def test_int8_that_meets_the_target_on_the_judging_samples_is_not_denied(job: Job) -> None:
    """One layer, and validation samples beyond the scales of calibration: only there int8 loses answers."""
    graph = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> '
        "g (float[N, 5] image) => (float[N, 5] y) { [only] y = MatMul(image, w) }"
    )
    graph.graph.initializer.append(numpy_helper.from_array(np.eye(5, dtype=np.float32), "w"))
    onnx.save(graph, job.folder / "one.onnx")
    (job.folder / "one.py").write_text(
        "import numpy as np\n\n\ndef rows(n, beyond):\n    for i in range(n):\n"
        "        image = np.zeros(5, np.float32)\n"
        "        rest = (i + 0.5 * beyond) / n / 2\n"
        "        image[i % 5], image[i % 5 - 1] = (100, 50 + rest) if beyond and i % 3 == 0 else (1, rest)\n"
        "        yield {'image': image, 'label': i % 5}\n",
        encoding="utf-8",
    )
    job.config["data"]["calibration"] = {"callable": "one.py:rows", "arguments": {"n": 60, "beyond": False}}
    job.config["data"]["validation"] = {"callable": "one.py:rows", "arguments": {"n": 200, "beyond": True}}
    found = results_of(job, "model.onnx=one.onnx")
    assert found["verdict"]["decision"] == "NO_GO"
    (trial,) = found["search"]["trials"]
    assert trial["float_layers"] == [] and trial["meets_target"] is True
    assert found["search"]["ended"] == (
        "a single layer has no plan between all in int8 and all in float; on the judging samples the plan all in int8 "
        "meets the target"
    )
