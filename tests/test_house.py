"""The layout's promises: imports go downwards only and in no circle, and what lives in a room is private to it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW = {
    "calibrate": {"calibrate", "reports", "validate"},
    "reports": {"reports", "validate"},
    "validate": {"validate"},
}
MOST_TOP_LEVEL = {"calibrate": 8, "reports": 8, "validate": 12}
MOST_IN_A_ROOM = 12
LONGEST = 400


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(file): file for package in BELOW for file in (ROOT / package).rglob("*.py")}
ROOMS = {name for name, file in FILES.items() if file.name == "__init__.py" and "." in name}


def names_listed_in(room: str) -> set[str]:
    """Return what a room's ``__all__`` lists."""
    return {
        element.value
        for node in ast.parse(FILES[room].read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"
        for element in ast.walk(node.value)
        if isinstance(element, ast.Constant)
    }


LISTED = {room: names_listed_in(room) for room in ROOMS}


def imports_of(module: str) -> Iterator[tuple[str, str]]:
    """Yield every module of ours that a module imports from, and the name that it takes of it."""
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] in BELOW)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            source = node.module or ""
            if source.split(".")[0] in BELOW:
                for alias in node.names:
                    whole = f"{source}.{alias.name}"
                    is_module = whole in FILES and alias.name not in LISTED.get(source, set())
                    yield (whole, "") if is_module else (source, alias.name)


def room_of(module: str) -> str:
    """Return the room that a module lives in; for one at the top of its package, the package."""
    return module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


@pytest.mark.parametrize("package", BELOW)
def test_imports_go_downwards_only(package: str) -> None:
    ours = [module for module in FILES if within(module, package)]
    assert ours
    upward = {(m, s) for m in ours for s, _ in imports_of(m) if s.split(".")[0] not in BELOW[package]}
    assert not upward


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {m: {s for s, _ in imports_of(m) if s in FILES and s != m} for m in FILES}
    for room in ROOMS:  # a room's list of what is public is not what its own files read
        graph[room] = set()
    list(TopologicalSorter(graph).static_order())  # CycleError names the circle


def test_no_rooms_import_each_other_in_a_circle() -> None:
    def unit(module: str) -> str:  # a room of a package, or a module at its top
        return ".".join(module.split(".")[:2])

    graph: dict[str, set[str]] = {}
    for module in FILES:
        sources = {unit(source) for source, _ in imports_of(module)}
        graph.setdefault(unit(module), set()).update(sources - {unit(module)})
    list(TopologicalSorter(graph).static_order())


def test_what_lives_in_a_room_is_private_to_it() -> None:
    wrong = []
    for module in FILES:
        for source, name in imports_of(module):
            room = room_of(source) if source in FILES else source
            if room not in ROOMS or within(module, room):
                continue
            if source != room:
                wrong.append(f"{module} reaches into {source}")
            elif name and name not in LISTED[room]:
                wrong.append(f"{module} takes {name}, which {room} does not list")
    assert not wrong


@pytest.mark.parametrize("package", BELOW)
def test_few_modules_stand_beside_the_rooms(package: str) -> None:
    assert len(list((ROOT / package).glob("*.py"))) <= MOST_TOP_LEVEL[package]


def test_rooms_are_small_enough_to_look_around_in() -> None:
    sizes = {room: len(list(FILES[room].parent.glob("*.py"))) for room in ROOMS}
    assert not {room: size for room, size in sizes.items() if size > MOST_IN_A_ROOM}


def test_no_file_is_too_long_to_read() -> None:
    lengths = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in FILES.items()}
    assert not {name: length for name, length in lengths.items() if length > LONGEST}


def test_no_module_has_the_name_of_one_of_the_standard_library() -> None:
    names = {name for name in FILES if "__" not in name}
    assert not {name for name in names if name.rpartition(".")[2] in sys.stdlib_module_names}


def test_every_package_and_room_says_what_lives_there() -> None:
    for name in (*BELOW, *ROOMS):
        assert ast.get_docstring(ast.parse(FILES[name].read_text(encoding="utf-8"))), name
    for folder in ("datasets", "examples", "notebooks"):
        assert (ROOT / folder / "README.md").is_file()
        assert not (ROOT / folder / "__init__.py").exists()  # nothing shadows Hugging Face's `datasets`


def test_the_readme_begins_with_the_two_commands() -> None:
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("```")[1]
    install_and_run, install_and_test = block.strip().splitlines()
    assert install_and_run == 'pip install -e ".[quickstart]" && python -m calibrate run examples/quickstart.yaml'
    assert install_and_test == 'pip install -e ".[test]" && pytest'
