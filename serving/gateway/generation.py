"""Answers of decoders as the protocols need them: several to one request, the first part before all else,
log probabilities in OpenAI's form, and usage."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import msgspec

from serving.gateway.errors import bad_request
from serving.gateway.triton import Part

T = TypeVar("T")
MOST_CHOICES = 16
Count = Annotated[int, msgspec.Meta(ge=1, le=MOST_CHOICES)]


class Sampled(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling parameters in a body, with the names and meanings of vLLM's; docs/generation.md has each."""

    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    structured_outputs: dict[str, Any] | None = None

    def sampling(self) -> dict[str, Any]:
        """Those that are given."""
        names = Sampled.__struct_fields__
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class StreamOptions(msgspec.Struct, frozen=True):
    """What a stream holds beside the answer."""

    include_usage: bool = False


class Generated(Sampled, frozen=True, kw_only=True):
    """What the bodies of OpenAI's two APIs of text generation have in common."""

    model: str
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Count | None = 1
    response_format: Any = None

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def check_stream(self) -> None:
        """Check that options of a stream are given for a stream only.

        Raises:
            ApiError: they are not.
        """
        if self.stream_options is not None and not self.stream:
            raise bad_request("stream_options is for streams only", "stream_options")


@dataclass
class Usage:
    """Tokens of a request. The prompt counts once, whatever number of answers there are to it."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0

    def add(self, part: Part) -> None:
        """Count a part of an answer."""
        self.prompt, self.cached = part.input_tokens or self.prompt, part.cached_tokens or self.cached
        self.completion += part.tokens

    def to_dict(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


@dataclass(frozen=True)
class Asked:
    """What one request asks a decoder for.

    Attributes:
        inputs: the prompt, by the name of one keyword of `triton.generation_inputs`.
        sampling: vLLM's sampling parameters.
        choices: answers to it.
    """

    inputs: Mapping[str, Any]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    choices: int = 1

    def sampling_of(self, choice: int) -> dict[str, Any]:
        """Those of one answer: each has another seed, the same ones each time where a seed is given."""
        seed = self.sampling.get("seed")
        given = dict(self.sampling)
        if seed is not None and self.choices > 1:
            given["seed"] = int(seed) + choice
        return given


def response_format(given: Any) -> dict[str, Any] | None:
    """OpenAI's `response_format` as `structured_outputs`; None: free text.

    Raises:
        ApiError: it is none of `text`, `json_object` and `json_schema`.
    """
    if given is None:
        return None
    kind = given.get("type") if isinstance(given, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"json_object": True}
    if kind == "json_schema":
        held = given.get("json_schema")
        schema = held.get("schema") if isinstance(held, dict) else None
        if not isinstance(schema, dict):
            raise bad_request(
                "response_format.json_schema.schema must be a JSON schema", "response_format.json_schema"
            )
        return {"json": schema}
    raise bad_request("response_format.type must be text, json_object or json_schema", "response_format")


async def first_of(parts: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The same parts, after the first has come: an error before it can still be a response of its own."""
    first = [await parts.__anext__()]

    async def all_of() -> AsyncGenerator[T, None]:
        async with aclosing(parts):
            yield first.pop()
            async for part in parts:
                yield part

    return all_of()


async def merged(streams: Sequence[AsyncGenerator[Part, None]]) -> AsyncGenerator[tuple[int, Part], None]:
    """The parts of several answers as they come, each with the number of its answer.

    A failure of one ends all; so does closing the iterator.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as parts:
            async for part in parts:
                yield 0, part
        return
    queue: asyncio.Queue[tuple[int, Part] | Exception | None] = asyncio.Queue()

    async def pump(index: int, stream: AsyncGenerator[Part, None]) -> None:
        try:
            async with aclosing(stream) as parts:
                async for part in parts:
                    queue.put_nowait((index, part))
            queue.put_nowait(None)
        except Exception as error:  # noqa: BLE001 - raised again for the reader
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True)
class Position:
    """One token with its log probability and those of the likeliest, likeliest first.

    Attributes:
        text: of the token; `content`: its true bytes, which may be a part of a character.
        top: the likeliest tokens, each without further ones.
    """

    id: int
    text: str
    content: bytes
    logprob: float | None
    top: tuple[Position, ...] = ()


def positions_of(told: str, most: int) -> list[Position]:
    """Log probabilities as the vLLM backend writes them.

    Args:
        told: JSON, for each token {id: {logprob, rank, decoded_token, bytes}}, the chosen one first.
        most: likeliest tokens of each that are given back.
    """
    found = []
    for place in json.loads(told or "[]") or []:
        entries = [(entry["rank"], _position(int(token), entry)) for token, entry in place.items()]
        top = sorted((entry for entry in entries if entry[0] is not None), key=lambda entry: entry[0])
        chosen = entries[0][1]
        likeliest = tuple(entry for rank, entry in top if rank <= most)
        found.append(Position(chosen.id, chosen.text, chosen.content, chosen.logprob, likeliest))
    return found


def _position(token: int, entry: Mapping[str, Any]) -> Position:
    text = entry.get("decoded_token") or ""
    content = bytes(entry["bytes"]) if "bytes" in entry else text.encode("utf-8", "replace")
    return Position(token, text, content, entry["logprob"])


def chat_logprobs(positions: Sequence[Position]) -> dict[str, Any]:
    """`logprobs` of a chat completion."""

    def plain(position: Position) -> dict[str, Any]:
        return {
            "token": position.text,
            "logprob": position.logprob,
            "bytes": list(position.content),
        }

    return {
        "content": [
            {**plain(position), "top_logprobs": [plain(other) for other in position.top]}
            for position in positions
        ],
        "refusal": None,
    }
