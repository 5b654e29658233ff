"""Registries: what a config may name. Of this product, of installed packages (entry points), of the running program.

`FunctionField` and `TypedUnion` are the types of settings that are generated from a registry. They look it up whenever
they validate, so that what is added later is known too.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from importlib.metadata import EntryPoint, entry_points
from operator import or_
from typing import Annotated, Any, Generic, Literal, TypeVar, cast

from pydantic import BaseModel, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

__all__ = ["FunctionField", "Registry", "TypedUnion"]

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Things of one kind by name. Ours come first, then those of installed packages in the order of their names.

    A package offers one under ``[project.entry-points."GROUP"]`` as ``name = "module:object"``. One that cannot be
    loaded is left out, and who asks for it by name gets the reason; all others work.

    Args:
        kind: what one is called, e.g. ``strategy``.
        group: of the entry points, e.g. ``int8_gate.strategies``.
        things: ours, by name.
        check: returns what is wrong with a thing of that name, as the end of a sentence ("is no function"); None where
            nothing is.
    """

    def __init__(
        self, kind: str, group: str, things: Mapping[str, T], check: Callable[[str, object], str | None]
    ) -> None:
        self.kind = kind
        self.group = group
        self._check = check
        self._things: dict[str, T] = dict(things)
        self._path: list[str] | None = None
        self._installed: dict[str, T] = {}
        self._broken: dict[str, str] = {}

    def add(self, name: str, thing: T) -> T:
        """Add a thing to this program only. Raises ValueError where the name is taken or the thing is not one."""
        if name in self._things:
            raise ValueError(f"there is a {self.kind} '{name}' already; choose another name")
        if problem := self._problem(name, thing):
            raise ValueError(f"{self.kind} '{name}' {problem}")
        self._things[name] = thing
        self._path = None  # an installed one of that name is no longer to be had
        return thing

    @property
    def own(self) -> Mapping[str, T]:
        """All but those of installed packages."""
        return self._things

    def items(self) -> Mapping[str, T]:
        """Return all that can be used, by name."""
        self._search()
        return self._things | self._installed

    def __getitem__(self, name: str) -> T:
        """Return the thing of that name. Raises ValueError with a sentence where it is not there or is broken."""
        things = self.items()
        self.require_unbroken(name)
        if name not in things:
            near = difflib.get_close_matches(name, things, n=1)
            known = f"did you mean {near[0]}?" if near else f"there are {', '.join(things) or 'none'}"
            raise ValueError(f"there is no {self.kind} '{name}'; {known}")
        return things[name]

    def require_unbroken(self, name: str) -> None:
        """Raise ValueError where an installed package offers a thing of that name which cannot be used."""
        if name in self.broken:
            raise ValueError(self.broken[name])

    @property
    def broken(self) -> Mapping[str, str]:
        """What installed packages offer that cannot be used: name -> sentence."""
        self._search()
        return self._broken

    def name_of(self, thing: T) -> str:
        """Return the name of a thing that is registered."""
        return next(name for name, other in self.items().items() if other is thing)

    def _search(self) -> None:
        """Load what installed packages offer, once for every state of the search path."""
        if self._path == sys.path:
            return
        self._installed, self._broken = {}, {}
        for point in sorted(entry_points(group=self.group), key=lambda point: point.name):
            try:
                thing = self._load(point)
            except ValueError as error:
                self._broken[point.name] = str(error)
            else:
                self._installed[point.name] = thing
        self._path = list(sys.path)

    def _load(self, point: EntryPoint) -> T:
        package = point.dist.name if point.dist else "of an unknown name"
        which = f"{self.kind} '{point.name}' of package {package}"
        if point.name in self._things or point.name in self._installed:
            raise ValueError(f"{which} has the name of another {self.kind}; rename it, or remove the package")
        try:
            thing = point.load()
        except (Exception, SystemExit) as error:  # it is the package's code: anything may come out of it
            said = " ".join(str(error).split())
            raise ValueError(f"{which} cannot be loaded: {type(error).__name__}: {said}") from error
        if problem := self._problem(point.name, thing):
            raise ValueError(f"{which} {problem}")
        return cast("T", thing)

    def _problem(self, name: str, thing: object) -> str | None:
        if not re.fullmatch(r"[\w.-]+", name):
            return "has a name that no file can have; use letters, digits, dots, dashes and underscores"
        return self._check(name, thing)


class FunctionField(Generic[Function]):
    """Type of a settings field that names a function of a registry.

    A plain function is written by its name. One with parameters is a class of settings whose objects can be called,
    with a field of the registry's name for it: ``percentile`` is written ``{percentile: 99.9}``. Use it as annotation::

        Strategy = Annotated[str | BaseModel, FunctionField(STRATEGIES)]
    """

    def __init__(self, registry: Registry[Function | type[BaseModel]]) -> None:
        self.registry = registry

    @staticmethod
    def problem(name: str, thing: object) -> str | None:
        """Return what is wrong with a thing, for a registry's `check`."""
        if not isinstance(thing, type):
            return None if callable(thing) else "is not a function"
        if not issubclass(thing, BaseModel) or "__call__" not in dir(thing):
            return "is a class, but not one of settings whose objects can be called"
        return None if name in thing.model_fields else f"has no parameter called {name}, by which a config names it"

    def function_of(self, value: str | BaseModel) -> Function:
        """Return the function that a valid value stands for."""
        return cast("Function", self.registry[value] if isinstance(value, str) else value)

    def label_of(self, value: str | BaseModel) -> str:
        """Return the name by which a valid value appears in results and file names, e.g. ``percentile-99.9``."""
        if isinstance(value, str):
            return value
        parameters = [str(parameter).removesuffix(".0") for parameter in value.model_dump().values()]
        return re.sub(r"[^\w.-]+", "_", "-".join([self.registry.name_of(type(value)), *parameters]))

    def sections(self) -> Iterator[type[BaseModel]]:
        """Yield the classes of settings, which know the keys that there are."""
        return (thing for thing in self.registry.items().values() if isinstance(thing, type))

    def _names(self) -> list[str]:
        return [name for name, thing in self.registry.items().items() if not isinstance(thing, type)]

    def _validate(self, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, tuple(self.sections())):
            return value
        for name in value if isinstance(value, dict) else [value]:
            self.registry.require_unbroken(str(name))
        if isinstance(value, dict) and (section := self._section_of(value)):
            return section.model_validate(value, context=info.context)
        if value in (names := self._names()):
            return value
        if isinstance(value, str) and value in self.registry.items():
            raise ValueError(f"{self.registry.kind} '{value}' has parameters: write {{{value}: ...}}")
        if not names:
            raise ValueError(f"there is no {self.registry.kind} {value!r}; install the package that brings it")
        *first, last = map(repr, names)
        raise PydanticKnownError(
            "literal_error", {"expected": " or ".join([*([", ".join(first)] if first else []), last])}
        )

    def _section_of(self, value: Mapping[Any, Any]) -> type[BaseModel] | None:
        """Return what a mapping is meant to be: the class that it names, or else the one with the nearest name."""
        sections = {self.registry.name_of(section): section for section in self.sections()}
        for key in value:
            if key in sections:
                return sections[key]
        near = [match for key in value for match in difflib.get_close_matches(str(key), sections, n=1)]
        return sections[near[0]] if near else next(iter(sections.values()), None)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self._validate)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        names = self._names()
        branches: list[Any] = [*([Literal[tuple(names)]] if names else []), *self.sections()]
        return handler(TypeAdapter(reduce(or_, branches)).core_schema) if branches else {"not": {}}


class TypedUnion:
    """Type of a settings section whose key ``type`` says which class of a registry it is. Use it as annotation."""

    def __init__(self, registry: Registry[Any]) -> None:
        self.registry = registry

    def sections(self) -> Iterator[type[BaseModel]]:
        """Yield the classes of settings, which know the keys that there are."""
        return iter(self.registry.items().values())

    def _adapter(self) -> TypeAdapter[Any]:
        union: Any = reduce(or_, self.sections())
        return TypeAdapter(Annotated[union, Field(discriminator="type")])

    def _validate(self, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, dict) and "type" in value:
            self.registry.require_unbroken(str(value["type"]))
        return self._adapter().validate_python(value, context=info.context)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self._validate)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(self._adapter().core_schema)
