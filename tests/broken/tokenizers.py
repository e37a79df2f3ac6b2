"""Tokenizers that cannot be read, or that do not belong to the model."""

from __future__ import annotations

import torch

from tests.broken.damage import CONFIG, TOKENIZER, Case, cut, weights, write
from tests.export.raw.served import edit

TOKENIZERS: dict[str, Case] = {
    "no tokenizer": (
        "bert",
        lambda f: [(f / n).unlink() for n in ("tokenizer.json", TOKENIZER, "special_tokens_map.json")],
        [],
        1,
        "bert",
    ),
    "half a tokenizer": (
        "classes",
        lambda f: cut(f / "tokenizer.json"),
        [],
        1,
        "cannot load the tokenizer of",
    ),
    "an empty tokenizer": ("classes", lambda f: write(f / "tokenizer.json", "{}"), [], 1, "the tokenizer of"),
    "half a tokenizer's config": (
        "classes",
        lambda f: cut(f / TOKENIZER),
        [],
        1,
        "cannot load the tokenizer of",
    ),
    "a tokenizer of no known class": (
        "classes",
        lambda f: edit(f / TOKENIZER, tokenizer_class="BortTokenizer"),
        [],
        1,
        "cannot load the tokenizer of .*BortTokenizer",
    ),
    "a slow tokenizer that becomes no fast one": (
        "classes",
        lambda f: (
            edit(f / TOKENIZER, tokenizer_class="CanineTokenizer", tokenizer_file=...),
            (f / "tokenizer.json").unlink(),
        ),
        [],
        1,
        r"has the slow tokenizer CanineTokenizer only \(.*writes tokenizer.json",
    ),
    "a sentencepiece model that is none": (
        "writer",
        lambda f: (
            (f / "tokenizer.json").unlink(),
            edit(f / TOKENIZER, tokenizer_class="T5Tokenizer"),
            write(f / "spiece.model", "no model"),
        ),
        [],
        1,
        r"the tokenizer of .*writes tokenizer.json",
    ),
    "more tokens than vectors": (
        "classes",
        lambda f: (
            edit(f / CONFIG, vocab_size=50),
            weights(lambda t: t.update({"bert.embeddings.word_embeddings.weight": torch.zeros(50, 32)}))(f),
        ),
        [],
        1,
        "has 800 tokens and the model vectors for 50",
    ),
}
