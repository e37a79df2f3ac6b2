"""Texts to counted terms, as scikit-learn's CountVectorizer and HashingVectorizer count them.

Follows `sklearn.feature_extraction.text` with Python's own `re`, `str.lower` and `unicodedata`, so that it
counts the same terms of any text. Needs numpy, not scikit-learn.
"""

from __future__ import annotations

import re
import struct
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

ANALYZERS = ("word", "char", "char_wb")
# Rows of requests of other lengths meet in one batch of the network behind if they are as wide.
SMALLEST = 16
_SPACES = re.compile(r"\s\s+")


def inputs_of(number: int) -> tuple[str, str]:
    """Names of the network's inputs that hold columns and counts of the terms of one vectorizer. The colon
    keeps them apart from columns of a table."""
    return f"terms:{number}", f"counts:{number}"


def _without_accents(text: str) -> str:
    if text.isascii():
        return text
    return "".join(
        letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter)
    )


def _as_ascii(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")


ACCENTS: Mapping[str, Callable[[str], str]] = {
    "": lambda text: text,
    "unicode": _without_accents,
    "ascii": _as_ascii,
}


class TooManyTerms(ValueError):
    """The texts of a request have more terms than are counted."""


@dataclass(frozen=True)
class Terms:
    """What one vectorizer counts in the texts of a column.

    Attributes:
        column: the input that holds the texts.
        analyzer: one of `ANALYZERS`.
        lowercase: whether texts are made lower case first.
        accents: a key of `ACCENTS`.
        pattern: regular expression of a word; of the analyzer `word` alone.
        ngrams: least and most words, or characters, in a term.
        stop_words: words that are left out.
        vocabulary: the terms in the order of their columns; empty: their hash is their column.
        width: how many columns there are.
        signed: whether half of the hashed terms count negatively.
        binary: whether a term counts once.
    """

    column: str
    analyzer: str
    lowercase: bool
    accents: str
    pattern: str
    ngrams: tuple[int, int]
    stop_words: tuple[str, ...]
    vocabulary: tuple[str, ...]
    width: int
    signed: bool
    binary: bool

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Terms:
        """Make the value from plain JSON types."""
        listed = {name: tuple(values[name]) for name in ("ngrams", "stop_words", "vocabulary")}
        return cls(**{**values, **listed})

    def to_dict(self) -> dict[str, Any]:
        """Give the value as plain JSON types."""
        return asdict(self)

    def arrays(self, texts: Sequence[str], most: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Columns and counts of the terms of texts, both [texts, most terms].

        Rows with fewer terms end in the column `width` with the count 0. The length is the next power of two.

        Args:
            most: terms that the texts may have together, each as often as it comes, and elements of an array.

        Raises:
            TooManyTerms: there are more.
        """
        counted, left = [], most
        for text in texts:
            found, seen = self.count(text, left)
            counted.append(found)
            left -= seen
        longest = max(SMALLEST, *map(len, counted))
        shape = (len(texts), 1 << (longest - 1).bit_length())
        if shape[0] * shape[1] > most:
            raise TooManyTerms(
                f"column {self.column!r}: {len(texts)} rows take {shape[1]} terms each, as the longest"
                f" does; at most {most} in all are accepted: send fewer rows, or long texts by themselves"
            )
        columns, counts = np.full(shape, self.width, np.int64), np.zeros(shape, np.float32)
        for row, found in enumerate(counted):
            columns[row, : len(found)] = list(found)
            counts[row, : len(found)] = list(found.values())
        return columns, counts

    def count(self, text: str, most: int) -> tuple[dict[int, float], int]:
        """How often each term is in a text, by its column, columns rising; and of how many terms.

        Raises:
            TooManyTerms: they are more than `most`.
        """
        found: dict[int, float] = {}
        seen = 0
        for seen, term in enumerate(self._terms(text), start=1):
            if seen > most:
                raise TooManyTerms(
                    f"column {self.column!r}: the texts have too many terms (words or characters, and runs of"
                    " them); send fewer rows, or shorter texts"
                )
            column, sign = self._place(term)
            if column >= 0:
                found[column] = found.get(column, 0.0) + sign
        return {column: 1.0 if self.binary else found[column] for column in sorted(found)}, seen

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {term: column for column, term in enumerate(self.vocabulary)}

    @cached_property
    def _words(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    @cached_property
    def _left_out(self) -> frozenset[str]:
        return frozenset(self.stop_words)

    def _place(self, term: str) -> tuple[int, float]:
        if self.vocabulary:
            return self._columns.get(term, -1), 1.0
        hashed = murmur3(term.encode())
        return abs(hashed) % self.width, -1.0 if self.signed and hashed < 0 else 1.0

    def _terms(self, text: str) -> Iterator[str]:
        text = ACCENTS[self.accents](text.lower() if self.lowercase else text)
        if self.analyzer == "word":
            words = [word for word in self._words.findall(text) if word not in self._left_out]
            yield from _joined(words, self.ngrams, " ".join)
            return
        text = _SPACES.sub(" ", text)
        if self.analyzer == "char":
            yield from _joined(text, self.ngrams, "".join)
            return
        for word in text.split():
            yield from _inside(f" {word} ", self.ngrams)


def _joined(
    parts: Sequence[str], ngrams: tuple[int, int], join: Callable[[Sequence[str]], str]
) -> Iterator[str]:
    for size in range(ngrams[0], min(ngrams[1], len(parts)) + 1):
        for start in range(len(parts) - size + 1):
            yield join(parts[start : start + size])


def _inside(word: str, ngrams: tuple[int, int]) -> Iterator[str]:
    """Terms of a word's characters; a word that is shorter than a term is one itself."""
    for size in range(ngrams[0], ngrams[1] + 1):
        for start in range(max(1, len(word) - size + 1)):
            yield word[start : start + size]
        if size >= len(word):
            return


def murmur3(data: bytes) -> int:
    """MurmurHash3_x86_32 with the seed 0, as a signed number (Appleby, github.com/aappleby/smhasher)."""
    mask, value = 0xFFFFFFFF, 0
    whole = len(data) // 4 * 4
    for (block,) in struct.iter_unpack("<I", data[:whole]):
        value ^= _mixed(block)
        value = (value << 13 | value >> 19) & mask
        value = (value * 5 + 0xE6546B64) & mask
    if data[whole:]:
        value ^= _mixed(int.from_bytes(data[whole:], "little"))
    value ^= len(data)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        value = ((value ^ value >> shift) * factor) & mask
    return value - (1 << 32) if value >> 31 else value


def _mixed(block: int) -> int:
    block = (block * 0xCC9E2D51) & 0xFFFFFFFF
    block = (block << 15 | block >> 17) & 0xFFFFFFFF
    return (block * 0x1B873593) & 0xFFFFFFFF
