"""Token ids first: what the served tokenizer makes of a raw input, against the library's own tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from export.originals.original import Row, quiet
from export.raw.served import Arrays, Caller, arrays_of
from serving.in_process import Refused

Ids = list[list[int]]


@dataclass(frozen=True)
class Sequences:
    """Token ids of the sequences that the tokenizer of an ensemble makes.

    Attributes:
        tokenizer: of the library.
        model: the served tokenizer's name.
        file: its `tokenizer.json`.
        layout: of the sequences, see `serving.models.layouts`.
        max_length: tokens of a sequence.
        options: of the layout.
        prompts: put before a text, by name.
        default: the name of the prompt of texts that name none; None: nothing is put before them.
    """

    tokenizer: PreTrainedTokenizerFast
    model: str
    file: Path
    layout: str
    max_length: int
    options: Mapping[str, str]
    prompts: Mapping[str, str]
    default: str | None

    def expected(self, row: Row) -> Ids:
        """See `export.raw.measure.Tokens`."""
        with quiet():
            if self.layout == "hypotheses":
                template = self.options["hypothesis_template"]
                sentences = [template.format(label) for label in row["candidate_labels"]]
                return [self._of(row["text"][0], s, truncation="only_first") for s in sentences]
            if self.layout == "windows":
                stride = min(int(self.options["stride"]), self.max_length // 2)
                return self._windows(row["question"][0], row["context"][0], stride)
            name = row["prompt_name"][0] if "prompt_name" in row else self.default
            prompt = "" if name is None else self.prompts[name]
            first, *second = (*row["query"], *row["text"]) if "query" in row else row["text"]
            return [self._of(prompt + first, *second, truncation=True)]

    def _of(self, *texts: str, **options: Any) -> list[int]:
        return list(self.tokenizer(*texts, max_length=self.max_length, **options)["input_ids"])

    def _windows(self, question: str, context: str, stride: int) -> Ids:
        made = self.tokenizer(
            question,
            context,
            truncation="only_second",
            max_length=self.max_length,
            stride=stride,
            return_overflowing_tokens=True,
        )
        return [list(ids) for ids in made["input_ids"]]

    def read_rows(self) -> Sequence[Row]:
        """See `export.raw.measure.Tokens`: none, all are answered."""
        return ()

    def served(self, caller: Caller, row: Row) -> Ids | None:
        """See `export.raw.measure.Tokens`."""
        try:
            return _unpadded(caller.infer(self.model, arrays_of(row)))
        except Refused:
            return None

    def cause(self, row: Row) -> str:
        """See `export.raw.measure.Tokens`."""
        texts = [text for name, values in row.items() if name != "prompt_name" for text in values]
        return cause(Tokenizer.from_file(str(self.file)), self.tokenizer, texts)


def _unpadded(made: Arrays) -> Ids:
    ids, mask = (made[name][0] for name in ("input_ids", "attention_mask"))
    if ids.ndim == 1:
        ids, mask = ids[None], mask[None]
    return [row[kept == 1].tolist() for row, kept in zip(ids, mask, strict=True)]


def cause(served: Tokenizer, library: PreTrainedTokenizerFast, texts: Sequence[str]) -> str:
    """Which of the settings of a tokenizer makes a difference, by the stage in which it shows.

    Args:
        served: the tokenizer that is served, of which a copy is tried.
    """
    ours, theirs = (Tokenizer.from_str(t.to_str()) for t in (served, library.backend_tokenizer))
    for tokenizer in (ours, theirs):
        tokenizer.no_truncation()
        tokenizer.no_padding()
    for text in texts:
        pair = [tokenizer.encode(text, add_special_tokens=False).ids for tokenizer in (ours, theirs)]
        if pair[0] != pair[1]:
            return "normalizer, pre_tokenizer or vocabulary (do_lower_case, strip_accents, add_prefix_space)"
        pair = [tokenizer.encode(text).ids for tokenizer in (ours, theirs)]
        if pair[0] != pair[1]:
            return "post_processor (add_bos_token, add_eos_token)"
    return "truncation (model_max_length, truncation_side), a prompt or a chat template"
