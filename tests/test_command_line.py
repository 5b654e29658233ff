"""A command line in the tests' own process ends and says what it does in a process, and leaves nothing behind."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.command_line import run_in_process

USERS = """
import logging, os, sys, warnings
from beside import VALUE
def rows(n):
    os.environ["LEFT"] = "behind"
    os.write(2, b"written by native code\\n")
    logging.getLogger("validate").setLevel(logging.ERROR)
    warnings.warn("look out", stacklevel=1)
    print("printed by the user's code", VALUE)
    sys.exit(7)
    yield {}
"""


def run_process(
    program: str, arguments: list[str], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", program, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a config whose data leaves much behind, and imports a file that is beside it."""
    (tmp_path / "users.py").write_text(USERS, encoding="utf-8")
    (tmp_path / "beside.py").write_text("VALUE = 1\n", encoding="utf-8")
    split = "{callable: users.py:rows, arguments: {n: 3}}"
    data = f"data: {{calibration: {split}, validation: {split}}}\ntask: {{type: classification}}\n"
    (tmp_path / "my.yaml").write_text(data, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("calibrate", ["run", "absent.yaml"]),
        ("reports", ["html", "absent"]),
        ("validate", ["evaluate", "GOOD", "--config", "my.yaml"]),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_it_is_as_in_a_process(
    program: str, arguments: list[str], folder: Path, clean_environment: dict[str, str], request: pytest.FixtureRequest
) -> None:
    arguments = [str(request.getfixturevalue("models").good) if x == "GOOD" else x for x in arguments]
    expected = run_process(program, arguments, folder, clean_environment)
    found = run_in_process(program, arguments, folder, clean_environment)
    assert (found.returncode, found.stdout, found.stderr) == (expected.returncode, expected.stdout, expected.stderr)
    assert found.returncode != 0 and found.stderr


def test_nothing_stays(folder: Path, clean_environment: dict[str, str], request: pytest.FixtureRequest) -> None:
    def state() -> tuple[object, ...]:
        root, ours = logging.getLogger(), logging.getLogger("validate")
        theirs = [name for name in sys.modules if name == "beside" or name.startswith("_config_")]
        streams = (sys.stdout, sys.stderr, os.fstat(1), os.fstat(2))
        return (
            Path.cwd(),
            dict(os.environ),
            sys.path[:],
            sys.argv,
            theirs,
            root.level,
            root.handlers[:],
            ours.level,
            warnings.filters[:],
            warnings.showwarning,
            *streams[:2],
            *(stat.st_ino for stat in streams[2:]),
        )

    model = str(request.getfixturevalue("models").good)
    run_in_process("validate", ["evaluate", "--help"], folder, clean_environment)  # imports, which do stay
    before = state()
    done = run_in_process("validate", ["evaluate", model, "--config", "my.yaml"], folder, clean_environment)
    assert "written by native code" in done.stderr and "printed by the user's code 1" in done.stdout
    assert done.returncode == 4
    assert state() == before
    (folder / "beside.py").write_text("VALUE = 22\n", encoding="utf-8")
    again = run_in_process("validate", ["evaluate", model, "--config", "my.yaml"], folder, clean_environment)
    assert "printed by the user's code 22" in again.stdout
