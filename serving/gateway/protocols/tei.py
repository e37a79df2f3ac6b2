"""`/embed`, `/similarity` and `/predict` of text-embeddings-inference, for its clients.

Source: the OpenAPI document of text-embeddings-inference. Its server has one model, so a request names none;
where several models of a task are served here, `model` in the body chooses.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import numpy as np

from clients import answers
from serving.gateway.bodies import ignored, read
from serving.gateway.errors import bad_request
from serving.gateway.http import Answer, Call, json_reply
from serving.gateway.protocols.embeddings import embed as vectors_of
from serving.gateway.protocols.embeddings import texts_of
from serving.gateway.rows import ask, batch_size
from serving.gateway.service import Gateway
from shoal.tasks import CLASSIFICATION, EMBEDDING


class EmbedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `/embed`."""

    inputs: str | list[str]
    prompt_name: str | None = None
    dimensions: int | None = None
    model: str | None = None


class Sentences(msgspec.Struct, frozen=True):
    """A text, and those that it is compared with."""

    source_sentence: str
    sentences: list[str]


class SimilarityParameters(msgspec.Struct, frozen=True):
    """How texts are read."""

    prompt_name: str | None = None


class SimilarityRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `/similarity`."""

    inputs: Sentences
    parameters: SimilarityParameters | None = None
    model: str | None = None


_ROW = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2}
Inputs = Annotated[
    Any,
    msgspec.Meta(
        description="A text, a pair of texts, or a list of lists of one or two texts.",
        extra_json_schema={
            "anyOf": [{"type": "string"}, _ROW, {"type": "array", "items": _ROW, "minItems": 1}]
        },
    ),
]


class PredictRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `/predict`."""

    inputs: Inputs
    model: str | None = None


async def embed(gateway: Gateway, call: Call) -> Answer:
    """Texts to vectors: a list of lists of numbers."""
    request, unknown = read(call.body, EmbedRequest)
    model = gateway.only(call, request.model, EMBEDDING)
    vectors, _ = await vectors_of(gateway, call, model, texts_of(request.inputs), request.prompt_name)
    if request.dimensions not in (None, vectors.shape[1]):
        raise bad_request(f"this model's vectors have {vectors.shape[1]} components", "dimensions")
    return json_reply(np.ascontiguousarray(vectors, np.float32), headers=ignored(unknown))


async def similarity(gateway: Gateway, call: Call) -> Answer:
    """The cosine of a text's vector with that of each of the others: a list of numbers."""
    request, unknown = read(call.body, SimilarityRequest)
    model = gateway.only(call, request.model, EMBEDDING)
    texts = texts_of(request.inputs.sentences)
    prompt = request.parameters.prompt_name if request.parameters is not None else None
    vectors, _ = await vectors_of(gateway, call, model, [request.inputs.source_sentence, *texts], prompt)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return json_reply(np.ascontiguousarray(unit[1:] @ unit[0], np.float32), headers=ignored(unknown))


async def predict(gateway: Gateway, call: Call) -> Answer:
    """Texts, or pairs of texts, to labels.

    `"a"` is a text and `["a", "b"]` a pair, and each gets one list; `[["a"], ["b", "c"]]` are several, and
    get a list of lists.
    """
    request, unknown = read(call.body, PredictRequest)
    model = gateway.only(call, request.model, CLASSIFICATION)
    given = request.inputs
    several = isinstance(given, list) and bool(given) and all(isinstance(item, list) for item in given)
    rows = given if several else [given]
    texts = [_row(row) for row in rows]
    # One request to Triton has texts or pairs, not both.
    mixed = len({isinstance(text, str) for text in texts}) > 1
    groups = [[text] for text in texts] if mixed else [texts]
    calls = [each for group in groups for each in answers.classify(group, batch_size(model))]
    found, _ = await ask(gateway, call, model, calls)
    told = [[{"score": label.score, "label": label.label} for label in labels] for labels in found]
    return json_reply(told if several else told[0], headers=ignored(unknown))


def _row(given: Any) -> str | tuple[str, str]:
    if isinstance(given, str):
        return given
    if isinstance(given, list) and len(given) in (1, 2) and all(isinstance(text, str) for text in given):
        return given[0] if len(given) == 1 else (given[0], given[1])
    raise bad_request("inputs must be a text, a pair of texts, or a list of lists of these", "inputs")
