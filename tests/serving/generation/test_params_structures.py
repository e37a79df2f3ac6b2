"""Structures that may be asked for, and how those that make no sense are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.generation.params import STRUCTURES, BadRequest, SamplingParams
from tests.serving.generation.parameters import params_of


@pytest.mark.parametrize(
    ("kind", "definition"),
    [
        ("json", {"type": "object"}),
        ("json", {}),
        ("regex", "a+"),
        ("choice", ["yes", "no"]),
        ("grammar", 'start: "a"'),
    ],
)
def test_a_structure_may_be_an_object_or_its_text(kind: str, definition: Any) -> None:
    expected = (kind, definition)
    assert params_of(structured_outputs={kind: definition}).structured_outputs == expected
    assert params_of(structured_outputs=json.dumps({kind: definition})).structured_outputs == expected


def test_a_json_schema_may_be_a_text() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert params_of(structured_outputs={"json": json.dumps(schema)}).structured_outputs == ("json", schema)


def test_json_object_is_any_object() -> None:
    assert params_of(structured_outputs={"json_object": True}).structured_outputs == (
        "json",
        {"type": "object"},
    )


def test_a_number_of_a_schema_keeps_the_digits_it_was_written_with() -> None:
    text = '{"structured_outputs": {"json": {"maximum": 0.1000000000000000055}}}'
    for sent in (text, json.dumps({"structured_outputs": {"json": '{"maximum": 0.1000000000000000055}'}})):
        structure = SamplingParams.from_json(sent).structured_outputs
        assert structure is not None and structure[1]["maximum"].text == "0.1000000000000000055"


@pytest.mark.parametrize(
    "value",
    [
        1,
        True,
        [],
        {},
        "",
        "json",
        "[]",
        {"xml": "a"},
        {"regex": "a", "choice": ["a"]},
        *(
            {kind: wrong}
            for kind in STRUCTURES
            for wrong in (None, 1, False, "" if kind != "json" else "{", [])
        ),
        {"choice": "yes"},
        {"choice": [1]},
        {"choice": ["a", ""]},
        {"regex": ["a"]},
        {"json": "[]"},
        {"json": "not JSON"},
        {"json": {"const": "\ud800"}},
        {"regex": "\ud800"},
        {"choice": ["\ud800"]},
        {"json": {}, "whitespace_pattern": " "},
        {"grammar": {"start": "a"}},
    ],
)
def test_structures_that_make_no_sense_are_refused_by_name(value: Any) -> None:
    with pytest.raises(BadRequest, match="^structured_outputs"):
        params_of(structured_outputs=value)


@pytest.mark.parametrize(
    "nested", ["[" * 100_000, {"json": "[" * 100_000}], ids=["itself", "the schema in it"]
)
def test_a_structure_nested_too_deep_is_refused_by_name(nested: Any) -> None:
    with pytest.raises(BadRequest, match="^structured_outputs"):
        params_of(structured_outputs=nested)


def test_no_depth_of_a_schema_is_our_own_fault() -> None:
    """Reading and writing JSON give up at different depths."""
    for depth in range(100, 1100, 50):
        schema = '{"not":' * depth + "{}" + "}" * depth
        try:
            SamplingParams.from_json(f'{{"structured_outputs":{{"json":{schema}}}}}')
        except BadRequest as error:
            assert "nested too deep" in str(error)
