"""What the tasks give: small frozen values, and how they are read from a response. No transport.

A `Call` is one request of a task: its arrays, and the way from the response's arrays to values. The clients
share these; each sends them in its own way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from clients.errors import BadInput
from clients.tables import rows_of
from clients.vocabulary import Arrays, Table, batches, check_batch_size, listed, text_array
from shoal import tasks
from shoal.dialect import GENERATED_TEXT, MAX_NEW_TOKENS, OUTPUT_TOKENS

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Label:
    """A class and its probability, or for a regression its value."""

    label: str
    score: float


@dataclass(frozen=True)
class ZeroShotLabel(Label):
    """A candidate label: `score` among all candidates, `independent` of it by itself."""

    independent: float


@dataclass(frozen=True)
class Entity(Label):
    """A labelled part of a text: `word`, from character `start` to `end`."""

    word: str
    start: int
    end: int


@dataclass(frozen=True)
class Found:
    """An answer in a context, from character `start` to `end`.

    Attributes:
        score: probability of this answer.
        no_answer: probability that the context holds none.
    """

    answer: str
    score: float
    start: int
    end: int
    no_answer: float


@dataclass(frozen=True)
class Generated:
    """A text that was made of another: `output_tokens` long, the end included."""

    text: str
    output_tokens: int


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """One request of a task: inputs by name, and what its response's arrays mean, a value a row."""

    inputs: Arrays
    read: Callable[[Mapping[str, NDArray]], list[Answer]]


def labels_of(inputs: Arrays) -> Call[list[Label]]:
    """Rows to labels, the likeliest first."""
    return Call(inputs, lambda arrays: _rows(arrays, Label, tasks.CLASSIFICATION))


def classify(texts: Sequence[str | tuple[str, str]], batch_size: int) -> list[Call[list[Label]]]:
    """Texts, or pairs of texts, to labels."""
    pairs = not isinstance(listed(texts, "texts")[0], str)
    if pairs:
        return [
            labels_of({"text": np.concatenate([text_array(side)["text"] for side in sides], axis=1)})
            for batch in _parts(texts, batch_size)
            for sides in [list(zip(*batch, strict=True))]
        ]
    return [labels_of(text_array(batch)) for batch in batches(texts, batch_size)]  # type: ignore[arg-type]


def images(files: Sequence[bytes], batch_size: int) -> list[Call[list[Label]]]:
    """The contents of PNG or JPEG files to labels."""
    for index, content in enumerate(listed(files, "files")):
        if not isinstance(content, bytes):
            raise BadInput(f"image {index} is {type(content).__name__}, not bytes", hint="the file's content")
    return [
        labels_of({"image": np.array([[content] for content in batch], dtype=object)})
        for batch in _parts(files, batch_size)
    ]


def entities(texts: Sequence[str], batch_size: int) -> list[Call[list[Entity]]]:
    """Texts to their entities."""

    def read(arrays: Mapping[str, NDArray]) -> list[list[Entity]]:
        return [[e for e in row if e.start >= 0] for row in _rows(arrays, Entity, tasks.ENTITIES)]

    return [Call(text_array(batch), read) for batch in batches(texts, batch_size)]


def answer(question: str, context: str) -> Call[Found]:
    """A question to what answers it in a context."""
    inputs = {
        "question": text_array([question])["text"],
        "context": text_array([context])["text"],
    }
    return Call(inputs, lambda arrays: [row[0] for row in _rows(arrays, Found, tasks.QUESTIONS)])


def zero_shot(
    texts: Sequence[str], candidates: Sequence[str], batch_size: int
) -> list[Call[list[ZeroShotLabel]]]:
    """Texts to candidate labels, the likeliest first."""
    row = text_array(candidates)["text"].reshape(1, -1)
    return [
        Call(
            text_array(batch) | {"candidate_labels": np.repeat(row, len(batch), axis=0)},
            lambda arrays: _rows(arrays, ZeroShotLabel, tasks.ZERO_SHOT),
        )
        for batch in batches(texts, batch_size)
    ]


def classify_rows(table: Table, kinds: Mapping[str, str], batch_size: int) -> list[Call[list[Label]]]:
    """Rows of a table to labels.

    Args:
        kinds: input name -> datatype of the model.
    """
    return [labels_of(part) for part in _row_parts(table, kinds, batch_size)]


def predict(table: Table, kinds: Mapping[str, str], batch_size: int) -> list[Call[NDArray[np.float32]]]:
    """Rows of a table to numbers, [outputs] each; see `classify_rows`."""
    return [
        Call(part, lambda arrays: list(_output(arrays, "prediction")))
        for part in _row_parts(table, kinds, batch_size)
    ]


def kinds_of(metadata: Mapping[str, Any]) -> dict[str, str]:
    """A model's inputs with their datatypes, of its metadata."""
    return {entry["name"]: entry["datatype"] for entry in metadata["inputs"]}


def _row_parts(table: Table, kinds: Mapping[str, str], size: int) -> list[Arrays]:
    inputs = rows_of(table, kinds)
    check_batch_size(size)
    count = len(next(iter(inputs.values())))
    starts = range(0, count, size)
    return [{name: array[start : start + size] for name, array in inputs.items()} for start in starts]


def rank(query: str, texts: Sequence[str], batch_size: int) -> list[Call[float]]:
    """How well each text answers a query."""
    asked = text_array([query])["text"]
    return [
        Call(
            text_array(batch) | {"query": np.repeat(asked, len(batch), axis=0)},
            lambda arrays: [float(score) for score in _output(arrays, "score").reshape(-1)],
        )
        for batch in batches(texts, batch_size)
    ]


def text_to_text(texts: Sequence[str], max_new_tokens: int | None, batch_size: int) -> list[Call[Generated]]:
    """Texts to what a model makes of each."""

    def read(arrays: Mapping[str, NDArray]) -> list[Generated]:
        made, counts = (_output(arrays, name).reshape(-1).tolist() for name in names)
        return [Generated(text.decode(), count) for text, count in zip(made, counts, strict=True)]

    names = (GENERATED_TEXT, OUTPUT_TOKENS)
    calls = []
    for batch in batches(texts, batch_size):
        inputs = text_array(batch)
        if max_new_tokens is not None:
            inputs[MAX_NEW_TOKENS] = np.full((len(batch), 1), max_new_tokens, np.int32)
        calls.append(Call(inputs, read))
    return calls


def _rows(arrays: Mapping[str, NDArray], kind: type, task: str) -> list[list[Any]]:
    """Arrays [rows, entries] to values, by row; its fields are the task's outputs, in their order."""
    columns = [_output(arrays, name).tolist() for name in tasks.outputs_of(task)]
    return [
        [kind(*map(_text, entry)) for entry in zip(*row, strict=True)] for row in zip(*columns, strict=True)
    ]


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _output(arrays: Mapping[str, NDArray], name: str) -> NDArray:
    if name not in arrays:
        raise BadInput(f"the model has no output {name}, it has {', '.join(arrays)}")
    return arrays[name]


def _parts(rows: Sequence[Any], size: int) -> list[Sequence[Any]]:
    check_batch_size(size)
    return [rows[start : start + size] for start in range(0, len(rows), size)]
