"""Evidence from the raw input for encoder-decoders: texts, and what is made of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from export.originals.original import Row, quiet
from export.originals.texts import Rewriter
from export.raw.agreement import Outputs, texts
from export.raw.evidence import RawTolerance
from export.raw.measure import OriginalAnswers, ask_original
from export.raw.served import Caller, arrays_of
from export.raw.texts import hard_texts, too_long_text
from export.raw.tokens import Ids, cause
from serving.in_process import Refused
from serving.models.layouts import load_tokenizer
from serving.models.text2text import Text2TextSettings
from shoal.dialect import GENERATED_TEXT, MAX_NEW_TOKENS
from shoal.progress import Silent

NEW_TOKENS = 16
# A beam search has many near ties; and a token that falls otherwise changes all that follow.
TOLERANCES = {"fp32": RawTolerance(0.0, share=0.85), "int8": RawTolerance(1.0, share=0.5, choice=True)}
_WRITTEN = (
    "Fish swim in shoals.",
    "translate English to German: The house is wonderful.",
    "summarize: Hello",
)


@dataclass(frozen=True)
class Texts:
    """How raw inputs are read and answered.

    Attributes:
        library: transformers' tokenizer.
        file: the `tokenizer.json` that is served.
        settings: how it is served.
        longest: tokens of a text at most, where the recipe says so.
    """

    library: PreTrainedTokenizerFast
    file: Path
    settings: Text2TextSettings
    longest: int | None = None

    def rows(self) -> list[Row]:
        """The raw inputs that are answered."""
        hard = [text for text in hard_texts() if len(text) < 200][::12]
        long = too_long_text(self.settings.max_length, self.settings.max_text_bytes)
        return [{"text": [text]} for text in (*_WRITTEN, *hard, long)]

    def read_rows(self) -> list[Row]:
        """See `export.raw.measure.Tokens`."""
        return [{"text": [text]} for text in hard_texts()]

    @property
    def new_tokens(self) -> int:
        """Longest answer that is compared."""
        return min(NEW_TOKENS, self.settings.search.max_new_tokens)

    def expected(self, row: Row) -> Ids:
        """See `export.raw.measure.Tokens`."""
        with quiet():
            made = self.library(row["text"][0], truncation=True, max_length=self.longest)
        return [list(made["input_ids"])]

    def served(self, caller: Caller, row: Row) -> Ids | None:
        """See `export.raw.measure.Tokens`; ids do not leave a server."""
        settings = self.settings
        tokenizer = load_tokenizer(self.file, settings.max_length, side=settings.truncation_side)
        return [list(tokenizer.encode(row["text"][0]).ids)]

    def cause(self, row: Row) -> str:
        """See `export.raw.measure.Tokens`."""
        return cause(Tokenizer.from_file(str(self.file)), self.library, row["text"])

    def ask(self, caller: Caller, model: str, row: Row) -> Outputs | Refused:
        """The text that a served model makes of one."""
        limit = {MAX_NEW_TOKENS: np.array([[self.new_tokens]], np.int32)}
        try:
            made = caller.infer(model, arrays_of(row) | limit)
        except Refused as refused:
            return refused
        return {"text": [made[GENERATED_TEXT].reshape(-1)[0].decode()]}


def reference_of(model: Any, read: Texts, progress: Silent) -> OriginalAnswers:
    """Have the original answer the raw inputs.

    Args:
        model: the PyTorch original.
    """
    options = {"max_new_tokens": read.new_tokens, "num_beams": read.settings.search.num_beams}
    return ask_original(
        Rewriter(model, read.library, read.longest, **options),
        read.rows(),
        texts,
        tokens=read,
        progress=progress,
        ask=read.ask,
    )
