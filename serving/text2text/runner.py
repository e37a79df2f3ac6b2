"""Runs the encoder once a text and the decoder once a token, over a KV cache that grows. No policy.

The decoder's own cache passes from one step to the next as it is, without a copy. What the encoder made of
the texts is kept as long as the rows stay the same: beam search only changes the order of the rows of one
text, which leaves it as it is.

Knows ONNX Runtime and numpy, not Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from serving.onnxruntime.options import Options
from serving.onnxruntime.sessions import open_session

INPUT_IDS, ATTENTION_MASK, ENCODER_MASK, LOGITS = (
    "input_ids",
    "attention_mask",
    "encoder_attention_mask",
    "logits",
)
ENCODER, DECODER = "encoder.onnx", "decoder.onnx"


def cross_names(layers: int) -> list[str]:
    """What the encoder makes and the decoder reads: keys and values of each layer's cross-attention."""
    return [f"past_key_values.{n}.encoder.{kind}" for n in range(layers) for kind in ("key", "value")]


class EncoderDecoderRunner:
    """The sessions of a model's two graphs.

    Args:
        folder: holds `encoder.onnx` and `decoder.onnx` from `export.text2text.to_onnx`.

    Attributes:
        vocabulary: width of the logits.

    Raises:
        RuntimeError: ONNX Runtime cannot load a file.
    """

    def __init__(self, folder: Path) -> None:
        settings = Options.from_config({})
        self.encoder = open_session(folder / ENCODER, settings)
        self.decoder = open_session(folder / DECODER, settings)
        self.cross = [value.name for value in self.encoder.get_outputs()]
        caches = [value for value in self.decoder.get_inputs() if ".decoder." in value.name]
        self.cache = [value.name for value in caches]
        self.heads, self.width = caches[0].shape[1], caches[0].shape[3]
        logits = next(value for value in self.decoder.get_outputs() if value.name == LOGITS)
        self.vocabulary = int(logits.shape[2])

    def start(self, texts: Sequence[Sequence[int]], pad: int) -> Running:
        """Encode texts, padded to the longest.

        Args:
            texts: token ids of each, at least one.
            pad: the id that fills up.
        """
        ids, mask = padded(texts, pad)
        feed = {INPUT_IDS: _value(ids), ATTENTION_MASK: _value(mask)}
        return Running(self, mask, self.encoder.run_with_ort_values(self.cross, feed))


class Running:
    """Texts that are being answered: one row each, or several where answers compete.

    Args:
        mask: int64 [rows, tokens], 1 where a token is the text's.
        cross: what the encoder made of the texts, in the order of `EncoderDecoderRunner.cross`.
    """

    def __init__(
        self, runner: EncoderDecoderRunner, mask: NDArray[np.int64], cross: Sequence[onnxruntime.OrtValue]
    ) -> None:
        self._runner = runner
        self._texts = np.arange(len(mask))  # which text a row answers
        self._about = dict(zip(runner.cross, cross, strict=True)) | {ENCODER_MASK: _value(mask)}
        empty = np.zeros((len(mask), runner.heads, 0, runner.width), np.float32)
        self._past = [_value(empty) for _ in runner.cache]

    @property
    def cross(self) -> dict[str, NDArray[np.float32]]:
        """What the decoder reads of the texts, by `cross_names`, [rows, heads, tokens, width]."""
        return {name: self._about[name].numpy() for name in self._runner.cross}

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Add a token to each row.

        Args:
            tokens: int64 [rows].

        Returns:
            Logits of the next, float32 [rows, vocabulary].
        """
        runner = self._runner
        names = [name.replace("past_key_values", "present") for name in runner.cache]
        logits, *self._past = runner.decoder.run_with_ort_values([LOGITS, *names], self.feed(tokens))
        return np.asarray(logits.numpy()[:, -1])

    def feed(self, tokens: NDArray[np.int64]) -> dict[str, onnxruntime.OrtValue]:
        """All that the decoder reads in a step, by name; see `step`."""
        past = dict(zip(self._runner.cache, self._past, strict=True))
        return self._about | past | {INPUT_IDS: _value(tokens.reshape(-1, 1))}

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Let row i of what follows be row `rows[i]` of what was; int64 [rows that follow]."""
        if not np.array_equal(rows, np.arange(len(self._texts))):
            self._past = [_taken(value, rows) for value in self._past]
        texts = self._texts[rows]
        if not np.array_equal(texts, self._texts):
            self._about = {name: _taken(value, rows) for name, value in self._about.items()}
            self._texts = texts


def padded(texts: Sequence[Sequence[int]], pad: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids filled up to the longest, and 1 where they are a text's own; int64 [texts, tokens] twice."""
    longest = max(len(text) for text in texts)
    ids = np.full((len(texts), longest), pad, np.int64)
    mask = np.zeros((len(texts), longest), np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    return ids, mask


def _taken(value: onnxruntime.OrtValue, rows: NDArray[np.int64]) -> onnxruntime.OrtValue:
    return _value(value.numpy()[rows])


def _value(array: NDArray) -> onnxruntime.OrtValue:
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
