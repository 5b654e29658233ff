"""``python -m validate evaluate``: models made elsewhere, against ONNX Runtime and numpy on the same rows."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from PIL import Image

from tests.command_line import run_in_process
from tests.conftest import Completed
from tests.tiny_model import DATA, Models
from validate.results.evaluation import Evaluation
from validate.stats.intervals import paired_interval

ROWS = 200


@pytest.fixture
def folder(tmp_path: Path, models: Models) -> Path:
    """Return a folder with a config, its data, and three models: good, another as good, and one with noisy weights."""
    (tmp_path / "data.py").write_text(DATA, encoding="utf-8")
    shutil.copyfile(models.good, tmp_path / "good.onnx")
    for name, noise in (("noisy", 0.25), ("noisier", 1.0)):
        model, rng = onnx.load(models.good), np.random.default_rng(0)
        for tensor in model.graph.initializer:
            if tensor.name == "last.weight":
                values = onnx.numpy_helper.to_array(tensor)
                changed = values + noise * values.std() * rng.normal(size=values.shape).astype(np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
        onnx.save(model, tmp_path / f"{name}.onnx")
    write(tmp_path)
    return tmp_path


def write(folder: Path, **changes: Any) -> None:
    source = {"callable": "data.py:rows", "arguments": {"n": ROWS, "seed": 2}}
    config = {
        "data": {"calibration": source, "validation": source, "batch_size": 16} | changes.pop("data", {}),
        "task": {"type": "classification"},
    }
    (folder / "my.yaml").write_text(yaml.safe_dump(config | changes), encoding="utf-8")


def evaluate(folder: Path, *arguments: str) -> Completed:
    """Run the command in this process; one test runs the program."""
    command = ["evaluate", *arguments, "--config", "my.yaml"]
    return run_in_process("validate", command, folder, dict(os.environ) | {"COLUMNS": "160"})


def found(folder: Path, *arguments: str) -> Evaluation:
    done = evaluate(folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return Evaluation.read(folder / "evaluation.json")


def answers(model: Path, data_module: dict[str, Any]) -> tuple[Any, Any]:
    """Return the classes that the model gives, and the labels."""
    rows = list(data_module["rows"](ROWS, seed=2))
    session = onnxruntime.InferenceSession(str(model))
    logits = session.run(None, {"image": np.stack([row["image"] for row in rows])})[0]
    return logits.argmax(axis=1), np.array([row["label"] for row in rows])


def test_every_model_is_held_against_the_first(
    folder: Path, clean_environment: dict[str, str], data_module: dict[str, Any]
) -> None:
    names = ["good.onnx", "noisy.onnx", "noisier.onnx"]
    done = subprocess.run(
        [sys.executable, "-m", "validate", "evaluate", *names, "--config", "my.yaml"],
        cwd=folder,
        env=clean_environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    evaluation = Evaluation.read(folder / "evaluation.json")
    assert [model.model for model in evaluation.models] == names
    expected = [answers(folder / name, data_module) for name in names]
    for model, (classes, labels) in zip(evaluation.models, expected, strict=True):
        assert model.scores == (classes == labels).astype(float).tolist()
        assert model.accuracy.value == pytest.approx((classes == labels).mean())
        assert model.agreement == pytest.approx((classes == expected[0][0]).mean())
    right = [classes == labels for classes, labels in expected]
    for model, hits in zip(evaluation.models[1:], right[1:], strict=True):
        worse = right[0].astype(float) - hits
        interval = paired_interval(worse, 0.975, 1.0)  # two candidates share the error
        accuracy: Any = model.accuracy
        assert accuracy.drop == pytest.approx(worse.mean())
        assert (accuracy.ci_low, accuracy.ci_high) == pytest.approx((interval.low, interval.high))
        assert accuracy.confidence == pytest.approx(0.975)
        assert f"{100 * model.accuracy.value:.2f}%" in done.stdout
    assert table(done.stdout)[0][-1] == "top1 against the first"
    assert len(set(evaluation.samples)) == ROWS


def test_a_module_is_scored_beside_the_file_that_was_made_of_it(
    folder: Path, clean_environment: dict[str, str]
) -> None:
    torch = pytest.importorskip("torch")
    (folder / "net.py").write_text(
        "import numpy as np, onnx, torch\n"
        "def make():\n"
        "    net = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),\n"
        "        torch.nn.Flatten(), torch.nn.Linear(6, 5))\n"
        "    torch.manual_seed(0)\n"
        "    [torch.nn.init.normal_(p) for p in net.parameters()]\n"
        "    return net\n",
        encoding="utf-8",
    )
    sys.path.insert(0, str(folder))
    try:
        import net  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(folder))
    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        net.make().eval(), (torch.zeros(2, 3, 16, 16),), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )
    program.save(str(folder / "net.onnx"))  # its input is not called image, and there is only one
    evaluation = found(folder, "good.onnx", "net.onnx", "net.py:make")
    first, exported, module = evaluation.models
    assert exported.scores == module.scores != first.scores
    assert module.runtime.startswith("torch")
    assert exported.runtime.startswith("onnxruntime")


def test_a_module_alone_needs_the_names_of_its_inputs(folder: Path) -> None:
    pytest.importorskip("torch")
    (folder / "net.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 5))\n"
    )
    done = evaluate(folder, "net.py:make")
    assert done.returncode == 2
    assert "model.inputs" in done.stderr
    write(folder, model={"torch": "net.py:make", "inputs": ["image"]})
    assert len(found(folder, "net.py:make", "--samples", "20").models[0].scores) == 20


def test_without_labels_it_is_agreement_and_said_to_be(folder: Path, data_module: dict[str, Any]) -> None:
    write(folder, data={"label": None})
    done = evaluate(folder, "good.onnx", "noisy.onnx")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "agreement_top1" in done.stdout
    assert "accuracy" not in done.stdout
    evaluation = Evaluation.read(folder / "evaluation.json")
    reference, candidate = evaluation.models
    assert reference.accuracy.value == 1.0
    assert candidate.accuracy.is_agreement
    same = answers(folder / "good.onnx", data_module)[0] == answers(folder / "noisy.onnx", data_module)[0]
    assert candidate.scores == same.astype(float).tolist()
    assert "which says nothing of how often either is right" in evaluation.warnings[0]
    alone = evaluate(folder, "good.onnx")
    assert alone.returncode == 2
    assert "agreement needs a second model" in alone.stderr


def test_a_reference_far_below_what_is_expected_is_warned_of(folder: Path) -> None:
    value = found(folder, "good.onnx").models[0].accuracy.value
    write(folder, model={"expected_metric": value})
    assert not found(folder, "good.onnx").warnings
    write(folder, model={"expected_metric": 0.999})
    (warning,) = found(folder, "noisier.onnx").warnings
    assert "model.expected_metric" in warning
    assert "preprocessing" in warning


@pytest.mark.parametrize(
    ("arguments", "changes", "code", "sentence"),
    [
        (["absent.onnx"], {}, 2, "there is no file absent.onnx"),
        (["good.onnx"], {"task": {"type": "clasification"}}, 2, "task.type should be one of"),
        (["good.onnx"], {"task": {"type": "detection"}}, 2, "task.classes is missing"),
        (["good.onnx"], {"data": {"label": "lable"}}, 4, "has no column 'lable'; its columns are image, label; where"),
        (["good.onnx"], {"task": {"type": "segmentation", "classes": 5}}, 4, "segmentation needs logits of shape"),
        (["good.onnx", "--output", "no/where.json"], {}, 2, "there is no folder no"),
        (
            ["good.onnx"],
            {
                "data": {
                    "validation": {
                        "callable": "data.py:rows_of_another_seed_on_every_pass",
                        "arguments": {"n": 8, "seed": 1},
                    }
                }
            },
            0,
            "",
        ),
        (
            ["good.onnx", "noisy.onnx"],
            {
                "data": {
                    "validation": {
                        "callable": "data.py:rows_of_another_seed_on_every_pass",
                        "arguments": {"n": 8, "seed": 1},
                    }
                }
            },
            0,  # all models see the same samples in one pass
            "",
        ),
    ],
)
def test_what_goes_wrong_is_one_sentence(
    folder: Path,
    arguments: list[str],
    changes: dict[str, Any],
    code: int,
    sentence: str,
) -> None:
    write(folder, **changes)
    done = evaluate(folder, *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert (folder / "evaluation.json").exists() == (code == 0)
    if code:
        assert len(done.stderr.strip().splitlines()) == 1


def test_the_file_follows_its_schema_and_may_hold_records(folder: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    (folder / "tasks.py").write_text(
        "import numpy as np\n"
        "from validate.tasks.base import Metric, ratio_of_sums\n"
        "class Mine:\n"
        "    name = 'mine'\n"
        "    metric = Metric('mine', True, True, ratio_of_sums)\n"
        "    def scores(self, outputs, labels):\n"
        "        logits = next(iter(outputs.values()))\n"
        "        return np.c_[logits.argmax(axis=1) == labels, np.ones(len(labels))].astype(float)\n"
        "    def errors(self, outputs, reference):\n"
        "        return np.zeros(len(next(iter(outputs.values()))))\n",
        encoding="utf-8",
    )
    plain = found(folder, "good.onnx", "noisier.onnx")
    write(folder, task={"type": "custom", "callable": "tasks.py:Mine"})
    records = found(folder, "good.onnx", "noisier.onnx")
    for a, b in zip(plain.models, records.models, strict=True):
        assert b.scores == [[score, 1.0] for score in a.scores]
        assert b.accuracy.value == pytest.approx(a.accuracy.value)
        assert b.agreement is None
    interval: Any = records.models[1].accuracy
    assert interval.method == "score of jackknife pseudo-values"
    schema = Evaluation.model_json_schema(mode="serialization")
    jsonschema.validate(json.loads((folder / "evaluation.json").read_text()), schema)


def test_samples_that_repeat_others_are_no_evidence(folder: Path) -> None:
    again = {"callable": "data.py:rows_again", "arguments": {"n": 20, "seed": 2, "times": 3}}
    write(folder, data={"validation": again})
    done = evaluate(folder, "good.onnx", "noisy.onnx")
    assert done.returncode == 4
    assert "40 of 60 validation samples are repeats of others" in done.stderr
    assert "data.allow_repeats" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    write(folder, data={"validation": again, "allow_repeats": True})
    done = evaluate(folder, "good.onnx", "noisy.onnx")
    assert done.returncode == 0, done.stderr
    (warning,) = Evaluation.read(folder / "evaluation.json").warnings
    assert "narrower than 20 independent samples can make them" in warning
    assert "40 of 60 validation samples are repeats of others" in done.stdout


SURE = """
import numpy as np
from scipy.special import log_softmax
from validate.tasks.base import Metric
class Loss:
    name = "sure"
    metric = Metric("nats", higher_is_better=False, is_rate=False)
    def scores(self, outputs, labels):
        return -log_softmax(next(iter(outputs.values())), axis=1)[np.arange(len(labels)), labels]
    def errors(self, outputs, reference):
        return np.zeros(len(next(iter(outputs.values()))))
    def answers(self, outputs):
        return list(next(iter(outputs.values())).argmax(axis=1))
class Broken(Loss):
    def scores(self, outputs, labels):
        return np.array([float(label["no"]) for label in labels])
"""


def test_a_metric_in_which_a_model_can_beat_its_own_answers_measures_no_agreement(folder: Path) -> None:
    (folder / "tasks.py").write_text(SURE)
    write(folder, task={"type": "custom", "callable": "tasks.py:Loss"})
    assert found(folder, "good.onnx", "noisy.onnx").models[0].accuracy.value > 0
    (folder / "evaluation.json").unlink()
    write(folder, task={"type": "custom", "callable": "tasks.py:Loss"}, data={"label": None})
    done = evaluate(folder, "good.onnx", "noisy.onnx")
    assert done.returncode == 4
    assert re.search(r"agreement_nats of the float model and its own answers is \S+ and not 0, so that", done.stderr)
    assert not (folder / "evaluation.json").exists()


def test_a_loss_of_tokens_is_refused_without_labels(folder: Path) -> None:
    write(folder, task={"type": "masked_lm"}, data={"label": None})
    done = evaluate(folder, "good.onnx", "noisy.onnx")
    assert done.returncode == 2
    assert "task.metric is perplexity, which needs labels, and data.label is null" in done.stderr


def test_what_a_task_of_ones_own_raises_is_one_sentence(folder: Path) -> None:
    (folder / "tasks.py").write_text(SURE)
    write(folder, task={"type": "custom", "callable": "tasks.py:Broken"})
    done = evaluate(folder, "good.onnx")
    assert done.returncode == 4
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: task sure cannot score sample 0 and following: ")
    assert "TypeError" in line or "IndexError" in line


def write_identity(path: Path, shape: list[Any]) -> None:
    """Write a model that gives what it gets, so that answers can be in the data."""
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "same", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)


def table(printed: str) -> list[list[str]]:
    """Return the cells of the table that ends at the first empty line."""
    lines = printed.strip().split("\n\n")[0].splitlines()
    return [re.split(r"\s{2,}", line.strip()) for line in lines if not set(line) <= set(" ─")]


def test_the_last_column_says_what_it_measures_against_the_first_model(tmp_path: Path) -> None:
    """An error against the first model's answers is no agreement: 0 is the best of them."""
    for name, shift in (("same", 0.0), ("shifted", 0.5)):
        ends = [onnx.helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, ["N", 1]) for end in ("x", "y")]
        by = onnx.numpy_helper.from_array(np.array([shift], np.float32), "by")
        add = onnx.helper.make_node("Add", ["x", "by"], ["y"])
        graph = onnx.helper.make_graph([add], name, ends[:1], ends[1:], [by])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, tmp_path / f"{name}.onnx")
    values = np.arange(40, dtype=np.float64)
    rows = pyarrow.table({"x": [[v] for v in values], "label": values + 2.0})
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet")
    (tmp_path / "pre.py").write_text(
        "import numpy as np\ndef make(row):\n    return np.array(row['x'], np.float32)\n", encoding="utf-8"
    )
    source = {"parquet": "a.parquet"}
    data = {"calibration": source, "validation": source, "preprocess": "pre.py:make"}
    config = {"data": data, "task": {"type": "regression", "metric": "mae"}}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    headings, first, second = table(evaluate(tmp_path, "same.onnx", "shifted.onnx").stdout)
    assert headings == ["model", "mae", "drop", "95% interval", "mae against the first"]
    assert first == ["same.onnx", "2"]
    assert (second[:3], second[-1]) == (["shifted.onnx", "1.5", "-0.5"], "0.5")
    assert table(evaluate(tmp_path, "same.onnx").stdout) == [["model", "mae"], ["same.onnx", "2"]]


def test_labels_of_boxes_and_maps_come_out_of_parquet(tmp_path: Path) -> None:
    """As Hugging Face's data sets hold them: lists of structs, and encoded images."""
    boxes = [[0, 0, 10, 10, 0.9, 0], [50, 50, 60, 60, 0.8, 0], [20, 20, 30, 26, 0.7, 0]]
    pixels = np.array([[0, 1, 2], [255, 1, 1]], np.uint8)
    logits = np.eye(3)[[[0, 1, 2], [0, 1, 0]]].transpose(2, 0, 1)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    row = {
        "objects": [{"bbox": [0, 0, 10, 10], "category": 0}, {"bbox": [20, 20, 10, 10], "category": 0}],
        "mask": {"bytes": buffer.getvalue(), "path": None},
    }
    rows = [  # three that differ and score alike
        row | {"boxes": [boxes[0], [50 + i, *boxes[1][1:]], boxes[2]], "logits": (logits * (1 + i)).tolist()}
        for i in range(3)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "pre.py").write_text(
        "import numpy as np\n"
        "def boxes(row):\n    return np.array(row['boxes'], np.float32)\n"
        "def logits(row):\n    return np.array(row['logits'], np.float32)\n"
    )
    cases = {
        "boxes": (["N", 3, 6], "objects", {"type": "detection", "classes": 1}),
        "logits": (["N", 3, 2, 3], "mask", {"type": "segmentation", "classes": 3}),
    }
    values = {}
    for name, (shape, label, task) in cases.items():
        write_identity(tmp_path / "same.onnx", shape)
        source = {"parquet": "a.parquet"}
        data = {"calibration": source, "validation": source, "preprocess": f"pre.py:{name}", "label": label}
        (tmp_path / "my.yaml").write_text(yaml.safe_dump({"data": data, "task": task}))
        values[name] = found(tmp_path, "same.onnx").models[0].accuracy.value
    # See test_map_by_hand; of classes 0, 1 and 2, one pixel of class 1 is taken for 0.
    assert values["boxes"] == pytest.approx((3 * (51 + 50 * 2 / 3) + 7 * 51) / 1010)
    assert values["logits"] == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)


def scored(folder: Path, task: dict[str, Any], rows: list[dict[str, Any]], output: Any, shape: list[Any]) -> Completed:
    """Score a model that answers `output`, all but rounding, to every row of a parquet file."""
    outputs = [(np.array(output) + 1e-6 * i).tolist() for i in range(len(rows))]  # no sample repeats another
    table = pyarrow.Table.from_pylist([{**row, "output": made} for row, made in zip(rows, outputs, strict=True)])
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    (folder / "pre.py").write_text(
        "import numpy as np\ndef pre(row):\n    return np.array(row['output'], np.float32)\n"
    )
    write_identity(folder / "same.onnx", shape)
    source = {"parquet": "a.parquet"}
    data = {"calibration": source, "validation": source, "preprocess": "pre.py:pre", "batch_size": 4}
    (folder / "my.yaml").write_text(yaml.safe_dump({"data": data, "task": task}))
    return evaluate(folder, "same.onnx")


BOXES = {"bbox": [[0.0, 0.0, 10.0, 10.0]], "category": [0], "iscrowd": [0]}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"iscrowd": None}, None),
        ({"iscrowd": [None]}, None),
        ({"category": None}, "category of a label must be numbers, but it is None"),
        ({"bbox": None}, "bbox of a label must be numbers, but it is None"),
        ({"category": [-1]}, "category -1 of a label is none of 3 classes"),
    ],
)
def test_a_label_of_boxes_with_nulls_is_used_or_named(
    tmp_path: Path, changes: dict[str, Any], sentence: str | None
) -> None:
    rows = [{"label": BOXES}] * 6 + [{"label": BOXES | changes}]
    task = {"type": "detection", "classes": 3}
    done = scored(tmp_path, task, rows, [[0, 0, 10, 10, 0.9, 0]], ["N", 1, 6])
    if sentence is None:
        assert done.returncode == 0, done.stderr
        assert Evaluation.read(tmp_path / "evaluation.json").models[0].accuracy.value == pytest.approx(1)
    else:
        assert done.returncode == 4
        assert done.stderr.strip() == f"error: task detection cannot use the label of sample 6: {sentence}"


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        (None, "an image must be encoded bytes, a path or an array, but it is None"),
        (b"nonsense", "no image in a format that Pillow knows is in its 8 bytes"),
    ],
)
def test_a_mask_that_cannot_be_read_is_named(tmp_path: Path, label: bytes | None, sentence: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.eye(2, dtype=np.uint8)).save(buffer, "PNG")
    rows = [{"label": buffer.getvalue()}] * 5 + [{"label": label}]
    task = {"type": "segmentation", "classes": 2}
    done = scored(tmp_path, task, rows, np.zeros((2, 2, 2)).tolist(), ["N", 2, 2, 2])
    assert done.returncode == 4
    assert done.stderr.strip() == f"error: task segmentation cannot use the label of sample 5: {sentence}"


@pytest.mark.parametrize(("foreground", "warned"), [(255, True), (1, False)])
def test_a_class_that_is_in_no_mask_is_warned_of(tmp_path: Path, foreground: int, warned: bool) -> None:
    mask = [[0, foreground], [foreground, 0]]
    task = {"type": "segmentation", "classes": 2}
    logits = [[[1, 0], [0, 1]], [[0, 1], [1, 0]]]
    done = scored(tmp_path, task, [{"label": mask}] * 3, logits, ["N", 2, 2, 2])
    assert done.returncode == 0, done.stderr
    evaluation = Evaluation.read(tmp_path / "evaluation.json")
    assert evaluation.models[0].accuracy.value == 1.0
    expected = (
        "no label of the 3 validation samples has class 1, so that miou does not tell whether a model finds it; labels "
        "are 0 to 1, not 0 and 255"
    )
    assert evaluation.warnings == ([expected] if warned else [])
