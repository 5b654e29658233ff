"""A whole run whose metric is no mean of scores, and one without labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.conftest import Job
from tests.tiny_model import Models

RATES = """
import numpy as np
from validate.tasks.base import Metric, ratio_of_sums, log_probability_error
class ErrorRate:
    name = "error_rate"
    metric = Metric("error_rate", higher_is_better=False, is_rate=True, aggregate=ratio_of_sums)
    def scores(self, outputs, labels):
        wrong = next(iter(outputs.values())).argmax(axis=1) != np.array(labels)
        return np.c_[wrong, np.ones(len(labels))].astype(float)
    def errors(self, outputs, reference):
        p, q = next(iter(outputs.values())), next(iter(reference.values()))
        return log_probability_error(p, q)
"""


SHIFTED = """
from validate.tasks.classification import Classification
class Shifted(Classification):
    def scores(self, outputs, labels):
        return super().scores(outputs, [label % 5 for label in labels])
"""


def results(job: Job, *overrides: str) -> dict[str, Any]:
    done = job.run(*overrides)
    assert (job.output / "results.json").is_file(), done.stdout + done.stderr
    found: dict[str, Any] = json.loads((job.output / "results.json").read_text())
    return found | {"stdout": done.stdout}


def test_a_metric_of_records_goes_through_search_and_verdict(new_job: Callable[[], Job], models: Models) -> None:
    """The planted fault ruins int8; the same error as a mean of scores must lead to the same numbers."""
    job = new_job()
    (job.folder / "task.py").write_text(RATES)
    job.config["model"]["onnx"] = str(models.planted)
    job.config["data"]["calibration"]["arguments"]["n"] = 80
    job.config["task"] = {"type": "custom", "callable": "task.py:ErrorRate"}
    found = results(job)
    selected = next(c for c in found["candidates"] if c["name"] == found["selected"])
    int8 = found["candidates"][0]
    assert int8["accuracy"]["drop"] > 0.1
    assert int8["accuracy"]["method"] == "score of jackknife pseudo-values"
    assert found["search"]["trials"]
    assert selected["float_layers"]
    assert selected["accuracy"]["drop"] < int8["accuracy"]["drop"] / 2
    assert found["data"]["validation"]["preprocessing"] == "none: the columns that are called like the inputs"


def test_without_labels_the_verdict_is_about_agreement(
    new_job: Callable[[], Job], models: Models, data_module: dict[str, Any]
) -> None:
    job = new_job()
    job.config["model"]["onnx"] = str(models.planted)
    job.config["data"]["calibration"]["arguments"]["n"] = 80
    job.config["data"]["label"] = None
    found = results(job)
    assert found["reference"]["accuracy"]["metric"] == "agreement_top1"
    assert found["reference"]["accuracy"]["value"] == 1.0
    assert found["reference"]["accuracy"]["is_agreement"] is True
    assert found["task"] == "classification, agreement with the float model"
    assert "agreement with the float model, which says nothing" in found["warnings"][0]
    assert found["search"]["trials"]  # calibration samples need no labels for it either
    assert "accuracy" not in found["stdout"].lower()
    # What the file that is written says, and what the float model says, of the same images.
    images = np.stack([row["image"] for row in data_module["rows"](200, seed=2)])
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    answers = []
    for path in (models.planted, job.output / "model.int8.onnx"):
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        answers.append(session.run(None, {"image": images})[0].argmax(axis=1))
    selected = next(c for c in found["candidates"] if c["name"] == found["selected"])
    assert selected["accuracy"]["value"] == pytest.approx((answers[0] == answers[1]).mean(), abs=0.011)


def test_the_run_warns_of_a_float_model_that_should_be_better(new_job: Callable[[], Job]) -> None:
    job = new_job()
    job.config["model"]["expected_metric"] = 0.999
    job.config["data"]["validation"]["arguments"]["label_offset"] = 1  # another order of the classes
    job.config["task"] = {"type": "custom", "callable": "task.py:Shifted"}
    (job.folder / "task.py").write_text(SHIFTED)
    (warning,) = (x for x in results(job)["warnings"] if "model.expected_metric" in x)
    assert "the float model's top1 is " in warning
    assert "far from the 99.90%" in warning
    assert warning.endswith("what was applied is none: the columns that are called like the inputs")
