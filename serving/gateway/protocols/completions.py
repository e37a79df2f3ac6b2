"""OpenAI's `/v1/completions`: text that goes on with a prompt.

Source: https://platform.openai.com/docs/api-reference/completions. With `echo` and `logprobs` the log
probabilities of the prompt's tokens come too, by which evaluation harnesses score given answers.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any

import msgspec

from serving.gateway.bodies import are_token_ids, ignored, read
from serving.gateway.errors import bad_request
from serving.gateway.generation import (
    Asked,
    Generated,
    Position,
    Usage,
    first_of,
    positions_of,
    response_format,
)
from serving.gateway.http import DONE, Answer, Call, Events, event, json_reply
from serving.gateway.models import Model
from serving.gateway.service import Gateway
from serving.gateway.triton import Part
from shoal import dialect
from shoal.tasks import GENERATION

MOST_PROMPTS = 128
Amount = Annotated[int, msgspec.Meta(ge=0)]
Logprobs = Annotated[int, msgspec.Meta(ge=0, le=20)]


_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}, "minItems": 1}
Prompt = Annotated[
    Any,
    msgspec.Meta(
        description="A text, token ids, or several of either.",
        extra_json_schema={
            "anyOf": [
                {"type": "string"},
                _IDS,
                {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MOST_PROMPTS},
                {"type": "array", "items": _IDS, "minItems": 1, "maxItems": MOST_PROMPTS},
            ]
        },
    ),
]


class CompletionRequest(Generated, frozen=True, kw_only=True):
    """A text, or several, and how it goes on."""

    prompt: Prompt
    max_tokens: Amount | None = 16
    echo: bool | None = False
    logprobs: Logprobs | None = None
    best_of: int | None = None
    suffix: str | None = None


def prompts_of(given: Any) -> list[str | list[int]]:
    """The prompts of a request: a text, texts, token ids, or lists of token ids.

    Raises:
        ApiError: there is none, or they are mixed.
    """
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given:
        if are_token_ids(given):
            return [given]
        texts = all(isinstance(item, str) for item in given)
        if len(given) <= MOST_PROMPTS and (texts or all(map(are_token_ids, given))):
            return given
    raise bad_request(
        f"prompt must be a text, token ids, or up to {MOST_PROMPTS} of either, and not empty", "prompt"
    )


def asked_of(request: CompletionRequest, model: Model) -> list[Asked]:
    """What a decoder is asked for, a prompt each.

    Raises:
        ApiError: fields contradict each other, or the model cannot meet them.
    """
    request.check_stream()
    if request.best_of not in (None, 1, request.n):
        raise bad_request("best_of is not supported: ask for n answers and choose", "best_of")
    if request.suffix:
        raise bad_request("suffix is not supported: these models only go on with a text", "suffix")
    if request.max_tokens == 0 and not request.echo:
        raise bad_request("max_tokens must be at least 1, unless echo is true", "max_tokens")
    sampling = request.sampling()
    sampling["max_tokens"] = request.max_tokens or (1 if request.max_tokens == 0 else None)
    if (structure := response_format(request.response_format)) is not None:
        sampling["structured_outputs"] = structure
    if request.logprobs is not None:
        sampling["logprobs"] = request.logprobs
    asked = []
    for one in prompts_of(request.prompt):
        given = dict(sampling)
        if request.echo and (request.logprobs is not None or not isinstance(one, str)):
            if dialect.PROMPT_LOGPROBS not in model.outputs:
                raise bad_request("this model cannot tell the tokens of a prompt", "echo")
            given["prompt_logprobs"] = request.logprobs or 0
        inputs = {"prompt": one} if isinstance(one, str) else {"token_ids": one}
        asked.append(Asked(inputs, given, request.n or 1))
    return asked


class Completion:
    """One answer, from parts to pieces of text with their log probabilities.

    Args:
        prompt: what is echoed before it; "": the texts of the prompt's tokens; None: nothing.
        most: likeliest tokens for each; None: no log probabilities.
        empty: nothing but the prompt is asked for.
    """

    def __init__(self, prompt: str | None, most: int | None, *, empty: bool) -> None:
        self._echo, self._most, self._empty = prompt, most, empty
        self._offset = 0
        self.finish_reason: str | None = None

    def add(self, part: Part) -> tuple[str, dict[str, Any] | None]:
        """Text that is new, and `logprobs`."""
        positions: list[Position] = []
        if self._most is not None:
            positions = positions_of(part.prompt_logprobs, self._most)
            if not self._empty:
                positions += positions_of(part.logprobs, self._most)
        text = "" if self._empty else part.text
        if self._echo is not None:
            tokens = [] if self._echo else positions_of(part.prompt_logprobs, 0)
            read = b"".join(token.content for token in tokens).decode("utf-8", errors="replace")
            text, self._echo = (self._echo or read) + text, None
        if part.finish_reason:
            self.finish_reason = "length" if self._empty else part.finish_reason
        return text, self._logprobs(positions) if self._most is not None else None

    def _logprobs(self, positions: Sequence[Position]) -> dict[str, Any]:
        told: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for position in positions:
            told["tokens"].append(position.text)
            told["token_logprobs"].append(position.logprob)
            # Parts of characters have one text: the likeliest of them counts, as harnesses compare with it.
            likeliest: dict[str, float | None] = {}
            for other in (*position.top, position):
                likeliest.setdefault(other.text, other.logprob)
            told["top_logprobs"].append(likeliest if position.logprob is not None else None)
            told["text_offset"].append(self._offset)
            self._offset += len(position.text)
        return told


async def completions(gateway: Gateway, call: Call) -> Answer:
    """Answer a request."""
    request, unknown = read(call.body, CompletionRequest)
    model = gateway.model(call, request.model, GENERATION)
    asked = asked_of(request, model)
    answers = [
        Completion(_echoed(one) if request.echo else None, request.logprobs, empty=request.max_tokens == 0)
        for one in asked
        for _ in range(one.choices)
    ]
    parts = gateway.generate(call, model, asked, stream=bool(request.stream))
    head = {
        "id": f"cmpl-{call.id}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": request.model,
        "system_fingerprint": model.fingerprint,
    }
    usage = [Usage() for _ in asked]
    headers = ignored(unknown)
    if request.stream:
        return Events(_events(head, answers, usage, await first_of(parts), request.with_usage), headers)
    return json_reply(await _whole(head, answers, usage, parts), headers=headers)


def _echoed(asked: Asked) -> str:
    return str(asked.inputs.get("prompt", ""))


def _usage(usage: Sequence[Usage]) -> dict[str, Any]:
    return Usage(
        sum(one.prompt for one in usage),
        sum(one.cached for one in usage),
        sum(one.completion for one in usage),
    ).to_dict()


async def _whole(
    head: dict[str, Any],
    answers: Sequence[Completion],
    usage: Sequence[Usage],
    parts: AsyncGenerator[tuple[int, Part], None],
) -> dict[str, Any]:
    texts = [""] * len(answers)
    logprobs: list[dict[str, Any] | None] = [None] * len(answers)
    async with aclosing(parts):
        async for index, part in parts:
            usage[index * len(usage) // len(answers)].add(part)
            text, told = answers[index].add(part)
            texts[index] += text
            if told is not None:
                logprobs[index] = (
                    told
                    if (held := logprobs[index]) is None
                    else {name: held[name] + told[name] for name in told}
                )
    choices = [
        {"index": index, "text": text, "logprobs": logprobs[index], "finish_reason": answer.finish_reason}
        for index, (text, answer) in enumerate(zip(texts, answers, strict=True))
    ]
    return {**head, "choices": choices, "usage": _usage(usage)}


async def _events(
    head: dict[str, Any],
    answers: Sequence[Completion],
    usage: Sequence[Usage],
    parts: AsyncGenerator[tuple[int, Part], None],
    with_usage: bool,
) -> AsyncGenerator[bytes, None]:
    async with aclosing(parts):
        async for index, part in parts:
            usage[index * len(usage) // len(answers)].add(part)
            text, logprobs = answers[index].add(part)
            reason = answers[index].finish_reason
            choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
            yield event({**head, "choices": [choice]})
    if with_usage:
        yield event({**head, "choices": [], "usage": _usage(usage)})
    yield DONE
