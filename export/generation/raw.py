"""Evidence from the raw input for decoders: prompts and conversations, and what is written after them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from tritonclient.grpc import model_config_pb2 as triton

from export.originals.original import Row, quiet
from export.originals.texts import Writer
from export.raw.agreement import Outputs, texts
from export.raw.evidence import RawTolerance
from export.raw.measure import OriginalAnswers, ask_original
from export.raw.served import Caller
from export.raw.texts import hard_texts
from export.raw.tokens import Ids, cause
from export.triton_config import set_parameters
from serving.generation.conversation import Conversation, Renderer
from serving.generation.text import encode_prompt
from serving.in_process import Refused
from shoal.chat import ChatTemplate
from shoal.dialect import MESSAGES, SAMPLING, TEXT_INPUT, TEXT_OUTPUT
from shoal.progress import Silent

NEW_TOKENS = 5
ROWS = 2  # of the cache, while evidence is taken
MOST_CHARACTERS = 1 << 20  # of a rendered conversation
# A token that falls otherwise changes all that follow: what counts of a quantized version is how it begins.
_EXACT = RawTolerance(0.0, share=0.9)
TOLERANCES = {
    "fp32": _EXACT,
    "int8": RawTolerance(1.0, share=0.6, choice=True),
    "int4": RawTolerance(1.0, share=0.4, choice=True),
    "fp16": RawTolerance(1.0, share=0.7, choice=True),
    "int4-fp16": RawTolerance(1.0, share=0.4, choice=True),
}
_PROMPTS = (
    "The capital of France is",
    "def add(a, b):\n    ",
    "1, 2, 3, 4,",
    "Once upon a time,",
)
_CHATS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "Why do fish swim in shoals?"}],
    [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "2 + 2 = ?"}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "  Wie heißt du? 😀\n"},
    ],
)


@dataclass(frozen=True)
class Prompts:
    """How raw inputs become prompts, here and in the library.

    Attributes:
        library: transformers' tokenizer.
        served: the tokenizer that is served.
        begin: the token that every prompt begins with, or "".
        template: the model's chat template; None: it has none.
    """

    library: PreTrainedTokenizerFast
    served_tokenizer: Tokenizer
    begin: str
    template: ChatTemplate | None

    @classmethod
    def of(cls, library: PreTrainedTokenizerFast, tokenizer: Path, parameters: Mapping[str, str]) -> Prompts:
        """Make the prompts from the parameters of a decoder's config."""
        config = {"parameters": {name: {"string_value": value} for name, value in parameters.items()}}
        template = ChatTemplate.of(config) if parameters.get("chat_template") else None
        served = Tokenizer.from_file(str(tokenizer))
        return cls(library, served, parameters.get("begin_token", ""), template)

    def rows(self) -> list[Row]:
        """What is answered: prompts that hurt, and conversations that the library's template takes."""
        hard = [text for text in self._hard() if len(text) < 200]
        rows: list[Row] = [{"text": [text]} for text in (*_PROMPTS, *hard[::36])]
        if self.template is not None:
            rows += [{"messages": [json.dumps(chat)]} for chat in _CHATS if self._takes(chat)]
        return rows

    def read_rows(self) -> list[Row]:
        """See `export.raw.measure.Tokens`."""
        return [{"text": [text]} for text in self._hard()]

    def _hard(self) -> list[str]:
        """Hard texts without those that begin as every prompt does."""
        return [text for text in hard_texts() if not text.startswith(self.begin or "\0")]

    def _takes(self, chat: list[dict[str, str]]) -> bool:
        try:
            self.library.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        except Exception:  # noqa: BLE001 - many a template takes no message of the system
            return False
        return True

    def prompt(self, row: Row) -> str:
        """What a client sends."""
        if "text" in row:
            return str(row["text"][0])
        assert self.template is not None  # noqa: S101 - the rows are made so
        return self.template.render(json.loads(row["messages"][0]))

    def expected(self, row: Row) -> Ids:
        """See `export.raw.measure.Tokens`."""
        with quiet():
            if "text" in row:
                return [list(self.library(row["text"][0])["input_ids"])]
            chat = json.loads(row["messages"][0])
            text = self.library.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            return [list(self.library(text, add_special_tokens=False)["input_ids"])]

    def served(self, caller: Caller, row: Row) -> Ids | None:
        """See `export.raw.measure.Tokens`; the tokens of a prompt do not leave a server."""
        if "text" in row:
            return [encode_prompt(self.served_tokenizer, row["text"][0], self.begin)]
        assert self.template is not None  # noqa: S101 - the rows are made so
        conversation = Conversation.from_json(row["messages"][0])
        return [Renderer(self.served_tokenizer, self.template).encode(conversation, MOST_CHARACTERS)]

    def cause(self, row: Row) -> str:
        """See `export.raw.measure.Tokens`."""
        return cause(self.served_tokenizer, self.library, [self.prompt(row)])

    def ask(self, caller: Caller, model: str, row: Row) -> Outputs | Refused:
        """The text that a served decoder goes on with."""
        sampling = {"temperature": 0, "max_tokens": NEW_TOKENS}
        kind, name = ("text", TEXT_INPUT) if "text" in row else ("messages", MESSAGES)
        inputs: dict[str, Any] = {
            name: np.array([row[kind][0].encode()], object),
            SAMPLING: np.array([json.dumps(sampling).encode()], object),
            "exclude_input_in_output": np.array([True]),
            "stream": np.array([False]),
        }
        try:
            parts = caller.stream(model, inputs)
        except Refused as refused:
            return refused
        return {"text": ["".join(part[TEXT_OUTPUT].reshape(-1)[0].decode() for part in parts)]}


def reference_of(model: Any, prompts: Prompts, progress: Silent) -> OriginalAnswers:
    """Have the original write after the raw inputs.

    Args:
        model: the PyTorch original.
    """
    return ask_original(
        Writer(model, prompts.library, do_sample=False, num_beams=1, max_new_tokens=NEW_TOKENS),
        prompts.rows(),
        texts,
        tokens=prompts,
        progress=progress,
        ask=prompts.ask,
    )


def small(config: triton.ModelConfig, *, exact: bool) -> triton.ModelConfig:
    """A decoder's config, with a cache for few requests.

    Args:
        config: as it is published; it is not changed.
        exact: whether it guesses ahead, as versions in fp32 do.
    """
    made = triton.ModelConfig()
    made.CopyFrom(config)
    set_parameters(made, max_num_seqs=str(ROWS), speculate=str(int(exact)))
    made.parameters.pop("prefix_cache_tokens", None)
    return made
