"""Text that comes piece by piece is the text of the whole, up to the first stop string."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from serving.generation.params import SamplingParams
from serving.generation.sequence import Request, Sequence
from serving.generation.text import REPLACEMENT, Detokenizer, StopFinder, bad_word_tokens

END, MORE = 0, 1  # special tokens
CORPUS = '{"name": "fish", "tags": ["a", "b"]} the fish swims, naïve 日本語 日本 😀😀 true false null 12 '


@cache
def byte_level() -> Tokenizer:
    """A byte-level BPE like those of real models: any text, and any bytes, have tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<end>", "<more>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator([CORPUS] * 4, trainer)
    return made


def _tokens(text: str) -> list[int]:
    return list(byte_level().encode(text).ids)


@cache
def _byte(value: int) -> int:
    """The token of a single byte: ByteLevel writes printable ones as themselves, the rest from U+0100 on."""
    rest = [b for b in range(256) if not (33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255)]
    return int(byte_level().token_to_id(chr(256 + rest.index(value) if value in rest else value)))


def _pieces(prompt: list[int], answer: list[int]) -> tuple[list[str], str]:
    detokenizer = Detokenizer(byte_level().decode, prompt)
    return [detokenizer.add(token) for token in answer], detokenizer.rest()


def _in_parts(prompt: list[int], answer: list[int], sizes: list[int]) -> str:
    detokenizer = Detokenizer(byte_level().decode, prompt)
    said, first = [], 0
    for size in [*sizes, len(answer)]:
        part = answer[first : first + size]
        said.append(detokenizer.add(*part) if part else "")
        first += size
    return "".join(said) + detokenizer.rest()


UNICODE = st.lists(
    st.sampled_from(
        ["a", " fish", " ", "\n", "é", "e\u0301", "日本", "😀", "👩‍👩‍👧", "🇩🇪", "\u200b", REPLACEMENT]
    )
    | st.characters(exclude_categories=["Cs"]),
    max_size=12,
).map("".join)
IDS = st.lists(st.integers(0, 300), max_size=24)


@settings(max_examples=100, deadline=None)
@given(UNICODE, UNICODE)
def test_the_pieces_of_a_text_are_the_text(before: str, text: str) -> None:
    parts, rest = _pieces(_tokens(before), _tokens(text))
    assert "".join(parts) + rest == text
    if REPLACEMENT not in text:
        assert rest == ""
        assert not any(REPLACEMENT in part for part in parts)


@settings(max_examples=100, deadline=None)
@given(UNICODE, IDS)
def test_the_pieces_of_any_tokens_are_what_they_decode_to(before: str, answer: list[int]) -> None:
    """Bytes that are no UTF-8 and special tokens among them."""
    parts, rest = _pieces(_tokens(before), answer)
    whole = byte_level().decode(answer)
    assert "".join(parts) + rest == whole
    shown = ""
    for part in parts:
        shown += part
        assert whole.startswith(shown) and shown.count(REPLACEMENT) <= whole.count(REPLACEMENT)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=3) | UNICODE.map(str.encode), max_size=6).map(b"".join))
def test_bytes_one_token_each_come_as_soon_as_a_character_is_whole(data: bytes) -> None:
    parts, rest = _pieces([], [_byte(value) for value in data])
    assert "".join(parts) + rest == data.decode(errors="replace")
    for count in range(len(data)):
        whole = data[: count + 1].decode(errors="replace")
        if not whole.endswith(REPLACEMENT):
            assert "".join(parts[: count + 1]) == whole


def test_a_character_of_several_tokens_comes_with_its_last() -> None:
    parts, rest = _pieces([], [_byte(value) for value in "é😀".encode()])
    assert (parts, rest) == (["", "é", "", "", "", "😀"], "")


def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    parts, rest = _pieces(_tokens("hi"), [_byte(value) for value in "a😀".encode()[:-1]])
    assert (parts, rest) == (["a", "", "", ""], REPLACEMENT)


def test_a_special_token_within_a_character_does_not_break_it() -> None:
    first, second = (_byte(value) for value in "é".encode())
    assert _pieces([], [first, MORE, second, END]) == (["", "", "é", ""], "")


def _cut(text: str, places: list[int]) -> list[str]:
    bounds = [0, *sorted({place for place in places if 0 < place < len(text)}), len(text)]
    return [text[start:stop] for start, stop in pairwise(bounds)]


def _shown(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    finder = StopFinder(stops)
    parts = []
    for piece in pieces:
        part, stopped = finder.add(piece)
        parts.append(part)
        if stopped:
            return parts, True
    return [*parts, finder.rest()], False


TEXT = st.text("ab", max_size=14)
# None is a part of another: see the test of those that are.
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4, unique=True).map(
    lambda stops: [stop for stop in stops if not any(o in stop and o != stop for o in stops)]
)


@settings(max_examples=100, deadline=None)
@given(TEXT, STOPS, st.data())
def test_the_text_ends_at_the_first_stop_however_it_is_cut(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    expected = min((text.split(stop, 1)[0] for stop in stops), key=len, default=text)
    stopped = any(stop in text for stop in stops)
    every_way = data.draw(st.lists(st.lists(st.integers(0, len(text)), max_size=8), min_size=8, max_size=8))
    for places in [[], list(range(len(text))), *every_way]:
        parts, found = _shown(stops, _cut(text, places))
        assert ("".join(parts), found) == (expected, stopped)
        assert not any(stop in "".join(parts) for stop in stops)


@settings(max_examples=100, deadline=None)
@given(TEXT, STOPS)
def test_nothing_is_held_back_that_cannot_become_a_stop(text: str, stops: list[str]) -> None:
    finder, shown = StopFinder(stops), ""
    for count, character in enumerate(text, start=1):
        part, stopped = finder.add(character)
        shown += part
        if stopped:
            return
        held = text[len(shown) : count]
        assert shown + held == text[:count]
        assert not held or any(stop.startswith(held) for stop in stops)
    assert shown + finder.rest() == text and finder.rest() == ""


def test_a_stop_of_several_tokens_in_other_text_of_the_same_tokens() -> None:
    assert _shown(["\n\nUser:"], ["Hi", "\n", "\nUs", "er", ": no"]) == (["Hi", "", "", "", ""], True)
    assert _shown(["\n\nUser:"], ["Hi\n", "\nUse", " it"]) == (["Hi", "", "\n\nUse it", ""], False)


def test_a_stop_that_begins_again_within_itself_is_found() -> None:
    assert _shown(["aab"], ["a", "a", "a", "b", "a"]) == (["", "", "a", ""], True)


def test_without_stops_everything_passes() -> None:
    assert _shown([], ["a", "", "b"]) == (["a", "", "b", ""], False)


def test_a_stop_within_another_does_not_make_the_text_depend_on_how_it_is_cut() -> None:
    results = {"".join(_shown(["abc", "b"], pieces)[0]) for pieces in (["abc"], ["ab", "c"], ["a", "b", "c"])}
    assert len(results) == 1


@settings(max_examples=100, deadline=None)
@given(TEXT, STOPS, st.data())
def test_a_stop_string_that_is_included_ends_the_text_and_nothing_is_held_back(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    places = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    finder, shown = StopFinder(stops, included=True), ""
    for piece in _cut(text, places):
        part, stopped = finder.add(piece)
        shown += part
        if stopped:
            break
        assert part == piece
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert shown == text[: min(ends, default=len(text))] and finder.rest() == ""


@settings(max_examples=100, deadline=None)
@given(TEXT, STOPS, st.integers(0, 14))
def test_only_a_stop_that_ends_after_min_tokens_counts_wherever_it_begins(
    text: str, stops: list[str], least: int
) -> None:
    """One letter a token. As in vLLM, the last of `min_tokens` is not looked at either."""
    ends = [
        (place + len(stop), stop)
        for stop in stops
        for place in range(len(text))
        if text.startswith(stop, place) and place + len(stop) > least
    ]
    end, stop = min(ends, default=(len(text), ""))
    for included in (False, True):
        shown, reason = _answered(text, tuple(stops), min_tokens=least, include_stop_str_in_output=included)
        assert shown == (text[:end] if included else text[: end - len(stop)])
        assert reason == ("stop" if stop else "length")


def _letters(tokens: list[int], skip_special_tokens: bool = True) -> str:
    """Tokens 0 to 25 are letters, 26 is a special token."""
    special = "" if skip_special_tokens else "<end>"
    return "".join(special if token == 26 else chr(ord("a") + token) for token in tokens)


def _answered(
    text: str, stops: tuple[str, ...] = (), *, ends: tuple[int, ...] = (), **params: Any
) -> tuple[str, str | None]:
    """What is shown of an answer, a letter a token and "." the end token, and why it ended."""
    limit = {"max_tokens": len(text) or 1} | params
    request = Request([0], SamplingParams(stop=stops, **limit), False, lambda part: None)
    sequence = Sequence(request, ends=ends, decode=_letters, arrived=0.0)
    for letter in text:
        sequence.append(26 if letter == "." else ord(letter) - ord("a"), most=100)
        if sequence.finish_reason is not None:
            break
    chunk = sequence.take_chunk()
    return chunk.text, chunk.finish_reason if text else "length"


@pytest.mark.parametrize(
    ("params", "shown"),
    [
        ({}, "ab"),
        ({"include_stop_str_in_output": True}, "ab"),
        ({"skip_special_tokens": False}, "ab"),
        ({"skip_special_tokens": False, "include_stop_str_in_output": True}, "ab<end>"),
        ({"skip_special_tokens": False, "ignore_eos": True}, "ab<end>cd"),
        ({"ignore_eos": True}, "abcd"),
        ({"stop_token_ids": (1,)}, "a"),
        ({"stop_token_ids": (1,), "include_stop_str_in_output": True}, "ab"),
    ],
)
def test_what_is_shown_of_a_token_that_ends_the_answer(params: dict[str, Any], shown: str) -> None:
    assert _answered("ab.cd", ends=(26,), **params)[0] == shown


def test_without_max_tokens_an_answer_goes_on_to_the_end_of_the_context() -> None:
    assert _answered("ab" * 70, max_tokens=None) == (("ab" * 70)[:99], "length")  # the prompt is a token too


def test_bad_words_are_tokens_at_the_beginning_and_behind_a_space() -> None:
    """As `vllm.SamplingParams.update_from_tokenizer` makes them."""
    encode = byte_level().encode
    assert bad_word_tokens(byte_level(), ["fish", " fish", "é"]) == (
        *(tuple(encode(text).ids) for text in ("fish", " fish", "fish", " fish")),
        tuple(encode("é").ids),
    )
    assert len(encode(" é").ids) > len(encode("é").ids)
    with pytest.raises(ValueError, match="^bad_words holds ' ', which has no tokens$"):
        bad_word_tokens(byte_level(), [" "])


@settings(deadline=None)
@given(UNICODE, UNICODE, st.lists(st.integers(1, 5), max_size=20), st.integers(0, 3))
def test_several_tokens_at_once_are_the_text_of_one_after_another(
    prompt: str, answer: str, sizes: list[int], cut: int
) -> None:
    tokens = _tokens(answer)
    tokens = tokens[: len(tokens) - cut]  # the last character may stay incomplete
    pieces, rest = _pieces(_tokens(prompt), tokens)
    assert _in_parts(_tokens(prompt), tokens, sizes) == "".join(pieces) + rest
