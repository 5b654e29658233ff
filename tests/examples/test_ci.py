"""The ready-made CI files: parsed as YAML, and the commands that they hold run in a shell, step by step."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import junitparser
import pytest
import yaml

from validate.settings import read_settings
from validate.verdict.policy import Policy

if TYPE_CHECKING:
    from tests.conftest import Job

CI = Path(__file__).parents[2] / "examples/ci"
FAILED_STEP = "Judge"
STRICT = {"max_drop": 0.1, "max_model_bytes": 100, "optional": ["engine"]}
PASSING = {"max_drop": 0.1, "champion": {}, "optional": ["champion", "engine"]}

# What the two systems say of the event that a job is about: documentation of their contexts and variables.
GITHUB_PUSH = {"event_name": "push", "ref": "refs/heads/main"}
GITHUB_REQUEST = {"event_name": "pull_request", "ref": "refs/pull/7/merge"}
GITLAB_PUSH = {"CI_PIPELINE_SOURCE": "push", "CI_COMMIT_BRANCH": "main", "CI_DEFAULT_BRANCH": "main"}
GITLAB_REQUEST = {"CI_PIPELINE_SOURCE": "merge_request_event", "CI_DEFAULT_BRANCH": "main"}


@dataclass
class Sandbox:
    """A folder that looks like a checkout of a user's repository."""

    folder: Path
    environment: dict[str, str]

    def shell(self, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a script as both systems do: bash, which stops at the first command that fails."""
        return subprocess.run(
            ["bash", "-eo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def judge_by(self, policy: dict[str, Any]) -> None:
        (self.folder / "policy.yaml").write_text(yaml.safe_dump(policy), encoding="utf-8")

    def live(self) -> dict[str, str]:
        """Return every registered model with the version that is its champion."""
        from mlflow import MlflowClient

        uri = f"sqlite:///{self.folder}/mlflow.db"
        registered = MlflowClient(uri, registry_uri=uri).search_registered_models()
        return {model.name: str(model.aliases.get("champion", "")) for model in registered}


@pytest.fixture
def sandbox(new_job: Callable[[], Job], clean_environment: dict[str, str]) -> Sandbox:
    job = new_job()
    job.config["fallback"] = {"evaluations": 0}
    job.command()  # writes config.yaml
    binaries = str(Path(sys.executable).parent)
    return Sandbox(job.folder, clean_environment | {"PATH": f"{binaries}:{clean_environment['PATH']}"})


def load(name: str) -> Any:
    return yaml.safe_load((CI / name).read_text(encoding="utf-8"))


def test_the_policy_is_one() -> None:
    policy = read_settings(Policy, CI / "policy.yaml")
    assert (policy.max_drop, policy.optional, policy.max_model_bytes) == (0.01, ["champion", "engine"], 50_000_000)
    assert policy.speedup["FP16"].estimate


@pytest.mark.parametrize("document", ["README.md", "docs/gate.md"])
def test_the_policies_that_are_shown_are_policies(document: str, tmp_path: Path) -> None:
    text = (CI.parents[1] / document).read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "\nmax_drop:" in f"\n{block}"]
    assert blocks
    for block in blocks:
        (tmp_path / "policy.yaml").write_text(block, encoding="utf-8")
        assert read_settings(Policy, tmp_path / "policy.yaml").max_drop == 0.01


def test_the_documentation_explains_every_rule() -> None:
    text = (CI.parents[1] / "docs/gate.md").read_text(encoding="utf-8")
    assert [name for name in Policy.model_fields if name not in text] == []


def github(expression: str, event: dict[str, str]) -> str:
    """Return what GitHub makes of an expression of comparisons, ands and ors, which are those of Python."""
    inside = re.fullmatch(r"\$\{\{(.*)\}\}", expression)
    if inside is None:
        return expression
    context = {"github": SimpleNamespace(**event), "vars": SimpleNamespace(MLFLOW_TRACKING_URI="")}
    return str(eval(inside[1].strip().replace("&&", "and").replace("||", "or"), {}, context))


def gitlab(job: dict[str, Any], event: dict[str, str]) -> dict[str, str] | None:
    """Return the variables of a job by the first of its rules that is met; None where none is, and it does not run."""

    def value(side: str) -> str | None:
        return event.get(side[1:]) if side.startswith("$") else side.strip('"')

    for rule in job["rules"]:
        left, right = map(value, rule["if"].split(" == "))
        if left == right:
            return job["variables"] | rule.get("variables", {})
    return None


@pytest.mark.parametrize(
    ("event", "registers"),
    [
        (GITHUB_PUSH, "my-model"),
        (GITHUB_REQUEST, ""),
        (GITHUB_PUSH | {"ref": "refs/heads/feature"}, ""),
        (GITHUB_PUSH | {"ref": "refs/tags/main"}, ""),
        # Runs on the code of the base branch, and so with its ref.
        (GITHUB_PUSH | {"event_name": "pull_request_target"}, ""),
    ],
)
def test_github_registers_only_what_is_pushed_to_main(event: dict[str, str], registers: str) -> None:
    (job,) = load("github.yml")["jobs"].values()
    (judge,) = (step for step in job["steps"] if "validate gate" in step.get("run", ""))
    assert github(judge["env"]["REGISTER"], event) == registers
    assert judge["run"].count("--register") == judge["run"].count('${REGISTER:+--register "$REGISTER"}') == 1


@pytest.mark.parametrize(
    ("event", "registers"),
    [
        (GITLAB_PUSH, "my-model"),
        (GITLAB_REQUEST, ""),
        (GITLAB_PUSH | {"CI_COMMIT_BRANCH": "feature"}, None),
        ({"CI_PIPELINE_SOURCE": "push", "CI_DEFAULT_BRANCH": "main", "CI_COMMIT_TAG": "v1"}, None),
    ],
)
def test_gitlab_registers_only_what_is_on_the_default_branch(event: dict[str, str], registers: str | None) -> None:
    job = load("gitlab.yml")["int8"]
    variables = gitlab(job, event)
    assert (variables and variables["REGISTER"]) == registers
    (judge,) = (line for line in job["script"] if "validate gate" in line)
    assert judge.count("--register") == judge.count('${REGISTER:+--register "$REGISTER"}') == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "policy", "failed", "live"),
    [
        (GITHUB_PUSH, PASSING, [], {"my-model": "1"}),
        (GITHUB_REQUEST, PASSING, [], {}),
        (GITHUB_PUSH, STRICT, [FAILED_STEP], {"my-model": ""}),
    ],
    ids=["GO on main", "GO of a pull request", "NO-GO"],
)
def test_github(
    sandbox: Sandbox, event: dict[str, str], policy: dict[str, Any], failed: list[str], live: dict[str, str]
) -> None:
    """Steps run in order; after a failure only those that always do."""
    sandbox.judge_by(policy)
    (job,) = load("github.yml")["jobs"].values()
    summary = sandbox.folder / "summary.md"
    failures = []
    for step in job["steps"]:
        assert ("run" in step) != ("uses" in step)
        if "run" not in step or (failures and step.get("if") != "always()"):
            continue
        assert "${{" not in step["run"]  # nothing is put into a command but by the environment
        given = {name: github(value, event) for name, value in (job["env"] | step.get("env", {})).items()}
        done = sandbox.shell(step["run"], GITHUB_STEP_SUMMARY=str(summary), **given)
        if done.returncode:
            failures.append(step["name"])
            assert done.returncode == 1, done.stderr
    assert failures == failed
    assert sandbox.live() == live
    assert summary.read_text(encoding="utf-8").startswith("## NO-GO" if failed else "## GO")
    _published(sandbox, bool(failed), [path for step in job["steps"] for path in _paths(step)])


def _paths(step: dict[str, Any]) -> list[str]:
    given = step.get("with", {})
    return [*given.get("path", "").split(), *given.get("report_paths", "").split()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "policy", "code", "live"),
    [
        (GITLAB_PUSH, PASSING, 0, {"my-model": "1"}),
        (GITLAB_REQUEST, PASSING, 0, {}),
        (GITLAB_PUSH, STRICT, 1, {"my-model": ""}),
    ],
    ids=["GO on the default branch", "GO of a merge request", "NO-GO"],
)
def test_gitlab(
    sandbox: Sandbox, event: dict[str, str], policy: dict[str, Any], code: int, live: dict[str, str]
) -> None:
    sandbox.judge_by(policy)
    job = load("gitlab.yml")["int8"]
    done = sandbox.shell("\n".join(job["script"]), **(gitlab(job, event) or {}))
    assert done.returncode == code, done.stdout + done.stderr
    assert sandbox.live() == live
    after = sandbox.shell("\n".join(job["after_script"]))
    assert after.stdout.startswith("## NO-GO" if code else "## GO")
    artifacts = job["artifacts"]
    assert artifacts["when"] == "always"
    _published(sandbox, bool(code), [*artifacts["paths"], artifacts["reports"]["junit"]])


def _published(sandbox: Sandbox, failed: bool, paths: list[str]) -> None:
    """Hold what is shown and kept against what there is."""
    assert {"gate.xml", "gate.md", "out/report.html"} <= set(paths)
    for path in paths:
        assert (sandbox.folder / path).is_file(), path
    (suite,) = junitparser.JUnitXml.fromfile(str(sandbox.folder / "gate.xml"))
    assert (suite.failures > 0) == failed


@pytest.mark.parametrize("name", ["github.yml", "gitlab.yml"])
def test_a_job_that_fails_stops_before_the_gate(sandbox: Sandbox, name: str) -> None:
    """A config with a mistake exits 2, which is no verdict."""
    sandbox.judge_by(PASSING)
    (sandbox.folder / "config.yaml").write_text("nmae: wrong\n", encoding="utf-8")
    if name == "github.yml":
        (job,) = load(name)["jobs"].values()
        script = next(step["run"] for step in job["steps"] if "calibrate run" in step.get("run", ""))
    else:
        script = "\n".join(line for line in load(name)["int8"]["script"] if "pip" not in line)
    done = sandbox.shell(script)
    assert done.returncode == 2
    assert not (sandbox.folder / "gate.xml").exists()
