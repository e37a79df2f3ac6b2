"""Which raw inputs a task is tried with: by task, as a user would send them."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from export.originals.original import Row
from export.raw.pictures import hard_pictures
from export.raw.texts import hard_texts, long_text, pairs, too_long_text
from serving.models.images import MAX_RESIZED_PIXELS, BadImage, Processor
from shoal import tasks

_LABELS = (("sport",), ("politics", "fish", "a very long label — on 東京"), ("a", "B", "ç", "9", "?"))
_QUESTIONS = ("What is it?", "Who says so, and why?", "où est-ce?", "東京は何処ですか", "How many?")


@dataclass(frozen=True)
class Limits:
    """What a model takes.

    Attributes:
        max_length: tokens of an input, longer ones are truncated.
        max_text_bytes: bytes of a text, longer ones are refused.
        prompts: names of the prompts that a text can have.
        mask: the text that stands for a masked word; "": there is none.
        processor: of pictures; None: it takes none.
    """

    max_length: int = 0
    max_text_bytes: int = 1 << 15
    prompts: Sequence[str] = ()
    mask: str = ""
    processor: Processor | None = None


def cases_of(task: str, limits: Limits) -> list[Row]:
    """The raw inputs of a task, the same ones each time."""
    return [row for row in _CASES[task](limits) if _fits(row, limits)]


def _fits(row: Row, limits: Limits) -> bool:
    texts = (text for name in row for text in row[name] if isinstance(text, str))
    return all(len(text.encode()) <= limits.max_text_bytes for text in texts)


def _long(limits: Limits) -> str:
    return too_long_text(limits.max_length, limits.max_text_bytes)


def _texts(limits: Limits) -> list[Row]:
    return [{"text": [text]} for text in (*hard_texts(), _long(limits))]


def _embedding(limits: Limits) -> list[Row]:
    some = hard_texts()[::12]
    prompted = [{"text": [text], "prompt_name": [name]} for name in limits.prompts for text in some]
    return [*_texts(limits), *prompted]


def _classification(limits: Limits) -> list[Row]:
    return [*_texts(limits), *({"text": list(pair)} for pair in _pairs(limits))]


def _pairs(limits: Limits) -> list[tuple[str, str]]:
    long = _long(limits)
    return [*pairs(), ("short", long), (long, "short"), (long, long)]


def _ranking(limits: Limits) -> list[Row]:
    prompted: list[Row] = [
        {"query": ["fish"], "text": ["Fish swim."], "prompt_name": [name]} for name in limits.prompts
    ]
    return [*({"query": [query], "text": [text]} for query, text in _pairs(limits)), *prompted]


def _zero_shot(limits: Limits) -> list[Row]:
    texts = (*hard_texts()[::5], _long(limits))
    return [
        {"text": [text], "candidate_labels": list(_LABELS[index % len(_LABELS)])}
        for index, text in enumerate(texts)
    ]


def _answers(limits: Limits) -> list[Row]:
    contexts = (*hard_texts()[::4], _long(limits), long_text(900), long_text(60))
    return [
        {"question": [_QUESTIONS[index % len(_QUESTIONS)]], "context": [context]}
        for index, context in enumerate(contexts)
    ]


def _masked(limits: Limits) -> list[Row]:
    """A mask in the place of some word, of the first and of the last."""
    chance = random.Random(14)  # noqa: S311 - the same places each time
    rows: list[Row] = []
    for text in hard_texts():
        words = text.split(" ")
        words[chance.choice((0, len(words) - 1, chance.randrange(len(words))))] = limits.mask
        made = " ".join(words)
        if made.count(limits.mask) == 1 and len(words) < limits.max_length // 8:
            rows.append({"text": [made]})
    return rows


def _pictures(limits: Limits) -> list[Row]:
    """All but those that would be refused, as a strip of 1 x 3,000 pixels is where its shorter side grows."""
    return [{"image": [content]} for content in hard_pictures() if _is_taken(content, limits)]


def _is_taken(content: bytes, limits: Limits) -> bool:
    if limits.processor is None:
        return True
    try:
        size = Image.open(io.BytesIO(content)).size
        limits.processor.check_size(*size, "", max_pixels=MAX_RESIZED_PIXELS)
    except BadImage:
        return False
    return True


_CASES: dict[str, Callable[[Limits], list[Row]]] = {
    tasks.EMBEDDING: _embedding,
    tasks.CLASSIFICATION: _classification,
    tasks.RANKING: _ranking,
    "zero-shot-classification": _zero_shot,
    "token-classification": _texts,
    "question-answering": _answers,
    "fill-mask": _masked,
    "image-classification": _pictures,
}
