"""Settings in YAML: read, overridden and checked, with errors that name the file, the line and the key."""

from __future__ import annotations

import difflib
import io
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

from validate.exceptions import UsageError
from validate.registry import TypedUnion

__all__ = ["Section", "read_settings", "read_yaml", "to_yaml"]

Settings = TypeVar("Settings", bound=BaseModel)
_NULL, _BOOL = "tag:yaml.org,2002:null", "tag:yaml.org,2002:bool"
_REFUSED = (YAMLError, ValueError, LookupError)
"""What reading YAML raises; beside its own errors, on an impossible date and on ``!!bool maybe``, for two."""
_OLD_BOOLEAN = re.compile("yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF")


class _Resolver(VersionedResolver):
    """YAML 1.2, with the booleans of 1.1 beside its own.

    They are still much written, and as texts a callable that is given ``no`` would take it for true.
    """

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is ScalarNode and implicit[0] and _OLD_BOOLEAN.fullmatch(value):
            return Tag(suffix=_BOOL)
        return super().resolve(kind, value, implicit)


class Section(BaseModel):
    """Base of settings: immutable, and strict about unknown keys so that a typo cannot hide."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def read_settings(model: type[Settings], path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Return the settings in `path`, with each override ``dotted.key=value`` (value in YAML) applied.

    Relative paths in it start at the file's folder. Raises UsageError: one sentence with key and line.

    Args:
        model: the schema. Its `union_branches`, where it has them, say which part of a location below some keys is the
            branch of a union.
        path: of the file.
        overrides: in order.
    """
    data, tree = read_yaml(path)
    if not isinstance(data, dict) or tree is None:
        raise UsageError(f"{path} is empty or not a mapping")
    overridden = [_override(data, override) for override in overrides]
    try:
        return model.model_validate(data, context={"base": path.resolve().parent})
    except ValidationError as error:
        # A mistyped key comes first: it is why another one is missing. A default that hangs on it is no mistake.
        mistakes = [e for e in error.errors() if e["type"] != "default_factory_not_called"]
        errors = sorted(mistakes, key=lambda e: e["type"] != "extra_forbidden")
        raise UsageError("; ".join(_sentence(model, path, tree, e, overridden) for e in errors[:3])) from error


def read_yaml(path: Path) -> tuple[Any, Node | None]:
    """Return what a YAML 1.2 file holds, as data and as its tree; the latter is None where it holds nothing.

    ``yes``, ``no``, ``on`` and ``off`` are booleans, as in YAML 1.1. Raises UsageError where it cannot be read, or a
    key is given twice or without a value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not YAML: it is not a UTF-8 text") from error
    try:
        tree = _yaml().compose(text)
        if slips := [f"{path}, line {line}: {key} {problem}" for key, line, problem in _slips(tree)]:
            raise UsageError("; ".join(slips[:3]))
        return _yaml().load(text), tree
    except _REFUSED as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def to_yaml(data: Mapping[str, Any]) -> str:
    """Return JSON data as YAML that `read_yaml` reads; keys stay in order.

    Examples:
        >>> print(to_yaml({"b": [1, 0.001], "a": {"c": None, "d": "yes"}}), end="")
        b:
        - 1
        - 0.001
        a:
          c: null
          d: 'yes'
    """
    yaml, text = _yaml(), io.StringIO()
    yaml.default_flow_style = False
    yaml.width = 100
    yaml.representer.sort_base_mapping_type_on_output = False
    yaml.dump(data, text)
    return text.getvalue()


def _yaml() -> YAML:
    """Return a reader and writer of plain data; it holds a document's state, so that each has its own."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver = _Resolver
    return yaml


def _slips(tree: Node | None) -> Iterator[tuple[str, int, str]]:
    """Yield key, line and what is wrong where YAML would silently take something else than what was meant.

    Of a key that is given twice it takes the last, and a key without a value for null, which for a rule is none.
    """
    seen: set[int] = set()  # an alias is its anchor's node once more, which may even be around it

    def walk(node: Node | None, within: str) -> Iterator[tuple[str, int, str]]:
        if id(node) in seen:
            return
        seen.add(id(node))
        if isinstance(node, SequenceNode):
            for index, item in enumerate(node.value):
                yield from walk(item, f"{within}{index}.")
        elif isinstance(node, MappingNode):
            known: set[str] = set()
            for key, value in node.value:
                if not isinstance(key, ScalarNode):
                    yield f"{within}?", key.start_mark.line + 1, "is a key that is a list or a mapping; give it a name"
                    continue
                name, line = f"{within}{key.value}", key.start_mark.line + 1
                if key.value in known:
                    yield name, line, "is given twice; keep one of the two"
                elif value.tag == _NULL and value.value == "":
                    yield name, line, "is empty; give it a value, leave it out, or write null"
                known.add(key.value)
                yield from walk(value, f"{name}.")

    return walk(tree, "")


def _override(data: dict[str, Any], override: str) -> tuple[str, ...]:
    """Put ``dotted.key=value`` into `data`; return the key."""
    dotted, separator, value = override.partition("=")
    if not separator or not all(dotted.split(".")):
        raise UsageError(f"--set {override} should be written dotted.key=value")
    *parents, last = keys = dotted.split(".")
    section: Any = data
    for key in parents:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise UsageError(f"--set {override}: {key} is a value in the config, not a section")
    try:
        for key, _, problem in _slips(_yaml().compose(value)):
            raise UsageError(f"--set {override}: {key} {problem}")
        section[last] = _yaml().load(value)
    except _REFUSED as error:
        raise UsageError(f"--set {override}: the value is not YAML ({' '.join(str(error).split())})") from error
    return tuple(keys)


def _sentence(model: type[BaseModel], path: Path, tree: Node, error: Any, overridden: Sequence[tuple[str, ...]]) -> str:
    """Turn one pydantic error into: file, line, key, what is wrong, what to do."""
    location = _without_branches(model, error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    message = f": {message[:1].lower()}{message[1:]}"
    if error["type"] == "extra_forbidden":
        message = f" is not a known key{_suggestion(model, location)}"
    elif error["type"] == "missing":
        message = " is missing"
    elif error["type"] in {"model_type", "model_attributes_type", "dict_type"}:
        message = f" should hold keys of its own, not {error['input']!r}"
    elif error["type"] == "union_tag_not_found":
        location, message = [*location, "type"], " is missing"
    elif error["type"] == "union_tag_invalid":
        location = [*location, "type"]
        message = f" should be one of {error['ctx']['expected_tags']}, not {error['ctx']['tag']!r}"
    key = ".".join(map(str, location))
    return f"{_where(path, tree, location, overridden)}: {key}{message if key else message.removeprefix(': ')}"


def _without_branches(model: type[BaseModel], location: Sequence[str | int]) -> list[str | int]:
    """Return the keys of the file in a location, without the branches of unions that pydantic puts between."""
    branches: Mapping[tuple[str, ...], int] = getattr(model, "union_branches", {})
    skipped = {index for keys, index in branches.items() if tuple(location[: len(keys)]) == keys}
    return [part for index, part in enumerate(location) if index not in skipped]


def _where(path: Path, tree: Node, location: Sequence[str | int], overridden: Sequence[tuple[str, ...]]) -> str:
    """Return file and line of a key, or of the nearest section around it; ``--set`` where it came from there."""
    keys, (line, in_file) = tuple(map(str, location)), _line(tree, location)
    within = [".".join(set_keys) for set_keys in overridden if set_keys[: len(keys)] == keys]
    if any(keys[: len(set_keys)] == set_keys for set_keys in overridden) or (within and not in_file):
        return "--set"
    return f"{path}, line {line}" + (f", with --set {', '.join(within)}" if within else "")


def _line(tree: Node, location: Sequence[str | int]) -> tuple[int, bool]:
    """Walk down as far as the file goes; return the line of the last key, from 1, and if it goes all the way."""
    node, line = tree, tree.start_mark.line + 1
    for part in location:
        if isinstance(node, MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == part), None)
            if found is None:
                return line, False
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line, False
    return line, True


def _suggestion(model: type[BaseModel], location: Sequence[str | int]) -> str:
    """Return what the user may have meant by an unknown key."""
    fields = _fields(model)
    for part in location[:-1]:
        fields = _fields_below(fields[str(part)]) if str(part) in fields else {}
    near = difflib.get_close_matches(str(location[-1]), fields, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _fields_below(field: Any) -> dict[str, Any]:
    """Return the fields of the section that a field holds, or of all that it may be."""
    found = _fields(field.annotation)
    for registered in (part for part in field.metadata if isinstance(part, TypedUnion)):
        for section in registered.sections():
            found |= _fields(section)
    return found


def _fields(annotation: Any) -> dict[str, Any]:
    """Return the fields of a section, or of all that an optional section or a union of them may be."""
    if hasattr(annotation, "model_fields"):
        return dict(annotation.model_fields)
    found: dict[str, Any] = {}
    for member in typing.get_args(annotation):
        found |= _fields(member)
    return found
