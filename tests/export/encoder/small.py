"""Tiny encoders that are pruned and distilled, and what they read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.models import Normalize
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from export.encoder.compress.distill import Distillation
from export.encoder.sentence import Sentence
from export.encoder.tasks.heads import Embedding
from shoal.corpus import passages

VOCABULARY = 200


SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
}


DISTILBERT = DistilBertConfig(
    vocab_size=VOCABULARY,
    dim=32,
    n_layers=3,
    n_heads=4,
    hidden_dim=64,
    max_position_embeddings=40,
    initializer_range=0.2,
)


KINDS = {
    "bert": lambda: BertModel(BertConfig(**SIZES)),
    "roberta": lambda: RobertaModel(RobertaConfig(**SIZES)),
    "xlm-roberta": lambda: XLMRobertaModel(XLMRobertaConfig(**SIZES)),
    "electra": lambda: ElectraModel(ElectraConfig(**SIZES, embedding_size=16)),
    "mpnet": lambda: MPNetModel(MPNetConfig(**SIZES)),
    "distilbert": lambda: DistilBertModel(DISTILBERT),
}


MEAN = Sentence("", "forward", ("last_hidden_state",), ("mean",), True, (Normalize(),), None)


FAST = Distillation(steps=12, batch=16, learning_rate=3e-3, max_words=8, max_tokens=16, save_every=4)


def embedder(kind: str = "bert") -> Embedding:
    torch.manual_seed(0)
    return Embedding(KINDS[kind](), MEAN).eval()


def encode(texts: Sequence[str], *, max_length: int = 16) -> dict[str, NDArray[np.int64]]:
    """A tokenizer of sorts: a word's id follows from its letters."""
    words = [text.split()[:max_length] for text in texts]
    rows = [[sum(word.encode()) % (VOCABULARY - 5) + 5 for word in line] for line in words]
    width = max(map(len, rows))
    ids = np.full((len(rows), width), 1, np.int64)
    mask = np.zeros_like(ids)
    for line, row in enumerate(rows):
        ids[line, : len(row)] = row
        mask[line, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


FEEDS = [encode(passages()[start : start + 8]) for start in (0, 8)]


TEXTS = passages()[:200]
