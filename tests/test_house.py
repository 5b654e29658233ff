"""The layout's promises: imports go downwards only, and nothing shadows Hugging Face's `datasets`."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW = {
    "calibrate": {"calibrate", "reports", "validate"},
    "reports": {"reports", "validate"},
    "validate": {"validate"},
}


def imported_packages(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names} & set(BELOW)


@pytest.mark.parametrize("package", BELOW)
def test_imports_go_downwards_only(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(file): found for file in files if (found := imported_packages(file) - BELOW[package])}
    wrong.pop(str(ROOT / "reports/commands/validate.py"), None)  # a command line is where packages meet
    assert not wrong


@pytest.mark.parametrize("package", BELOW)
def test_no_file_is_too_long_to_read(package: str) -> None:
    lengths = {file.name: len(file.read_text().splitlines()) for file in (ROOT / package).rglob("*.py")}
    assert not {name: n for name, n in lengths.items() if n > 400}


def test_the_readme_begins_with_the_two_commands() -> None:
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("```")[1]
    install_and_run, install_and_test = block.strip().splitlines()
    assert install_and_run == 'pip install -e ".[quickstart]" && python -m calibrate run examples/quickstart.yaml'
    assert install_and_test == 'pip install -e ".[test]" && pytest'


def test_every_package_says_what_lives_there() -> None:
    for init in [*ROOT.glob("*/__init__.py"), *ROOT.glob("*/*/__init__.py")]:
        assert ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))), init
    for folder in ("datasets", "examples", "notebooks"):
        assert (ROOT / folder / "README.md").is_file()
        assert not (ROOT / folder / "__init__.py").exists()


def test_nothing_imports_the_command_line_but_the_program() -> None:
    files = [*(ROOT / "validate").rglob("*.py"), *(ROOT / "reports").rglob("*.py"), *(ROOT / "calibrate").rglob("*.py")]
    importers = [
        file for file in files if "reports.commands.validate" in file.read_text(encoding="utf-8").replace("``", "")
    ]
    assert importers == [ROOT / "validate/__main__.py"]
