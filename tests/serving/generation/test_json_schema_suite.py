"""The public JSON-Schema-Test-Suite against structured output; `make test-json-schema` runs it.

A schema is met, or refused with a reason, or wrong: where an instance that the suite calls invalid can be
written, or an answer that is picked at random of what is allowed is invalid. Judges are the suite itself, and
jsonschema's validator with numbers as decimals and patterns as JavaScript reads them (`regress`). A valid
instance that cannot be written, for the order of its keys or the spelling of a number, is not wrong.
"""

from __future__ import annotations

import decimal
import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.generation.params import BadRequest, Unmet
from serving.generation.structure import Structures
from tests.conftest import ROOT
from tests.serving.generation.schemas import matcher_of, structures_in
from tests.serving.generation.test_text import END, MORE, byte_level

pytestmark = pytest.mark.json_schema

SUITE = Path(os.environ.get("JSON_SCHEMA_SUITE", ROOT / "build/json-schema/jsonschema-4.26.0/json"))
DRAFT = SUITE / "tests/draft2020-12"
SPELLINGS, SAMPLES, TOKENS = 60, 6, 400
decimal.getcontext().prec = 2000


@dataclass
class Case:
    """A schema as it is written, instances and whether they are valid, and whether formats are rules."""

    name: str
    schema: str
    instances: list[tuple[Any, bool]] = field(default_factory=list)
    formats: bool = False


def _cases() -> Iterator[Case]:
    for path in sorted([*DRAFT.glob("*.json"), *DRAFT.glob("optional/**/*.json")]):
        name = str(path.relative_to(DRAFT))
        for group in json.loads(path.read_text(), parse_float=Decimal):
            yield Case(
                f"{name}: {group['description']}",
                _written(group["schema"]),
                [(test["data"], test["valid"]) for test in group["tests"]],
                formats="format/" in name,
            )


def _written(value: Any) -> str:
    """JSON that keeps the digits of a Decimal."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(key)}: {_written(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    return str(value) if isinstance(value, Decimal) else json.dumps(value)


def _spellings(value: Any) -> list[str]:
    """Ways to write an instance: keys in every order, characters as they are and escaped."""
    found: Iterator[str]
    if isinstance(value, dict):
        found = (
            f"{{{', '.join(map(': '.join, zip(keys, inners, strict=True)))}}}"
            for order in itertools.islice(itertools.permutations(value), 24)
            for keys in zip(*map(_strings, order), strict=True) or [()]
            for inners in itertools.islice(itertools.product(*(_spellings(value[k])[:4] for k in order)), 8)
        )
        if not value:
            return ["{}"]
    elif isinstance(value, list):
        parts = itertools.product(*(_spellings(inner)[:4] for inner in value))
        found = (f"[{', '.join(inners)}]" for inners in itertools.islice(parts, 16))
    elif isinstance(value, str):
        found = iter(_strings(value))
    else:
        found = iter([_written(value), *([json.dumps(float(value))] if isinstance(value, Decimal) else [])])
    return list(itertools.islice(dict.fromkeys(found), SPELLINGS))


def _strings(text: str) -> list[str]:
    escaped = "".join(f"\\u{int.from_bytes(unit, 'big'):04x}" for unit in _units(text))
    return [json.dumps(text, ensure_ascii=False), json.dumps(text), f'"{escaped}"']


def _units(text: str) -> list[bytes]:
    data = text.encode("utf-16-be", "surrogatepass")
    return [data[place : place + 2] for place in range(0, len(data), 2)]


@cache
def _validator() -> Any:
    """jsonschema's, with two things as the specification has them: decimals, and patterns of JavaScript."""
    import jsonschema._keywords
    import jsonschema._utils
    import regress
    from jsonschema import Draft202012Validator, validators
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT202012

    class Patterns:
        @staticmethod
        @cache
        def _compiled(pattern: str) -> Any:
            return regress.Regex(pattern, "u")

        @classmethod
        def search(cls, pattern: str, text: str) -> Any:
            return cls._compiled(pattern).find(text)

    for module in (jsonschema._keywords, jsonschema._utils):
        module.re = Patterns

    def whole(_: Any, value: Any) -> bool:
        number = isinstance(value, int | Decimal) and not isinstance(value, bool)
        return number and value == int(value)

    remotes = SUITE / "remotes"
    registry = Registry().with_resources(
        (
            f"http://localhost:1234/{path.relative_to(remotes)}",
            Resource.from_contents(json.loads(path.read_text()), default_specification=DRAFT202012),
        )
        for path in remotes.glob("**/*.json")
    )
    checker = Draft202012Validator.TYPE_CHECKER.redefine("integer", whole)
    kind = validators.extend(Draft202012Validator, type_checker=checker)
    return lambda schema, formats: kind(
        schema, registry=registry, format_checker=kind.FORMAT_CHECKER if formats else None
    )


def _valid(schema: str, text: str, *, formats: bool = False) -> bool:
    """What jsonschema says of a text."""
    try:
        value = json.loads(text, parse_float=Decimal)
    except decimal.InvalidOperation:  # an exponent beyond all bounds; a number all the same
        return True
    except ValueError:
        return False
    return bool(_validator()(json.loads(schema, parse_float=Decimal), formats).is_valid(value))


@pytest.fixture(scope="module")
def structures(tmp_path_factory: pytest.TempPathFactory) -> Structures:
    return structures_in(tmp_path_factory.mktemp("suite"))


def _takes(structures: Structures, schema: str, text: str) -> bool:
    matcher = matcher_of(structures, schema)
    try:
        for token in byte_level().encode(text).ids:
            if matcher.finished or not matcher.allowed()[token]:
                return False
            matcher.consume(token)
        return matcher.finished or bool(matcher.allowed()[END])
    except Unmet:
        return False


def _sample(structures: Structures, schema: str, seed: int) -> str | None:
    """An answer picked at random, which closes what is open once it is long; None: it came to no end."""
    matcher, chance, tokens = matcher_of(structures, schema), random.Random(seed), list[int]()
    texts = {token: byte_level().decode([token]) for token in range(byte_level().get_vocab_size())}
    while not matcher.finished and len(tokens) < TOKENS:
        picks = np.flatnonzero(matcher.allowed()).tolist()
        if END in picks and (len(tokens) > 60 or chance.random() < 0.3 or picks == [END]):
            break
        picks = [pick for pick in picks if pick not in (END, MORE)]
        if len(tokens) > 60:
            picks = [pick for pick in picks if texts[pick] and set(texts[pick]) <= set('"}]')] or picks
        elif seed % 3 == 2:
            picks = [pick for pick in picks if texts[pick].isascii() and texts[pick].isprintable()] or picks
        tokens.append(chance.choice(picks))
        matcher.consume(tokens[-1])
    return None if len(tokens) == TOKENS else str(byte_level().decode(tokens))


def _faults(structures: Structures, case: Case, counts: Counter[str]) -> list[str]:
    """What of a schema that is not refused comes out wrong."""
    found = []
    for instance, valid in case.instances:
        taken = [text for text in _spellings(instance) if _takes(structures, case.schema, text)]
        counts["valid instances"] += valid
        counts["of which can be written"] += valid and bool(taken)
        if taken and not valid:
            found.append(f"can be written: {taken[0]}")
    for seed in range(SAMPLES):
        try:
            text = _sample(structures, case.schema, seed)
        except Unmet as error:
            found.append(f"an answer that ends in an error: {error}")
            continue
        counts["answers that came to an end"] += text is not None
        if text is not None and not _valid(case.schema, text, formats=case.formats):
            found.append(f"an answer: {text}")
    return found


def _report(structures: Structures, cases: Iterator[Case]) -> None:
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for case in cases:
        counts["schemas"] += 1
        try:
            matcher_of(structures, case.schema)
        except BadRequest as error:
            counts["refused"] += 1
            assert len(str(error).splitlines()) == 1 and len(str(error)) > 40
            continue
        faults = _faults(structures, case, counts)
        counts["wrong" if faults else "met"] += 1
        wrong += [f"{case.name}: {case.schema[:300]}: {fault[:200]}" for fault in faults]
    print("\n" + ", ".join(f"{name} {count}" for name, count in counts.items()))
    assert not wrong, "\n".join(wrong)


@pytest.mark.timeout(3600)
def test_the_public_suite(structures: Structures) -> None:
    _report(structures, _cases())


KEYS = ["a", "b", "ab", "c1"]
NUMBERS = [0, 1, 2, 3, 5, -1, -2, 10, 100, 0.5, 1.5, 0.1, -0.5, 2.0, 1e3, 0.25, 7, 99, 0.3, -7.5]
PATTERNS = ["^a", "b$", "^[ab]+$", "a|b", r"^c\d$", "^.$", r"\w", "^[^a]*$", "^ab?$", "x"]
TEXTS = ["", "a", "b", "ab", "aa", "c1", "x", "é", "a\nb"]
TYPES = ["null", "boolean", "integer", "number", "string", "array", "object"]


def _value(chance: random.Random, depth: int = 0) -> Any:
    kinds = [
        lambda: chance.choice(NUMBERS),
        lambda: chance.choice(TEXTS),
        lambda: chance.choice([None, True, False]),
    ]
    if depth < 2:
        kinds += [
            lambda: [_value(chance, depth + 1) for _ in range(chance.randrange(3))],
            lambda: {key: _value(chance, depth + 1) for key in chance.sample(KEYS, chance.randrange(3))},
        ]
    return chance.choice(kinds)()


def _schema(chance: random.Random, depth: int = 0) -> Any:
    """Keywords that meet as nobody would write them."""
    if depth > 3 or chance.random() < 0.04:
        return chance.choice([True, False, {}, {"type": "null"}, {"type": "integer"}])

    def inner() -> Any:
        return _schema(chance, depth + 1)

    makers: dict[str, Any] = {
        "type": lambda: chance.choice(TYPES),
        "const": lambda: _value(chance),
        "enum": lambda: [_value(chance) for _ in range(chance.randint(1, 4))],
        **dict.fromkeys(
            ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), lambda: chance.choice(NUMBERS)
        ),
        "multipleOf": lambda: chance.choice([1, 2, 3, 5, 0.1, 0.5, 0.3, 1.5, 0.25, 10, 7]),
        **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), lambda: chance.randrange(4)),
        **dict.fromkeys(("minProperties", "maxProperties"), lambda: chance.randrange(4)),
        "pattern": lambda: chance.choice(PATTERNS),
        "items": inner,
        "prefixItems": lambda: [inner() for _ in range(chance.randint(1, 2))],
        "properties": lambda: {key: inner() for key in chance.sample(KEYS, chance.randint(1, 3))},
        "required": lambda: chance.sample(KEYS, chance.randint(1, 2)),
        "additionalProperties": inner,
        "patternProperties": lambda: {
            pattern: inner() for pattern in chance.sample(PATTERNS, chance.randint(1, 2))
        },
        **dict.fromkeys(("anyOf", "allOf", "oneOf"), lambda: [inner() for _ in range(chance.randint(1, 3))]),
        "$ref": lambda: chance.choice(["#/$defs/x", "#/$defs/y"]),
    }
    return {name: makers[name]() for name in chance.sample(list(makers), chance.randint(1, 4))}


def _random_cases() -> Iterator[Case]:
    for seed in range(int(os.environ.get("JSON_SCHEMA_RANDOM", "2000"))):
        chance = random.Random(seed)
        schema = _schema(chance)
        if not isinstance(schema, dict):
            continue
        schema["$defs"] = {name: _leaf(chance) for name in "xy"}
        text = json.dumps(schema)
        values = [_value(chance) for _ in range(8)]
        yield Case(f"random {seed}", text, [(value, _valid(text, json.dumps(value))) for value in values])


def _leaf(chance: random.Random) -> Any:
    """A schema without a `$ref`, which jsonschema might follow without end."""
    made = _schema(chance, 3)
    if isinstance(made, dict):
        made.pop("$ref", None)
    return made


@pytest.mark.timeout(3600)
def test_schemas_made_at_random(structures: Structures) -> None:
    _report(structures, _random_cases())
