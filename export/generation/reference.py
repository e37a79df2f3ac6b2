"""Statistics of prompts, kept with a decoder's version so that drift can be seen; see docs/drift.md."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from export.generation.checkpoint import DecoderSettings
from serving.drift.statistics import ReferenceStatistics, Vocabulary
from serving.generation.runtime import Runner
from serving.generation.sampling import negative_log_likelihood
from serving.generation.sequence import SCORED_TOKENS
from serving.generation.text import encode_prompt
from shoal import corpus
from shoal.chat import ChatTemplate
from shoal.errors import BadInput

ROWS = 128  # each is run through the graph


def prompts_of(eval_data: Path | None, tokenizer: Path, settings: DecoderSettings) -> list[list[int]]:
    """Token ids of prompts: the paragraphs of the user's own text, or text that comes with Python.

    Of a model with a chat template each is the first message of a conversation.

    Raises:
        OSError, ValueError: the text cannot be read.
    """
    texts = corpus.texts(ROWS, seed=4)
    if eval_data is not None:
        paragraphs = re.split(r"\n\s*\n", eval_data.read_text(encoding="utf-8"))
        own = [paragraph.strip() for paragraph in paragraphs if paragraph.strip()]
        texts = random.Random(0).sample(own, min(ROWS, len(own)))  # noqa: S311 - a sample
    encoder = Tokenizer.from_file(str(tokenizer))
    render = _renderer(settings)
    encoded = [encode_prompt(encoder, render(text), settings.begin) for text in texts]
    return [ids[: settings.context] for ids in encoded if len(ids) > 1]


def _renderer(settings: DecoderSettings) -> Callable[[str], str]:
    if not settings.chat_template:
        return str
    template = ChatTemplate(settings.chat_template, settings.special_tokens)

    def render(text: str) -> str:
        try:
            return template.render([{"role": "user", "content": text}])
        except BadInput:  # a template that wants more than one message
            return text

    return render


def take_reference(
    runner: Runner,
    tokenizer: Path,
    prompts: Sequence[Sequence[int]],
    *,
    labelled: bool,
    advance: Callable[[], Any],
) -> dict[str, Any]:
    """Statistics for a manifest: those of token ids, and the perplexity of each prompt's first tokens.

    Args:
        runner: the graph that will be served, with a row of `SCORED_TOKENS` tokens.
        prompts: token ids, two or more each, at least one.
        labelled: whether they are the user's own.
    """
    vocabulary = Vocabulary.read(tokenizer)
    rows = []
    for prompt in prompts:
        scored = prompt[:SCORED_TOKENS]
        logits = runner.prefill(0, scored, 0, range(len(scored) - 1))
        perplexity = float(np.exp(negative_log_likelihood(logits, scored[1:]).mean()))
        rows.append(vocabulary.features(prompt) | {"perplexity": perplexity})
        advance()
    return ReferenceStatistics.of("eval_data" if labelled else "sample", rows).to_dict()
