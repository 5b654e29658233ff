"""Registries with real entry points: what is offered, what is broken, and what a config says then."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from validate.backends import kind_of
from validate.exceptions import UsageError
from validate.registry import FunctionField, Registry
from validate.settings import Section
from validate.tasks import TaskSpec

Install = Callable[..., None]


SECTION = "from validate.settings import Section\n"


class Scaled(Section):
    scaled: float = Field(gt=0)

    def __call__(self, x: float) -> float:
        return self.scaled * x


def same(x: float) -> float:
    return x


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return what installs a package: its code, and entry points by group."""
    names = []

    def install(name: str, code: str, **groups: list[str]) -> None:
        folder = tmp_path / name
        info = folder / f"{name}-1.dist-info"
        info.mkdir(parents=True)
        names.append(f"{name}_code")
        (folder / f"{name}_code.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        lines = [line for group, points in groups.items() for line in (f"[int8_gate.{group}]", *points)]
        (info / "entry_points.txt").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(folder)

    yield install
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def things() -> Registry[Any]:
    return Registry("thing", "int8_gate.things", {"same": same, "scaled": Scaled}, FunctionField.problem)


@pytest.fixture
def settings(things: Registry[Any]) -> type[BaseModel]:
    class Settings(Section):
        thing: Annotated[str | BaseModel, FunctionField(things)]

    return Settings


def message(settings: type[BaseModel], thing: object) -> str:
    with pytest.raises(ValidationError) as error:
        settings.model_validate({"thing": thing})
    (found,) = error.value.errors()
    return str(found["msg"])


def test_an_installed_thing_is_there_as_long_as_its_package(
    install: Install, things: Registry[Any], settings: type[BaseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context():
        before = list(sys.path)
        install("twice", "def twice(x): return 2 * x", things=["twice = twice_code:twice"])
        assert list(things.items()) == ["same", "scaled", "twice"]
        assert things["twice"](3) == 6
        assert settings.model_validate({"thing": "twice"}).model_dump() == {"thing": "twice"}
        assert "twice" in settings.model_json_schema()["properties"]["thing"]["anyOf"][0]["enum"]
        sys.path[:] = before
    assert list(things.items()) == ["same", "scaled"]
    assert list(things.own) == ["same", "scaled"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_module", r"cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = 1", r"cannot be loaded: AttributeError: .*'f'"),
        ("raise SystemExit(3)", r"cannot be loaded: SystemExit: 3"),
        ("def f(:", r"cannot be loaded: SyntaxError: "),
        ("f = 3", r"is not a function"),
        ("class f: pass", r"is a class, but not one of settings whose objects can be called"),
        (f"{SECTION}class f(Section):\n  x: int", r"is a class, but not one of settings"),
        (f"{SECTION}class f(Section):\n  def __call__(self, x): ...", r"has no parameter called broken"),
    ],
)
def test_a_broken_one_costs_a_sentence_and_only_who_names_it(
    install: Install, things: Registry[Any], settings: type[BaseModel], code: str, reason: str
) -> None:
    install("bad", code, things=["broken = bad_code:f"])
    install("good", "def fine(x): return x", things=["fine = good_code:fine"])
    assert list(things.items()) == ["same", "scaled", "fine"]
    assert settings.model_validate({"thing": "fine"})
    for broken in ("broken", {"broken": 3}):
        said = message(settings, broken)
        assert "\n" not in said
        assert said.startswith("Value error, thing 'broken' of package bad ")
        with pytest.raises(ValueError, match=reason):
            things["broken"]
    assert set(things.broken) == {"broken"}


def test_a_taken_name_is_refused(install: Install, things: Registry[Any], settings: type[BaseModel]) -> None:
    install("thief", "def same(x): return -x", things=["same = thief_code:same"])
    assert message(settings, "same") == (
        "Value error, thing 'same' of package thief has the name of another thing; rename it, or remove the package"
    )
    with pytest.raises(ValueError, match="there is a thing 'same' already"):
        things.add("same", same)
    with pytest.raises(ValueError, match=r"thing 'a/b' has a name that no file can have"):
        things.add("a/b", same)


def test_what_a_program_adds_is_there_at_once(things: Registry[Any], settings: type[BaseModel]) -> None:
    assert "'same'" in message(settings, "later")
    things.add("later", same)
    assert settings.model_validate({"thing": "later"})
    with pytest.raises(ValueError, match=r"there is no thing 'latr'; did you mean later\?"):
        things["latr"]


def test_a_function_with_parameters_is_written_by_its_name(things: Registry[Any], settings: type[BaseModel]) -> None:
    field: FunctionField[Callable[[float], float]] = FunctionField(things)
    thing = settings.model_validate({"thing": {"scaled": 2}}).thing  # type: ignore[attr-defined]
    assert field.function_of(thing)(3) == 6
    assert field.label_of(thing) == "scaled-2"
    assert field.label_of(Scaled(scaled=0.125)) == "scaled-0.125"
    assert field.function_of("same") is same
    assert message(settings, {"scaled": 0}) == "Input should be greater than 0"
    assert message(settings, "scaled") == "Value error, thing 'scaled' has parameters: write {scaled: ...}"
    assert message(settings, "sam") == "Input should be 'same'"
    assert message(settings, 3) == "Input should be 'same'"


def test_of_an_empty_registry_nothing_is_valid() -> None:
    class Settings(Section):
        thing: Annotated[str | BaseModel, FunctionField(Registry("thing", "int8_gate.none", {}, FunctionField.problem))]

    assert message(Settings, "any") == "Value error, there is no thing 'any'; install the package that brings it"
    assert (
        message(Settings, {"any": 1}) == "Value error, there is no thing {'any': 1}; install the package that brings it"
    )
    assert Settings.model_json_schema()["properties"]["thing"]["not"] == {}


def test_a_broken_task_and_a_broken_backend_are_sentences(install: Install, tmp_path: Path) -> None:
    class Job(Section):
        task: TaskSpec

    code = "from validate.tasks import TaskSettings\nclass T(TaskSettings): type: str\n"
    install("bad", code, tasks=["pose = bad_code:T"], backends=["own = bad_code:T"])
    assert Job.model_validate({"task": {"type": "classification"}})
    with pytest.raises(ValidationError, match=r"task 'pose' of package bad needs a field type: Literal\[\"pose\"\]"):
        Job.model_validate({"task": {"type": "pose"}})
    with pytest.raises(UsageError, match=r"FILE\.py:name; backend 'own' of package bad is not a .*ModelKind"):
        kind_of("model.own")
