"""What the endpoints answer, as types. The OpenAPI document is made from them, and the tests hold real
answers against them; handlers write plain values, which costs less time.

A field with `UNSET` may be missing. The docstring of a type is its description in the document.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from clients import answers
from serving.catalogue import Tensor

Finish = Literal["stop", "length", "tool_calls"]
Base64 = Annotated[str, msgspec.Meta(description="Little-endian float32 in base64.")]


class Answer(msgspec.Struct, frozen=True):
    """What all of these have in common: they are never changed."""


class Problem(Answer, frozen=True):
    """What went wrong.

    `param` is the field of the body that is wrong, `code` is for programs.
    """

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(Answer, frozen=True):
    """An error as OpenAI's clients read it."""

    error: Problem


class CohereError(Answer, frozen=True):
    """An error as Cohere's client reads it."""

    message: str


class TeiError(Answer, frozen=True):
    """An error as clients of text-embeddings-inference read it."""

    error: str
    error_type: Literal["Validation", "Overloaded", "Backend"]


class Health(Answer, frozen=True):
    """`serving`, or why the gateway cannot serve."""

    status: str


class About(Answer, frozen=True):
    """What Shoal knows of a model: what it takes and gives, and how its version was proven."""

    task: str
    version: int
    precision: str
    fingerprint: str
    source: str
    labels: list[str]
    prompts: dict[str, str]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    evidence: dict[str, str | int | float]


class ModelEntry(Answer, frozen=True):
    """A model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None
    name: str
    shoal: About


class ModelList(Answer, frozen=True):
    """The models that the key may call."""

    object: Literal["list"]
    data: list[ModelEntry]


class CachedTokens(Answer, frozen=True):
    """Tokens of the prompt that were computed before."""

    cached_tokens: int


class GenerationUsage(Answer, frozen=True):
    """Tokens of a request for text."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class InputUsage(Answer, frozen=True):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class TokenLogprob(Answer, frozen=True):
    """A token and its log probability; `bytes` are its own, which may be a part of a character."""

    token: str
    logprob: float | None
    bytes: list[int]


class ChosenLogprob(TokenLogprob, frozen=True):
    """A token of the answer, and the likeliest in its place."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Answer, frozen=True):
    """Log probabilities of an answer's tokens."""

    content: list[ChosenLogprob]
    refusal: None


class CalledFunction(Answer, frozen=True):
    """A function, and its arguments as JSON in a text."""

    name: str
    arguments: str


class ToolCall(Answer, frozen=True):
    """A call of a tool that the model asks for."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Answer, frozen=True):
    """What the model says; `reasoning_content` is what it thought before."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(Answer, frozen=True):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(Answer, frozen=True):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: GenerationUsage


class FunctionDelta(Answer, frozen=True, kw_only=True):
    """A part of a call's function."""

    name: str | UnsetType = UNSET
    arguments: str


class ToolCallDelta(Answer, frozen=True, kw_only=True):
    """A part of a call: the first has its id and name, the others more of its arguments."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionDelta


class Delta(Answer, frozen=True):
    """What is new of a message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChunkChoice(Answer, frozen=True):
    """What is new of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatChunk(Answer, frozen=True):
    """One event of a stream. `data: [DONE]` ends it; an event with `error` says that it has failed."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: GenerationUsage | UnsetType = UNSET


class TextLogprobs(Answer, frozen=True):
    """Log probabilities by token; a list each, of the same length."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None] | None]
    text_offset: list[int]


class TextChoice(Answer, frozen=True):
    """One answer, or in a stream what is new of it; then `finish_reason` is null until its end."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish | None


class TextCompletion(Answer, frozen=True):
    """How texts go on. Events of a stream have the same form, the last one `usage` if asked for."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: GenerationUsage | UnsetType = UNSET


class ModelResponse(Answer, frozen=True):
    """A response; `output` holds items of the types `message`, `reasoning` and `function_call`."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None


class ResponseEvent(Answer, frozen=True):
    """One event of a stream; further fields are those of its type."""

    type: str
    sequence_number: int


class Vector(Answer, frozen=True):
    """The vector of one text."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | Base64


class VectorList(Answer, frozen=True):
    """A vector for each text, in their order."""

    object: Literal["list"]
    data: list[Vector]
    model: str
    usage: InputUsage


class RankedText(Answer, frozen=True):
    """The text of a document."""

    text: str


class Ranked(Answer, frozen=True):
    """A document by its place in the request; `document` is there if `return_documents` asks for it."""

    index: int
    relevance_score: float
    document: RankedText | UnsetType = UNSET


class Ranking(Answer, frozen=True):
    """Documents, the best first."""

    id: str
    model: str
    results: list[Ranked]
    usage: InputUsage
    meta: dict[str, Any]


class TeiRanked(Answer, frozen=True):
    """A text by its place in the request; `text` is there if `return_text` asks for it."""

    index: int
    score: float
    text: str | UnsetType = UNSET


class TeiLabel(Answer, frozen=True):
    """A label and its score."""

    score: float
    label: str


class Row(Answer, frozen=True):
    """What every row of an answer has: its place in the request."""

    index: int


class LabelsRow(Row, frozen=True):
    """Labels of a row, the likeliest first."""

    labels: list[answers.Label]


class CandidatesRow(Row, frozen=True):
    """The labels that were given, the likeliest first."""

    labels: list[answers.ZeroShotLabel]


class EntitiesRow(Row, frozen=True):
    """Labelled parts of a text, in their order."""

    entities: list[answers.Entity]


class FoundRow(Row, frozen=True):
    """An answer in a context, from character `start` to `end`."""

    answer: str
    score: float
    start: int
    end: int
    no_answer: float


class GeneratedRow(Row, frozen=True):
    """A text that was made of another, and its number of tokens."""

    text: str
    output_tokens: int


class PredictionRow(Row, frozen=True):
    """The numbers that are predicted for a row."""

    prediction: list[float]


@cache
def rows(kind: type[Row]) -> Any:
    """The answer of a task that has such rows: `data`, one for each row of the request, and `usage` where the
    model counts tokens."""
    return msgspec.defstruct(
        kind.__name__.removesuffix("Row") + "List",
        [
            ("object", Literal["list"]),
            ("model", str),
            ("task", str),
            ("data", list[kind]),  # type: ignore[valid-type]
            ("usage", InputUsage | UnsetType, UNSET),
        ],
        namespace={"__doc__": "One entry for each row."},
        module=__name__,
        frozen=True,
        kw_only=True,
    )
