"""What OpenAI's API has no name for: `/v1/tasks/{task}` for every task of a repository, and `/v1/classify`.

A body names the model and has the inputs of its task; the answer has one entry of `data` for each row.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import msgspec

from clients import answers
from serving.gateway.answers import (
    CandidatesRow,
    EntitiesRow,
    FoundRow,
    GeneratedRow,
    LabelsRow,
    PredictionRow,
    Row,
)
from serving.gateway.bodies import ignored, read
from serving.gateway.errors import bad_request
from serving.gateway.http import Answer, Call, json_reply
from serving.gateway.models import Model
from serving.gateway.rows import ask, batch_size
from serving.gateway.service import Gateway
from shoal import tasks

MOST_ROWS = 1000
# What a config and the wire call a datatype otherwise.
_WIRE = {"STRING": "BYTES"}
Texts = str | list[str]
Rows = Annotated[list[Any], msgspec.Meta(min_length=1, max_length=MOST_ROWS)]


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """What every body has."""

    model: str


class TextBody(Named, frozen=True, kw_only=True):
    """A text or several."""

    input: Texts


class ClassifyBody(Named, frozen=True, kw_only=True):
    """A text or several, or pairs of texts: lists of two."""

    input: str | Annotated[list[str | list[str]], msgspec.Meta(min_length=1, max_length=MOST_ROWS)]


class CandidatesBody(TextBody, frozen=True, kw_only=True):
    """Texts, and the labels that they may have."""

    candidate_labels: list[str]


class QuestionBody(Named, frozen=True, kw_only=True):
    """A question, and the text that it is about."""

    question: str
    context: str


class ImageBody(Named, frozen=True, kw_only=True):
    """The content of PNG or JPEG files in base64."""

    image: str | list[str]


class RewriteBody(TextBody, frozen=True, kw_only=True):
    """Texts that are translated, summarized or rewritten."""

    max_new_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None


class TableBody(Named, frozen=True, kw_only=True):
    """Rows of a table: objects of columns, or lists of numbers where the model's columns have no names."""

    rows: Rows


Calls = list[answers.Call[Any]]


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        summary: what it does, a line.
        body: of a request.
        row: of an answer.
        calls: what Triton is asked, of a body and its model.
        plain: a value of the answer as JSON's types.
    """

    name: str
    summary: str
    body: type[Named]
    row: type[Row]
    calls: Callable[[Any, Model], Calls]
    plain: Callable[[Any], Any]


def texts_of(given: Any) -> list[Any]:
    """A text or several, as a list.

    Raises:
        ApiError: there is none, or too many.
    """
    texts = [given] if isinstance(given, str) else list(given)
    if not texts:
        raise bad_request("input is empty", "input")
    if len(texts) > MOST_ROWS:
        raise bad_request(f"input has {len(texts)} texts, at most {MOST_ROWS} are accepted", "input")
    return texts


def _classify(body: ClassifyBody, model: Model) -> Calls:
    texts = [text if isinstance(text, str) else tuple(text) for text in texts_of(body.input)]
    pairs = [text for text in texts if not isinstance(text, str)]
    if pairs and (len(pairs) < len(texts) or any(len(pair) != 2 for pair in pairs)):
        raise bad_request("input must be texts, or pairs of texts, not both", "input")
    return list(answers.classify(texts, batch_size(model)))


def _images(body: ImageBody, model: Model) -> Calls:
    files = []
    for content in texts_of(body.image):
        _, _, held = content.rpartition("base64,") if content.startswith("data:") else ("", "", content)
        try:
            files.append(base64.b64decode(held, validate=True))
        except (binascii.Error, ValueError):
            raise bad_request("image must be a file's content in base64", "image") from None
    return list(answers.images(files, batch_size(model)))


def _rows(body: TableBody, model: Model) -> Calls:
    kinds = {name: _WIRE.get(tensor.dtype, tensor.dtype) for name, tensor in model.inputs.items()}
    size = model.max_batch_size or len(body.rows)
    make = answers.predict if "prediction" in model.outputs else answers.classify_rows
    return list(make(_table(body.rows), kinds, size))


def _table(rows: list[Any]) -> Any:
    """Rows as the client takes a table: columns by name, or a matrix.

    Raises:
        ApiError: some rows are objects and some are not, or they have other columns than the first.
    """
    if not any(isinstance(row, dict) for row in rows):
        return rows
    first = rows[0]
    for index, row in enumerate(rows[1:], 1):
        if not isinstance(row, dict) or not isinstance(first, dict) or row.keys() != first.keys():
            raise bad_request(f"rows[{index}] has other columns than rows[0]", "rows")
    return {name: [row[name] for row in rows] for name in first}


def _labels(labels: list[answers.Label]) -> Any:
    return {"labels": [asdict(label) for label in labels]}


TASKS = {
    task.name: task
    for task in (
        Task(
            tasks.CLASSIFICATION,
            "Labels of texts, or of pairs of texts.",
            ClassifyBody,
            LabelsRow,
            _classify,
            _labels,
        ),
        Task(
            tasks.ZERO_SHOT,
            "Which of some labels fit texts.",
            CandidatesBody,
            CandidatesRow,
            lambda body, model: list(answers.zero_shot(texts_of(body.input), body.candidate_labels, 8)),
            _labels,
        ),
        Task(
            tasks.ENTITIES,
            "Labelled parts of texts, such as names.",
            TextBody,
            EntitiesRow,
            lambda body, model: list(answers.entities(texts_of(body.input), batch_size(model))),
            lambda entities: {"entities": [asdict(entity) for entity in entities]},
        ),
        Task(
            tasks.QUESTIONS,
            "Where a text answers a question.",
            QuestionBody,
            FoundRow,
            lambda body, model: [answers.answer(body.question, body.context)],
            asdict,
        ),
        Task(
            tasks.MASKS,
            "What fills the gap in texts.",
            TextBody,
            LabelsRow,
            lambda body, model: list(answers.classify(texts_of(body.input), batch_size(model))),
            _labels,
        ),
        Task(tasks.IMAGES, "Labels of pictures.", ImageBody, LabelsRow, _images, _labels),
        Task(
            tasks.REWRITING,
            "Translate, summarize or rewrite texts.",
            RewriteBody,
            GeneratedRow,
            lambda body, model: list(
                answers.text_to_text(texts_of(body.input), body.max_new_tokens, batch_size(model))
            ),
            asdict,
        ),
        Task("tabular-classification", "Labels of rows of a table.", TableBody, LabelsRow, _rows, _labels),
        Task(
            "tabular-regression",
            "Numbers that are predicted for rows of a table.",
            TableBody,
            PredictionRow,
            _rows,
            lambda values: {"prediction": values.tolist()},
        ),
    )
}


async def run(gateway: Gateway, call: Call, task: Task) -> Answer:
    """Answer a request of a task."""
    request, unknown = read(call.body, task.body)
    model = gateway.model(call, request.model, task.name)
    values, tokens = await ask(gateway, call, model, task.calls(request, model))
    data = [{"index": index, **task.plain(value)} for index, value in enumerate(values)]
    told: dict[str, Any] = {"object": "list", "model": request.model, "task": task.name, "data": data}
    if tokens:
        told["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_reply(told, headers=ignored(unknown))


async def unknown(gateway: Gateway, call: Call) -> Answer:
    """Refuse a task that there is not.

    Raises:
        ApiError: always; it names the tasks.
    """
    name = call.path["task"]
    raise bad_request(f"there is no task {name[:100]}; there are {', '.join(sorted(TASKS))}", "task")


async def classify(gateway: Gateway, call: Call) -> Answer:
    """Answer `/v1/classify`."""
    return await run(gateway, call, TASKS[tasks.CLASSIFICATION])
