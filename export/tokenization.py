"""Text to the inputs of an embedding graph, as the served tokenizer does it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from serving.models.tokenizer import Batch, load_tokenizer


class Encoder:
    """Tokenizes batches for calibration and verification.

    Args:
        tokenizer: path of `tokenizer.json`.
        max_length: longest input in tokens.
        pad_id: the token that fills a row up.
    """

    def __init__(self, tokenizer: Path, max_length: int, pad_id: int) -> None:
        self._path = tokenizer
        self._pad_id = pad_id
        self.max_length = max_length
        self._by_length: dict[int, Tokenizer] = {}

    def __call__(
        self, texts: Sequence[str], *, max_length: int | None = None, pad_to: int | None = None
    ) -> dict[str, NDArray[np.int64]]:
        """`input_ids` and `attention_mask`, int64 [texts, tokens].

        Args:
            max_length: truncate to this many tokens instead of the encoder's own limit.
            pad_to: pad to this length; None: to the longest text.
        """
        limit = min(max_length or self.max_length, self.max_length)
        if limit not in self._by_length:
            self._by_length[limit] = load_tokenizer(self._path, limit)
        batch = Batch(self._by_length[limit].encode_batch_fast(list(texts)))
        return batch.arrays(pad_to or batch.longest, self._pad_id)
