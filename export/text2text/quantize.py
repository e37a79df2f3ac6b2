"""INT8 of both graphs, in which an answer never depends on who shares the batch.

Every scale of an activation is its row's own; behind a LayerNormalization channels are smoothed as well
(T5 has none). Weights have 7 bits and a scale a column, token vectors 8 bits and a scale a token.
`export.quantization.int8` says how, and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from export.exported import Exported
from export.generation.to_onnx import save
from export.quantization.int8 import Feed, quantize_table, quantized, token_gathers
from export.text2text.to_onnx import Graphs
from serving.models.text2text import Text2TextSettings, TextGenerator
from serving.text2text import rules
from serving.text2text.runner import ATTENTION_MASK, DECODER, ENCODER, INPUT_IDS, EncoderDecoderRunner, padded
from serving.text2text.settings import Search
from shoal import corpus
from shoal.progress import Silent

TEXTS = 32
BATCH = 8
ANSWER_TOKENS = 16


def quantize_int8(plain: Graphs, folder: Path, settings: Text2TextSettings, progress: Silent) -> Graphs:
    """Quantize the token vectors and the products with a constant matrix; see the module.

    Args:
        plain: in fp32, beside which their tokenizer lies.
        folder: where the result is written; it exists.
        settings: how they are served.
    """
    answerer, search = TextGenerator(plain.path.parent, settings), settings.search
    texts = [answerer.tokens(text) for text in corpus.passages()[:TEXTS]]
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    names = (INPUT_IDS, ATTENTION_MASK)
    read = [dict(zip(names, padded(batch, search.pad), strict=True)) for batch in batches]
    _quantize(plain.encoder, folder / ENCODER, read, len(read), progress)
    written = _written(answerer.runner, batches, search)
    _quantize(plain, folder / DECODER, written, len(batches) * ANSWER_TOKENS, progress)
    return Graphs.read_both(folder)


def _written(
    runner: EncoderDecoderRunner, batches: Iterable[Sequence[Sequence[int]]], search: Search
) -> Iterator[Feed]:
    """What the decoder reads in each step of its greedy answers, none of which ends early."""
    going = msgspec.structs.replace(search, min_new_tokens=ANSWER_TOKENS, forced_eos=-1)
    for batch in batches:
        running = runner.start(batch, search.pad)
        answers = [[search.start] for _ in batch]
        for _ in range(ANSWER_TOKENS):
            last = np.array([tokens[-1] for tokens in answers], np.int64)
            yield {name: value.numpy() for name, value in running.feed(last).items()}
            scores = running.step(last)
            rules.apply(going, scores, answers, [ANSWER_TOKENS] * len(answers))
            for tokens, following in zip(answers, scores.argmax(axis=1).tolist(), strict=True):
                tokens.append(following)


def _quantize(
    exported: Exported, path: Path, calibration: Iterable[Feed], total: int, progress: Silent
) -> None:
    graph = quantized(exported.path, calibration, progress, total=total, dynamic=True)
    (gather,) = token_gathers(graph)
    quantize_table(graph, gather)
    save(graph.finish(), path)
