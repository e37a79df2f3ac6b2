"""A JSON schema (draft 2020-12) in the form that llguidance gets right, or the reason why there is none.

llguidance turns most of a schema into a grammar exactly. The rest is found here, before it is compiled: what
means something else there is rewritten into an equivalent, or into something narrower where the docs say so,
and what cannot be kept to while a text is written from left to right is refused with its place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from serving.generation import numbers
from serving.generation.patterns import UNWRITABLE, translated

MAX_DEPTH = 100  # of schemas within schemas
# Characters that are written for patterns, formats and lists of numbers. A date takes some 350 in place of 4.
MAX_WRITTEN = 384 * 1024
PER_NUMBER = 20  # characters
LONGEST = 10**9  # characters, items or keys: no answer is so long

Schema = dict[str, Any]

# Where the schemas within a schema are.
_ONE = ("items", "additionalItems", "additionalProperties")
_SEVERAL = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")

_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")

# What no grammar keeps to, and what to write instead.
_REFUSED = {
    "not": "list what may be instead, with enum or anyOf",
    "if": "write the cases as anyOf",
    "then": "write the cases as anyOf",
    "else": "write the cases as anyOf",
    "dependentRequired": "write the cases as anyOf",
    "dependentSchemas": "write the cases as anyOf",
    "dependencies": "write the cases as anyOf",
    "uniqueItems": "leave it out and drop what comes twice, or list whole arrays with enum",
    "contains": "ask for such an item by its place, with prefixItems",
    "minContains": "ask for such an item by its place, with prefixItems",
    "maxContains": "ask for such an item by its place, with prefixItems",
    "propertyNames": "use patternProperties and additionalProperties: false",
    "unevaluatedProperties": "use additionalProperties, and name all properties beside it",
    "unevaluatedItems": "use items, and name all prefixItems beside it",
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
}
# When one of those asks for nothing, and is left out.
_IDLE: dict[str, Callable[[Any, Schema], bool]] = {
    "not": lambda value, schema: value is False,
    "if": lambda value, schema: not {"then", "else"} & set(schema),
    "then": lambda value, schema: "if" not in schema or value in (True, {}),
    "else": lambda value, schema: "if" not in schema or value in (True, {}),
    "uniqueItems": lambda value, schema: value is False,
    "contains": lambda value, schema: schema.get("minContains") == 0 and "maxContains" not in schema,
    "minContains": lambda value, schema: value == 0 or "contains" not in schema,
    "maxContains": lambda value, schema: "contains" not in schema,
    "propertyNames": lambda value, schema: value in (True, {}),
    "unevaluatedProperties": lambda value, schema: value in (True, {}),
    "unevaluatedItems": lambda value, schema: value in (True, {}),
}

_DAY = (
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    r"|02-(?:0[1-9]|1\d|2[0-8]))"
)
_LEAP = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29"
_DATE = rf"(?:(?:\d\d\d[1-9]|\d\d[1-9]\d|\d[1-9]\d\d|[1-9]\d\d\d)-{_DAY}|{_LEAP})"
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d+)?(?:[zZ]|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
# What llguidance would not keep to the day or the second. No leap second is written.
_WRITTEN_OUT: dict[str, Schema] = {
    "date": {"pattern": f"^{_DATE}$"},
    "time": {"pattern": f"^{_TIME}$"},
    "date-time": {"pattern": f"^{_DATE}[tT]{_TIME}$"},
}
_BESIDE: dict[str, Schema] = {"hostname": {"maxLength": 253}}
_FORMATS = ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid")


def prepared(schema: Schema) -> Schema:
    """A copy of a schema that llguidance keeps to.

    Args:
        schema: as `json.loads` with `parse_float=numbers.Written` reads it.

    Raises:
        ValueError: it cannot be kept to; says where and why.
    """
    walk = _Walk(copy.deepcopy(schema))
    walk.root.pop("x-guidance", None)  # llguidance would take options from it
    walk.run()
    numbers.part(walk.visited)
    numbers.check_together(walk.visited)
    return walk.root


class _Walk:
    """Visits every schema that is used, once, and rewrites it in place."""

    def __init__(self, root: Schema) -> None:
        self.root = root
        self.visited: list[Schema] = []
        self._seen: set[int] = set()
        self._referred: list[tuple[Any, str, Schema]] = []
        self._anchors: dict[str, list[Schema]] | None = None
        self._written = 0

    def run(self) -> None:
        """Read the schema from its root, and then whatever a `$ref` leads to."""
        self._referred.append((self.root, "#", self.root))
        while self._referred:
            self.visit(*self._referred.pop(), 0)

    def visit(self, schema: Any, path: str, base: Schema, depth: int) -> None:
        """One schema and all that it holds.

        Args:
            path: where it is, as a JSON pointer.
            base: the innermost schema around it that has an `$id`, which its pointers start from.
        """
        if isinstance(schema, bool) or id(schema) in self._seen:
            return
        if not isinstance(schema, dict):
            raise ValueError(f"at {path}: a schema is an object, true or false")
        if depth > MAX_DEPTH:
            raise ValueError(f"schemas lie more than {MAX_DEPTH} deep in each other")
        self._seen.add(id(schema))
        self.visited.append(schema)
        base = schema if "$id" in schema else base
        try:
            self._rewrite(schema)
        except ValueError as error:
            raise ValueError(f"at {path}: {error}") from None
        for key, inner in _schemas(schema):
            self.visit(inner, f"{path}/{key}", base, depth + 1)
        if "$ref" in schema:
            self._follow(schema["$ref"], path, base)

    def _rewrite(self, schema: Schema) -> None:
        """What is wrong, or would be, with the keywords of one schema."""
        for key in [key for key in _REFUSED if key in schema]:
            if key in _IDLE and _IDLE[key](schema[key], schema):
                continue
            raise ValueError(f"{key} cannot be kept to; {_REFUSED[key]}")
        for key in _REFUSED:
            schema.pop(key, None)
        if "$dynamicAnchor" in schema:  # without a $dynamicRef an anchor like any other
            schema.setdefault("$anchor", schema.pop("$dynamicAnchor"))
            schema.pop("$dynamicAnchor", None)
        types = schema.get("type", [])
        if unknown := [kind for kind in ([types] if isinstance(types, str) else types) if kind not in _TYPES]:
            raise ValueError(f"type {_short(unknown[0])} is not known; known are {', '.join(_TYPES)}")
        given = len(schema["enum"]) if isinstance(schema.get("enum"), list) else 0
        numbers.keep(schema)
        made = len(schema["enum"]) if isinstance(schema.get("enum"), list) else 0
        self._write(max(0, made - given) * PER_NUMBER)
        for key in ("const", "enum"):
            if key in schema:
                _check_value(key, schema[key])
        for key in _COUNTS:
            if numbers.is_number(schema.get(key)):
                schema[key] = _count(key, schema[key])
        _check_keys(schema)
        named = schema.get("patternProperties")
        self._write(len(str(schema.get("pattern", ""))))
        self._write(sum(map(len, named)) if isinstance(named, dict) else 0)
        _translate(schema)

    def _write(self, characters: int) -> None:
        """Count what is written for a schema, before it is.

        Raises:
            ValueError: it has become too much.
        """
        self._written += characters
        if self._written > MAX_WRITTEN:
            raise ValueError(
                f"patterns, formats and lists of numbers take more than {MAX_WRITTEN} characters when"
                " they are written out; use fewer of them"
            )

    def _follow(self, reference: Any, path: str, base: Schema) -> None:
        """The schema that a `$ref` means, which may lie where no keyword leads."""
        if not str(reference).startswith("#"):
            raise ValueError(
                f"at {path}: $ref {_short(reference)} leads out of the schema, where nothing is fetched; "
                "put what it means into $defs and refer to it as #/$defs/NAME"
            )
        pointer = unquote(str(reference)[1:])
        if pointer and not pointer.startswith("/"):
            if self._anchors is None:
                self._anchors = {}
                _collect(self.root, self._anchors)
            self._referred += [(found, reference, base) for found in self._anchors.get(pointer, [])]
            return
        target: Any = base
        for part in pointer.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            try:
                target = target[int(name)] if isinstance(target, list) else target[name]
            except (KeyError, IndexError, ValueError, TypeError):
                raise ValueError(f"at {path}: $ref {_short(reference)} leads nowhere") from None
        self._referred.append((target, reference, base))


def _collect(part: Any, anchors: dict[str, list[Schema]]) -> None:
    """Whatever has an anchor, wherever it is."""
    if isinstance(part, dict):
        for name in {str(part.get("$anchor")), str(part.get("$dynamicAnchor"))}:
            anchors.setdefault(name, []).append(part)
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        _collect(inner, anchors)


def _schemas(schema: Schema) -> list[tuple[str, Any]]:
    """The schemas within one, and how a pointer names them."""
    found = [(key, schema[key]) for key in _ONE if key in schema and not isinstance(schema[key], list)]
    for key in _SEVERAL:
        if isinstance(schema.get(key), list):
            found += [(f"{key}/{index}", inner) for index, inner in enumerate(schema[key])]
    for key in _NAMED:
        if isinstance(schema.get(key), dict):
            found += [(f"{key}/{name}", inner) for name, inner in schema[key].items()]
    return found


def _check_value(key: str, value: Any) -> None:
    """A value of `const` or `enum`, which must come out as it is."""
    if isinstance(value, dict):
        for inner in value.values():
            _check_value(key, inner)
    elif isinstance(value, list):
        for inner in value:
            _check_value(key, inner)
    elif isinstance(value, str) and (codes := UNWRITABLE.intersection(map(ord, value))):
        raise ValueError(f"{key} holds the control character U+{min(codes):04X}, which is not written")
    elif numbers.is_number(value) and not numbers.survives(value):
        raise ValueError(
            f"{key} holds the number {numbers.shown(value)}, which would come out as another one, since a "
            "double cannot hold it; make it a string"
        )


def _count(key: str, value: float) -> int:
    """A number of characters, items or keys."""
    meant = numbers.exactly(value)
    if meant < 0 or meant != meant.to_integral_value():
        raise ValueError(f"{key} is {numbers.shown(value)}, it must be a whole number, 0 or more")
    if meant > LONGEST and key.startswith("min"):
        raise ValueError(f"{key} is {numbers.shown(value)}, no answer is so long")
    return LONGEST if meant > LONGEST else int(meant)


def _check_keys(schema: Schema) -> None:
    """What a grammar cannot count: keys that no keyword names may come twice."""
    required = schema.get("required")
    named = len(set(map(str, required))) if isinstance(required, list) else 0
    least = schema.get("minProperties", 0)
    closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    if numbers.is_number(least) and least > named + 1 and not closed:
        raise ValueError(
            f"minProperties {least} cannot be kept to, since a key that is not named may come twice; name "
            "the keys in properties and required"
        )


def _translate(schema: Schema) -> None:
    """Patterns and formats."""
    if isinstance(schema.get("pattern"), str):
        schema["pattern"] = _pattern(schema["pattern"])
    if isinstance(named := schema.get("patternProperties"), dict):
        schema["patternProperties"] = {_pattern(pattern): inner for pattern, inner in named.items()}
        if len(schema["patternProperties"]) < len(named):
            raise ValueError("two patternProperties say the same")
    if not isinstance(kind := schema.get("format"), str):
        return
    types = schema.get("type", "string")
    if "string" not in ([types] if isinstance(types, str) else types):
        del schema["format"]  # it says something about strings only
        return
    if kind not in _FORMATS:
        raise ValueError(
            f"format {_short(kind)} is not known; known are {', '.join(_FORMATS)}; leave it out, or use "
            "pattern"
        )
    if kind in _WRITTEN_OUT:
        del schema["format"]
    extra = _WRITTEN_OUT.get(kind) or _BESIDE.get(kind)
    if extra and isinstance(others := schema.get("allOf", []), list):
        schema["allOf"] = [*others, dict(extra)]


def _pattern(pattern: str) -> str:
    try:
        return translated(pattern)
    except ValueError as error:
        raise ValueError(f"pattern {_short(pattern)}: {error}") from None


def _short(text: Any) -> str:
    shown = str(text)
    return repr(shown if len(shown) <= 60 else f"{shown[:57]}...")
