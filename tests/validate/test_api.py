"""`from validate import compare, evaluate, gate`: objects in memory, against ONNX Runtime and the commands."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from typer.testing import CliRunner

import tests.conftest as shared
from calibrate import Quantized, quantize
from reports.commands.validate import app
from tests.tiny_model import Models
from validate import (
    Classification,
    Comparison,
    Evaluation,
    JobError,
    NothingComparedError,
    Policy,
    Samples,
    Thresholds,
    UsageError,
    compare,
    evaluate,
    gate,
    judge,
)
from validate.results import BuildResult

ROWS = 200


@pytest.fixture(scope="module")
def rows(data_module: dict[str, Any]) -> list[dict[str, Any]]:
    return list(data_module["rows"](ROWS, seed=2))


@pytest.fixture(scope="module")
def good(models: Models) -> onnx.ModelProto:
    return onnx.load(models.good)


@pytest.fixture(scope="module")
def quantized(good: onnx.ModelProto, data_module: dict[str, Any]) -> Quantized:
    samples = [row["image"] for row in data_module["rows"](64, seed=1)]
    return quantize(good, samples, "minmax", progress=False)


@pytest.fixture(scope="module")
def evaluation(good: onnx.ModelProto, quantized: Quantized, rows: list[dict[str, Any]]) -> Evaluation:
    return evaluate({"float": good, "int8": quantized}, rows, Classification(), build_for=None, progress=False)


class Linear:
    """A model of the user's own: it follows `Runnable`."""

    runtime, device, input_names, output_names = "numpy", "here", ("image",), ("logits",)

    def __init__(self) -> None:
        self.weight = np.random.default_rng(0).normal(size=(3 * 16 * 16, 5))

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"logits": inputs["image"].reshape(len(inputs["image"]), -1) @ self.weight}


def answers(session: onnxruntime.InferenceSession, rows: list[dict[str, Any]]) -> Any:
    return session.run(None, {"image": np.stack([row["image"] for row in rows])})[0].argmax(axis=1)


def test_every_kind_of_model_is_scored(
    good: onnx.ModelProto, models: Models, quantized: Quantized, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.dense = torch.nn.Linear(768, 5)

        def forward(self, image: Any) -> Any:
            return self.dense(image.flatten(1))

    net, own = Net(), Linear()
    quantized.save(tmp_path / "int8.onnx")
    given = [str(models.good), models.good, good, net, own, quantized, tmp_path / "int8.onnx"]
    found = evaluate(given, rows, Classification(), build_for=None, progress=False)
    labels = np.array([row["label"] for row in rows])
    float_hits = answers(onnxruntime.InferenceSession(str(models.good)), rows) == labels
    scores = [model.scores for model in found.models]
    assert scores[0] == scores[1] == scores[2] == float_hits.astype(float).tolist()
    images = torch.from_numpy(np.stack([row["image"] for row in rows]))
    assert scores[3] == (net(images).argmax(1).numpy() == labels).astype(float).tolist()
    assert scores[4] == (own.run({"image": images.numpy()})["logits"].argmax(1) == labels).astype(float).tolist()
    assert abs(np.mean(scores[5]) - np.mean(scores[6])) < 0.02  # float simulation, and the FP16 of the file
    assert [model.runtime.split()[0] for model in found.models[3:5]] == ["torch", "numpy"]
    assert found.models[1].model == f"{models.good} (2)"
    assert found.models[5].plan_hash == found.models[6].plan_hash == quantized.plan.hash
    assert net.training


def test_a_module_alone_names_its_inputs_itself(rows: list[dict[str, Any]]) -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 5))
    found = evaluate([net], [(row["image"], row["label"]) for row in rows], Classification(), progress=False)
    assert found.models[0].accuracy.n == ROWS


def test_numbers_are_those_of_the_command(
    models: Models, good: onnx.ModelProto, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "data.py").write_text(shared.DATA, encoding="utf-8")
    source = {"callable": "data.py:rows", "arguments": {"n": ROWS, "seed": 2}}
    config = {"data": {"calibration": source, "validation": source}, "task": {"type": "classification"}}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    names = [str(models.good), str(models.planted)]
    with contextlib.chdir(tmp_path):
        done = CliRunner().invoke(app, ["evaluate", *names, "--config", "my.yaml"])
        assert done.exit_code == 0, done.output
        compared = CliRunner().invoke(app, ["compare", *names, "--data", "my.yaml", "--batch-size", "8"])
        assert compared.exit_code == 1, compared.output
    written = Evaluation.read(tmp_path / "evaluation.json")
    found = evaluate([good, models.planted], (row for row in rows), Classification(), build_for=None, progress=False)
    for ours, theirs in zip(found.models, written.models, strict=True):
        assert (ours.accuracy, ours.scores, ours.agreement) == (theirs.accuracy, theirs.scores, theirs.agreement)
    assert (found.samples, found.labels) == (written.samples, written.labels)
    comparison = compare(good, models.planted, rows, progress=False)
    theirs = Comparison.read(tmp_path / "runs/compare")
    assert comparison.layers == theirs.layers
    assert comparison.judgement == judge(theirs, Thresholds())


def test_without_labels_it_is_agreement(good: onnx.ModelProto, rows: list[dict[str, Any]]) -> None:
    images = [row["image"] for row in rows]
    found = evaluate([good, Linear()], images, Classification(), label=None, progress=False)
    assert found.models[0].accuracy.value == 1
    assert found.models[1].accuracy.is_agreement


def test_a_gate_reads_evaluations(evaluation: Evaluation) -> None:
    reference, candidate = evaluation.models
    accuracy: Any = candidate.accuracy
    wide, narrow = accuracy.ci_high + 0.01, max(accuracy.ci_high - 1e-3, 1e-4)
    verdict = gate(evaluation, Policy(max_drop=wide, require_tensorrt_build=False, optional=["engine"]))
    assert verdict.decision == "GO"
    assert [rule.name for rule in verdict.rules] == ["accuracy", "TensorRT build", "engine"]
    assert gate(evaluation, Policy(max_drop=narrow, require_tensorrt_build=False, optional=["engine"])).decision != "GO"
    unbuilt = gate(evaluation, Policy(max_drop=wide, optional=["engine"]))
    assert unbuilt.decision == "INCONCLUSIVE"
    assert "not checked: the evaluation built nothing" in unbuilt.reasons[1]
    refused = candidate.model_copy(
        update={"tensorrt_build": BuildResult(ok=False, backend="tensorrt", version="11", message="no")}
    )
    verdict = gate(evaluation.model_copy(update={"models": [reference, refused]}), Policy(max_drop=wide))
    assert verdict.decision == "NO_GO"


def test_a_gate_on_an_evaluation_that_was_written_says_the_same(evaluation: Evaluation, tmp_path: Path) -> None:
    evaluation.write(tmp_path / "evaluation.json")
    policy = Policy(max_drop=0.05, require_tensorrt_build=False, optional=["engine"])
    assert gate(Evaluation.read(tmp_path / "evaluation.json"), policy) == gate(evaluation, policy)


def test_a_policy_with_another_confidence_gets_its_interval(
    good: onnx.ModelProto, quantized: Quantized, rows: list[dict[str, Any]], evaluation: Evaluation
) -> None:
    surer = evaluate([good, quantized], rows, Classification(), confidence=0.99, build_for=None, progress=False)
    policy = Policy(max_drop=0.05, confidence=0.99, require_tensorrt_build=False, optional=["engine"])
    assert gate(evaluation, policy).reasons == gate(surer, policy).reasons
    assert "99% confidence" in gate(evaluation, policy).rules[0].message


def test_a_gate_judges_classes_and_slices_of_an_evaluation(
    good: onnx.ModelProto, quantized: Quantized, rows: list[dict[str, Any]]
) -> None:
    sliced = Samples([{**row, "camera": f"c{i % 2}"} for i, row in enumerate(rows)], slice="camera")
    found = evaluate([good, quantized], sliced, Classification(), build_for=None, progress=False)
    policy = Policy.model_validate(
        {
            "max_drop": 0.2,
            "require_tensorrt_build": False,
            "optional": ["engine"],
            "classes": {"max_drop": 0.9},
            "slices": {"max_drop": 0.5},
            "max_model_bytes": 10,
        }
    )
    outcomes = {rule.name: rule.outcome for rule in gate(found, policy).rules}
    assert outcomes["accuracy of every class"] == outcomes["accuracy of every slice"] == "pass"
    assert outcomes["model size"] == "not_measured"


def test_candidates_are_judged_by_name_and_the_last_by_default(
    good: onnx.ModelProto, quantized: Quantized, rows: list[dict[str, Any]]
) -> None:
    found = evaluate([good, quantized, Linear()], rows, Classification(), build_for=None, progress=False)
    policy = Policy(max_drop=0.2, require_tensorrt_build=False, optional=["engine"])
    assert gate(found, policy).decision == "NO_GO"
    assert gate(found, policy, candidate="minmax").decision == "GO"
    with pytest.raises(UsageError, match="no candidate called mse; there are minmax, Linear"):
        gate(found, policy, candidate="mse")
    alone = evaluate([good], rows, Classification(), progress=False)
    with pytest.raises(UsageError, match="one model only"):
        gate(alone, policy)


def test_onnx_candidates_are_built_where_a_library_is(
    good: onnx.ModelProto, quantized: Quantized, rows: list[dict[str, Any]]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    found = evaluate([good, quantized], rows, Classification(), progress=False)
    reference, candidate = found.models
    assert reference.tensorrt_build is None
    assert candidate.tensorrt_build is not None and candidate.tensorrt_build.ok
    assert candidate.size_bytes == len(quantized.to_onnx().SerializeToString())
    assert gate(found, Policy(max_drop=0.2, optional=["engine"])).decision == "GO"


def test_compare_finds_the_planted_layer(models: Models, data_module: dict[str, Any]) -> None:
    samples = [row["image"] for row in data_module["rows"](32, seed=1)]
    bad = quantize(models.planted, samples, "minmax", progress=False)
    comparison = compare(models.planted, bad, samples, max_samples=8, progress=False)
    assert comparison.samples == 8
    assert not comparison.judgement.passed
    worst = next(x for x in comparison.layers if x.tensor == comparison.judgement.worst_isolated)
    assert "block" in worst.node
    lenient = compare(
        models.planted, bad, samples, thresholds=Thresholds.model_validate({"accumulated": {}, "isolated": {}})
    )
    assert lenient.judgement.passed


def test_compare_takes_modules(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
    x = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    made = quantize(net, x, "minmax", progress=False)
    comparison = compare(net, made, x, progress=False)
    assert comparison.reference.model == "Sequential"
    assert comparison.candidate.model == "minmax"
    assert any(layer.precision == "int8" for layer in comparison.layers)
    with pytest.raises(UsageError, match="one of the two models must be an ONNX file"):
        compare(net, net, x)


@pytest.mark.parametrize(
    ("models", "sentence"),
    [
        ([], "give a list of models, the reference first"),
        ("model.onnx", "give a list of models, the reference first"),
        (["absent.onnx"], "there is no file absent.onnx"),
        ([3], "a int is no model that can be opened; give a path, an onnx.ModelProto"),
    ],
)
def test_what_is_no_model_is_a_sentence(models: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        evaluate(models, [(np.zeros(3), 0)], Classification())


def test_errors_are_those_of_the_commands(good: onnx.ModelProto, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    repeated = rows[:10] * 2
    with pytest.raises(JobError, match="10 of 20 validation samples are repeats of others"):
        evaluate([good], repeated, Classification(), progress=False)
    assert evaluate([good], Samples(repeated, allow_repeats=True), Classification(), progress=False).warnings
    with pytest.raises(JobError, match="outside the model's 5 classes"):
        evaluate([good], [(row["image"], 7) for row in rows], Classification(), progress=False)
    with pytest.raises(UsageError, match="agreement needs a second model"):
        evaluate([good], rows, Classification(), label=None, progress=False)
    with pytest.raises(NothingComparedError, match="no tensor of the reference could be paired"):
        other = onnx.parser.parse_model(
            '<ir_version: 9, opset_import: ["": 19]> o (float[N, 3, 16, 16] image) => (float[N, 3, 16, 16] z) '
            "{ z = Relu(image) }"
        )
        compare(good, other, rows, progress=False)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        gate(tmp_path / "none", Policy(max_drop=0.1))


def test_names_are_escaped_in_notebooks(evaluation: Evaluation, good: onnx.ModelProto, rows: Any) -> None:
    tag = "<script>alert(1)</script>"
    first, second = evaluation.models
    renamed = evaluation.model_copy(
        update={"models": [first, second.model_copy(update={"model": tag})], "task": tag, "warnings": [tag]}
    )
    comparison = compare(good, good, rows, progress=False).model_copy(update={"candidate": evaluation_execution(tag)})
    verdict = gate(renamed, Policy(max_drop=0.1, require_tensorrt_build=False, optional=["engine"]))
    rule = verdict.rules[0].model_copy(update={"message": tag, "name": tag})
    for shown in (renamed, comparison, verdict.model_copy(update={"rules": [rule]})):
        html = shown._repr_html_()
        assert "<table>" in html
        assert "&lt;script&gt;" in html
        assert "<script" not in html


def evaluation_execution(name: str) -> Any:
    from validate.layerwise.comparison import Execution

    return Execution(model=name, runtime="r", device="d")


def test_tables_show_the_numbers(evaluation: Evaluation) -> None:
    html = evaluation._repr_html_()
    accuracy: Any = evaluation.models[1].accuracy
    assert f"<td>{100 * accuracy.value:.2f}%</td><td>{100 * accuracy.drop:.2f}%</td>" in html
    assert f"{100 * accuracy.ci_low:.2f}% to {100 * accuracy.ci_high:.2f}%" in html


def test_names_wait_until_they_are_asked_for(clean_environment: dict[str, str]) -> None:
    code = (
        "import sys, validate, calibrate, validate.exceptions\n"
        "heavy = {'numpy', 'pydantic', 'onnx', 'rich', 'torch', 'mlflow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert {'evaluate', 'gate', 'compare'} <= set(dir(validate)) and 'quantize' in dir(calibrate)\n"
        "for package in (validate, calibrate):\n"
        "    for name in package.__all__:\n"
        "        assert getattr(package, name) is getattr(package, name), name\n"
        "assert not hasattr(validate, 'no_such_name') and not hasattr(calibrate, 'no_such_name')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
