"""Originals in sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.originals.original import Original, Row, quiet

# Texts of more characters are encoded alone: in a batch all would be padded to them, which takes memory.
_TOGETHER = 400


class _Sentences(Original):
    """What is called in sentence-transformers.

    Args:
        library: an opened SentenceTransformer or CrossEncoder.
        longest: its `max_seq_length`, where a user wants another.
    """

    package = "sentence-transformers"

    def __init__(self, library: Any, longest: int | None = None) -> None:
        self._library = library
        if longest is not None:
            library.max_seq_length = longest


class Embeddings(_Sentences):
    """`SentenceTransformer.encode`, all of its modules: a vector [width] for each text."""

    call = "SentenceTransformer.encode"

    def answer(self, row: Row) -> NDArray[np.float32]:
        return self._encode([row["text"][0]], _named(row))[0]

    def answers(self, rows: Sequence[Row], advance: Callable[[], None] = lambda: None) -> list[Any]:
        """See `Original.answers`; short texts of one prompt go together, as the library batches them."""
        found: list[Any] = []
        for (named, long), group in groupby(rows, lambda row: (_named(row), _long(row))):
            together = list(group)
            if long:
                found += super().answers(together, advance)
                continue
            try:
                with quiet():
                    vectors = self._encode([row["text"][0] for row in together], named)
            except Exception:  # noqa: BLE001 - one of them is at fault: which, shows each alone
                found += super().answers(together, advance)
                continue
            found += list(vectors)
            for _ in together:
                advance()
        return found

    def _encode(self, texts: list[str], named: dict[str, str]) -> NDArray[np.float32]:
        return np.asarray(self._library.encode(texts, show_progress_bar=False, **named), np.float32)


class Scores(_Sentences):
    """`CrossEncoder.predict`: a number for each query and text."""

    call = "CrossEncoder.predict"

    def answer(self, row: Row) -> float:
        pairs = [(row["query"][0], row["text"][0])]
        return float(self._library.predict(pairs, show_progress_bar=False, **_named(row))[0])


def _long(row: Row) -> bool:
    return len(row["text"][0]) > _TOGETHER


def _named(row: Row) -> dict[str, str]:
    return {"prompt_name": row["prompt_name"][0]} if "prompt_name" in row else {}
