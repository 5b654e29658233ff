"""The config file: what it accepts, and that every mistake is one sentence with the key and the line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from calibrate.config import load
from calibrate.strategies.percentile import PercentileStrategy
from tests.command_line import run_in_process
from validate.exceptions import UsageError

ROOT = Path(__file__).parents[2]
HERE = "# here"  # marks the line that the sentence must name

BASE = """\
name: tiny
model:
  onnx: model.onnx
data:
  calibration:
    callable: data.py:rows
    arguments: {n: 4}
  validation:
    callable: data.py:rows
    arguments:
      n: 8
  image:
    crop: 224
  batch_size: 8
task:
  type: classification
policy:
  max_drop: 0.1
quantization:
  strategies:
    - minmax
    - percentile: 99.9
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").touch()
    (tmp_path / "data.py").write_text("number = 5\ndef rows(n):\n    return []\n")
    (tmp_path / "broken.py").write_text("def rows(:\n")
    (tmp_path / "raises.py").write_text("1 / 0\n")
    (tmp_path / "exits.py").write_text("raise SystemExit(0)\n")
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_whole_config_loads_with_its_defaults(folder: Path) -> None:
    config = load(written(folder, BASE))
    assert config.policy.max_drop == 0.1
    assert config.quantization.strategies == ["minmax", PercentileStrategy(percentile=99.9)]
    assert config.fallback.evaluations == 3
    assert config.target.compute_capability == "8.9"
    assert config.data.validation.arguments == {"n": 8}


@pytest.mark.parametrize(
    ("gpu", "capability"),
    [("T4", "7.5"), ("A10", "8.6"), ("L4", "8.9"), ("A100", "8.0"), ("H100", "9.0"), ("RTX 4090", "8.9")],
)
def test_the_compute_capability_is_that_of_the_gpu(folder: Path, gpu: str, capability: str) -> None:
    assert load(written(folder, BASE), [f"target.gpu={gpu}"]).target.compute_capability == capability


def test_a_target_that_contradicts_itself_is_refused(folder: Path) -> None:
    message = refusal(written(folder, BASE), "target.gpu=T4", "target.compute_capability=8.9")
    assert "target.compute_capability" in message
    assert message.endswith("it is 8.9, and target.gpu, the T4, has 7.5; give one of the two")
    both = load(written(folder, BASE), ["target.gpu=T4", "target.compute_capability=7.5"])
    assert both.target == load(written(folder, BASE), ["target.gpu=T4"]).target


def test_an_unknown_gpu_is_one_mistake(folder: Path) -> None:
    assert refusal(written(folder, BASE), "target.gpu=T5").count("target.") == 1


@pytest.mark.parametrize(
    ("target", "name", "capability", "is_it"),
    [
        ("gpu: L4", "NVIDIA L4", "8.9", True),
        ("gpu: L4", "NVIDIA GeForce RTX 4090", "8.9", False),
        ("gpu: A10", "NVIDIA A10", "8.6", True),
        ("gpu: A10", "NVIDIA L4", "8.9", False),
        ("gpu: A10", "NVIDIA A10G", "8.6", False),
        ("gpu: H100", "NVIDIA H100 80GB HBM3", "9.0", True),
        ("compute_capability: 8.9", "NVIDIA L40S", "8.9", True),
        ("compute_capability: 8.6", "NVIDIA L4", "8.9", False),
    ],
)
def test_a_gpu_is_the_target_by_its_name_where_the_target_has_one(
    folder: Path, target: str, name: str, capability: str, is_it: bool
) -> None:
    config = load(written(folder, BASE), [f"target={{{target}}}"])
    assert config.target.is_gpu(name, capability) is is_it


@pytest.mark.parametrize("target", ["target.gpu=T4", "target.compute_capability=7.5"])
def test_a_precision_that_the_target_lacks_is_refused(folder: Path, target: str) -> None:
    path = written(folder, BASE)
    bf16 = {key: f"{key}=bf16" for key in ("quantization.float_precision", "fallback.precision")}
    for key, override in bf16.items():
        assert f"{key} is bf16, in which the target, a T4, does not compute" in refusal(path, target, override)
    load(path, [target, bf16["fallback.precision"], "fallback.evaluations=0"])
    load(path, [target, bf16["quantization.float_precision"], "target.device=cpu"])


@pytest.mark.parametrize("evaluations", [0.5, 1, 1.9])
def test_a_budget_that_no_trial_fits_in_is_refused(folder: Path, evaluations: float) -> None:
    message = refusal(written(folder, BASE), f"fallback.evaluations={evaluations}")
    assert "fallback.evaluations" in message and "2 or more; 0 turns fallback off" in message
    assert load(written(folder, BASE), ["fallback.evaluations=2"]).fallback.evaluations == 2


def test_a_margin_that_allows_everything_is_refused(folder: Path) -> None:
    message = refusal(written(folder, BASE), "policy.max_drop=5")
    assert "policy.max_drop is 5" in message
    assert "0.05" in message


# Mistakes in the file

MISTAKES = {
    "unknown key": ("name: tiny", f"nmae: tiny {HERE}", "nmae", "is not a known key; did you mean name?"),
    "unknown nested key": (
        "  max_drop: 0.1",
        f"  max_drop: 0.1\n  confidance: 0.9 {HERE}",
        "policy.confidance",
        "is not a known key; did you mean confidence?",
    ),
    "unknown key of an optional section": (
        "    crop: 224",
        f"    corp: 224 {HERE}",
        "data.image.corp",
        "did you mean crop?",
    ),
    "unknown key of a task": (
        "  type: classification",
        f"  type: classification\n  topk: 5 {HERE}",
        "task.topk",
        "did you mean top_k?",
    ),
    "unknown key called like a task": (
        "name: tiny",
        f"classification: tiny {HERE}",
        "classification",
        "is not a known key",
    ),
    "unknown key that is like no other": ("name: tiny", f"qqq: 1 {HERE}", "qqq", "is not a known key"),
    "wrong type": ("batch_size: 8", f"batch_size: eight {HERE}", "data.batch_size", "valid integer"),
    "value out of range": ("batch_size: 8", f"batch_size: 0 {HERE}", "data.batch_size", "greater than or equal to 1"),
    "section without keys": ("policy:\n  max_drop: 0.1", f"policy: {HERE}", "policy", "is empty"),
    "key that is given twice": (
        "  max_drop: 0.1",
        f"  max_drop: 0.1\n  max_drop: 0.9 {HERE}",
        "policy.max_drop",
        "is given twice",
    ),
    "key that is given twice in a list": (
        "- percentile: 99.9",
        f"- {{percentile: 50, percentile: 99.9}} {HERE}",
        "quantization.strategies.1.percentile",
        "is given twice",
    ),
    "rule without a value": ("  max_drop: 0.1", f"  max_drop: 0.1\n  latency: {HERE}", "policy.latency", "is empty"),
    "section that is a number": ("policy:\n  max_drop: 0.1", f"policy: 3 {HERE}", "policy", "not 3"),
    "infinite margin": ("max_drop: 0.1", f"max_drop: .inf {HERE}", "policy.max_drop", "finite"),
    "missing key": ("policy:\n  max_drop: 0.1", f"policy: {HERE}\n  confidence: 0.9", "policy.max_drop", "is missing"),
    "missing task type": ("task:\n  type: classification", f"task: {HERE}\n  top_k: 5", "task.type", "is missing"),
    "unknown task type": ("type: classification", f"type: clasification {HERE}", "task.type", "'classification'"),
    "missing file": ("onnx: model.onnx", f"onnx: absent.onnx {HERE}", "model.onnx", "absent.onnx does not exist"),
    "package that is not installed": (
        "onnx: model.onnx",
        f"onnx: package:no_such/m.onnx {HERE}",
        "model.onnx",
        "pip install no-such",
    ),
    "subpackage of no package": (
        "onnx: model.onnx",
        f"onnx: package:no_such.sub/m.onnx {HERE}",
        "model.onnx",
        "'no_such.sub' is not installed",
    ),
    "both kinds of model": (
        "model:\n",
        f"model: {HERE}\n  torch: data.py:rows\n  inputs: [x]\n",
        "model",
        "exactly one of onnx and torch",
    ),
    "neither kind of model": ("model:\n  onnx: model.onnx", f"model: {{}} {HERE}", "model", "exactly one of onnx and"),
    "inputs of an ONNX model": ("model:\n", f"model: {HERE}\n  inputs: [x]\n", "model", "inputs belongs to torch"),
    "callable without a colon": (
        "callable: data.py:rows",
        f"callable: data.py {HERE}",
        "data.calibration.callable",
        "module:name",
    ),
    "callable in no file": (
        "callable: data.py:rows",
        f"callable: dota.py:rows {HERE}",
        "data.calibration.callable",
        "there is no file",
    ),
    "callable in no module": (
        "callable: data.py:rows",
        f"callable: no_such.sub:f {HERE}",
        "data.calibration.callable",
        "module 'no_such'",
    ),
    "callable that is not there": (
        "callable: data.py:rows",
        f"callable: data.py:row {HERE}",
        "data.calibration.callable",
        "nothing called 'row'",
    ),
    "callable that is a number": (
        "callable: data.py:rows",
        f"callable: data.py:number {HERE}",
        "data.calibration.callable",
        "is not callable",
    ),
    "callable in a file with a syntax error": (
        "callable: data.py:rows",
        f"callable: broken.py:rows {HERE}",
        "data.calibration.callable",
        "SyntaxError",
    ),
    "callable in a file that raises": (
        "callable: data.py:rows",
        f"callable: raises.py:rows {HERE}",
        "data.calibration.callable",
        "ZeroDivisionError",
    ),
    "callable in a file that exits": (
        "callable: data.py:rows",
        f"callable: exits.py:rows {HERE}",
        "data.calibration.callable",
        "SystemExit",
    ),
    "arguments that do not fit": (
        "  calibration:\n    callable: data.py:rows\n    arguments: {n: 4}",
        f"  calibration: {HERE}\n    callable: data.py:rows\n    arguments: {{m: 4}}",
        "data.calibration",
        "missing a required argument: 'n'",
    ),
    "two sources": (
        "  validation:\n",
        f"  validation: {HERE}\n    parquet: model.onnx\n",
        "data.validation",
        "found parquet and callable",
    ),
    "two preprocessings": (
        "data:\n",
        f"data: {HERE}\n  preprocess: data.py:rows\n",
        "data",
        "give image or preprocess, not both",
    ),
    "task that cannot be made": (
        "type: classification",
        f"type: custom\n  callable: data.py:rows {HERE}",
        "task.callable",
        "without arguments",
    ),
    "unknown strategy": ("    - minmax", f"    - minmix {HERE}", "quantization.strategies.0", "'minmax', 'entropy'"),
    "percentile above 100": (
        "percentile: 99.9",
        f"percentile: 200 {HERE}",
        "quantization.strategies.1.percentile",
        "equal to 100",
    ),
    "percentile of 0": (
        "percentile: 99.9",
        f"percentile: 0 {HERE}",
        "quantization.strategies.1.percentile",
        "greater than 0",
    ),
    "the same strategy twice": (
        "  strategies:\n",
        f"  strategies: {HERE}\n    - minmax\n",
        "quantization.strategies",
        "minmax is there twice",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_with_key_and_line(folder: Path, mistake: str) -> None:
    old, new, key, words = MISTAKES[mistake]
    assert old in BASE
    text = BASE.replace(old, new, 1)
    line = 1 + text[: text.index(HERE)].count("\n")
    message = refusal(written(folder, text))
    assert message.startswith(f"{folder / 'config.yaml'}, line {line}: {key}")
    assert words in message
    assert message.count("config.yaml") == 1  # one mistake, one sentence


def test_a_null_that_is_written_out_is_meant(folder: Path) -> None:
    assert load(written(folder, BASE.replace("max_drop: 0.1", "max_drop: 0.1\n  latency: null"))).policy.latency is None


def test_anchors_may_be_used_again_and_even_within_themselves(folder: Path) -> None:
    again = BASE.replace("arguments: {n: 4}", "arguments: &few {n: 4}").replace(
        "arguments:\n      n: 8", "arguments: *few"
    )
    assert load(written(folder, again)).data.validation.arguments == {"n": 4}
    assert "policy" in refusal(
        written(folder, BASE.replace("policy:\n  max_drop: 0.1", "policy: &all\n  classes: *all"))
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("yes", True),
        ("No", False),
        ("on", True),
        ("OFF", False),
        ("'no'", "no"),
        ("n", "n"),
        ("010", 10),
        ("0o10", 8),
        ("1_000", 1000),
        ("12:30:45", "12:30:45"),
        ("~", None),
    ],
)
def test_yaml_is_1_2_with_the_booleans_of_1_1(folder: Path, text: str, value: Any) -> None:
    path = written(folder, BASE.replace("{n: 4}", f"{{n: {text}}}"))
    found = load(path).data.calibration.arguments["n"]
    assert (found, type(found)) == (value, type(value))
    again = load(written(folder, BASE), [f"data.calibration.arguments.n={text}"]).data.calibration.arguments["n"]
    assert (again, type(again)) == (value, type(value))


def test_a_key_that_is_no_name_is_refused(folder: Path) -> None:
    message = refusal(written(folder, BASE.replace("{n: 4}", "{[n]: 4}")))
    assert message.endswith("data.calibration.arguments.? is a key that is a list or a mapping; give it a name")


def test_a_mapping_may_be_merged_into_another_and_overridden(folder: Path) -> None:
    merged = BASE.replace("arguments: {n: 4}", "arguments: &few {n: 4}").replace(
        "arguments:\n      n: 8", "arguments:\n      <<: *few\n      n: 8"
    )
    assert load(written(folder, merged)).data.validation.arguments == {"n": 8}


def test_a_missing_section_is_missed_in_line_1(folder: Path) -> None:
    path = written(folder, BASE.replace("policy:\n  max_drop: 0.1\n", ""))
    assert refusal(path) == f"{path}, line 1: policy is missing"


def test_a_mistyped_required_key_is_named_before_what_is_missing_for_it(folder: Path) -> None:
    message = refusal(written(folder, BASE.replace("policy:", "polcy:")))
    mistyped, missing = message.split("; /")
    assert mistyped.endswith("line 17: polcy is not a known key; did you mean policy?")
    assert missing.endswith("line 1: policy is missing")


def test_every_mistake_is_reported_at_once(folder: Path) -> None:
    message = refusal(written(folder, BASE.replace("batch_size: 8", "batch_size: 0").replace("0.1", "-1")))
    assert "line 14: data.batch_size: " in message
    assert "line 18: policy.max_drop: " in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [1\n", "is not YAML"),
        (b"a:\n\t- b\n", "is not YAML"),
        (b"name: caf\xe9\n", "not a UTF-8 text"),
        (bytes(range(256)), "is not YAML"),
        (b"a: 2024-13-45\n", "is not YAML"),
        (b"a: !!bool maybe\n", "is not YAML"),
        (b"a: !!int\n", "is not YAML"),
        (b"", "is empty or not a mapping"),
        (b"# only a comment\n", "is empty or not a mapping"),
        (b"- a\n- b\n", "is empty or not a mapping"),
        (b"words\n", "is empty or not a mapping"),
    ],
)
def test_a_file_that_holds_no_config_is_one_sentence(folder: Path, content: bytes, words: str) -> None:
    path = folder / "config.yaml"
    path.write_bytes(content)
    assert words in refusal(path)


@pytest.mark.parametrize("name", ["absent.yaml", "."])
def test_a_file_that_cannot_be_read_is_one_sentence(folder: Path, name: str) -> None:
    assert "cannot be read" in refusal(folder / name)


# --set


@pytest.mark.parametrize(
    ("override", "keys", "value"),
    [
        ("policy.max_drop=0.02", ["policy", "max_drop"], 0.02),
        ("fallback.evaluations=0", ["fallback", "evaluations"], 0),  # a section that the file does not have
        ("data.validation.arguments.n=3", ["data", "validation", "arguments"], {"n": 3}),
        ("data.validation.limit=7", ["data", "validation", "limit"], 7),
        ("quantization.strategies=[entropy, mse]", ["quantization", "strategies"], ["entropy", "mse"]),
        ("quantization.strategies=[{percentile: 50}]", ["quantization", "strategies"], [{"percentile": 50}]),
        ("policy={max_drop: 0.5}", ["policy", "max_drop"], 0.5),
        ("target.compute_capability=12.0", ["target", "compute_capability"], "12.0"),
        ("data.label=", ["data", "label"], None),
        ("tracking.uri=sqlite:///a=b.db", ["tracking", "uri"], "sqlite:///a=b.db"),
    ],
)
def test_an_override_takes_the_place_of_the_key(folder: Path, override: str, keys: list[str], value: Any) -> None:
    found = load(written(folder, BASE), [override]).model_dump(mode="json")
    for key in keys:
        found = found[key]
    assert found == value


def test_the_last_override_of_a_key_counts(folder: Path) -> None:
    assert load(written(folder, BASE), ["name=first", "name=second"]).name == "second"


def test_an_override_can_mend_the_file(folder: Path) -> None:
    path = written(folder, BASE.replace("0.1", "-1"))
    assert "policy.max_drop" in refusal(path)
    assert load(path, ["policy.max_drop=0.1"]).policy.max_drop == 0.1


@pytest.mark.parametrize("override", ["nonsense", "=3", "policy..max_drop=1", ".name=x", "name.=x"])
def test_an_override_that_is_not_key_and_value_is_refused(folder: Path, override: str) -> None:
    assert refusal(written(folder, BASE), override) == f"--set {override} should be written dotted.key=value"


def test_an_override_whose_value_is_not_yaml_is_refused(folder: Path) -> None:
    assert refusal(written(folder, BASE), "name=[1").startswith("--set name=[1: the value is not YAML")


def test_a_key_that_an_override_gives_twice_is_refused(folder: Path) -> None:
    message = refusal(written(folder, BASE), "policy={max_drop: 0.1, max_drop: 0.9}")
    assert message.startswith("--set policy={max_drop: 0.1, max_drop: 0.9}: max_drop is given twice")


def test_an_override_below_a_value_is_refused(folder: Path) -> None:
    message = refusal(written(folder, BASE), "quantization.strategies.0=mse")
    assert message == "--set quantization.strategies.0=mse: strategies is a value in the config, not a section"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("policy.max_drop=-1", "policy.max_drop"),
        ("policy.max_dorp=1", "policy.max_dorp"),  # a section of the file, a key that it does not have
        ("fallback.evaluations=many", "fallback.evaluations"),  # neither is in the file
        ("fallback.evaluation=1", "fallback.evaluation"),
        ("fallback=3", "fallback"),
        ("policy={}", "policy.max_drop"),
        ("quantization.strategies=[minmix]", "quantization.strategies.0"),
        ("model.onnx=absent.onnx", "model.onnx"),
        ("plicy.max_drop=1", "plicy"),
    ],
)
def test_a_mistake_in_an_override_names_set_and_no_line(folder: Path, override: str, key: str) -> None:
    message = refusal(written(folder, BASE), override)
    assert message.startswith((f"--set: {key}: ", f"--set: {key} "))
    assert "line" not in message


def test_an_override_that_conflicts_with_the_file_names_both(folder: Path) -> None:
    message = refusal(written(folder, BASE), "data.calibration.parquet=model.onnx")
    assert message.startswith(f"{folder / 'config.yaml'}, line 5, with --set data.calibration.parquet: ")
    assert "found parquet and callable" in message


# Paths


def test_relative_paths_start_at_the_configs_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (folder / "jobs").mkdir()
    text = BASE.replace("model.onnx", "../model.onnx").replace("data.py", "../data.py")
    (folder / "jobs" / "config.yaml").write_text(text)
    monkeypatch.chdir(elsewhere)
    config = load(Path("../jobs/config.yaml"))
    assert config.model.onnx == str(folder / "model.onnx")
    assert config.data.calibration.callable == f"{folder / 'data.py'}:rows"
    assert list(config.data.calibration.rows()) == []


def test_a_relative_path_in_an_override_starts_at_the_configs_folder_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "other.onnx").touch()
    path = written(folder, BASE)
    monkeypatch.chdir("/")
    assert load(path, ["model.onnx=other.onnx"]).model.onnx == str(folder / "other.onnx")


def test_a_file_in_a_package_is_found_without_importing_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = folder / "site" / "fragile_package"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "models" / "net.onnx").touch()
    monkeypatch.syspath_prepend(folder / "site")
    path = written(folder, BASE.replace("model.onnx", "package:fragile_package/models/net.onnx"))
    assert load(path).model.onnx == str(package / "models" / "net.onnx")
    assert "fragile_package" not in sys.modules


# What the repository ships

RECIPES = sorted([*(ROOT / "examples").glob("*.yaml"), *(ROOT / "datasets").rglob("*.yaml")])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_loads(recipe: Path) -> None:
    try:
        load(recipe)
    except UsageError as error:
        outside = ("shared/data", "is not installed", "is its package installed", "No module named")
        if any(words in str(error) for words in outside):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module")
def schema(clean_environment: dict[str, str]) -> dict[str, Any]:
    completed = run_in_process("calibrate", ["schema"], ROOT, clean_environment)
    assert completed.returncode == 0, completed.stderr
    found: dict[str, Any] = json.loads(completed.stdout)
    return found


@pytest.fixture
def quickstart() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "quickstart.yaml").read_text(encoding="utf-8"))
    return found


def test_the_schema_is_a_json_schema_and_takes_the_quickstart(
    schema: dict[str, Any], quickstart: dict[str, Any]
) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(quickstart, schema)


@pytest.mark.parametrize("section", [[], ["policy"], ["data", "calibration"], ["model"], ["task"]])
def test_the_schema_refuses_an_unknown_key(
    schema: dict[str, Any], quickstart: dict[str, Any], section: list[str]
) -> None:
    at = quickstart
    for key in section:
        at = at[key]
    at["no_such_key"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(quickstart, schema)


def test_the_schema_refuses_a_percentile_above_100(schema: dict[str, Any], quickstart: dict[str, Any]) -> None:
    quickstart["quantization"]["strategies"] = [{"percentile": 200}]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(quickstart, schema)
