"""``python -m validate gate`` as a release pipeline calls it, with a real MLflow server."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import junitparser
import numpy as np
import pytest

from validate.results import Decision, Results
from validate.results.samples import SampleTable
from validate.stats.intervals import paired_interval
from validate.verdict.policy import Policy
from validate.verdict.rejudging import judge_again

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from tests.conftest import Gate, Job
    from tests.tiny_model import Models

GO, NO_GO, USAGE, INCONCLUSIVE, FAILED = 0, 1, 2, 3, 4
LENIENT = {"max_drop": 0.8}


@pytest.fixture(scope="module")
def good(new_job: Callable[[], Job], server: str) -> Path:
    """Return the folder of a run that ended in GO, and is logged."""
    job = new_job()
    completed = job.run(f"tracking.uri={server}", "tracking.experiment=gate")
    assert completed.returncode == GO, completed.stdout + completed.stderr
    return job.output


@pytest.fixture
def copied(good: Path, tmp_path: Path) -> Path:
    """Return a folder with the results and the samples alone: no model, no data, no config."""
    folder = tmp_path / "results"
    folder.mkdir()
    for name in ("results.json", "samples.parquet"):
        shutil.copyfile(good / name, folder / name)
    return folder


@pytest.mark.parametrize(
    ("policy", "code", "said"),
    [
        ({"max_drop": 0.1}, GO, "may be released"),
        ({"max_drop": 0.1, "classes": {"max_drop": 0.6}}, GO, "none of 5 drops by more than allowed"),
        ({"max_drop": 0.1, "max_model_bytes": 100}, NO_GO, "the policy allows 100"),
        ({"max_drop": 0.1, "latency": {"p99_ms": 5}}, INCONCLUSIVE, "which is not the target"),
        ({"max_drop": 0.1, "latency": {"p99_ms": 5}, "optional": ["latency"]}, GO, "may be released"),
        ({"max_drop": 0.02}, INCONCLUSIVE, "validation samples would settle it in 80% of cases"),
        ({"max_dorp": 0.1}, USAGE, "did you mean max_drop?"),
    ],
    ids=str,
)
def test_results_are_judged_by_any_policy(
    gate: Gate, copied: Path, policy: dict[str, Any], code: int, said: str
) -> None:
    before = (copied / "results.json").read_bytes()
    completed = gate(policy, copied)
    assert completed.returncode == code, completed.stdout + completed.stderr
    assert said in " ".join((completed.stdout + completed.stderr).replace("│", "").split())
    assert (copied / "results.json").read_bytes() == before
    assert sorted(path.name for path in copied.iterdir()) == ["results.json", "samples.parquet"]


def test_ci_gets_its_files(gate: Gate, copied: Path, tmp_path: Path) -> None:
    policy = {"max_drop": 0.1, "max_model_bytes": 100}
    completed = gate(policy, copied / "results.json", "--junit", "gate.xml", "--markdown", "gate.md")
    assert completed.returncode == NO_GO, completed.stderr
    (suite,) = junitparser.JUnitXml.fromfile(str(tmp_path / "gate.xml"))
    assert (suite.tests, suite.failures, suite.errors) == (4, 1, 0)
    assert (tmp_path / "gate.md").read_text(encoding="utf-8").startswith("## NO-GO\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "either RESULTS or --mlflow-run"),
        (["nowhere"], "cannot be read"),
        (["policy.yaml"], "is not the results.json of a run"),
        (["results", "--engine", "no.engine"], "there is no engine no.engine"),
        (["results", "--junit", "no/folder/gate.xml"], "there is no folder no/folder"),
        (["results", "--mlflow-run", "1"], "either RESULTS or --mlflow-run"),
    ],
)
def test_bad_usage_is_one_sentence(gate: Gate, copied: Path, arguments: list[str], said: str) -> None:
    completed = gate(LENIENT, *arguments)
    assert completed.returncode == USAGE
    assert said in completed.stderr
    assert len(completed.stderr.splitlines()) == 1


def test_samples_of_another_run_of_the_same_model_and_data_are_refused(gate: Gate, copied: Path) -> None:
    """They have the same samples and the same scores of the float model, and a better candidate of the same name."""
    samples = SampleTable.read(copied / "samples.parquet")
    replace(samples, candidates={"minmax": samples.reference}).write(copied / "samples.parquet")
    completed = gate({"max_drop": 0.1, "confidence": 0.9}, copied)
    assert completed.returncode == FAILED
    assert "is not of these results" in completed.stderr
    assert len(completed.stderr.splitlines()) == 1


def test_results_that_do_not_note_their_samples_are_judged_without_them(gate: Gate, copied: Path) -> None:
    older = Results.read(copied).model_copy(update={"samples_sha256": None})
    older.write(copied / "results.json")
    assert gate({"max_drop": 0.1}, copied).returncode == GO
    completed = gate({"max_drop": 0.1, "classes": {"max_drop": 0.6}}, copied)
    assert completed.returncode == INCONCLUSIVE
    said = " ".join(completed.stdout.replace("│", "").split())
    assert "did not note which samples.parquet is theirs" in said


def test_another_confidence_gets_intervals_of_its_own(copied: Path) -> None:
    """The run's first look had half of the error; so it has of another policy's."""
    results = Results.read(copied)
    planned = results.config["policy"]["confidence"]
    accuracy = results.candidates[0].accuracy
    assert (planned, accuracy.confidence) == (0.95, pytest.approx(0.975))
    samples = SampleTable.read(copied / "samples.parquet")
    worse = samples.reference - samples.candidates[results.candidates[0].name]
    expected = paired_interval(worse, 1 - 0.01 / 2, 1.0)
    (rule, *_) = judge_again(results, copied, Policy(max_drop=0.1, confidence=0.99)).verdict.rules
    assert f"between {100 * expected.low:.2f}% and {100 * expected.high:.2f}% (99.5% confidence)" in rule.message


@pytest.mark.parametrize("there", ["without a file", "without the candidate"])
def test_another_confidence_without_samples_is_refused(gate: Gate, copied: Path, there: str) -> None:
    path = copied / "samples.parquet"
    if there == "without a file":
        path.unlink()
    else:
        sha256 = replace(SampleTable.read(path), candidates={}).write(path)
        Results.read(copied).model_copy(update={"samples_sha256": sha256}).write(copied / "results.json")
    assert gate({"max_drop": 0.1}, copied).returncode == GO
    completed = gate({"max_drop": 0.1, "confidence": 0.99}, copied)
    assert completed.returncode == USAGE
    assert "samples.parquet" in completed.stderr
    assert len(completed.stderr.splitlines()) == 1


def test_a_run_without_a_candidate_or_a_number_is_never_a_go(copied: Path) -> None:
    results = Results.read(copied)
    (candidate,) = results.candidates
    empty = candidate.accuracy.model_copy(update={"n": 0, "value": float("nan"), "drop": float("nan")})
    (copied / "samples.parquet").unlink()
    broken = results.model_copy(update={"candidates": [candidate.model_copy(update={"accuracy": empty})]})
    assert judge_again(broken, copied, Policy(max_drop=0.9)).verdict.decision is Decision.INCONCLUSIVE


# --- with a server ---


@pytest.fixture
def client(server: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(server, registry_uri=server)


def _job_run(client: MlflowClient) -> str:
    experiment = client.get_experiment_by_name("gate")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (run,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    return str(run.info.run_id)


def test_a_run_in_mlflow_is_judged_as_its_files_are(gate: Gate, good: Path, server: str, client: MlflowClient) -> None:
    policy = {"max_drop": 0.1, "classes": {"max_drop": 0.6}}
    from_files = gate(policy, good)
    from_server = gate(policy, "--mlflow-run", _job_run(client), "--tracking-uri", server)
    assert from_server.returncode == from_files.returncode == GO, from_server.stderr
    assert from_server.stdout == from_files.stdout
    assert from_server.stderr == ""


def test_a_candidates_run_is_no_job(gate: Gate, good: Path, server: str, client: MlflowClient) -> None:
    job = client.get_run(_job_run(client))
    (child, *_) = client.search_runs([job.info.experiment_id], f"tags.mlflow.parentRunId = '{job.info.run_id}'")
    completed = gate(LENIENT, "--mlflow-run", child.info.run_id, "--tracking-uri", server)
    assert completed.returncode == FAILED
    assert "name the run of a job" in completed.stderr


def test_a_run_is_one_version_that_says_how_it_was_last_judged(
    gate: Gate, good: Path, server: str, client: MlflowClient
) -> None:
    """What moves the alias, and what does not, is in tests/integration/test_stories.py."""
    name = "judged-twice"
    first = gate({"max_drop": 0.1}, good, "--register", name, "--baseline", "champion")
    assert first.returncode == INCONCLUSIVE, first.stderr
    missing = f"no version of {name} holds the alias champion yet"
    assert missing in " ".join(first.stdout.replace("│", "").split())
    (version,) = client.search_model_versions(f"name = '{name}'")
    selected = Results.read(good).selected_candidate
    assert selected is not None
    assert version.tags["gate.decision"] == "INCONCLUSIVE"
    assert missing in version.tags["gate.reasons"]
    assert (version.tags["gate.candidate"], version.tags["plan.hash"]) == (selected.name, selected.plan_hash)
    assert client.get_registered_model(name).aliases == {}

    policy = {"max_drop": 0.1, "optional": ["champion"]}
    go = gate(policy, good, "--register", name, "--baseline", f"{name}@champion")
    assert go.returncode == GO, go.stdout + go.stderr
    assert f"registered as version 1 of {name}, which is champion now" in go.stdout
    (version,) = client.search_model_versions(f"name = '{name}'")
    assert (version.version, version.run_id, version.tags["gate.decision"]) == ("1", _job_run(client), "GO")

    no_go = gate({"max_drop": 0.1, "max_model_bytes": 100}, good, "--register", name)
    assert no_go.returncode == NO_GO, no_go.stderr
    assert f"version 1 of {name} is tagged NO_GO now and is still champion" in no_go.stdout
    assert client.get_registered_model(name).aliases == {"champion": "1"}


@pytest.mark.parametrize(
    ("logged", "said"),
    [
        ('{"schema_version": 1}', "of its run, results.json has schema_version 1, and this version reads 2"),
        (None, "its run has no results.json"),
        ("no run", "it came from no run"),
    ],
)
def test_a_champion_that_cannot_be_read_is_not_measured(
    gate: Gate, copied: Path, client: MlflowClient, server: str, logged: str | None, said: str
) -> None:
    """An older version of us may have logged it, or something else altogether. To go on is to leave --baseline out."""
    run = client.create_run("0")
    if logged is not None:
        client.log_text(run.info.run_id, logged, "results.json")
    name = f"older-{run.info.run_id}"
    client.create_registered_model(name)
    source, run_id = ("s3://elsewhere/model", None) if logged == "no run" else (run.info.artifact_uri, run.info.run_id)
    client.create_model_version(name, source, run_id)
    client.set_registered_model_alias(name, "champion", "1")
    baseline = ("--baseline", f"{name}@champion", "--tracking-uri", server)
    policy = {"max_drop": 0.1, "champion": {}, "optional": ["champion"]}
    assert gate(policy, copied).returncode == GO
    completed = gate(policy, copied, *baseline)
    assert completed.returncode == INCONCLUSIVE, completed.stderr
    shown = " ".join(completed.stdout.replace("│", "").split())
    assert f"{name} version 1 (champion): {said}" in shown
    assert "/champion-" not in shown


def test_another_model_than_the_one_that_was_judged_is_not_registered(
    gate: Gate, good: Path, tmp_path: Path, models: Models, client: MlflowClient
) -> None:
    shutil.copytree(good, tmp_path / "swapped")
    shutil.copyfile(models.planted, tmp_path / "swapped" / "model.int8.onnx")
    completed = gate(LENIENT, "swapped", "--register", "swapped")
    assert completed.returncode == FAILED
    assert "it is not what was judged" in completed.stderr
    assert len(completed.stderr.splitlines()) == 1
    assert client.search_registered_models("name = 'swapped'") == []


@pytest.mark.parametrize("store", ["server", "database"])
def test_the_registered_model_is_the_candidate(
    gate: Gate, good: Path, tmp_path: Path, server: str, empty_store: Path, store: str
) -> None:
    """A database other than the one that MLflow takes by default, too."""
    import mlflow
    import onnx

    shutil.copyfile(empty_store, tmp_path / "other.db")
    uri = server if store == "server" else f"sqlite:///{tmp_path}/other.db"
    completed = gate(LENIENT, good, "--register", "whole", "--tracking-uri", uri)
    assert completed.returncode == GO, completed.stderr
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias("whole", "champion")
    assert version.source is not None
    assert client.get_logged_model(version.source.removeprefix("models:/")).source_run_id == version.run_id
    loaded = mlflow.onnx.load_model("models:/whole@champion")
    assert loaded.SerializeToString() == onnx.load(good / "model.int8.onnx").SerializeToString()


def test_nothing_is_registered_that_was_not_asked_for(gate: Gate, good: Path, client: MlflowClient) -> None:
    before = len(client.search_registered_models())
    assert gate(LENIENT, good).returncode == GO
    assert len(client.search_registered_models()) == before


def test_a_server_that_does_not_answer_is_one_sentence(gate: Gate, good: Path) -> None:
    quick = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    nowhere = "http://127.0.0.1:9"
    completed = gate(LENIENT, good, "--baseline", "champion", "--tracking-uri", nowhere, **quick)
    assert completed.returncode == FAILED
    assert completed.stderr.startswith(f"error: MLflow at {nowhere} failed")
    assert len(completed.stderr.splitlines()) == 1


def test_scores_on_disk_are_those_of_the_verdict(good: Path) -> None:
    results, samples = Results.read(good), SampleTable.read(good / "samples.parquet")
    for candidate in results.candidates:
        worse = samples.reference - samples.candidates[candidate.name]
        assert np.isclose(worse.mean(), candidate.accuracy.drop)
        assert np.isclose(worse.std(), candidate.accuracy.deviation)
