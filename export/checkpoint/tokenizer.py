"""The tokenizer that will be served."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast


def write_tokenizer(library: PreTrainedTokenizerFast, folder: Path) -> Path:
    """Write `tokenizer.json`: the tokenizer as its library uses it, with all settings of its files merged.

    transformers lets `tokenizer_config.json` and others change what a folder's `tokenizer.json` says: letters
    that are lowered, a space before the text, tokens that begin and end it.
    """
    tokenizer = Tokenizer.from_str(library.backend_tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    path = folder / "tokenizer.json"
    path.write_text(tokenizer.to_str(), encoding="utf-8")
    return path
