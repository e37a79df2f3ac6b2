"""Encoded sequences of one request, and the arrays that they become: features of tokens, and their number.

Needs `tokenizers` and numpy, and knows nothing of Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding
from tritonclient.utils import triton_to_np_dtype

from shoal.dialect import INPUT_TOKENS
from shoal.tasks import FEATURES

CONTINUED_PIECE = "##"  # how WordPiece marks a token that goes on a word


@dataclass(frozen=True)
class Batch:
    """Encoded sequences of one request, not padded yet.

    Attributes:
        encodings: one a sequence; a row's sequences follow one another.
        texts: what each sequence's own offsets point into, where somebody asks for `subword`.
        sequences: how many a row has; None: one, and no dimension of its own.
        real: which sequences were asked for; the others fill rows up that have fewer. None: all.
        prompts: tokens at the beginning of each sequence that are a prompt's; empty: none anywhere.
    """

    encodings: Sequence[Encoding]
    texts: Sequence[str] = ()
    sequences: int | None = None
    real: Sequence[bool] | None = None
    prompts: Sequence[int] = ()

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(len(encoding) for encoding in self.encodings)

    def arrays(
        self, length: int, pad_id: int, names: Sequence[str] = ("input_ids", "attention_mask")
    ) -> dict[str, NDArray]:
        """What is asked for: features [rows, (sequences,) length], `offsets` with one dimension more, and
        the number of tokens [rows, 1].

        Args:
            length: tokens to which every sequence is padded.
            pad_id: fills `input_ids`.
            names: of `input_ids`, `attention_mask`, `token_type_ids`, `pooling_mask` (the attention mask
                without a prompt's tokens) (int64), `offsets` and `word_offsets` (int32, begin and end in
                characters, of the token or of its word), `special_tokens_mask`, `context_mask` (the second
                text), `subword` (goes on a word) (bool), `num_input_tokens` (after truncation, special
                tokens included, padding not) (int32).
        """
        return {
            name: self._tokens() if name == INPUT_TOKENS else self._feature(name, length, pad_id)
            for name in names
        }

    def _tokens(self) -> NDArray[np.int32]:
        """How many tokens each row has. Sequences that only fill rows up do not count."""
        lengths = np.array([len(encoding) for encoding in self.encodings], np.int32)
        if self.real is not None:
            lengths *= np.array(self.real)
        return lengths.reshape(-1, self.sequences or 1).sum(axis=1, dtype=np.int32, keepdims=True)

    def _feature(self, name: str, length: int, pad_id: int) -> NDArray:
        feature = FEATURES[name]
        fill = pad_id if name == "input_ids" else name == "special_tokens_mask"
        shape = (len(self.encodings), length, *feature.dims[1:])
        array = np.full(shape, fill, triton_to_np_dtype(feature.dtype))
        for row, encoding in enumerate(self.encodings):
            tokens = len(encoding)
            if name == "input_ids":
                array[row, :tokens] = encoding.ids
            elif name == "attention_mask":
                array[row, :tokens] = 1
            elif name == "token_type_ids":
                array[row, :tokens] = encoding.type_ids
            elif name == "pooling_mask":
                array[row, self.prompts[row] if self.prompts else 0 : tokens] = 1
            elif name == "offsets":
                array[row, :tokens] = encoding.offsets
            elif name == "word_offsets":
                array[row, :tokens] = _word_offsets(encoding)
            elif name == "special_tokens_mask":
                array[row, :tokens] = encoding.special_tokens_mask
            elif name == "context_mask":
                if self.real is None or self.real[row]:
                    array[row, :tokens] = [sequence == 1 for sequence in encoding.sequence_ids]
            else:
                array[row, :tokens] = _subwords(encoding, self.texts[row])
        return array if self.sequences is None else array.reshape(-1, self.sequences, *array.shape[1:])


def _word_offsets(encoding: Encoding) -> list[tuple[int, int]]:
    """The place of each token's whole word; of a token that belongs to none, its own."""
    sequences, words = encoding.sequence_ids, encoding.word_ids
    return [
        own if word is None else encoding.word_to_chars(word, sequence) or own
        for own, word, sequence in zip(encoding.offsets, words, sequences, strict=True)
    ]


def _subwords(encoding: Encoding, text: str) -> list[bool]:
    """Which tokens go on a word, told as transformers' token-classification pipeline tells it."""
    pieces = any(token.startswith(CONTINUED_PIECE) for token in encoding.tokens)
    marks = []
    for token, (start, end), special in zip(
        encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True
    ):
        if special:
            marks.append(False)
        elif pieces:
            marks.append(len(token) != end - start)
        else:
            marks.append(start > 0 and " " not in text[start - 1 : start + 1])
    return marks
