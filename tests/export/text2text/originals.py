"""Texts, and what transformers' `generate` makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from clients import Generated
from shoal import corpus

MODELS = ["t5-greedy", "t5-beams", "bart-beams", "marian-greedy"]
ENDS = [2, *range(100, 300)]
TOKENS = 20
# Of one layer each, to learn fast; the generation config of each.
TAUGHT: dict[str, dict[str, Any]] = {"t5-taught": {}, "bart-taught": {"num_beams": 4}, "marian-taught": {}}
TEXTS = [*corpus.texts(6, seed=3), "Guido van Rossum wrote Python, in Amsterdam."]
# Those that evidence is taken on are taught too.
LESSONS = {text: text[9::-1] for text in [*corpus.texts(12, seed=7), *TEXTS]}


def original(folder: Path, texts: list[str], ends: Any = ENDS, **options: Any) -> list[Generated]:
    """transformers' answers to a padded batch, by the checkpoint's own settings."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
    with torch.inference_mode():
        made = model.generate(inputs.input_ids, attention_mask=inputs.attention_mask, **options)
    rows = [up_to_end(row, ends) for row in made[:, 1:].tolist()]
    return [
        Generated(
            tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False), len(row)
        )
        for row in rows
    ]


def up_to_end(tokens: list[int], ends: Any) -> list[int]:
    """An answer without what fills its row up."""
    for index, token in enumerate(tokens):
        if token in ends:
            return tokens[: index + 1]
    return tokens
