"""What a request says about tools becomes a grammar, whose texts are valid calls that are read back."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from serving.gateway.tools import MAX_TOOLS, BadTools, check, structured
from serving.generation.params import SamplingParams
from serving.generation.structure import Compiler, Structures
from shoal.tools import FORMATS, HERMES, MISTRAL, ToolFormat
from tests.serving.gateway.test_tool_calls import joined, read
from tests.serving.generation.test_text import END, byte_level


def _tool(name: str, parameters: Any = None, **more: Any) -> dict[str, Any]:
    function = {"name": name, **more} | ({} if parameters is None else {"parameters": parameters})
    return {"type": "function", "function": function}


@pytest.mark.parametrize(
    ("tools", "choice", "parallel", "kind", "names", "several"),
    [
        (None, None, None, "none", (), True),
        ([], "auto", None, "none", (), True),
        (None, "none", False, "none", (), False),
        ([_tool("a"), _tool("b", {})], None, None, "auto", ("a", "b"), True),
        ([_tool("a")], "none", None, "none", (), True),
        ([_tool("a", description="d", strict=True)], "required", False, "required", ("a",), False),
        ([_tool("a", {"type": "object"})], "any", True, "required", ("a",), True),
        (
            [_tool("a"), _tool("b")],
            {"type": "function", "function": {"name": "b"}},
            None,
            "named",
            ("b",),
            True,
        ),
        ([_tool(f"f{n}") for n in range(MAX_TOOLS)], "auto", None, "auto", None, True),
    ],
)
def test_a_good_request_is_read(
    tools: Any, choice: Any, parallel: Any, kind: str, names: tuple[str, ...] | None, several: bool
) -> None:
    request = check(tools, choice, parallel)
    assert (request.choice, request.parallel) == (kind, several)
    assert names is None or request.names == names


@pytest.mark.parametrize(
    ("tools", "choice", "parallel", "param"),
    [
        ({}, None, None, "tools"),
        ([_tool(f"f{n}") for n in range(MAX_TOOLS + 1)], None, None, "tools"),
        ([_tool("a"), "b"], None, None, "tools[1]"),
        ([{"type": "web_search"}], None, None, "tools[0].type"),
        ([{"type": "function"}], None, None, "tools[0].function"),
        ([{"type": "function", "function": {}}], None, None, "tools[0].function.name"),
        ([_tool("")], None, None, "tools[0].function.name"),
        ([_tool("a b")], None, None, "tools[0].function.name"),
        ([_tool("a\n")], None, None, "tools[0].function.name"),
        ([_tool("é")], None, None, "tools[0].function.name"),
        ([_tool("a" * 65)], None, None, "tools[0].function.name"),
        ([_tool("a"), _tool("b"), _tool("a")], None, None, "tools[2].function.name"),
        ([_tool("a", description=1)], None, None, "tools[0].function.description"),
        ([_tool("a", strict="yes")], None, None, "tools[0].function.strict"),
        ([_tool("a", [])], None, None, "tools[0].function.parameters"),
        ([_tool("a", {"type": "string"})], None, None, "tools[0].function.parameters.type"),
        ([_tool("a")], "always", None, "tool_choice"),
        ([_tool("a")], 1, None, "tool_choice"),
        ([_tool("a")], [], None, "tool_choice"),
        (None, "required", None, "tool_choice"),
        ([_tool("a")], {}, None, "tool_choice.type"),
        ([_tool("a")], {"type": "function"}, None, "tool_choice.function.name"),
        (
            [_tool("a")],
            {"type": "function", "function": {"name": "b"}},
            None,
            "tool_choice.function.name",
        ),
        (None, {"type": "function", "function": {"name": "b"}}, None, "tool_choice.function.name"),
        ([_tool("a")], None, "no", "parallel_tool_calls"),
        ([_tool("a")], None, 0, "parallel_tool_calls"),
    ],
)
def test_a_bad_request_is_refused_with_its_place(tools: Any, choice: Any, parallel: Any, param: str) -> None:
    with pytest.raises(BadTools) as refused:
        check(tools, choice, parallel)
    assert refused.value.param == param
    assert len(refused.value.message.splitlines()) == 1


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"x": {"not": {"type": "string"}}}},
        {"type": "object", "properties": {"x": {"type": "nope"}}},
        {"type": "object", "properties": {"x": {"const": float("inf")}}},
        {"type": "object", "properties": {"x": {"$ref": "#/$defs/missing"}}},
    ],
)
def test_a_schema_that_cannot_be_kept_to_is_refused_with_its_place(schema: Any) -> None:
    tools = [_tool("a"), _tool("b", schema)]
    assert structured(check(tools, "auto", None), HERMES, {}) is None
    assert structured(check(tools, "none", None), HERMES, {}) is None
    with pytest.raises(BadTools) as refused:
        structured(check(tools, "required", None), HERMES, {})
    assert refused.value.param == "tools[1].function.parameters"
    assert len(refused.value.message.splitlines()) == 1


WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "unit": {"enum": ["C", "%json {", "</tool_call>"]},
        "days": {"$ref": "#/$defs/days"},
    },
    "required": ["city", "days"],
    "$defs": {"days": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 2}},
}
SCHEMAS: dict[str, Any] = {
    "get": WEATHER,
    "get_all": {"properties": {}, "additionalProperties": False},
    "now": None,
    "a-b_C9": {"type": "object", "properties": {}, "title": "a-b_C9", "required": []},
}
TOOLS = [_tool(name, schema) for name, schema in SCHEMAS.items()]


def _check_arguments(name: str, arguments: Any) -> None:
    if name != "get":
        assert arguments == {}
        return
    assert {"city", "days"} <= set(arguments) <= {"city", "days", "unit"}
    assert isinstance(arguments["city"], str) and len(arguments["city"]) <= 8
    assert arguments.get("unit", "C") in WEATHER["properties"]["unit"]["enum"]  # type: ignore[index]
    assert len(arguments["days"]) <= 2 and all(type(day) is int and day >= 0 for day in arguments["days"])


def _tokenizer(added: bool) -> Tokenizer:
    made = Tokenizer.from_str(byte_level().to_str())
    if added:
        made.add_special_tokens([AddedToken("[TOOL_CALLS]", special=True)])
        # Qwen 2.5 has these, and not as special tokens.
        made.add_tokens([AddedToken(text, special=False) for text in ("<tool_call>", "</tool_call>")])
    return made


@pytest.fixture(scope="module", params=[False, True], ids=["text", "added tokens"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Structures, dict[str, int]]:
    """A tokenizer, what compiles grammars for it, and its added tokens."""
    tokenizer = _tokenizer(request.param)
    path = tmp_path_factory.mktemp("tools") / "tokenizer.json"
    tokenizer.save(str(path))
    added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
    return tokenizer, Structures(Compiler(path, tokenizer.get_vocab_size(), [END])), added


def _walk(
    model: tuple[Tokenizer, Structures, dict[str, int]], structure: dict[str, str], chance: random.Random
) -> str:
    """Picks at random among the tokens that are allowed."""
    tokenizer, structures, _ = model
    kind, grammar = SamplingParams.from_json(json.dumps({"structured_outputs": structure})).structured_outputs  # type: ignore[misc]
    matcher = structures.matcher(kind, grammar)
    tokens: list[int] = []
    for _ in range(3000):
        picks = np.flatnonzero(matcher.allowed()).tolist()
        if matcher.finished or (END in picks and chance.random() < 0.5):
            return str(tokenizer.decode(tokens, skip_special_tokens=False))
        tokens.append(chance.choice([pick for pick in picks if pick != END]))
        matcher.consume(tokens[-1])
    raise AssertionError(f"no end is allowed after {len(tokens)} tokens")


@pytest.mark.parametrize("parallel", [None, False])
@pytest.mark.parametrize("choice", ["required", *SCHEMAS])
@pytest.mark.parametrize("form", FORMATS.values(), ids=str)
def test_whatever_a_model_picks_is_a_valid_call_that_is_read_back(
    model: tuple[Tokenizer, Structures, dict[str, int]],
    form: ToolFormat,
    choice: str,
    parallel: bool | None,
) -> None:
    asked = choice if choice == "required" else {"type": "function", "function": {"name": choice}}
    request = check(TOOLS, asked, parallel)
    structure = structured(request, form, model[2])
    assert structure is not None
    most = 0
    seen: set[str] = set()
    for seed in range(12):
        text = _walk(model, structure, random.Random(seed))
        content, calls = joined(read(form, list(text), request.names))
        assert content == "" and calls and all(ended for _, _, ended in calls), text
        for name, arguments, _ in calls:
            _check_arguments(name, json.loads(arguments))
            assert json.dumps(json.loads(arguments), ensure_ascii=False) == arguments
        most, seen = max(most, len(calls)), seen | {name for name, _, _ in calls}
    if choice == "required":
        assert (most > 1) == (parallel is None) and len(seen) > 1
    else:
        assert most == 1 and seen == {choice}


def test_a_schema_that_speaks_of_further_arguments_is_kept() -> None:
    for more in ({"additionalProperties": {"type": "integer"}}, {"patternProperties": {"^x": {}}}):
        schema = {"type": "object", "properties": {"city": {"type": "string"}}, **more}
        structure = structured(check([_tool("get", schema)], "required", None), HERMES, {})
        assert structure is not None and json.dumps(more)[1:-1] in structure["grammar"]
        assert '"additionalProperties": false' not in structure["grammar"]


def test_an_added_token_is_asked_for_as_a_token() -> None:
    request = check(TOOLS, "required", None)
    for form, text in ((HERMES, "<tool_call>"), (HERMES, "</tool_call>"), (MISTRAL, "[TOOL_CALLS]")):
        structure = structured(request, form, {text: 77})
        assert structure is not None and "<[77]>" in structure["grammar"]
        assert text not in structure["grammar"].splitlines()[0]


def test_many_tools_with_many_parameters_are_not_too_many(
    model: tuple[Tokenizer, Structures, dict[str, int]],
) -> None:
    schema = {"type": "object", "properties": {f"p{n}": {"type": "boolean"} for n in range(20)}}
    tools = [_tool(f"function_{n}", schema | {"additionalProperties": False}) for n in range(MAX_TOOLS)]
    request = check(tools, "required", False)
    structure = structured(request, HERMES, model[2])
    assert structure is not None
    _, calls = joined(read(HERMES, [_walk(model, structure, random.Random(0))], request.names))
    assert len(calls) == 1 and calls[0][2]
