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

    def add(self, token: int) -> str:
        """The text that is complete now; "" while a character is not."""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._begin : self._done])
        now = self._decode(self._tokens[self._begin :])
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
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """The text that may be shown, and whether a stop string has come."""
        if not self._stops:
            return text, False
        self._held += text
        found = [
            (self._held.find(stop) + len(stop), -len(stop)) for stop in self._stops if stop in self._held
        ]
        if found:
            end, length = min(found)
            shown, self._held = self._held[: end + length], ""
            return shown, True
        keep = max(_overlap(self._held, stop) for stop in self._stops)
        place = len(self._held) - keep
        shown, self._held = self._held[:place], self._held[place:]
        return shown, False

    def rest(self) -> str:
        """At the end: what was held back and did not become a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` with which `stop` begins, in characters."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
