"""What the engine needs of a decoder; `serving.generation.runtime.open_runner` opens a real one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


class Model(Protocol):
    """Operations on rows of a cache, each of which holds one sequence."""

    def decode(self, tokens: Sequence[int], lengths: Sequence[int]) -> Logits:
        """Add one token to each of the first rows.

        Args:
            tokens: one per row, rows 0, 1, ...
            lengths: tokens each row holds already.

        Returns:
            Logits float32 [rows, vocabulary]; valid until the next call.
        """
        ...

    def prefill(self, row: int, tokens: Sequence[int], start: int, wanted: Sequence[int]) -> Logits:
        """Add several tokens to one row that holds `start` already.

        Args:
            wanted: ascending positions among `tokens` whose logits are returned, at least one.

        Returns:
            Logits float32 [wanted, vocabulary].
        """
        ...

    def prefill_together(self, row: int, prompts: Sequence[Sequence[int]]) -> Logits:
        """Write the first tokens of several sequences into rows `row`, `row + 1`, ...

        Returns:
            Logits float32 [prompts, vocabulary] of each one's last token.
        """
        ...

    def move(self, source: int, target: int, length: int) -> None:
        """Let a row hold the first `length` tokens of another, which nobody reads any more."""
        ...

    def save(self, row: int, start: int, stop: int) -> Any:
        """Keys and values of tokens [start, stop) of a row, as a copy."""
        ...

    def restore(self, row: int, start: int, saved: Any) -> None:
        """Write what `save` gave into a row, from token `start` on."""
        ...


@dataclass(frozen=True)
class Part:
    """What one run of a model writes for one sequence.

    Attributes:
        tokens: to add to a row that holds `start` already.
        wanted: ascending positions among `tokens` whose logits are returned, at least one.
    """

    row: int
    tokens: Sequence[int]
    start: int
    wanted: Sequence[int]


@runtime_checkable
class MixingModel(Model, Protocol):
    """A model that also writes prompts and single tokens in one run, which costs less than several."""

    def run(self, parts: Sequence[Part]) -> Logits:
        """Write parts of several sequences, in rows of any order.

        Returns:
            Logits float32 [wanted of all parts, vocabulary]; valid until the next call.
        """
        ...
