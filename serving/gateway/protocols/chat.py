"""OpenAI's `/v1/chat/completions`.

Source: https://platform.openai.com/docs/api-reference/chat. The translation is pure: `asked_of` turns a
request into what a decoder is asked for, and `Assistant` turns parts of its answer into deltas, of which a
whole answer is made, too.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

import msgspec

from serving.gateway import tool_calls, tools
from serving.gateway.bodies import ignored, read
from serving.gateway.errors import bad_request
from serving.gateway.generation import (
    Asked,
    Generated,
    Usage,
    chat_logprobs,
    first_of,
    positions_of,
    response_format,
)
from serving.gateway.http import DONE, Answer, Call, Events, event, json_reply
from serving.gateway.models import Model
from serving.gateway.reasoning import Reasoning
from serving.gateway.service import Gateway
from serving.gateway.triton import Part
from shoal import dialect
from shoal.tasks import GENERATION
from shoal.tools import FORMATS, HERMES

Positive = Annotated[int, msgspec.Meta(ge=1)]
Top = Annotated[int, msgspec.Meta(ge=0, le=20)]


# The model's chat template knows which fields a message may have beside these.
Messages = Annotated[
    msgspec.Raw,
    msgspec.Meta(
        extra_json_schema={
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {"role": {"type": "string"}, "content": {}},
                "required": ["role"],
            },
        }
    ),
]


class ChatRequest(Generated, frozen=True, kw_only=True):
    """A conversation, and how it is answered."""

    messages: Messages
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = False
    top_logprobs: Top | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = False
    add_generation_prompt: bool | None = True


def asked_of(request: ChatRequest, model: Model, wanted: tools.ToolRequest) -> Asked:
    """What a decoder is asked for.

    Raises:
        ApiError: fields contradict each other.
    """
    if dialect.MESSAGES not in model.inputs or not model.chat_template:
        raise bad_request(
            f"{model.name} takes no conversation: it has no chat template, or was exported before it could"
            " (shoal export makes it anew); /v1/completions takes text",
            "model",
        )
    request.check_stream()
    if request.top_logprobs is not None and not request.logprobs:
        raise bad_request("top_logprobs needs logprobs: true", "top_logprobs")
    sampling = request.sampling()
    sampling["max_tokens"] = request.max_completion_tokens or request.max_tokens
    if request.logprobs:
        sampling["logprobs"] = request.top_logprobs or 0
    form = FORMATS.get(model.tool_format, HERMES)
    formats = [
        structure
        for structure in (
            response_format(request.response_format),
            sampling.pop("structured_outputs", None),
            tools.structured(wanted, form, model.control_tokens),
        )
        if structure
    ]
    if len(formats) > 1:
        raise bad_request(
            "response_format, structured_outputs and a tool_choice that demands a call exclude each other",
            "response_format",
        )
    if formats:
        sampling["structured_outputs"] = formats[0]
    if wanted.names and (form.special or form.begin.strip() in model.control_tokens):
        sampling["skip_special_tokens"] = False
    return Asked({"messages": _conversation(request, wanted)}, sampling, request.n or 1)


def _conversation(request: ChatRequest, wanted: tools.ToolRequest) -> str:
    """The input `messages`, see `serving.generation.conversation`."""
    conversation: dict[str, Any] = {
        "messages": request.messages,
        "continue_final_message": bool(request.continue_final_message),
        "add_generation_prompt": request.add_generation_prompt is not False,
    }
    if wanted.names:
        conversation["tools"] = request.tools
    variables = dict(request.chat_template_kwargs or {})
    if request.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", request.reasoning_effort)
    if variables:
        conversation["chat_template_kwargs"] = variables
    if not bytes(request.messages).lstrip().startswith(b"["):
        raise bad_request("messages must be a list", "messages")
    try:
        return msgspec.json.encode(conversation).decode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise bad_request(f"the conversation cannot be passed on: {error}", "messages") from None


class Assistant:
    """One message of the assistant, from parts to deltas.

    Args:
        model: that answers.
        wanted: the tools it may call.
        most: likeliest tokens for each, where log probabilities are asked for; None: they are not.
        whole: the deltas are put together before anybody sees them, so that a call which breaks can still be
            text.
    """

    def __init__(
        self, model: Model, wanted: tools.ToolRequest, most: int | None, *, whole: bool = False
    ) -> None:
        self._most, self._named = most, wanted.choice == "named"
        self._reasoning = Reasoning.of(model.chat_template)
        self._calls = None
        if wanted.names:
            form = FORMATS.get(model.tool_format, HERMES)
            self._calls = tool_calls.CallParser(form, wanted.names, whole=whole)
        self.called = self._open = False
        self.finish_reason: str | None = None

    def add(self, part: Part) -> list[dict[str, Any]]:
        """The deltas of a part; the last part sets `finish_reason`."""
        deltas = self._of_text(*self._reasoning.add(part.text))
        if part.finish_reason:
            deltas += self._of_text(*self._reasoning.end())
            if self._calls is not None:
                deltas += self._of_events(self._calls.end())
            self.finish_reason = self._reason(part.finish_reason)
        return deltas

    def logprobs(self, part: Part) -> dict[str, Any] | None:
        """Those of a part; None: they are not asked for, or it has none."""
        if self._most is None or not part.logprobs:
            return None
        return chat_logprobs(positions_of(part.logprobs, self._most))

    def _reason(self, reason: str) -> str:
        if reason == "stop" and self.called and not self._named:
            return "tool_calls"
        return reason

    def _of_text(self, thought: str, text: str) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        if thought:
            deltas.append({"reasoning_content": thought})
        if text and self._calls is not None:
            deltas += self._of_events(self._calls.add(text))
        elif text:
            deltas.append({"content": text})
        return deltas

    def _of_events(self, events: list[Any]) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        for told in events:
            if isinstance(told, tool_calls.Content):
                deltas.append({"content": told.text})
            elif isinstance(told, tool_calls.CallBegin):
                self.called = True
                function = {"name": told.name, "arguments": ""}
                begun = {"index": told.index, "id": _call_id(), "type": "function", "function": function}
                deltas.append({"tool_calls": [begun]})
            elif isinstance(told, tool_calls.Arguments):
                more = {"index": told.index, "function": {"arguments": told.delta}}
                deltas.append({"tool_calls": [more]})
        return deltas


class Whole:
    """A message put together from deltas."""

    def __init__(self) -> None:
        self.content, self.reasoning = "", ""
        self.calls: list[dict[str, Any]] = []
        self.logprobs: list[Any] = []

    def add(self, delta: dict[str, Any]) -> None:
        """Go on by a delta."""
        self.content += delta.get("content") or ""
        self.reasoning += delta.get("reasoning_content") or ""
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(self.calls):
                self.calls.append({name: value for name, value in call.items() if name != "index"})
            else:
                self.calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]

    def to_dict(self) -> dict[str, Any]:
        """The message."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content, "refusal": None}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = self.calls
            message["content"] = self.content or None
        return message


def ask(
    gateway: Gateway, call: Call, request: ChatRequest
) -> tuple[Model, list[Assistant], AsyncGenerator[tuple[int, Part], None]]:
    """Ask the decoder that a request names.

    Returns:
        The model, who reads each answer, and the parts of all answers, each with the number of its answer.

    Raises:
        ApiError: see `asked_of`; or there is no such decoder for this caller.
    """
    model = gateway.model(call, request.model, GENERATION)
    try:
        wanted = tools.check(request.tools, request.tool_choice, request.parallel_tool_calls)
        asked = asked_of(request, model, wanted)
    except tools.BadTools as error:
        raise bad_request(error.message, error.param) from None
    most = (request.top_logprobs or 0) if request.logprobs else None
    assistants = [Assistant(model, wanted, most, whole=not request.stream) for _ in range(asked.choices)]
    return model, assistants, gateway.generate(call, model, [asked], stream=bool(request.stream))


async def chat(gateway: Gateway, call: Call) -> Answer:
    """Answer a request."""
    request, unknown = read(call.body, ChatRequest)
    model, assistants, parts = ask(gateway, call, request)
    head = {
        "id": f"chatcmpl-{call.id}",
        "object": "chat.completion.chunk" if request.stream else "chat.completion",
        "created": int(time.time()),
        "model": request.model,
        "system_fingerprint": model.fingerprint,
    }
    headers = ignored(unknown)
    if request.stream:
        return Events(_events(head, assistants, await first_of(parts), request.with_usage), headers)
    return json_reply(await _whole(head, assistants, parts), headers=headers)


async def _whole(
    head: dict[str, Any], assistants: list[Assistant], parts: AsyncGenerator[tuple[int, Part], None]
) -> dict[str, Any]:
    messages, usage = [Whole() for _ in assistants], Usage()
    async with aclosing(parts):
        async for index, part in parts:
            usage.add(part)
            for delta in assistants[index].add(part):
                messages[index].add(delta)
            if told := assistants[index].logprobs(part):
                messages[index].logprobs += told["content"]
    choices = [
        {
            "index": index,
            "message": message.to_dict(),
            "logprobs": {"content": message.logprobs, "refusal": None} if message.logprobs else None,
            "finish_reason": assistant.finish_reason,
        }
        for index, (assistant, message) in enumerate(zip(assistants, messages, strict=True))
    ]
    return {**head, "choices": choices, "usage": usage.to_dict()}


async def _events(
    head: dict[str, Any],
    assistants: list[Assistant],
    parts: AsyncGenerator[tuple[int, Part], None],
    with_usage: bool,
) -> AsyncGenerator[bytes, None]:
    usage, begun = Usage(), set()

    def chunk(index: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return event({**head, "choices": [choice]})

    async with aclosing(parts):
        async for index, part in parts:
            assistant = assistants[index]
            usage.add(part)
            told = []  # each piece is one write to the socket, the dearest part of a chunk
            if index not in begun:
                begun.add(index)
                told.append(chunk(index, {"role": "assistant", "content": ""}))
            deltas, logprobs = assistant.add(part), assistant.logprobs(part)
            if logprobs and not deltas:
                deltas = [{}]
            for place, delta in enumerate(deltas):
                told.append(chunk(index, delta, logprobs if place == 0 else None))
            if assistant.finish_reason is not None:
                told.append(chunk(index, {}, reason=assistant.finish_reason))
            if told:
                yield b"".join(told)
    end = event({**head, "choices": [], "usage": usage.to_dict()}) if with_usage else b""
    yield end + DONE


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
