"""OpenAI's `/v1/embeddings`.

Source: https://platform.openai.com/docs/api-reference/embeddings. Its SDK asks for base64 unless it is told
otherwise: little-endian float32.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from serving.gateway.bodies import are_token_ids, ignored, read
from serving.gateway.cl100k import Cl100k
from serving.gateway.errors import ApiError, bad_request
from serving.gateway.http import Answer, Call, json_reply
from serving.gateway.models import Model
from serving.gateway.rows import batch_size, column, gathered, tokens_in
from serving.gateway.service import Gateway
from shoal import dialect
from shoal.tasks import EMBEDDING

MOST_TEXTS = 2048


Input = Annotated[
    Any,
    msgspec.Meta(
        description="A text or several; token ids, where the gateway is told what they mean.",
        extra_json_schema={
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MOST_TEXTS},
                {"type": "array", "items": {"type": "integer"}, "minItems": 1},
                {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}, "minItems": 1},
            ]
        },
    ),
]


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Texts that become vectors.

    `prompt_name` is sentence-transformers' own: what the texts are for, such as `query`.
    """

    model: str
    input: Input
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    prompt_name: str | None = None


def texts_of(given: Any, token_ids: Cl100k | None = None) -> list[str]:
    """The texts of a request.

    Args:
        token_ids: reads token ids back as text; None: they are refused, since langchain-openai sends those of
            OpenAI's own tokenizer, which are other words in another vocabulary.

    Raises:
        ApiError: there is none, or they are no texts.
    """
    texts = [given] if isinstance(given, str) or are_token_ids(given) else given
    if not isinstance(texts, list) or not texts:
        raise bad_request("input must be a text or a list of texts, and not empty", "input")
    if len(texts) > MOST_TEXTS:
        raise bad_request(f"input has {len(texts)} texts, at most {MOST_TEXTS} are accepted", "input")
    return [_text(each, token_ids) for each in texts]


def _text(given: Any, token_ids: Cl100k | None) -> str:
    if isinstance(given, str):
        return given
    if not are_token_ids(given):
        raise bad_request("input must be a text or a list of texts", "input")
    if token_ids is None:
        raise ApiError(
            400,
            "input holds token ids, and this model takes texts. Send texts (langchain-openai:"
            " OpenAIEmbeddings(check_embedding_ctx_length=False)), or let the gateway read the ids as"
            " those of OpenAI's tokenizer (shoal gateway --token-ids MODEL=cl100k --cl100k FILE)",
            param="input",
            code="token_ids",
        )
    return token_ids.text(given)


async def embed(
    gateway: Gateway, call: Call, model: Model, texts: list[str], prompt_name: str | None = None
) -> tuple[NDArray[np.float32], int]:
    """Vectors float32 [texts, width] and the number of tokens; more texts than a batch holds are split."""
    size = batch_size(model)
    if prompt_name is not None and dialect.PROMPT_NAME not in model.inputs:
        raise bad_request(f"{model.name} knows no prompts", "prompt_name")

    async def one(batch: list[str]) -> dict[str, NDArray]:
        inputs = {dialect.TEXT: column(batch)}
        if prompt_name is not None:
            inputs[dialect.PROMPT_NAME] = column([prompt_name] * len(batch))
        return await gateway.infer(call, model, inputs)

    found = await gathered([one(texts[start : start + size]) for start in range(0, len(texts), size)])
    return np.concatenate([arrays["embedding"] for arrays in found]), tokens_in(found)


async def embeddings(gateway: Gateway, call: Call) -> Answer:
    """Answer a request."""
    request, unknown = read(call.body, EmbeddingRequest)
    model = gateway.model(call, request.model, EMBEDDING)
    texts = texts_of(request.input, gateway.token_ids(model))
    vectors, tokens = await embed(gateway, call, model, texts, request.prompt_name)
    if request.dimensions not in (None, vectors.shape[1]):
        raise bad_request(
            f"this model's vectors have {vectors.shape[1]} components; shoal export --truncate-dim makes a"
            " version with fewer",
            "dimensions",
        )
    in_text = request.encoding_format == "base64"
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode() if in_text else vector,
        }
        for index, vector in enumerate(np.ascontiguousarray(vectors, np.float32))
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_reply(
        {"object": "list", "data": data, "model": request.model, "usage": usage}, headers=ignored(unknown)
    )
