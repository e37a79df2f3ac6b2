"""The patterns of JSON schemas mean what JavaScript says they mean."""

from __future__ import annotations

import json

import pytest

from serving.generation.params import BadRequest
from serving.generation.patterns import translated
from serving.generation.structure import Compiler, Structures
from tests.serving.generation.test_text import END, byte_level

TEXTS = [
    "",
    "a",
    "b",
    "A",
    "_",
    "-",
    "+",
    ",",
    "12",
    "١٢",
    "1",
    " ",
    "\n",
    "\r",
    "\t",
    "\xa0",
    "\x85",
    "\u2028",
    "\ufeff",
    "é",
    "😀",
    "😁",
    "&",
    "~",
    "[",
    ".",
    "\x08",
    "/",
    "abc",
    "ab",
    "ba",
    "a{,2}",
    "A1",
    "É-",
    "$^",
    "c",
    "aab",
    "\x7f",
]
# Which of these texts `new RegExp(pattern, "u").test(text)` finds, by Node.js 20.20.2.
FOUND = [
    (r"^\d{2}$", "12"),
    (r"^\w+$", "a|b|A|_|12|1|abc|ab|ba|A1|c|aab"),
    (r"^\s$", " |\n|\r|\t|\xa0|\u2028|\ufeff"),
    (r"^\S$", "a|b|A|_|-|+|,|1|\x85|\xe9|\U0001f600|\U0001f601|&|~|[|.|\x08|/|c|\x7f"),
    ("^.$", "a|b|A|_|-|+|,|1| |\t|\xa0|\x85|\ufeff|\xe9|\U0001f600|\U0001f601|&|~|[|.|\x08|/|c|\x7f"),
    ("^[.]$", "."),
    ("^[a&&b]$", "a|b|&"),
    ("^[a~~b]$", "a|b|~"),
    ("^[[a]$", "a|["),
    (r"^[\w-]$", "a|b|A|_|-|1|c"),
    (r"^[^\W]$", "a|b|A|_|1|c"),
    ("^[+--]$", "-|+|,"),
    (r"^[\b]$", "\x08"),
    (r"^a\{,2\}$", "a{,2}"),
    (r"^\u0061\u{62}\x63$", "abc"),
    (r"^\ud83d\ude00$", "\U0001f600"),
    ("^[\U0001f600-\U0001f602]$", "\U0001f600|\U0001f601"),
    (r"^\cJ$", "\n"),
    (r"^\/$", "/"),
    (r"^[\d\s]$", "1| |\n|\r|\t|\xa0|\u2028|\ufeff"),
    ("^[]$", ""),
    (
        "^[^]$",
        "a|b|A|_|-|+|,|1| |\n|\r|\t|\xa0|\x85|\u2028|\ufeff|\xe9|\U0001f600|\U0001f601|&|~|[|.|\x08|/|c|\x7f",
    ),
    ("^(?<n>a)(?:b)$", "ab"),
    ("b", "b|abc|ab|ba|aab"),
    ("^a|b$", "a|b|abc|ab|a{,2}|aab"),
    (
        "^[^a]*$",
        "|b|A|_|-|+|,|12|\u0661\u0662|1| |\n|\r|\t|\xa0|\x85|\u2028|\ufeff|"
        "\xe9|\U0001f600|\U0001f601|&|~|[|.|\x08|/|A1|\xc9-"
        "|$^|c|\x7f",
    ),
    (r"^\p{Lu}\P{L}$", "A1|\xc9-"),
    (r"^[\x00-\x7f]$", "a|b|A|_|-|+|,|1| |\n|\r|\t|&|~|[|.|\x08|/|c|\x7f"),
    (r"^\$\^$", "$^"),
]


@pytest.fixture(scope="module")
def structures(tmp_path_factory: pytest.TempPathFactory) -> Structures:
    path = tmp_path_factory.mktemp("patterns") / "tokenizer.json"
    byte_level().save(str(path))
    return Structures(Compiler(path, byte_level().get_vocab_size(), [END]))


def _fits(structures: Structures, pattern: str, text: str) -> bool:
    matcher = structures.matcher("json", {"type": "string", "pattern": pattern})
    for token in byte_level().encode(json.dumps(text, ensure_ascii=False)).ids:
        if not matcher.allowed()[token]:
            return False
        matcher.consume(token)
    return bool(matcher.allowed()[END])


@pytest.mark.parametrize(("pattern", "found"), FOUND)
def test_a_pattern_finds_what_javascript_finds(structures: Structures, pattern: str, found: str) -> None:
    """But for DEL and control characters without a short escape, which are not written."""
    written = [text for text in found.split("|") if "\x7f" not in text]
    if not found:
        with pytest.raises(BadRequest, match="no text can match it"):
            _fits(structures, pattern, "")
    else:
        assert [text for text in TEXTS if _fits(structures, pattern, text)] == written


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(?=a)b", "it looks ahead or behind"),
        ("(?<!a)b", "it looks ahead or behind"),
        ("(?i:a)", r"\(\?i: is not known"),
        (r"\bword", r"\\b is the edge of a word"),
        (r"(a)\1", r"\\1 is a back reference"),
        (r"\k<n>", r"\\k is a back reference"),
        (r"\A", r"\\A is not known"),
        (r"\ud800", r"\\ud800 is no character"),
        (r"\u{110000}", r"110000} is no character"),
        ("[a", "is not closed"),
        ("[b-a]", "out of order"),
        (r"[a-\d]", "one of sets"),
        (r"a\0b", r"the control character U\+0000"),
        (r"a\x7f", r"the control character U\+007F"),
        ("a\\", "is not known"),
    ],
)
def test_what_has_no_counterpart_is_refused_with_the_reason(pattern: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        translated(pattern)


def test_a_control_character_within_a_class_is_only_left_out(structures: Structures) -> None:
    """llguidance writes none where one stands alone in a pattern: `a\\x01b` would have let `ab` through."""
    for pattern in (r"^a[\x01]b$", r"^a[\x7f]b$", r"^a[\0-\x05]b$"):
        with pytest.raises(BadRequest, match="no text can match it"):
            structures.matcher("json", {"type": "string", "pattern": pattern})
    assert _fits(structures, r"^a[\x01c]b$", "acb") and not _fits(structures, r"^a[\x01c]b$", "ab")


def test_a_pattern_of_keys_means_the_same(structures: Structures) -> None:
    schema = {
        "type": "object",
        "patternProperties": {r"^\s$": {"type": "null"}},
        "additionalProperties": False,
    }
    matcher = structures.matcher("json", schema)
    for token in byte_level().encode('{"').ids:
        matcher.consume(token)
    (space,), (nel, _) = byte_level().encode(" ").ids, byte_level().encode("\x85").ids
    assert matcher.allowed()[space]
    matcher.consume(nel)
    assert not matcher.allowed()[byte_level().encode("\x85").ids[1]]  # white space to Rust
