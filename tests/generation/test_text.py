"""Text that comes piece by piece is the text of the whole, up to the first stop string."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from serving.generation.params import SamplingParams
from serving.generation.sequence import Request, Sequence
from serving.generation.text import REPLACEMENT, Detokenizer, StopFinder

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


def test_a_stop_that_comes_before_min_tokens_stays_in_the_text() -> None:
    params = SamplingParams(max_tokens=6, min_tokens=6, stop=("cd",))
    sequence = Sequence(
        Request([0], params, False, lambda part: None),
        ends=[],
        decode=lambda tokens: "".join("abcdef"[token] for token in tokens),
        arrived=0.0,
    )
    for token in range(6):
        sequence.append(token, most=100)
    assert sequence.take_chunk().text == "abcdef"
