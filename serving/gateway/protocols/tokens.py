"""`/tokenize`, `/detokenize` and `/decode`: texts to tokens and back, by the tokenizer of any model.

Sources: `vllm/entrypoints/serve/tokenize/protocol.py` of vLLM, and the OpenAPI document and
`router/src/http/server.rs` of text-embeddings-inference. Both servers have `/tokenize`: a body with `prompt`
is in vLLM's form, and one with `inputs` in the other. Errors come in the shape of the same API.

Both read a control token such as `<|im_end|>` in a text as the token, and so it is here. That it stays text
in a chat is what the decoder's rendering does.

text-embeddings-inference counts `start` and `stop` in bytes of UTF-8, from the beginning of the text with its
prompt, and then cuts `text` as if they were characters (its issue 494). Here `text` is what stands at these
bytes, in whole characters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Annotated, Any

import msgspec
from tokenizers import Tokenizer

from clients.errors import ClientError
from serving.gateway.bodies import ignored, read
from serving.gateway.errors import ApiError, bad_request, from_client, tei_shape
from serving.gateway.http import Answer, Call, json_reply
from serving.gateway.models import Model
from serving.gateway.protocols.tasks import MOST_ROWS
from serving.gateway.service import Gateway

# Of one request: a thread that tokenizes cannot be stopped, and this takes it a second or two.
MOST_BYTES = 512 << 10  # what it takes more would keep all other requests waiting
MOST_IDS = 1 << 20
TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class _Form(msgspec.Struct, frozen=True):
    """The fields of `/tokenize` that tell which form a body has."""

    inputs: Any = None
    prompt: Any = None
    messages: Any = None


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `/tokenize` in vLLM's form."""

    prompt: str
    model: str | None = None
    add_special_tokens: bool = True
    return_token_strs: bool | None = False


class Tokenized(msgspec.Struct, frozen=True):
    """The answer to it; `token_strs` are tokens as the vocabulary writes them."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `/detokenize`."""

    tokens: list[TokenId]
    model: str | None = None


class Detokenized(msgspec.Struct, frozen=True):
    """The answer to it."""

    prompt: str


class TeiTokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `/tokenize` in the form of text-embeddings-inference."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None
    model: str | None = None


class Token(msgspec.Struct, frozen=True):
    """One token of the answer to it.

    Attributes:
        text: what it stands for in the text; of a special token, its name.
        special: whether the tokenizer has put it there, rather than read it in the text.
        start, stop: where `text` stands, in bytes of UTF-8; None: it is special.
    """

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class DecodeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `/decode`: the ids of a text, or lists of the ids of several."""

    ids: list[TokenId | list[TokenId]]
    skip_special_tokens: bool = True
    model: str | None = None


def prompt_of(model: Model, name: str | None) -> str:
    """What an embedding model puts before a text.

    Args:
        name: of the prompt; None: that of texts without one.

    Raises:
        ApiError: there is no such prompt.
    """
    if name is None:
        return model.prompts.get(model.default_prompt, "")
    if name not in model.prompts:
        known = ", ".join(model.prompts) or "none"
        raise bad_request(
            f"prompt_name: {model.name} has no prompt of this name; it has {known}", "prompt_name"
        )
    return model.prompts[name]


def inputs_of(given: str | list[str], prompt: str) -> list[str]:
    """The texts of a request of text-embeddings-inference, with their prompt.

    Raises:
        ApiError: there is none, one is empty, or they are too many or too long.
    """
    texts = [given] if isinstance(given, str) else given
    _check_number(len(texts), "inputs")
    if "" in texts:
        raise bad_request("inputs holds an empty text", "inputs")
    prompted = [prompt + text for text in texts]
    check_size(prompted, "inputs")
    return prompted


def rows_of(given: Sequence[int | list[int]]) -> list[list[int]]:
    """The ids of `/decode`, a list for each text.

    Raises:
        ApiError: there are none, or they are too many, or mixed.
    """
    lists = [each for each in given if isinstance(each, list)]
    if lists and len(lists) < len(given):
        raise bad_request("ids must be ids, or lists of ids, not both", "ids")
    rows = lists or [[each for each in given if isinstance(each, int)]]
    _check_number(len(rows), "ids")
    if [] in rows:
        raise bad_request("ids is empty, or holds an empty list", "ids")
    return rows


def _check_number(rows: int, field: str) -> None:
    if not rows:
        raise bad_request(f"{field} is empty", field)
    if rows > MOST_ROWS:
        raise bad_request(f"{field} has {rows} rows, at most {MOST_ROWS} are accepted", field)


def check_size(texts: Sequence[str], field: str) -> None:
    """Refuse texts that take too long to tokenize.

    Raises:
        ApiError: they have too many bytes.
    """
    if (size := sum(len(text.encode()) for text in texts)) > MOST_BYTES:
        raise bad_request(f"{field} has {size} bytes of text, at most {MOST_BYTES} are accepted", field)


def tei_tokens(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[Token]:
    """The tokens of a text, as text-embeddings-inference tells them."""
    found = tokenizer.encode(text, add_special_tokens=add_special_tokens)
    bytes_before = list(accumulate((len(character.encode()) for character in text), initial=0))
    tokens = zip(found.ids, found.tokens, found.offsets, found.special_tokens_mask, strict=True)
    return [
        Token(number, name, True, None, None)
        if special
        else Token(number, text[start:stop], False, bytes_before[start], bytes_before[stop])
        for number, name, (start, stop), special in tokens
    ]


def texts_of(
    tokenizer: Tokenizer, rows: Sequence[Sequence[int]], field: str, *, skip_special_tokens: bool
) -> list[str]:
    """The texts of some lists of token ids.

    Raises:
        ApiError: there are too many ids, or one is not in the vocabulary.
    """
    if (count := sum(map(len, rows))) > MOST_IDS:
        raise bad_request(f"{field} has {count} ids, at most {MOST_IDS} are accepted", field)
    for number in set(chain.from_iterable(rows)):
        if tokenizer.id_to_token(number) is None:
            raise bad_request(f"{field} holds {number}, which is no token of this model", field)
    return [tokenizer.decode(row, skip_special_tokens=skip_special_tokens) for row in rows]


async def tokenize(gateway: Gateway, call: Call) -> Answer:
    """Answer `/tokenize`, in the form in which it is asked."""
    form, _ = read(call.body, _Form)
    if form.messages is not None:
        raise ApiError(
            400,
            "messages are not tokenized here: the model renders them itself, so that what users write never"
            " becomes a control token. To count their tokens, ask for a chat with max_tokens 1:"
            " usage.prompt_tokens",
            param="messages",
            code="unsupported",
        )
    if (form.prompt is None) == (form.inputs is None):
        raise bad_request("send either prompt (vLLM's form) or inputs (that of text-embeddings-inference)")
    if form.prompt is not None:
        return await _tokenize(gateway, call)
    try:
        return await _tei_tokenize(gateway, call)
    except (ApiError, ClientError) as error:
        told = from_client(error) if isinstance(error, ClientError) else error
        call.record.failed(told)
        return json_reply(tei_shape(told), status=told.status, headers=told.headers)


async def _tokenize(gateway: Gateway, call: Call) -> Answer:
    request, unknown = read(call.body, TokenizeRequest)
    model = gateway.tokenizing(call, request.model)
    check_size([request.prompt], "prompt")
    tokenizer = await gateway.tokenizers.of(model)

    def answer() -> Tokenized:
        found = tokenizer.encode(request.prompt, add_special_tokens=request.add_special_tokens)
        names = found.tokens if request.return_token_strs else None
        return Tokenized(len(found.ids), model.max_model_len, found.ids, names)

    told = await asyncio.to_thread(answer)
    call.meter.add(told.count)
    return json_reply(told, headers=ignored(unknown))


async def _tei_tokenize(gateway: Gateway, call: Call) -> Answer:
    request, unknown = read(call.body, TeiTokenizeRequest)
    model = gateway.tokenizing(call, request.model)
    texts = inputs_of(request.inputs, prompt_of(model, request.prompt_name))
    tokenizer = await gateway.tokenizers.of(model)

    def answer() -> tuple[Answer, int]:
        rows = [tei_tokens(tokenizer, text, add_special_tokens=request.add_special_tokens) for text in texts]
        return json_reply(rows, headers=ignored(unknown)), sum(map(len, rows))

    reply, count = await asyncio.to_thread(answer)
    call.meter.add(count)
    return reply


async def detokenize(gateway: Gateway, call: Call) -> Answer:
    """Answer `/detokenize`: the text of token ids, with the names of special tokens."""
    request, unknown = read(call.body, DetokenizeRequest)
    model = gateway.tokenizing(call, request.model)
    tokenizer = await gateway.tokenizers.of(model)
    rows = [request.tokens]
    (text,) = await asyncio.to_thread(texts_of, tokenizer, rows, "tokens", skip_special_tokens=False)
    call.meter.add(len(request.tokens))
    return json_reply(Detokenized(text), headers=ignored(unknown))


async def decode(gateway: Gateway, call: Call) -> Answer:
    """Answer `/decode`: the texts of token ids, a list of them even for one."""
    request, unknown = read(call.body, DecodeRequest)
    model = gateway.tokenizing(call, request.model)
    rows = rows_of(request.ids)
    tokenizer = await gateway.tokenizers.of(model)
    texts = await asyncio.to_thread(
        texts_of, tokenizer, rows, "ids", skip_special_tokens=request.skip_special_tokens
    )
    call.meter.add(sum(map(len, rows)))
    return json_reply(texts, headers=ignored(unknown))
