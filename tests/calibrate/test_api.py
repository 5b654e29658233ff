"""`from calibrate import quantize, run`: a float model and samples in memory, against the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from nbclient import NotebookClient

import calibrate
from calibrate import Exclusion, Quantized, quantize
from calibrate.plan import QuantizationPlan
from tests.conftest import Job
from tests.tiny_model import Models
from validate import Classification, JobError, Policy, Results, Samples, UsageError, evaluate, gate
from validate.backends.tensorrt import needs_fp32_scales

FIVE_LINES = """
from calibrate import quantize; from validate import Classification, Policy, evaluate, gate
quantized = quantize(model, images, strategy="mse")
quantized.save("model.int8.onnx")
evaluation = evaluate([model, quantized], rows, task=Classification())
verdict = gate(evaluation, Policy(max_drop=0.1, optional=["engine"]))
"""


@pytest.fixture(scope="module")
def images(data_module: dict[str, Any]) -> list[Any]:
    return [row["image"] for row in data_module["rows"](30, seed=1)]


@pytest.fixture(scope="module")
def finished(new_job: Callable[[], Job]) -> Job:
    """Return a job that the command line has finished."""
    job = new_job()
    job.config["quantization"] = {"strategies": ["minmax", {"percentile": 99.9}]}
    assert job.run().returncode == 0
    return job


def test_five_lines_in_a_fresh_notebook(
    models: Models, tmp_path: Path, clean_environment: dict[str, str], data_module: dict[str, Any]
) -> None:
    rows = list(data_module["rows"](300, seed=2))
    np.savez(tmp_path / "rows.npz", x=[row["image"] for row in rows], y=[row["label"] for row in rows])
    given = (
        f"import numpy as np, onnx\nmodel = onnx.load({str(models.good)!r})\nfile = np.load('rows.npz')\n"
        "rows = list(zip(file['x'], file['y']))\nimages = file['x'][:64]"
    )
    shown = "assert verdict.decision in ('GO', 'INCONCLUSIVE'), verdict\nverdict"
    cells = [given, *FIVE_LINES.strip().splitlines(), shown]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=clean_environment)
    (output,) = [x for x in notebook.cells[-1].outputs if x.output_type == "execute_result"]
    assert "<table><caption>" in output.data["text/html"]
    session = onnxruntime.InferenceSession(str(tmp_path / "model.int8.onnx"))
    assert session.run(None, {"image": rows[0]["image"][None]})[0].shape == (1, 5)
    errors = [x.text for cell in notebook.cells for x in cell.get("outputs", []) if x.get("name") == "stderr"]
    assert not any("Traceback" in text for text in errors)


def test_plans_and_numbers_are_those_of_a_run(finished: Job, models: Models, data_module: dict[str, Any]) -> None:
    results = Results.read(finished.output)
    samples = list(data_module["rows"](30, seed=1))
    validation = list(data_module["rows"](200, seed=2))
    quantized = [quantize(models.good, samples, s, progress=False) for s in ("minmax", {"percentile": 99.9})]
    confidence = 1 - 2 * (1 - results.candidates[0].accuracy.confidence)  # of two candidates
    evaluation = evaluate(
        [models.good, *quantized], validation, Classification(), confidence=confidence, build_for=None, progress=False
    )
    assert evaluation.models[0].accuracy == results.reference.accuracy
    for made, found in zip(quantized, evaluation.models[1:], strict=True):
        candidate = results.candidate(made.name)
        assert made.plan.hash == candidate.plan_hash == found.plan_hash
        assert made.plan == QuantizationPlan.read(finished.output / candidate.plan)
        assert found.accuracy == candidate.accuracy


def test_the_file_is_that_of_a_run(finished: Job, models: Models, images: list[Any], tmp_path: Path) -> None:
    results = Results.read(finished.output)
    made = quantize(models.good, images, "minmax", progress=False)
    made.save(tmp_path / "mine.onnx")
    if results.selected == "minmax":
        assert (tmp_path / "mine.onnx").read_bytes() == (finished.output / "model.int8.onnx").read_bytes()
    onnx.checker.check_model(tmp_path / "mine.onnx", full_check=True)
    assert made.to_onnx().SerializeToString() == (tmp_path / "mine.onnx").read_bytes()


def test_results_are_gated_by_value_and_by_folder(finished: Job) -> None:
    results = Results.read(finished.output)
    policy = Policy.model_validate({"max_drop": 0.1, "classes": {"max_drop": 0.9}, "optional": ["engine"]})
    by_folder = gate(finished.output, policy)
    assert by_folder == gate(str(finished.output / "results.json"), policy, candidate=results.selected)
    assert by_folder.decision == "GO"
    by_value = gate(results, policy)
    assert by_value.decision == "INCONCLUSIVE"
    assert any("the folder of the results" in reason for reason in by_value.reasons)
    assert (
        "&lt;" not in results._repr_html_()
        and "<caption>GO, by simulation: no engine was run</caption>" in results._repr_html_()
    )
    renamed = results.model_copy(update={"warnings": ["<b>"]})
    assert "&lt;b&gt;" in renamed._repr_html_()
    with pytest.raises(UsageError, match="cannot be judged"):
        gate(results, policy, candidate="other")


def test_every_kind_of_model_gives_the_same_scales(models: Models, images: list[Any]) -> None:
    proto = onnx.load(models.good)
    plans = [quantize(m, images, "minmax", progress=False).plan for m in (models.good, str(models.good), proto)]
    assert plans[0].scales == plans[1].scales == plans[2].scales
    assert plans[0].scales["image"] == pytest.approx(max(np.abs(x).max() for x in images) / 127)


def test_one_pass_will_do_for_a_generator(models: Models, images: list[Any]) -> None:
    one = quantize(models.good, (image for image in images), "minmax", progress=False)
    assert one.plan == quantize(models.good, np.stack(images), "minmax", progress=False).plan
    assert one.stored.samples == 30
    spent = iter(images)
    list(spent)
    with pytest.raises(UsageError, match="has none left"):
        quantize(models.good, spent, progress=False)


def test_a_module_is_exported_as_a_copy(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.dense = torch.nn.Linear(4, 3)

        def forward(self, left: Any, right: Any) -> Any:
            return self.dense(left * right)

    net = Net().train()
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=(20, 4)).astype(np.float32) for _ in range(2))
    made = [
        quantize(net, {"left": left, "right": right}, "minmax", progress=False),
        quantize(net, zip(left, right, strict=True), "minmax", progress=False),
        quantize(net, zip(left, right, strict=True), "minmax", input_names=["left", "right"], progress=False),
    ]
    assert net.training
    products = np.abs(left * right).max() / 127
    for quantized in made:
        assert max(quantized.plan.scales.values()) == pytest.approx(products, rel=1e-5)
    made[0].save(tmp_path / "net.onnx")
    outputs = onnxruntime.InferenceSession(str(tmp_path / "net.onnx")).run(None, {"left": left, "right": right})[0]
    np.testing.assert_allclose(outputs, net(torch.from_numpy(left), torch.from_numpy(right)).detach(), atol=0.1)


def test_rules_are_kept(models: Models, images: list[Any]) -> None:
    made = quantize(
        models.good,
        Samples([255 * image for image in images], preprocess=lambda x: x / np.float32(255)),
        "minmax",
        float_precision="fp32",
        exclude=Exclusion(op_types=["Gemm"]),
        progress=False,
    )
    assert made.plan.float_precision == "fp32"
    assert "head" not in made.plan.int8_layers
    assert made.statistics["image"].amax == pytest.approx(max(np.abs(x).max() for x in images), rel=1e-6)
    html = made._repr_html_()
    assert "<caption>minmax</caption>" in html and "30" in html


def test_statistics_are_those_that_the_command_makes_plans_of(
    models: Models, images: list[Any], tmp_path: Path
) -> None:
    from calibrate.observation.statistics_file import read_statistics

    made = quantize(models.good, images, progress=False)
    made.save_statistics(tmp_path / "statistics.npz")
    stored = read_statistics(tmp_path / "statistics.npz")
    assert stored.samples == 30
    assert stored.observation.statistics["image"].amax == made.statistics["image"].amax


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"strategy": "best"}, UsageError, "strategy 'best'"),
        ({"strategy": {"percentile": 200}}, UsageError, "strategy 200"),
        ({"float_precision": "int4"}, UsageError, "float_precision 'int4'"),
        ({"model": "absent.onnx"}, UsageError, "there is no file absent.onnx"),
        ({"model": 3}, UsageError, "a int is no model that can be opened"),
        ({"samples": []}, JobError, "the calibration set has no samples"),
        ({"samples": [{"image": [[1], [1, 2]]}]}, JobError, "sample 0 of the calibration set holds no array"),
    ],
)
def test_what_goes_wrong_is_a_sentence(
    models: Models, images: list[Any], arguments: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        quantize(**{"model": models.good, "samples": images, "progress": False, **arguments})


def test_a_file_that_cannot_be_written_is_a_sentence(models: Models, images: list[Any], tmp_path: Path) -> None:
    made = quantize(models.good, images, "minmax", progress=False)
    with pytest.raises(UsageError, match="there is no folder"):
        made.save(tmp_path / "no/where.onnx")
    with pytest.raises(UsageError, match="is the float model itself"):
        made.save(models.good)
    with pytest.raises(UsageError, match="cannot be written"):
        made.save(tmp_path)


def test_progress_can_be_off(models: Models, images: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    quantize(models.good, images, "minmax", progress=False)
    assert "observe" not in capsys.readouterr().out
    quantize(models.good, images, "minmax")
    assert "observe" in capsys.readouterr().out


def test_a_whole_job_runs_in_process(job: Job) -> None:
    job.command()
    sys.path.insert(0, str(job.folder))
    try:
        results = calibrate.run(
            job.folder / "config.yaml", job.output, overrides=["policy.max_drop=0.2"], progress=False
        )
    finally:
        sys.path.remove(str(job.folder))
    assert results == Results.read(job.output)
    assert results.verdict.decision == "GO"
    assert results.config["policy"]["max_drop"] == 0.2
    assert results.command.startswith("python -m calibrate run ") and "--set policy.max_drop=0.2" in results.command
    assert "INFO calibrate.journal" in (job.output / "run.log").read_text()
    (job.folder / "other").mkdir()
    (job.folder / "other/mine").touch()
    with pytest.raises(UsageError, match="holds files that no run wrote"):
        calibrate.run(job.folder / "config.yaml", job.folder / "other")


def test_a_job_that_fails_says_why_in_its_log(job: Job) -> None:
    job.config["data"]["calibration"]["arguments"]["nan_at"] = 3
    (job.folder / "config.yaml").write_text(yaml.safe_dump(job.config))
    with pytest.raises(JobError, match="is not finite"):
        calibrate.run(job.folder / "config.yaml", job.output, progress=False)
    assert "Traceback" in (job.output / "run.log").read_text()
    assert not (job.output / "results.json").exists()


def test_quantized_is_what_validate_expects(models: Models, images: list[Any]) -> None:
    from validate.backends.base import Deployable

    made = quantize(models.good, images, "minmax", progress=False)
    assert isinstance(made, Quantized) and isinstance(made, Deployable)


def test_float32_scales_are_a_setting(models: Models, images: list[Any]) -> None:
    layers = {"stem", "block", "last", "head"}
    plans = {
        setting: quantize(models.good, images, "minmax", fp32_scales=setting, progress=False).plan
        for setting in ("auto", "always", "never")
    }
    assert plans["never"].fp32_scales == frozenset()
    assert plans["always"].fp32_scales == layers | {"residual"}
    assert plans["auto"].fp32_scales == (plans["always"] if needs_fp32_scales() else plans["never"]).fp32_scales
    whole = quantize(models.good, images, "minmax", fp32_scales="always", float_precision="fp32", progress=False).plan
    assert whole.fp32_scales == frozenset()
    with pytest.raises(UsageError, match="fp32_scales 'sometimes'"):
        quantize(models.good, images, fp32_scales="sometimes", progress=False)  # type: ignore[arg-type]
