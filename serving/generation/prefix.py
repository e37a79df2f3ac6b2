"""Prefixes whose keys and values are kept, so that a chat's next turn does not pay for the last ones.

A prefix is a chain of blocks of tokens; a block's place is its own tokens and the chain before it, by
value and not by hash, so that two prefixes can never be mistaken for each other. The policy of vLLM's
automatic prefix caching; here blocks are copied in and out of the rows that attention reads.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from serving.generation.deliveries import described
from serving.generation.model import Model

BLOCK = 16  # tokens
_log = logging.getLogger(__name__)
Kept = TypeVar("Kept")


@dataclass(frozen=True)
class _Node(Generic[Kept]):
    number: int
    kept: Kept


class PrefixCache(Generic[Kept]):
    """Blocks by the prefix they end, the least recently used leaves dropped first.

    Args:
        blocks: how many are kept; 0: none.
    """

    def __init__(self, blocks: int) -> None:
        self.capacity = blocks
        # A parent is touched after its children, so the oldest entry is always a leaf.
        self._nodes: OrderedDict[tuple[int, tuple[int, ...]], _Node[Kept]] = OrderedDict()
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._nodes)

    def match(self, tokens: Sequence[int], left: int = 1) -> list[Kept]:
        """What is kept of the longest known prefix, block by block, in order.

        Args:
            left: tokens that are left over at least: the last one's logits are what the first new token is
                chosen from.
        """
        path = self._path(tokens, (len(tokens) - left) // BLOCK)
        self._touch(path)
        return [self._nodes[key].kept for key in path]

    def insert(self, tokens: Sequence[int], keep: Callable[[int, int], Kept]) -> None:
        """Keep every full block of `tokens`.

        Args:
            keep: called with [start, stop) of each block that is not kept yet.
        """
        wanted = min(len(tokens) // BLOCK, self.capacity)
        path = self._path(tokens, wanted)
        try:
            for index in range(len(path), wanted):
                parent = self._nodes[path[-1]].number if path else 0
                key = (parent, tuple(tokens[index * BLOCK : (index + 1) * BLOCK]))
                self._numbers += 1
                self._nodes[key] = _Node(self._numbers, keep(index * BLOCK, (index + 1) * BLOCK))
                path.append(key)
        finally:
            self._touch(path)
            while len(self._nodes) > self.capacity:
                self._nodes.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._nodes.clear()

    def _path(self, tokens: Sequence[int], most: int) -> list[tuple[int, tuple[int, ...]]]:
        """Keys of the known blocks of a prefix, at most `most`."""
        path: list[tuple[int, tuple[int, ...]]] = []
        parent = 0
        for index in range(most):
            key = (parent, tuple(tokens[index * BLOCK : (index + 1) * BLOCK]))
            node = self._nodes.get(key)
            if node is None:
                break
            path.append(key)
            parent = node.number
        return path

    def _touch(self, path: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        for key in reversed(path):
            self._nodes.move_to_end(key)


class RowPrefixes:
    """Prefixes of what the rows of a model held.

    Args:
        model: rows are saved and restored by it.
        tokens: how many are kept at most; 0: none.
        left: tokens of a prompt that are left over at least; see `PrefixCache.match`.
    """

    def __init__(self, model: Model, tokens: int, left: int) -> None:
        self._model, self._left = model, left
        self._cache: PrefixCache[Any] = PrefixCache(tokens // BLOCK)

    @property
    def tokens(self) -> int:
        """How many are kept."""
        return len(self._cache) * BLOCK

    def count(self, prompt: Sequence[int]) -> int:
        """Tokens at the beginning of a prompt that are known."""
        return len(self._cache.match(prompt, self._left)) * BLOCK

    def restore(self, prompt: Sequence[int], row: int) -> None:
        """Write what is known of a prompt into a row. Where that fails, everything is forgotten."""
        try:
            for index, saved in enumerate(self._cache.match(prompt, self._left)):
                self._model.restore(row, index * BLOCK, saved)
        except Exception:
            self._cache.clear()  # or every prompt that begins so would fail
            raise

    def keep(self, tokens: Sequence[int], row: int) -> None:
        """Keep what a row holds; without that the next prompt only costs more."""
        try:
            self._cache.insert(tokens, lambda start, stop: self._model.save(row, start, stop))
        except Exception as error:  # noqa: BLE001 - the answer is right without it
            _log.warning("keys and values were not kept for the next prompt: %s", described(error))
