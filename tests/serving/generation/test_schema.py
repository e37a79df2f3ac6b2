"""What a JSON schema lets through, what it keeps out, and why it is refused where it cannot be kept to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.generation.numbers import Written
from serving.generation.params import BadRequest
from serving.generation.schema import prepared
from serving.generation.structure import Compiler, Structures, grammar_of
from tests.serving.generation.schemas import matcher_of, structures_in, takes
from tests.serving.generation.test_text import END, byte_level


@pytest.fixture(scope="module")
def structures(tmp_path_factory: pytest.TempPathFactory) -> Structures:
    return structures_in(tmp_path_factory.mktemp("schema"))


# schema; texts that can come; texts that must not
KEPT: list[tuple[str, list[str], list[str]]] = [
    ('{"const": 9007199254740992}', ["9007199254740992"], ["9007199254740993"]),
    ('{"const": 1.0}', ["1"], ["2", "1.5"]),
    ('{"const": -0.0}', ["-0"], ["1"]),
    ('{"const": 0.1}', ["0.1"], ["0.10000000000000001"]),
    ('{"enum": [1, "1", null, [1, {"a": 2}]]}', ["1", '"1"', "null", '[1, {"a": 2}]'], ["2", "[1]", "true"]),
    ('{"enum": [1, 2.5, 3, "x"], "minimum": 2, "multipleOf": 0.5}', ["2.5", "3", '"x"'], ["1"]),
    ('{"type": "integer", "minimum": -3, "exclusiveMaximum": 2}', ["-3", "0", "1"], ["-4", "2", "1.0"]),
    ('{"type": "integer", "exclusiveMinimum": true, "minimum": 3}', ["4"], ["3"]),
    ('{"type": "number", "exclusiveMinimum": 2, "maximum": 2.5}', ["2.5", "2.25"], ["2", "2.0", "2.51"]),
    ('{"allOf": [{"exclusiveMinimum": 2}, {"type": "number", "maximum": 2.5}]}', ["2.25"], ["2", "2.0"]),
    ('{"type": "number", "minimum": -2.5, "exclusiveMaximum": -2}', ["-2.5", "-2.25"], ["-2", "-2.0"]),
    ('{"type": "number", "minimum": -0.5, "exclusiveMaximum": 0}', ["-0.5", "-0.25"], ["0", "-0", "0.1"]),
    ('{"type": "number", "minimum": 0.35, "maximum": 0.45, "multipleOf": 0.1}', ["0.4"], ["0.35", "0.41"]),
    ('{"type": "integer", "multipleOf": 0.3}', ["3", "-6", "0"], ["1", "10"]),
    (
        '{"type": "integer", "multipleOf": 4294967295, "minimum": 0, "maximum": 9e9}',
        ["4294967295"],
        ["9", "5"],
    ),
    ('{"type": "number", "multipleOf": 0.01}', ["0.25", "-1.07", "3"], ["0.255"]),
    (
        '{"type": "integer", "maximum": 9223372036854775807}',
        ["5", "-100000000000000"],
        ["9223372036854775808"],
    ),
    ('{"minLength": 2.0, "type": "string", "maxLength": 3}', ['"ab"', '"日本語"'], ['"a"', '"abcd"']),
    ('{"type": "string", "pattern": "b"}', ['"abc"', '"b"'], ['"ac"', '""']),
    (
        '{"type": "string", "format": "date"}',
        ['"2024-02-29"', '"1999-12-31"'],
        ['"2023-02-29"', '"2023-04-31"'],
    ),
    (
        '{"type": "string", "format": "date"}',
        ['"2000-02-29"'],
        ['"1900-02-29"', '"0000-01-01"', '"2023-1-1"'],
    ),
    (
        '{"type": "string", "format": "time"}',
        ['"23:59:59Z"', '"01:02:03.5+02:00"'],
        ['"23:59:60Z"', '"24:00:00Z"'],
    ),
    ('{"type": "string", "format": "date-time"}', ['"2024-02-29T00:00:00Z"'], ['"2023-02-29T00:00:00Z"']),
    ('{"type": "integer", "format": "int64"}', ["7"], ['"7"']),
    ('{"type": "array", "uniqueItems": false, "maxItems": 1}', ["[]", "[1]"], ["[1, 1]"]),
    (
        '{"prefixItems": [{"type": "integer"}], "items": false, "type": "array"}',
        ["[]", "[1]"],
        ['["a"]', "[1, 2]"],
    ),
    (
        '{"type": "object", "properties": {"a": {"type": "integer"}, "b": true}, "required": ["b"]}',
        ['{"a": 1, "b": null}', '{"b": 2}', '{"b": 2, "c": 3}'],
        ['{"a": 1}', '{"a": "x", "b": 1}', '{"b": 2, "a": "x"}', '{"b": 1, "b": 2}'],
    ),
    ('{"type": "object", "minProperties": 1}', ['{"a": 1}'], ["{}"]),
    (
        '{"type": "object", "patternProperties": {"^x": {"type": "null"}}, "additionalProperties": false}',
        ["{}", '{"xa": null}'],
        ['{"xa": 1}', '{"a": null}'],
    ),
    ('{"anyOf": [{"type": "null"}, {"type": "boolean"}]}', ["null", "true"], ["1"]),
    ('{"oneOf": [{"type": "null"}, {"type": "boolean"}]}', ["null", "true"], ["1"]),
    ('{"allOf": [{"minimum": 3}, {"type": "integer", "maximum": 4}]}', ["3", "4"], ["2", "5", '"a"']),
    ('{"$defs": {"a~b": {"type": "null"}}, "$ref": "#/$defs/a~0b"}', ["null"], ["1"]),
    ('{"$defs": {"x": {"$anchor": "here", "type": "null"}}, "$ref": "#here"}', ["null"], ["1"]),
    ('{"odd": {"place": {"multipleOf": 5, "type": "integer"}}, "$ref": "#/odd/place"}', ["5"], ["4"]),
    ('{"if": {"type": "string"}, "type": "null", "not": false, "minContains": 3}', ["null"], ["1"]),
    ('{"$defs": {"unused": {"not": {}}}, "type": "null"}', ["null"], ["1"]),
    ('{"type": "null", "x-guidance": {"lenient": true}, "title": "T", "nonsense": 1}', ["null"], ["1"]),
    (
        '{"type": "array", "items": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}, "maxItems": 1}',
        ["[]", "[null]", "[[null]]"],
        ["[[1]]"],
    ),
]


@pytest.mark.parametrize(("schema", "can", "must_not"), KEPT)
def test_a_schema_is_kept_to(
    structures: Structures, schema: str, can: list[str], must_not: list[str]
) -> None:
    assert [text for text in can if not takes(structures, schema, text)] == []
    assert [text for text in must_not if takes(structures, schema, text)] == []


@pytest.mark.parametrize(
    "schema",
    [
        '{"type": "object", "properties": {"a": {"type": "integer"}}}',
        '{"properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}',
        '{"type": "object", "patternProperties": {"^a$": {"type": "integer"}}}',
    ],
)
def test_a_key_cannot_be_written_in_a_way_that_hides_it(structures: Structures, schema: str) -> None:
    assert takes(structures, schema, '{"a": 1}')
    assert not takes(structures, schema, '{"a": "x"}')
    assert not takes(structures, schema, r'{"\u0061": "x"}')


# schema; what the refusal says, with the place
REFUSED = [
    ('{"const": 9007199254740993}', "at #: const holds the number 9007199254740993, .* make it a string"),
    (
        '{"items": {"enum": [12345678901234567890123]}}',
        "at #/items: enum holds the number 12345678901234567890123",
    ),
    ('{"const": 0.1000000000000000055511}', "const holds the number 0.1000000000000000055511"),
    ('{"const": {"a": [1e22]}}', "const holds the number 1e22"),
    ('{"const": 1e400}', "1e400 is beyond what a double can hold"),
    ('{"minimum": 1e999999999}', "1e999999999 is beyond what a double can hold"),
    ('{"minimum": NaN}', "nan is no number of JSON"),
    ('{"minimum": "3"}', "minimum must be a number"),
    ('{"minimum": 100000000000000001}', r"minimum is 100000000000000001, it must lie within 10\^17"),
    ('{"minimum": 9007199254740993, "maximum": 9007199254740993}', "no number from 9007199254740993 to"),
    ('{"type": "integer", "minimum": 5, "maximum": 1}', "no text can match it: minimum .5. is greater"),
    ('{"multipleOf": 0}', "multipleOf is 0, it must be above zero"),
    ('{"multipleOf": 4294967295}', "multipleOf is 4294967295, it must be at most 10000"),
    ('{"multipleOf": 0.123456789}', "multipleOf is 0.123456789, which a double does not hold"),
    (
        '{"type": "number", "multipleOf": 0.1, "minimum": 0.31, "maximum": 0.39}',
        "no multiple of 0.1 lies between",
    ),
    (
        '{"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}, {"multipleOf": 9949}]}',
        "common multiples are too",
    ),
    ('{"enum": [1, 2], "minimum": 3}', "the keywords beside enum allow none of its values"),
    ('{"const": 1, "multipleOf": 2}', "const is 1, which the keywords beside it do not allow"),
    ('{"const": "a\\u0000"}', r"const holds the control character U\+0000"),
    (
        '{"properties": {"a": {"not": {"type": "null"}}}}',
        "at #/properties/a: not cannot be kept to; list what",
    ),
    ('{"if": {}, "then": {"maxLength": 2}}', "if cannot be kept to; write the cases as anyOf"),
    ('{"dependentRequired": {"a": ["b"]}}', "dependentRequired cannot be kept to; write the cases"),
    ('{"uniqueItems": true}', "uniqueItems cannot be kept to; leave it out and drop what comes twice"),
    ('{"contains": {"const": 1}}', "contains cannot be kept to; ask for such an item by its place"),
    ('{"propertyNames": {"pattern": "a"}}', "propertyNames cannot be kept to; use patternProperties"),
    ('{"unevaluatedProperties": false}', "unevaluatedProperties cannot be kept to; use additionalProperties"),
    ('{"unevaluatedItems": false}', "unevaluatedItems cannot be kept to; use items"),
    ('{"$dynamicRef": "#a"}', r"\$dynamicRef cannot be kept to; use \$ref"),
    (
        '{"oneOf": [{"minimum": 1}, {"maximum": 5}]}',
        "oneOf cannot be kept to where two options may both match",
    ),
    (
        '{"minProperties": 2}',
        "minProperties 2 cannot be kept to, since a key that is not named may come twice",
    ),
    (
        '{"properties": {"a": {}, "b": {}, "c": {}}, "additionalProperties": false, "minProperties": 2}',
        "need all properties to be required",
    ),
    (
        '{"patternProperties": {"a": {}, "b": {}}}',
        "two patternProperties may match the same key: /a/ and /b/",
    ),
    (
        '{"additionalProperties": {"format": "klingon"}}',
        "at #/additionalProperties: format 'klingon' is not known",
    ),
    (
        '{"type": "string", "format": "date", "maxLength": 5}',
        "a pattern, a format and lengths exclude each other",
    ),
    ('{"pattern": "(?=a)"}', r"pattern '\(\?=a\)': it looks ahead or behind"),
    ('{"pattern": "["}', "is not closed"),
    ('{"type": "nope"}', "type 'nope' is not known; known are null, boolean"),
    ('{"items": 3}', "at #/items: a schema is an object, true or false"),
    ('{"properties": 3}', "properties must be an object"),
    ('{"minLength": -1}', "minLength is -1, it must be a whole number, 0 or more"),
    ('{"minItems": 1e12}', "minItems is 1e12, no answer is so long"),
    ('{"$ref": "#/nowhere"}', r"at #: \$ref '#/nowhere' leads nowhere"),
    ('{"$defs": {"a": {"$ref": "#b"}}, "$ref": "#/$defs/a"}', "Anchor 'b' does not exist"),
    (
        '{"$ref": "https://example.com/s.json"}',
        "leads out of the schema, where nothing is fetched; put what it",
    ),
    ('{"$ref": "#"}', "no text can match it"),
    (
        '{"anyOf": [{"$ref": "#"}, {"type": "null"}], "minLength": 2}',
        "leads back to itself cannot have other",
    ),
    (
        '{"$defs": {"a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}}, '
        '"$ref": "#/$defs/a"}',
        "does not come to an end, like an object that requires one of its own kind",
    ),
    (
        '{"required": ["b"], "additionalProperties": false, "type": "object"}',
        "required property 'b' is unsat",
    ),
    ('{"default": 1e400}', "it holds a number that is too large, or none"),
]


@pytest.mark.parametrize(("schema", "why"), REFUSED)
def test_a_schema_that_cannot_be_kept_to_is_refused_with_the_reason(
    structures: Structures, schema: str, why: str
) -> None:
    with pytest.raises(BadRequest, match=f"^structured_outputs: json: .*{why}") as refused:
        matcher_of(structures, schema)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("depth", [40, 200, 900])
def test_schemas_that_lie_too_deep_in_each_other_are_refused(structures: Structures, depth: int) -> None:
    schema = '{"type": "array", "items": ' * depth + '{"type": "null"}' + "}" * depth
    if depth == 40:
        assert takes(structures, schema, "[[[]]]")
        return
    with pytest.raises(BadRequest, match="too complex|more than 100 deep|nested too deep"):
        matcher_of(structures, schema)


def test_a_schema_is_not_changed(structures: Structures) -> None:
    schema: dict[str, Any] = {
        "type": "string",
        "pattern": ".",
        "format": "date",
        "properties": {"a": {"minimum": 1}},
    }
    before = json.dumps(schema)
    structures.matcher("json", schema)
    assert json.dumps(schema) == before


def test_a_schema_within_a_grammar_is_one_like_any_other(structures: Structures) -> None:
    grammar = """
        # 1" is %json {"not": {}} in no grammar
        start: "%json {" ITEM <[0-3]> // nor here: %json {"not": {}}
        ITEM: /"|%json \\{|a # b/
    """
    structures.matcher("grammar", grammar)
    with pytest.raises(BadRequest, match="^structured_outputs: grammar: at #: const holds the number"):
        structures.matcher("grammar", 'start: "a" %json {"const": 9007199254740993} "b"')
    with pytest.raises(BadRequest, match="^structured_outputs: grammar: the schema after %json is not JSON"):
        structures.matcher("grammar", 'start: %json {"const": }')
    matcher = structures.matcher("grammar", 'start: "<" %json {"type": "string", "pattern": "^.$"} ">"')
    for token in byte_level().encode('<"').ids:
        matcher.consume(token)
    newline = byte_level().encode("\n").ids[0]
    assert not matcher.allowed()[newline]


def test_an_answer_that_has_come_to_a_dead_end_is_not_taken_for_complete(structures: Structures) -> None:
    """llguidance would let the text end there."""
    schema = (
        '{"type": "object", "required": ["a"], "properties": {"a": {"allOf": [{"type": "integer"}, '
        '{"multipleOf": 0.3, "minimum": 1, "maximum": 2.9}]}}}'
    )
    matcher = matcher_of(structures, schema)
    with pytest.raises(
        ValueError, match="^structured_outputs: no text can match it, or none that begins like this"
    ):
        for _ in range(20):
            matcher.consume(int(np.flatnonzero(matcher.allowed())[-1]))


def test_what_one_token_may_cost_is_limited(structures: Structures) -> None:
    """Each reading of an ambiguous text is followed: their number grows with the text."""
    matcher = structures.matcher("grammar", 'start: x\nx: x x | x x x | "a" | "b" x')
    (letter,) = byte_level().encode("a").ids
    with pytest.raises(ValueError, match="^structured_outputs: it is too complex"):
        for _ in range(500):
            assert matcher.allowed()[letter]
            matcher.consume(letter)


def test_a_tokenizer_may_lie_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "a folder" / "tokenizer.json"
    path.parent.mkdir()
    byte_level().save(str(path))
    compiler = Compiler(path, byte_level().get_vocab_size(), [END])
    assert compiler.compile("json", grammar_of("json", {})).allowed().any()


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "date-time"},
        {"type": "integer", "multipleOf": 3, "minimum": 0, "maximum": 600},
    ],
)
def test_what_a_schema_becomes_is_limited(schema: dict[str, Any]) -> None:
    """A format of nine letters, or two bounds, are hundreds of characters when they are written out."""
    assert prepared({"type": "array", "prefixItems": [dict(schema) for _ in range(20)]})
    with pytest.raises(ValueError, match="take more than 393216 characters when they are written out"):
        prepared({"type": "array", "prefixItems": [dict(schema) for _ in range(2000)]})


def test_digits_of_a_number_are_limited() -> None:
    exact = Written("0." + "1" * 1098)
    assert prepared({"type": "number", "maximum": exact})
    with pytest.raises(ValueError, match="has more digits than a double can hold"):
        prepared({"type": "number", "maximum": Written("0." + "1" * 200_000)})
