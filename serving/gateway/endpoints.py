"""The one table of what the gateway answers: each path is closed unless it says otherwise, and says what its
body and its answer are."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from importlib.metadata import version
from typing import Any

from serving.gateway import answers, page
from serving.gateway.cache import Keeps
from serving.gateway.errors import Shape, cohere_shape, openai_shape, tei_shape
from serving.gateway.http import Answer, Call, Reply, json_reply
from serving.gateway.openapi import Operation, document
from serving.gateway.protocols import (
    chat,
    completions,
    embeddings,
    models,
    ranking,
    responses,
    tasks,
    tei,
    tokens,
)
from serving.gateway.service import Gateway

Handler = Callable[[Gateway, Call], Coroutine[Any, Any, Answer]]
GET, POST = ("GET",), ("POST",)


@dataclass(frozen=True)
class Endpoint:
    """One path.

    Attributes:
        methods: of HTTP.
        handler: answers a request.
        operation: what the OpenAPI document says of it; None: it is no part of the API, but a file of the
            page, or a path that always refuses.
        shape: of errors.
        public: whether it takes no key.
        keeps: which answers a response cache keeps.
    """

    path: str
    methods: tuple[str, ...]
    handler: Handler
    operation: Operation | None
    shape: Shape = openai_shape
    public: bool = False
    keeps: Keeps = "never"


async def _health(gateway: Gateway, call: Call) -> Answer:
    problem = gateway.replicas.problem
    return json_reply({"status": problem or "serving"}, status=503 if problem else 200)


async def _openapi(gateway: Gateway, call: Call) -> Answer:
    return page.unless_known(_document(), call)


@cache
def _document() -> Reply:
    made = json_reply(document(ENDPOINTS, version("shoal")))
    tag = f'"{sha256(made.content).hexdigest()[:32]}"'
    return Reply(made.content, headers={"etag": tag, "cache-control": "no-cache"})


ENDPOINTS = (
    Endpoint(
        "/health",
        GET,
        _health,
        Operation("Whether the gateway can serve.", answers.Health, also=(503,)),
        public=True,
    ),
    Endpoint("/openapi.json", GET, _openapi, Operation("This document.", dict[str, Any]), public=True),
    Endpoint(
        "/v1/models",
        GET,
        models.models,
        Operation("List the models that the key may call.", answers.ModelList),
    ),
    Endpoint("/v1/models/{name:path}", GET, models.model, Operation("Describe a model.", answers.ModelEntry)),
    Endpoint(
        "/v1/chat/completions",
        POST,
        chat.chat,
        Operation(
            "Answer a conversation, whole or as a stream.",
            answers.ChatCompletion,
            chat.ChatRequest,
            answers.ChatChunk,
        ),
        keeps="certain",
    ),
    Endpoint(
        "/v1/completions",
        POST,
        completions.completions,
        Operation(
            "Go on with a text, whole or as a stream.",
            answers.TextCompletion,
            completions.CompletionRequest,
            answers.TextCompletion,
        ),
        keeps="certain",
    ),
    Endpoint(
        "/v1/responses",
        POST,
        responses.responses,
        Operation(
            "Answer a conversation in items, whole or as a stream; nothing is stored.",
            answers.ModelResponse,
            responses.ResponsesRequest,
            answers.ResponseEvent,
        ),
    ),
    Endpoint(
        "/v1/embeddings",
        POST,
        embeddings.embeddings,
        Operation("Texts to vectors.", answers.VectorList, embeddings.EmbeddingRequest),
        keeps="always",
    ),
    *(
        Endpoint(
            path,
            POST,
            ranking.rerank,
            Operation(
                "Rank documents by a query, for clients of Cohere and Jina.",
                answers.Ranking,
                ranking.RerankRequest,
            ),
            cohere_shape,
            keeps="always",
        )
        for path in ("/v1/rerank", "/v2/rerank")
    ),
    Endpoint(
        "/rerank",
        POST,
        ranking.tei_rerank,
        Operation(
            "Rank texts by a query, for clients of text-embeddings-inference.",
            list[answers.TeiRanked],
            ranking.TeiRerankRequest,
        ),
        tei_shape,
        keeps="always",
    ),
    Endpoint(
        "/v1/classify",
        POST,
        tasks.classify,
        Operation(
            "Labels of texts, or of pairs of texts.", answers.rows(answers.LabelsRow), tasks.ClassifyBody
        ),
        keeps="always",
    ),
    Endpoint(
        "/embed",
        POST,
        tei.embed,
        Operation(
            "Texts to vectors, for clients of text-embeddings-inference.",
            list[list[float]],
            tei.EmbedRequest,
        ),
        tei_shape,
        keeps="always",
    ),
    Endpoint(
        "/similarity",
        POST,
        tei.similarity,
        Operation(
            "Compare a text with others, for clients of text-embeddings-inference.",
            list[float],
            tei.SimilarityRequest,
        ),
        tei_shape,
        keeps="always",
    ),
    Endpoint(
        "/predict",
        POST,
        tei.predict,
        Operation(
            "Labels of texts, for clients of text-embeddings-inference.",
            (list[answers.TeiLabel], list[list[answers.TeiLabel]]),
            tei.PredictRequest,
        ),
        tei_shape,
        keeps="always",
    ),
    Endpoint(
        "/tokenize",
        POST,
        tokens.tokenize,
        Operation(
            "Texts to tokens, for clients of vLLM (`prompt`) and of text-embeddings-inference (`inputs`).",
            (tokens.Tokenized, list[list[tokens.Token]]),
            (tokens.TokenizeRequest, tokens.TeiTokenizeRequest),
            shapes=(tei_shape,),
        ),
    ),
    Endpoint(
        "/detokenize",
        POST,
        tokens.detokenize,
        Operation("Tokens to their text.", tokens.Detokenized, tokens.DetokenizeRequest),
    ),
    Endpoint(
        "/decode",
        POST,
        tokens.decode,
        Operation(
            "Tokens to their texts, for clients of text-embeddings-inference.",
            list[str],
            tokens.DecodeRequest,
        ),
        tei_shape,
    ),
    *(
        Endpoint(
            f"/v1/tasks/{task.name}",
            POST,
            partial(tasks.run, task=task),
            Operation(task.summary, answers.rows(task.row), task.body),
            keeps="always",
        )
        for task in tasks.TASKS.values()
    ),
    Endpoint("/v1/tasks/{task}", POST, tasks.unknown, None),
    *(
        Endpoint(path, GET, partial(page.page, name=name), None, public=True)
        for path, name in page.FILES.items()
    ),
)
