"""Unlabelled text for training: read from a file, cut into spans."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

from shoal.errors import UsageError

FEWEST = 20
SHORTEST_SPAN = 4  # words
HELD_OUT = 0.05  # of the texts
HELD_OUT_MOST = 256


def read_texts(path: Path) -> list[str]:
    """The lines of a UTF-8 file that are not blank: one text each.

    Raises:
        UsageError: it cannot be read, or holds fewer than 20 texts that differ.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"texts in {path} cannot be read: {error}", hint="UTF-8, one text a line") from error
    texts = [line.strip() for line in lines if line.strip()]
    check_enough(texts, str(path))
    return texts


def check_enough(texts: Sequence[str], where: str) -> None:
    """Raises: UsageError: fewer than 20 that differ."""
    count = len(set(texts))
    if count < FEWEST:
        hint = f"{FEWEST} at least that differ"
        raise UsageError(f"{where}: {count} texts are too few to learn from", hint=hint)


def split(texts: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    """Sentences to learn from, and whole texts to measure on that none of these is part of."""
    unique = list(dict.fromkeys(texts))
    random.Random(f"{seed}:split").shuffle(unique)  # noqa: S311 - an order, not a secret
    count = min(HELD_OUT_MOST, max(1, round(HELD_OUT * len(unique))))
    return [sentence for text in unique[count:] for sentence in sentences(text)], unique[:count]


def sentences(text: str) -> list[str]:
    """A text cut after . ! ? where a blank follows; pieces under 4 words are left out where a longer one is.

    A long text counts by its sentences, and no span runs from one into the next.
    """
    pieces = [piece for piece in re.split(r"(?<=[.!?])\s+", text.strip()) if piece]
    return [piece for piece in pieces if len(piece.split()) >= SHORTEST_SPAN] or [text]


def batch(texts: Sequence[str], step: int, *, size: int, max_words: int, seed: int) -> list[str]:
    """The spans of one step: `size` texts, each cut at random to at most as many words as all others.

    Lengths are spread evenly on a logarithmic scale, for most requests are short, and are alike inside a
    batch, so that little time goes into padding. The same seed and step give the same spans.
    """
    chance = random.Random(f"{seed}:{step}")  # noqa: S311
    length = round(SHORTEST_SPAN * (max_words / SHORTEST_SPAN) ** chance.random())
    return [_span(text, length, chance) for text in chance.choices(texts, k=size)]


def _span(text: str, length: int, chance: random.Random) -> str:
    words = text.split()
    start = chance.randrange(max(1, len(words) - length + 1))
    return " ".join(words[start : start + length])
