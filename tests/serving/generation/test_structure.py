"""Whatever tokens are picked of those that a structure allows, the text matches it."""

from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.generation.params import BadRequest
from serving.generation.structure import MAX_DEFINITION, Compiler, Structures
from tests.serving.generation.test_text import END, MORE, byte_level

WIDTH = byte_level().get_vocab_size() + 13  # logits are often wider than the vocabulary
ENOUGH = 150  # tokens after which the end is taken where it is allowed


@pytest.fixture(scope="module")
def structures(tmp_path_factory: pytest.TempPathFactory) -> Structures:
    path = tmp_path_factory.mktemp("structure") / "tokenizer.json"
    byte_level().save(str(path))
    return Structures(Compiler(path, WIDTH, [END]))


def _prefixes(structures: Structures, kind: str, definition: Any, seed: int) -> list[tuple[list[int], bool]]:
    """Picks at random of what is allowed. Returns the tokens before each step, and whether they may end."""
    matcher, chance = structures.matcher(kind, definition), random.Random(seed)
    tokens: list[int] = []
    steps: list[tuple[list[int], bool]] = []
    for _ in range(2000):
        allowed = matcher.allowed()
        assert allowed.shape == (WIDTH,) and allowed.dtype == bool
        picks = np.flatnonzero(allowed).tolist()
        assert picks and picks[-1] < byte_level().get_vocab_size() and MORE not in picks
        steps.append((list(tokens), END in picks))
        if matcher.finished:
            assert picks == [END]
            return steps
        token = END if END in picks and len(tokens) > ENOUGH else chance.choice(picks)
        matcher.consume(token)
        if token == END:
            assert matcher.finished
            return steps
        tokens.append(token)
    raise AssertionError(f"no end is allowed after {len(tokens)} tokens")


def _answer(structures: Structures, kind: str, definition: Any, seed: int) -> str:
    tokens, may_end = _prefixes(structures, kind, definition, seed)[-1]
    assert may_end
    return str(byte_level().decode(tokens))


ITEM = {"type": "integer", "minimum": -5, "maximum": 300}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 6},
        "kind": {"enum": ["fish", 'a "quoted" one', "日本😀", 7, None, False]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 1, "maxItems": 3},
        "where": {
            "type": "object",
            "properties": {"x": ITEM, "deep": {"type": "boolean"}},
            "required": ["x"],
            "additionalProperties": False,
        },
        "next": {"$ref": "#/$defs/node"},
    },
    "required": ["name", "kind", "tags", "where", "next"],
    "additionalProperties": False,
    "$defs": {
        "tag": {"type": "string", "pattern": "^[a-z]{1,4}$"},
        "node": {
            "anyOf": [
                {"type": "null"},
                {
                    "type": "object",
                    "properties": {"next": {"$ref": "#/$defs/node"}},
                    "required": ["next"],
                    "additionalProperties": False,
                },
            ]
        },
    },
}


def _check_node(value: Any) -> None:
    while value is not None:
        assert list(value) == ["next"]
        value = value["next"]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_any_answer_to_a_schema_is_valid_json_that_satisfies_it(structures: Structures, seed: int) -> None:
    text = _answer(structures, "json", SCHEMA, seed)
    value = json.loads(text)
    assert list(value) == ["name", "kind", "tags", "where", "next"]
    assert isinstance(value["name"], str) and 1 <= len(value["name"]) <= 6
    assert any(
        value["kind"] is kind or value["kind"] == kind for kind in SCHEMA["properties"]["kind"]["enum"]
    )  # type: ignore[index]
    assert 1 <= len(value["tags"]) <= 3 and all(re.fullmatch("[a-z]{1,4}", tag) for tag in value["tags"])
    assert {"x"} <= set(value["where"]) <= {"x", "deep"}
    assert type(value["where"]["x"]) is int and -5 <= value["where"]["x"] <= 300
    assert type(value["where"].get("deep", True)) is bool
    _check_node(value["next"])


def test_json_has_no_white_space_but_that_of_json_dumps(structures: Structures) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": ITEM, "minItems": 2, "maxItems": 3}, "b": ITEM},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    for seed in range(10):
        text = _answer(structures, "json", schema, seed)
        assert text == json.dumps(json.loads(text))


@pytest.mark.parametrize(
    "pattern",
    [
        "a",
        "a?",
        "()",
        "(a|b){2,4}",
        r"[0-9]{3}-[0-9]{4}",
        r"(fish|fishes|the fish) swims?",
        "é+😀?",
        "[^a-z]{0,5}",
        r'"[^"\\]*"',
        "(日|本)*語",
        "^anchored$",
        r"\{\}\n/",
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_the_end_is_allowed_exactly_where_a_regular_expression_matches(
    structures: Structures, pattern: str, seed: int
) -> None:
    for tokens, may_end in _prefixes(structures, "regex", pattern, seed):
        text = byte_level().decode(tokens)
        whole = "\ufffd" not in text  # else its last character is not complete
        assert may_end == (whole and re.fullmatch(pattern, text) is not None)


CHOICES = ["yes", "yes, but", "no", 'a "b" \\ \n/', "日本語 😀", "\t", "fish", "fishes", "i", "<more"]


def test_every_choice_can_be_made_and_nothing_else(structures: Structures) -> None:
    made = {_answer(structures, "choice", CHOICES, seed) for seed in range(150)}
    assert made == set(CHOICES)


@settings(max_examples=50, deadline=None)
@given(
    choices=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), min_size=1),
    seed=st.integers(0, 2**32),
)
def test_any_strings_can_be_choices(structures: Structures, choices: list[str], seed: int) -> None:
    assert _answer(structures, "choice", choices, seed) in choices


def test_a_choice_can_be_written_in_the_tokens_that_the_tokenizer_makes_of_it(structures: Structures) -> None:
    for choice in CHOICES:
        matcher = structures.matcher("choice", CHOICES)
        for token in byte_level().encode(choice).ids:
            assert matcher.allowed()[token]
            matcher.consume(token)
        assert matcher.allowed()[END]


@pytest.mark.parametrize("seed", range(20))
def test_a_grammar_is_kept(structures: Structures, seed: int) -> None:
    grammar = r"""
        start: sum
        sum: term ("+" term)*
        term: NUMBER | "(" sum ")"
        NUMBER: /[1-9][0-9]?/
    """
    text = _answer(structures, "grammar", grammar, seed)
    assert re.fullmatch(r"[0-9+()]+", text)
    assert eval(text) > 0  # noqa: S307 - digits, plus and brackets only


@pytest.mark.parametrize(
    ("kind", "definition"),
    [
        ("regex", "["),
        ("regex", "(?=a)b"),
        ("regex", r"(a)\1"),
        ("regex", r"\bword"),
        ("regex", "\ud800"),
        ("grammar", "nonsense"),
        ("grammar", "start: missing"),
        ("grammar", 'start: "a"\nstart: "b"'),
        ("grammar", "start: <nope>"),
        ("grammar", 'begin: "a"'),
        ("choice", ["\ud800"]),
        ("json", {"type": "nope"}),
        ("json", {"type": "object", "properties": 3}),
        ("json", {"$ref": "#/missing"}),
        ("json", {"$ref": "http://elsewhere/schema"}),
        ("json", {"enum": []}),
        ("json", {"type": "string", "pattern": "["}),
        ("json", {"type": "string", "minLength": 5, "maxLength": 2}),
        ("json", {"type": "integer", "minimum": 5, "maximum": 1}),
        ("json", {"allOf": [{"type": "string"}, {"type": "integer"}]}),
        ("json", {"type": "array", "uniqueItems": True}),
        ("json", {"const": float("nan")}),
        ("regex", "a" * (MAX_DEFINITION + 1)),
        ("choice", ["a" * MAX_DEFINITION]),
        ("json", {"const": "a" * MAX_DEFINITION}),
    ],
)
def test_a_bad_definition_is_refused_in_one_line(structures: Structures, kind: str, definition: Any) -> None:
    with pytest.raises(BadRequest, match=f"^structured_outputs: {kind}") as refused:
        structures.matcher(kind, definition)
    message = str(refused.value)
    assert len(message.splitlines()) == 1 and message.encode()


@pytest.mark.parametrize("depth", [100, 300])
def test_a_deep_schema_is_compiled_or_refused(structures: Structures, depth: int) -> None:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema, "maxItems": 1}
    try:
        assert _answer(structures, "json", schema, 0).startswith("[")
    except BadRequest as error:
        assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "definition"),
    [
        ("regex", r"[^\x00-\x{10ffff}]"),
        ("regex", "[a&&b]"),
        ("grammar", "start: start"),
        ("json", {"$ref": "#"}),
    ],
)
def test_what_no_text_can_match_is_refused(structures: Structures, kind: str, definition: Any) -> None:
    with pytest.raises(BadRequest, match="no text can match it"):
        structures.matcher(kind, definition)


@pytest.mark.parametrize(
    ("kind", "definition"),
    [
        ("regex", "(a{1000}){1000}"),
        ("grammar", 'start: "a" start'),
        ("json", {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
    ],
)
def test_what_is_too_complex_is_refused_at_once(structures: Structures, kind: str, definition: Any) -> None:
    with pytest.raises(BadRequest):
        structures.matcher(kind, definition)


def test_thousands_of_choices_are_not_too_many(structures: Structures) -> None:
    choices = [f"fish {number}" for number in range(3000)]
    assert _answer(structures, "choice", choices, 0) in choices


@pytest.mark.parametrize(
    ("kind", "definition", "text"),
    [
        ("choice", ["<end>"], "<end>"),
        ("choice", ["see <more>"], "see <more>"),
        ("json", {"const": "<more>"}, '"<more>"'),
        ("regex", "<end>", "<end>"),
    ],
)
def test_the_name_of_a_special_token_can_be_asked_for(
    structures: Structures, kind: str, definition: Any, text: str
) -> None:
    assert _answer(structures, kind, definition, 0) == text


def test_a_token_that_is_not_allowed_is_refused_in_one_line(structures: Structures) -> None:
    allowed = structures.matcher("choice", ["abc", "xyz"]).allowed()
    for token in itertools.chain(range(WIDTH), [WIDTH, 10**6]):
        matcher = structures.matcher("choice", ["abc", "xyz"]) if token < 20 or token >= WIDTH - 20 else None
        if matcher is None or (token < WIDTH and allowed[token]):
            continue
        with pytest.raises(ValueError, match="^structured_outputs: ") as refused:
            matcher.consume(token)
        assert len(str(refused.value).splitlines()) == 1


def test_after_the_end_nothing_but_the_end_is_taken(structures: Structures) -> None:
    matcher = structures.matcher("choice", ["a"])
    (only,) = np.flatnonzero(matcher.allowed()).tolist()
    assert not matcher.finished
    matcher.consume(only)
    assert matcher.finished and np.flatnonzero(matcher.allowed()).tolist() == [END]
    with pytest.raises(ValueError, match="^structured_outputs: "):
        matcher.consume(only)


def test_two_answers_to_one_definition_do_not_disturb_each_other(structures: Structures) -> None:
    first, second = (structures.matcher("choice", ["ab", "ba"]) for _ in range(2))
    before = second.allowed()
    first.consume(int(np.flatnonzero(first.allowed())[0]))
    np.testing.assert_array_equal(second.allowed(), before)


@pytest.mark.parametrize("ends", [[END], [END, MORE], [MORE]])
def test_every_end_token_may_end_a_text(tmp_path: Path, ends: list[int]) -> None:
    path = tmp_path / "tokenizer.json"
    byte_level().save(str(path))
    own = Structures(Compiler(path, WIDTH, ends))
    for end in ends:
        matcher = own.matcher("regex", "a*")
        assert set(ends) <= set(np.flatnonzero(matcher.allowed()).tolist())
        matcher.consume(end)
        assert matcher.finished
