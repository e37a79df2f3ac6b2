"""Text to token ids, and back piece by piece: no character is split, and no stop string slips out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer

REPLACEMENT = "�"  # what an incomplete character decodes to
CONTEXT = 6  # tokens of the prompt that decide whether the answer begins with a space

Decode = Callable[[Sequence[int]], str]


def encode_prompt(tokenizer: Tokenizer, text: str, begin: str) -> list[int]:
    """Token ids of a prompt.

    Args:
        begin: the token every prompt begins with, or "". A chat template begins with the token that the
            tokenizer would put before it once more.
    """
    begins = bool(begin) and text.startswith(begin)
    return list(tokenizer.encode(text, add_special_tokens=not begins).ids)


def bad_word_tokens(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Token ids of texts that must not come, at the beginning of a text and, as vLLM has it, behind a space.

    Raises:
        ValueError: a text has no tokens.
    """
    found: list[tuple[int, ...]] = []
    for word in words:
        bare, spaced = (
            tuple(tokenizer.encode(space + word.lstrip(), add_special_tokens=False).ids)
            for space in ("", " ")
        )
        if not bare:
            raise ValueError(f"bad_words holds {word!r}, which has no tokens")
        found.append(bare)
        if spaced and spaced[0] != bare[0] and len(spaced) == len(bare):
            found.append(spaced)
    return tuple(found)


class Detokenizer:
    """The text of one answer as its tokens arrive.

    Args:
        decode: token ids to text, special tokens left out.
        prompt: token ids before the answer; the last few are the context of its first word.
    """

    def __init__(self, decode: Decode, prompt: Sequence[int]) -> None:
        self._decode = decode
        self._tokens = list(prompt[-CONTEXT:])
        self._begin = 0  # tokens before it are not decoded again
        self._done = len(self._tokens)  # tokens before it have been given out as text

    def add(self, *tokens: int) -> str:
        """The text that is complete now; "" while a character is not."""
        self._tokens += tokens
        before = self._decode(self._tokens[self._begin : self._done])
        now = self._decode(self._tokens[self._begin :])
        if now.endswith(REPLACEMENT) and len(tokens) > 1:  # what comes before that character is complete
            del self._tokens[-len(tokens) :]
            return "".join([self.add(token) for token in tokens])
        if now.endswith(REPLACEMENT) or len(now) <= len(before):
            return ""
        self._begin, self._done = self._done, len(self._tokens)
        return now[len(before) :]

    def rest(self) -> str:
        """At the end: what never became a whole character."""
        before = self._decode(self._tokens[self._begin : self._done])
        return self._decode(self._tokens[self._begin :])[len(before) :]


class StopFinder:
    """Passes text on, but for what is, or may become, a stop string.

    Args:
        stops: none of them empty.
        included: whether the stop string is passed on as well; then nothing is held back.

    Attributes:
        found: the stop string that has come, or None.
    """

    def __init__(self, stops: Sequence[str], *, included: bool = False) -> None:
        self._stops, self._included = stops, included
        self._tail = ""  # the last characters, as many as may belong to a stop string that has begun
        self.found: str | None = None
        self._held = 0  # of which so many have not been passed on

    def add(self, text: str, *, searching: bool = True) -> tuple[str, bool]:
        """The text that may be shown, and whether a stop string has come.

        Args:
            searching: whether a stop string that ends in this text counts; it may begin before.
        """
        if not self._stops:
            return text, False
        known, begin = len(self._tail), len(self._tail) - self._held
        whole = self._tail + text
        places = [(stop, whole.find(stop, max(0, known - len(stop) + 1))) for stop in self._stops]
        found = [(place + len(stop), -len(stop)) for stop, place in places if place >= 0]
        if searching and found:
            end, length = min(found)
            self.found = whole[end + length : end]
            self._tail, self._held = "", 0
            return whole[begin : end if self._included else end + length], True
        self._held = 0 if self._included else max(_overlap(whole, stop) for stop in self._stops)
        longest = max(map(len, self._stops))
        self._tail = whole[max(0, len(whole) - longest + 1) :]
        return whole[begin : len(whole) - self._held], False

    def rest(self) -> str:
        """At the end: what was held back and did not become a stop string."""
        held = self._tail[len(self._tail) - self._held :]
        self._tail, self._held = "", 0
        return held


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` with which `stop` begins, in characters."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
