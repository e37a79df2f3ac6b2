"""Originals that write texts: `generate`, by the checkpoint's own tokenizer and generation config."""

from __future__ import annotations

import json
from typing import Any

from export.originals.original import Original, Row


class _Generate(Original):
    """transformers' `generate`.

    Args:
        model: as it was loaded from the folder.
        tokenizer: likewise.
        options: what is asked otherwise than the generation config says, e.g. `max_new_tokens`.
    """

    call = "generate"

    def __init__(self, model: Any, tokenizer: Any, **options: Any) -> None:
        self._model, self._tokenizer, self._options = model, tokenizer, options

    def _generated(self, given: Any) -> Any:
        # Of what a tokenizer gives, `generate` takes these for every model.
        inputs = {name: given[name] for name in ("input_ids", "attention_mask")}
        return self._model.generate(**inputs, **self._options)[0]

    def _text(self, ids: Any) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Writer(_Generate):
    """A prompt, or a conversation in the model's chat template, to what it goes on with, greedily."""

    def answer(self, row: Row) -> str:
        if "messages" in row:
            given = self._tokenizer.apply_chat_template(
                json.loads(row["messages"][0]),
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
            )
        else:
            given = self._tokenizer(row["text"][0], return_tensors="pt")
        prompt = given["input_ids"][0]
        # As transformers' pipeline cuts the prompt off: a space before the answer's first word stays.
        return self._text(self._generated(given))[len(self._text(prompt)) :]


class Rewriter(_Generate):
    """A text to the text that an encoder-decoder makes of it.

    Args:
        longest: tokens of a text at most, where a user wants fewer than the tokenizer's `model_max_length`.
    """

    def __init__(self, model: Any, tokenizer: Any, longest: int | None = None, **options: Any) -> None:
        super().__init__(model, tokenizer, **options)
        self._longest = longest

    def answer(self, row: Row) -> str:
        given = self._tokenizer(
            row["text"][0], truncation=True, max_length=self._longest, return_tensors="pt"
        )
        return self._text(self._generated(given))
