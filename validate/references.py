"""References to Python objects and files in a config, and the field types for them.

A relative path starts at the folder that the validation context gives as ``base``.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from pydantic import AfterValidator, ValidationInfo

__all__ = ["CallableReference", "ExistingPath", "config_folder", "load_object", "resolve_path"]

_PACKAGE = "package:"


def load_object(reference: str, base: Path) -> Any:
    """Return what ``module:name`` or ``path/to/file.py:name`` refers to.

    A relative path starts at `base`. Raises ValueError with a sentence where there is no such thing.

    Examples:
        >>> load_object("math:hypot", Path())(3, 4)
        5.0
    """
    location, separator, name = reference.rpartition(":")
    if not separator or not name:
        raise ValueError(f"'{reference}' should be written module:name or path/to/file.py:name")
    if location.endswith(".py"):
        path = (base / location).resolve()
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
        module_name = f"_config_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"
        if module_name in sys.modules:
            return _member(sys.modules[module_name], location, name)
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None and spec.loader is not None  # a .py file always has a loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses and pickling look the module up by its name
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:  # it is the user's code: anything may come out of it
            del sys.modules[module_name]
            raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    else:
        try:
            module = importlib.import_module(location)
        except ModuleNotFoundError as error:
            raise ValueError(f"module '{error.name}' cannot be imported; is its package installed?") from error
        except (Exception, SystemExit) as error:
            raise ValueError(f"'{location}' cannot be imported: {type(error).__name__}: {error}") from error
    return _member(module, location, name)


def _member(module: ModuleType, location: str, name: str) -> Any:
    try:
        return getattr(module, name)
    except AttributeError:
        raise ValueError(f"'{location}' has nothing called '{name}'") from None


def resolve_path(reference: str, base: Path) -> Path:
    """Return the existing path that `reference` names.

    ``package:NAME/inside/file`` is a file inside an installed Python package, found without importing it;
    anything else is a path, relative to `base`. Raises ValueError with a sentence where it does not exist.

    Examples:
        >>> resolve_path("package:numpy/__init__.py", Path()).name
        '__init__.py'
    """
    if reference.startswith(_PACKAGE):
        package, _, inside = reference.removeprefix(_PACKAGE).partition("/")
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):  # a parent package that is not there; an empty name
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"package '{package}' is not installed (pip install {package.replace('_', '-')})")
        path = Path(spec.submodule_search_locations[0]) / inside
    else:
        path = base / Path(reference).expanduser()
    if not path.exists():
        raise ValueError(f"{path.resolve()} does not exist")
    return path.resolve()


def config_folder(info: ValidationInfo) -> Path:
    """Return the folder at which relative paths of the config under validation start."""
    return Path((info.context or {}).get("base", "."))


def _existing(reference: str, info: ValidationInfo) -> str:
    return str(resolve_path(reference, config_folder(info)))


def _callable(reference: str, info: ValidationInfo) -> str:
    base = config_folder(info)
    if not callable(load_object(reference, base)):
        raise ValueError(f"'{reference}' is not callable")
    location, _, name = reference.rpartition(":")
    return f"{(base / location).resolve()}:{name}" if location.endswith(".py") else reference


ExistingPath = Annotated[str, AfterValidator(_existing)]
"""A path as `resolve_path` takes it; absolute after validation."""

CallableReference = Annotated[str, AfterValidator(_callable)]
"""A reference as `load_object` takes it, to something callable; with an absolute path after validation."""
