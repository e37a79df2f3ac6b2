"""A decoder small enough to predict: the next token is a fixed function of all tokens before it.

Its cache holds the tokens themselves, so a row that is moved, shared or reused wrongly changes answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

VOCABULARY = 29
END = 0
GARBAGE = 3


def next_token(tokens: Sequence[int], window: int | None = None) -> int:
    """What follows `tokens`; with a window only the last so many count, and answers repeat themselves."""
    state = 7
    for token in tokens if window is None else tokens[-window:]:
        state = (state * 31 + token + 1) % 10_007
    return state % VOCABULARY


def answer(prompt: Sequence[int], count: int, window: int | None = None, *, end: bool = True) -> list[int]:
    """The greedy answer."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        tokens.append(next_token(tokens, window))
        if end and tokens[-1] == END:
            break
    return tokens[len(prompt) :]


class Toy:
    """See `serving.generation.model.Model`.

    Attributes:
        calls: of the operations that compute: name and tokens.
        failing: operations that fail whenever they are called.
        fails: whether a call fails: of an operation's name, and how often it was called before.
        failed: name of each call that failed, and how many requests it was for. What it was to write is
            garbage then.
    """

    def __init__(self, rows: int, length: int, window: int | None = None) -> None:
        self.cache = np.full((rows, length), -1)
        self.window = window
        self.calls: list[tuple[str, int]] = []
        self.failing: set[str] = set()
        self.fails: Callable[[str, int], bool] = lambda name, before: False
        self.failed: list[tuple[str, int]] = []
        self.counts: Counter[str] = Counter()

    def _logits(self, row: int, length: int) -> NDArray[np.float32]:
        held = self.cache[row, :length].tolist()
        assert -1 not in held, "a token is read that was never written"
        logits = np.zeros(VOCABULARY, np.float32)
        logits[next_token(held, self.window)] = 5.0
        return logits

    def _called(self, name: str, tokens: int) -> None:
        self.calls.append((name, tokens))

    def _may_fail(self, name: str, requests: int, spoilt: NDArray[np.int64]) -> None:
        self.counts[name] += 1
        if name in self.failing or self.fails(name, self.counts[name] - 1):
            self.failed.append((name, requests))
            spoilt[...] = GARBAGE
            raise RuntimeError(f"{name} fails")

    def decode(self, tokens: Sequence[int], lengths: Sequence[int]) -> NDArray[np.float32]:
        self._called("decode", len(tokens))
        self._may_fail("decode", len(tokens), self.cache[: len(tokens), max(lengths) :])
        for row, (token, length) in enumerate(zip(tokens, lengths, strict=True)):
            self.cache[row, length] = token
        return np.stack([self._logits(row, length + 1) for row, length in enumerate(lengths)])

    def prefill(
        self, row: int, tokens: Sequence[int], start: int, wanted: Sequence[int]
    ) -> NDArray[np.float32]:
        self._called("prefill", len(tokens))
        self._may_fail("prefill", 1, self.cache[row])
        self.cache[row, start : start + len(tokens)] = tokens
        return np.stack([self._logits(row, start + position + 1) for position in wanted])

    def prefill_together(self, row: int, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        self._called("prefill_together", sum(map(len, prompts)))
        self._may_fail("prefill_together", len(prompts), self.cache[row : row + len(prompts)])
        for index, prompt in enumerate(prompts):
            self.cache[row + index, : max(map(len, prompts))] = END  # what fills up the shorter ones
            self.cache[row + index, : len(prompt)] = prompt
        return np.stack([self._logits(row + index, len(prompt)) for index, prompt in enumerate(prompts)])

    def move(self, source: int, target: int, length: int) -> None:
        self._may_fail("move", 1, self.cache[target])
        self.cache[target, :length] = self.cache[source, :length]
        self.cache[source] = -1

    def save(self, row: int, start: int, stop: int) -> NDArray[np.int64]:
        self._may_fail("save", 0, self.cache[:0])
        return self.cache[row, start:stop].copy()

    def restore(self, row: int, start: int, saved: NDArray[np.int64]) -> None:
        self._may_fail("restore", 1, self.cache[row])
        self.cache[row, start : start + len(saved)] = saved
