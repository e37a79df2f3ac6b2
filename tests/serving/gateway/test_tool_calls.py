"""What a model writes is read back as content and calls, however it is split."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.gateway.tool_calls import Arguments, CallBegin, CallEnd, CallParser, Content, Event
from serving.gateway.tool_json import JsonValue
from shoal.tools import FORMATS, HERMES, LLAMA, MISTRAL, ToolFormat

NAMES = ("get", "get_all", "now", "a-b_C9")


def read(form: ToolFormat, pieces: Iterable[str], names: Sequence[str] = NAMES, **kinds: bool) -> list[Event]:
    parser = CallParser(form, names, **kinds)
    return [event for piece in pieces for event in parser.add(piece)] + parser.end()


def joined(events: list[Event]) -> tuple[str, list[tuple[str, str, bool]]]:
    """The content, and name, arguments and completeness of each call; checks the order of events."""
    content = ""
    calls: list[tuple[str, str, bool]] = []
    for event in events:
        if isinstance(event, Content):
            assert event.text
            content += event.text
        elif isinstance(event, CallBegin):
            assert event.index == len(calls)
            calls.append((event.name, "", False))
        else:
            name, arguments, ended = calls[-1]
            assert event.index == len(calls) - 1 and not ended
            if isinstance(event, CallEnd):
                assert isinstance(json.loads(arguments), dict)
                calls[-1] = (name, arguments, True)
            else:
                assert event.delta
                calls[-1] = (name, arguments + event.delta, False)
    return content, calls


def _cut(text: str, places: Iterable[int]) -> list[str]:
    ends = sorted(place % (len(text) + 1) for place in places)
    return [text[first:last] for first, last in zip([0, *ends], [*ends, len(text)], strict=True)]


DEEP = '{"a": {"b": [1, -2.5e+3, {"c": "}{]["}], "d": "say \\"hi\\" \\\\"}, "e": [true, false, null]}'
ODD = '{"text": "</tool_call>\\n<tool_call>[TOOL_CALLS]; \\u00e9\\ud83d\\ude00 日本 {\\"name\\": \\"get\\"}"}'
# Format, answer, content, calls.
ANSWERS: list[tuple[ToolFormat, str, str, list[tuple[str, str, bool]]]] = [
    # One call.
    (
        HERMES,
        '<tool_call>\n{"name": "get", "arguments": {"x": 1}}\n</tool_call>',
        "",
        [("get", '{"x": 1}', True)],
    ),
    (LLAMA, '{"name": "get", "parameters": {"x": 1}}', "", [("get", '{"x": 1}', True)]),
    (MISTRAL, '[TOOL_CALLS][{"name": "get", "arguments": {"x": 1}}]', "", [("get", '{"x": 1}', True)]),
    # Text before it, white space, and a separate ending.
    (
        HERMES,
        'Let me <i>see</i>.\n\n<tool_call>{"name":"a-b_C9","arguments":{ }}</tool_call>\n',
        "Let me <i>see</i>.",
        [("a-b_C9", "{ }", True)],
    ),
    (LLAMA, ' \n<|python_tag|>{"name": "get", "parameters": {}}\n', "", [("get", "{}", True)]),
    (
        MISTRAL,
        'See [1]: [TOOL_CALLS] [ {"name": "get", "arguments": {}, "id": "abc"} ] ',
        "See [1]:",
        [("get", "{}", True)],
    ),
    # Several calls, some without arguments.
    (
        HERMES,
        '<tool_call>\n{"name": "now"}\n</tool_call>\n'
        f'<tool_call>\n{{"name": "get_all", "arguments": {DEEP}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": null}\n</tool_call>',
        "",
        [("now", "{}", True), ("get_all", DEEP, True), ("now", "{}", True)],
    ),
    (
        LLAMA,
        f'{{"name": "get", "parameters": {DEEP}}}; {{"name": "get", "parameters": {ODD}}};{{"name": "now"}}',
        "",
        [("get", DEEP, True), ("get", ODD, True), ("now", "{}", True)],
    ),
    (
        MISTRAL,
        f'[TOOL_CALLS][{{"name": "get", "arguments": {ODD}}}, {{"name": "now", "arguments": {{}}}}]',
        "",
        [("get", ODD, True), ("now", "{}", True)],
    ),
    # Texts within arguments that look like the end of the call.
    (
        HERMES,
        f'é日😀 <tool_call>\n{{"name": "get", "arguments": {ODD}}}\n</tool_call>',
        "é日😀",
        [("get", ODD, True)],
    ),
    # Other orders and keys, and names that are escaped.
    (
        HERMES,
        '<tool_call>{"arguments": {"x": "\\u0041"}, "name": "g\\u0065t"}</tool_call>',
        "",
        [("get", '{"x": "\\u0041"}', True)],
    ),
    (
        LLAMA,
        '{"type": "function", "name": "get", "parameters": {"x": 1}}',
        "",
        [("get", '{"x": 1}', True)],
    ),
    (LLAMA, f'{{"parameters": {ODD}, "name": "get"}}', "", [("get", ODD, True)]),
    # Text behind a call, and no ending.
    (
        HERMES,
        '<tool_call>{"name": "now"} \n </tool_call> \n Done. ',
        "Done. ",
        [("now", "{}", True)],
    ),
    (HERMES, '<tool_call>{"name": "now"}\nDone.', "Done.", [("now", "{}", True)]),
    (LLAMA, '{"name": "now"} Done.', "Done.", [("now", "{}", True)]),
    (
        MISTRAL,
        'a [TOOL_CALLS][{"name": "now"}] b [TOOL_CALLS][{"name": "get"}]',
        "ab",
        [("now", "{}", True), ("get", "{}", True)],
    ),
    # Cut off.
    (HERMES, '<tool_call>\n{"name": "get", "argu', "", [("get", "", False)]),
    (HERMES, '<tool_call>\n{"name": "get", "arguments": {"x": "ab', "", [("get", '{"x": "ab', False)]),
    (HERMES, '<tool_call>\n{"name": "get", "arguments": {"x": 1}', "", [("get", '{"x": 1}', False)]),
    (HERMES, '<tool_call>\n{"name": "now"}\n</tool_c', "", [("now", "{}", True)]),
    (LLAMA, '{"parameters": {"x": 1}, "name": "get"', "", [("get", '{"x": 1}', False)]),
    (LLAMA, '{"name": "now"}; ', "", [("now", "{}", True)]),
    (MISTRAL, '[TOOL_CALLS][{"name": "now"}, ', "", [("now", "{}", True)]),
    (
        MISTRAL,
        '[TOOL_CALLS][{"name": "now"}, {"name": "get", "arguments": {"x": [',
        "",
        [("now", "{}", True), ("get", '{"x": [', False)],
    ),
    # The first call is one, what follows is none.
    (
        HERMES,
        '<tool_call>{"name": "now"}</tool_call>\n<tool_call>{"name": "nope"}</tool_call>',
        '<tool_call>{"name": "nope"}</tool_call>',
        [("now", "{}", True)],
    ),
    (LLAMA, '{"name": "now"}; {"name": "nope"}', '; {"name": "nope"}', [("now", "{}", True)]),
    (
        MISTRAL,
        '[TOOL_CALLS][{"name": "now"}, {"name": "nope"}]',
        ', {"name": "nope"}]',
        [("now", "{}", True)],
    ),
    # A marker that begins within what was none.
    (HERMES, '<tool<tool_call>\n<tool_call>{"name": "now"}', "<tool<tool_call>", [("now", "{}", True)]),
    (
        HERMES,
        '<tool_call>{"name": "<tool_call>{"name": "now"}',
        '<tool_call>{"name": "',
        [("now", "{}", True)],
    ),
    (MISTRAL, '[[TOOL_CALLS] [[TOOL_CALLS] [{"name": "now"}]', "[[TOOL_CALLS] [", [("now", "{}", True)]),
]
# Text that is no call, in every format.
TEXTS = [
    "",
    " ",
    "Hello, world. \n",
    "a < b, <tool, <tool_cal",
    "<tool_call>",
    "<tool_call> hello",
    "</tool_call>",
    '<tool_call>\n{"name": "nope", "arguments": {}}\n</tool_call>',
    '<tool_call>\n{"name": "get_al", "arguments": {}}\n</tool_call>',
    '<tool_call>\n{"name": "get", "arguments": [1]}\n</tool_call>',
    '<tool_call>\n{"name": "get", "arguments": "{}"}\n</tool_call>',
    "<tool_call>\n{'name': 'get'}\n</tool_call>",
    '<tool_call>{"name": "g',
    '<tool_call>{"name": "get", "name": "get"}</tool_call>',
    '<tool_call>{"arguments": {"x": tru}, "name": "get"}</tool_call>',
    '<tool_call>{"arguments": {"x": 1}}</tool_call>',
    "<tool_call>{}</tool_call>",
    f'<tool_call>{{"name": "{chr(92)}u0067{"e" * 500}"}}',
    '{"city": "Paris", "name": "get"}',
    '{"name": "Paris"}',
    '{"name": "get", "x": 1}',
    '{"name": 5}',
    '{"type": "function"}',
    '{"type": "fun\nction", "name": "get"}',
    '{"na',
    "{",
    '<|python_tag|>print("hi")',
    "<|python_t",
    'Sure: {"name": "nope", "parameters": {}}',
    "[TOOL_CALLS]",
    "[TOOL_CALLS][]",
    "[TOOL_CALLS] [ ",
    "[TOOL_CALLS] get",
    '[TOOL_CALLS][{"name": "nope"}]',
    "[TOOL_CALLS][1]",
    "[TOOL [1] [",
]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("form", "text", "content", "calls"), ANSWERS)
def test_an_answer_is_read(
    form: ToolFormat, text: str, content: str, calls: list[tuple[str, str, bool]], whole: bool
) -> None:
    for pieces in ([text], list(text), *([text[:place], text[place:]] for place in range(len(text)))):
        assert joined(read(form, pieces, whole=whole)) == (content, calls)


@pytest.mark.parametrize("form", FORMATS.values(), ids=str)
@pytest.mark.parametrize("text", TEXTS)
def test_text_that_only_looks_like_a_call_is_content_unchanged(form: ToolFormat, text: str) -> None:
    for pieces in ([text], list(text), *([text[:place], text[place:]] for place in range(len(text)))):
        assert joined(read(form, pieces)) == (text, [])
        assert joined(read(form, pieces, whole=True)) == (text, [])


@pytest.mark.parametrize("form", FORMATS.values(), ids=str)
def test_without_functions_all_is_content(form: ToolFormat) -> None:
    for _, text, _, _ in ANSWERS:
        assert read(form, [text], ()) == [Content(text)]


@pytest.mark.parametrize(("form", "text", "content", "calls"), ANSWERS)
@settings(max_examples=500, deadline=None)
@given(places=st.lists(st.integers(0, 400), max_size=40))
def test_the_pieces_do_not_matter(
    form: ToolFormat, text: str, content: str, calls: list[tuple[str, str, bool]], places: list[int]
) -> None:
    assert joined(read(form, _cut(text, places))) == (content, calls)


PARTS = [
    *(
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "<|python_tag|>",
        "[",
        "]",
        "; ",
        ", ",
        " ",
        "\n",
        "<",
        "x",
    ),
    *(
        '{"name": "get", "arguments": ',
        '{"name": "now"}',
        '{"name": "nope"',
        '"parameters": {',
        "}",
        "{",
        "}}",
    ),
    *('{"x": "}"}', '{"x": 1.', "null", '"', "\\", ": "),
]


@settings(max_examples=500, deadline=None)
@given(
    form=st.sampled_from(list(FORMATS.values())),
    parts=st.lists(st.sampled_from(PARTS), max_size=12),
    places=st.lists(st.integers(0, 200), max_size=12),
    whole=st.booleans(),
)
def test_nothing_is_lost_or_said_twice(
    form: ToolFormat, parts: list[str], places: list[int], whole: bool
) -> None:
    text = "".join(parts)
    content, calls = joined(read(form, [text], whole=whole))
    assert joined(read(form, _cut(text, places), whole=whole)) == (content, calls)
    rest = iter(text)
    assert all(letter in rest for letter in content), "the content is not a part of the text, in its order"
    rest = iter(text)
    assert all(letter in rest for _, arguments, _ in calls for letter in arguments if arguments != "{}")
    if not calls:
        assert content == text


@pytest.mark.parametrize(
    ("form", "before", "rest"),
    [
        (HERMES, '<tool_call>{"name": "get", "arguments": {"x": ', "oops}}\n</tool_call>"),
        (HERMES, '<tool_call>{"name": "get", "arguments": {"x": "a', '\n"}}\n</tool_call>'),
        (LLAMA, '{"name": "get", "parameters": {"x": 1', "x}}"),
        (MISTRAL, '[TOOL_CALLS][{"name": "get", "arguments": {"x": [1, ', "]}}]"),
    ],
)
def test_arguments_that_break_are_not_taken_back_but_by_a_parser_of_whole_calls(
    form: ToolFormat, before: str, rest: str
) -> None:
    given = before[before.index(": {") + 2 :]
    for pieces in ([before + rest], list(before + rest)):
        content, calls = joined(read(form, pieces))
        assert (content, calls) == (rest, [("get", given, False)])
        assert joined(read(form, pieces, whole=True)) == (before + rest, [])


def test_what_is_behind_a_broken_call_has_the_next_index() -> None:
    text = '<tool_call>{"name": "get", "arguments": {x}} <tool_call>{"name": "now"}'
    events = read(HERMES, [text])
    assert events == [
        CallBegin(0, "get"),
        Arguments(0, "{"),
        Content("x}}"),
        CallBegin(1, "now"),
        Arguments(1, "{}"),
        CallEnd(1),
    ]
    assert [event.index for event in read(HERMES, [text], whole=True) if isinstance(event, CallBegin)] == [0]


def test_only_what_may_begin_a_call_is_held_back() -> None:
    parser = CallParser(HERMES, NAMES)
    assert parser.add("Hi <b> <too") == [Content("Hi <b>")]
    assert parser.add("l> ") == [Content(" <tool>")]
    assert parser.add("x <tool_call>") == [Content(" x")]
    assert parser.add('{"name": "get", "arguments": {"x": ') == [CallBegin(0, "get"), Arguments(0, '{"x": ')]
    assert parser.add('"a') == [Arguments(0, '"a')]
    assert parser.add('"}') == [Arguments(0, '"}')]
    assert parser.add("}") == [CallEnd(0)]
    assert parser.add("\n</tool_call>") == [] and parser.end() == []
    parser = CallParser(LLAMA, NAMES)
    assert parser.add('{"name": "ge') == []
    assert parser.add("m") == [Content('{"name": "gem')]  # no function begins like this
    assert parser.add(' {"name": "get"') == [Content(' {"name": "get"')]


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=int)  # which knows neither NaN nor Infinity
    except (ValueError, RecursionError):
        return False
    return True


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=500, deadline=None)
@given(
    value=VALUES,
    ascii_only=st.booleans(),
    place=st.integers(0, 200),
    remove=st.integers(0, 2),
    insert=st.text('{}[]",:\\u0123456789.-+eEtfnl \n\x01é', max_size=2),
)
def test_what_is_json_is_decided_as_pythons_parser_decides(
    value: Any, ascii_only: bool, place: int, remove: int, insert: str
) -> None:
    valid = json.dumps([value], ensure_ascii=ascii_only)
    place %= len(valid)
    for text in (valid, valid[:place] + insert + valid[place + remove :]):
        if not text.startswith("["):
            continue
        checked = JsonValue()
        end = checked.take(text, 0, len(text))
        assert (checked.done and not text[end:].strip(" \t\r\n")) == _is_json(text)
        assert checked.broken <= (not _is_json(text))
