"""The ready-made CI files: parsed as YAML, and the commands that they hold run in a shell, step by step."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import junitparser
import pytest
import yaml

from validate.policy import Policy
from validate.settings import read_settings

if TYPE_CHECKING:
    from tests.conftest import Job

CI = Path(__file__).parents[2] / "examples/ci"
FAILED_STEP = "Judge"
STRICT = {"max_drop": 0.1, "max_model_bytes": 100}
PASSING = {"max_drop": 0.1, "optional": ["champion"]}


@dataclass
class Sandbox:
    """A folder that looks like a checkout of a user's repository."""

    folder: Path
    environment: dict[str, str]

    def shell(self, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a script as both systems do: bash, which stops at the first command that fails."""
        return subprocess.run(
            ["bash", "-eo", "pipefail", "-c", script], cwd=self.folder, env=self.environment | environment,
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    def judge_by(self, policy: dict[str, Any]) -> None:
        (self.folder / "policy.yaml").write_text(yaml.safe_dump(policy), encoding="utf-8")


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
    assert (policy.max_drop, policy.optional, policy.max_model_bytes) == (0.01, ["champion"], 50_000_000)
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


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "failed"), [(PASSING, []), (STRICT, [FAILED_STEP])], ids=["GO", "NO-GO"])
def test_github(sandbox: Sandbox, policy: dict[str, Any], failed: list[str]) -> None:
    """Steps run in order; after a failure only those that always do."""
    sandbox.judge_by(policy)
    (job,) = load("github.yml")["jobs"].values()
    given = {name: value for name, value in job["env"].items() if "${{" not in value}
    summary = sandbox.folder / "summary.md"
    failures = []
    for step in job["steps"]:
        assert ("run" in step) != ("uses" in step)
        if "run" not in step or (failures and step.get("if") != "always()"):
            continue
        assert "${{" not in step["run"]  # nothing is put into a command but by the environment
        done = sandbox.shell(step["run"], GITHUB_STEP_SUMMARY=str(summary), **given)
        if done.returncode:
            failures.append(step["name"])
            assert done.returncode == 1, done.stderr
    assert failures == failed
    assert summary.read_text(encoding="utf-8").startswith("## NO-GO" if failed else "## GO")
    _published(sandbox, bool(failed), [path for step in job["steps"] for path in _paths(step)])


def _paths(step: dict[str, Any]) -> list[str]:
    given = step.get("with", {})
    return [*given.get("path", "").split(), *given.get("report_paths", "").split()]


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "code"), [(PASSING, 0), (STRICT, 1)], ids=["GO", "NO-GO"])
def test_gitlab(sandbox: Sandbox, policy: dict[str, Any], code: int) -> None:
    sandbox.judge_by(policy)
    job = load("gitlab.yml")["int8"]
    done = sandbox.shell("\n".join(job["script"]), **job["variables"])
    assert done.returncode == code, done.stdout + done.stderr
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
