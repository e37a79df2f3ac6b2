"""Rerankers: `/v1/rerank` and `/v2/rerank` of Jina and Cohere, and `/rerank` of text-embeddings-inference.

Sources: Cohere's API reference (v2/rerank), and the OpenAPI document of text-embeddings-inference.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from clients import answers
from serving.gateway.bodies import ignored, read
from serving.gateway.errors import bad_request
from serving.gateway.http import Answer, Call, json_reply
from serving.gateway.models import Model
from serving.gateway.rows import ask, batch_size
from serving.gateway.service import Gateway
from shoal.tasks import RANKING

MOST_DOCUMENTS = 1000


class RerankRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of Cohere and Jina. A document is a text, or an object with `text`."""

    model: str
    query: str
    documents: list[str | dict[str, Any]]
    top_n: Annotated[int, msgspec.Meta(ge=1)] | None = None
    return_documents: bool | None = False


class TeiRerankRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of text-embeddings-inference, which serves one model and so names none."""

    query: str
    texts: list[str]
    return_text: bool = False
    model: str | None = None


async def scores(
    gateway: Gateway, call: Call, model: Model, query: str, texts: list[str]
) -> tuple[list[float], int]:
    """How well each text answers a query, and the number of tokens that were read."""
    if not texts:
        raise bad_request("there is no document to rank", "documents")
    if len(texts) > MOST_DOCUMENTS:
        raise bad_request(f"{len(texts)} documents, at most {MOST_DOCUMENTS} are accepted", "documents")
    return await ask(gateway, call, model, answers.rank(query, texts, batch_size(model)))


async def rerank(gateway: Gateway, call: Call) -> Answer:
    """Answer a request of Cohere's or Jina's clients: the best documents first."""
    request, unknown = read(call.body, RerankRequest)
    model = gateway.model(call, request.model, RANKING)
    texts = [_text(document) for document in request.documents]
    values, tokens = await scores(gateway, call, model, request.query, texts)
    order = sorted(range(len(values)), key=lambda index: (-values[index], index))[: request.top_n]
    results = []
    for index in order:
        result: dict[str, Any] = {"index": index, "relevance_score": values[index]}
        if request.return_documents:
            result["document"] = {"text": texts[index]}
        results.append(result)
    told = {
        "id": call.id,
        "model": request.model,
        "results": results,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
    }
    return json_reply(told, headers=ignored(unknown))


def _text(document: str | dict[str, Any]) -> str:
    text = document if isinstance(document, str) else document.get("text")
    if not isinstance(text, str):
        raise bad_request("a document must be a text, or an object with text", "documents")
    return text


async def tei_rerank(gateway: Gateway, call: Call) -> Answer:
    """Answer a request of text-embeddings-inference: `[{index, score}]`, the best first."""
    request, unknown = read(call.body, TeiRerankRequest)
    model = gateway.only(call, request.model, RANKING)
    values, _ = await scores(gateway, call, model, request.query, request.texts)
    order = sorted(range(len(values)), key=lambda index: (-values[index], index))
    told = [
        {"index": index, "score": values[index]}
        | ({"text": request.texts[index]} if request.return_text else {})
        for index in order
    ]
    return json_reply(told, headers=ignored(unknown))
