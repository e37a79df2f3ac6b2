"""Originals in transformers' pipelines, each called on one input at a time, longer ones truncated."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from export.originals.original import Original, Row, quiet


def _options() -> dict[str, Any]:
    """New each time: `pipeline` writes into what it is given.

    transformers 5.15 cannot be told `local_files_only` in any way. It needs no telling: it is given a folder.
    """
    local = {"local_files_only": True} if transformers.__version__.startswith("4.") else {}
    return {
        "device": "cpu",
        "trust_remote_code": False,
        "dtype": torch.float32,
        "model_kwargs": {"use_safetensors": True, **local},
    }


class _Pipeline(Original):
    """One of transformers' pipelines over a folder.

    Args:
        longest: tokens of an input at most, where a user wants fewer than the tokenizer's `model_max_length`.

    Raises:
        Exception: whatever transformers raises when it loads the folder.
    """

    task: str

    def __init__(self, folder: Path, longest: int | None = None, **options: Any) -> None:
        with quiet():
            self._ask: Any = transformers.pipeline(self.task, model=str(folder), **_options(), **options)
        if longest is not None:
            self._ask.tokenizer.model_max_length = longest

    @property
    def call(self) -> str:  # type: ignore[override]
        return f'pipeline("{self.task}")'


class Classifier(_Pipeline):
    """A text or a pair to the score of every label."""

    task = "text-classification"

    def answer(self, row: Row) -> dict[str, float]:
        text, *second = row["text"]
        given = {"text": text, "text_pair": second[0]} if second else text
        return _scores(self._ask(given, top_k=None, truncation=True))


class ZeroShot(_Pipeline):
    """A text to its score for each candidate label: among all, and by itself."""

    task = "zero-shot-classification"

    def answer(self, row: Row) -> dict[str, tuple[float, float]]:
        text, labels = row["text"][0], list(row["candidate_labels"])
        among, alone = (self._ask(text, labels, multi_label=several) for several in (False, True))
        scores = [dict(zip(made["labels"], made["scores"], strict=True)) for made in (among, alone)]
        return {label: (scores[0][label], scores[1][label]) for label in among["labels"]}


class Entities(_Pipeline):
    """A text to its entities: label, begin, end (characters) and score."""

    task = "token-classification"

    def __init__(self, folder: Path, longest: int | None = None) -> None:
        super().__init__(folder, longest, aggregation_strategy="simple")

    def answer(self, row: Row) -> list[tuple[str, int, int, float]]:
        return [
            (entity["entity_group"], entity["start"], entity["end"], float(entity["score"]))
            for entity in self._ask(row["text"][0])
        ]


class Answers(_Pipeline):
    """A question and a context to an answer with its place and score."""

    task = "question-answering"

    def answer(self, row: Row) -> dict[str, Any]:
        found = self._ask(question=row["question"][0], context=row["context"][0])
        return {key: found[key] for key in ("answer", "start", "end", "score")}


class Masked(_Pipeline):
    """A text with a mask to the likeliest tokens in its place."""

    task = "fill-mask"

    def __init__(self, folder: Path, longest: int | None = None, *, top_k: int) -> None:
        super().__init__(folder, longest)
        self._top_k = top_k

    def answer(self, row: Row) -> list[tuple[str, float]]:
        found = self._ask(row["text"][0], top_k=self._top_k, tokenizer_kwargs={"truncation": True})
        return [(entry["token_str"], float(entry["score"])) for entry in found]


class Pictures(_Pipeline):
    """The content of a picture's file to the scores of its labels."""

    task = "image-classification"

    def __init__(self, folder: Path, longest: int | None = None) -> None:
        super().__init__(folder, use_fast=False)  # the processor that Pillow does, as without torchvision

    def answer(self, row: Row) -> dict[str, float]:
        picture = Image.open(io.BytesIO(row["image"][0]))
        return _scores(self._ask(picture, top_k=1_000_000))


BY_TASK: dict[str, type[_Pipeline]] = {
    kind.task: kind for kind in (Classifier, ZeroShot, Entities, Answers, Masked, Pictures)
}


def _scores(found: Any) -> dict[str, float]:
    return {entry["label"]: float(entry["score"]) for entry in found}
