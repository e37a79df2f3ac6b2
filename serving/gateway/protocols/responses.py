"""OpenAI's `/v1/responses`, as far as it needs no store: each request brings its whole conversation.

Source: https://platform.openai.com/docs/api-reference/responses. A request becomes one of chat completions,
and what the chat answers becomes items.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from serving.gateway.bodies import ignored, read
from serving.gateway.errors import ApiError, bad_request
from serving.gateway.generation import Sampled, Usage, first_of
from serving.gateway.http import Answer, Call, Events, json_reply, named_event
from serving.gateway.protocols.chat import Assistant, ChatRequest, Positive, Top, ask
from serving.gateway.protocols.response_items import Output, Told
from serving.gateway.service import Gateway
from serving.gateway.triton import Part

_ROLES = ("user", "assistant", "system", "developer")
_TEXTS = ("input_text", "output_text", "text")
_LOGPROBS = "message.output_text.logprobs"


class TextOptions(msgspec.Struct, frozen=True):
    """What the text of an answer must be."""

    format: dict[str, Any] | None = None


class ReasoningOptions(msgspec.Struct, frozen=True):
    """How long a model thinks, where its chat template knows that."""

    effort: str | None = None


class ResponsesRequest(Sampled, frozen=True, kw_only=True):
    """A conversation, and how it is answered. `input` is a text, or the items of a conversation."""

    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    stream: bool | None = False
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    include: list[str] | None = None
    top_logprobs: Top | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    prompt: Any = None

    @property
    def with_logprobs(self) -> bool:
        """Whether log probabilities of the text's tokens are asked for."""
        return _LOGPROBS in (self.include or ()) or bool(self.top_logprobs)


def chat_of(request: ResponsesRequest) -> ChatRequest:
    """The request of chat completions that asks for the same.

    Raises:
        ApiError: it asks for what needs a store, or for what is not text.
    """
    if request.prompt is not None:
        raise ApiError(400, "prompt is not supported: send input", param="prompt", code="unsupported")
    effort = request.reasoning.effort if request.reasoning else None
    sampling = {name: getattr(request, name) for name in Sampled.__struct_fields__}
    return ChatRequest(
        model=request.model,
        messages=msgspec.Raw(msgspec.json.encode(messages_of(request.input, request.instructions))),
        max_completion_tokens=request.max_output_tokens,
        stream=request.stream,
        logprobs=request.with_logprobs,
        top_logprobs=request.top_logprobs if request.with_logprobs else None,
        tools=[_tool(tool, index) for index, tool in enumerate(request.tools)] if request.tools else None,
        tool_choice=_tool_choice(request.tool_choice),
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=_format(request.text),
        reasoning_effort=effort,
        chat_template_kwargs=request.chat_template_kwargs,
        **sampling,
    )


def messages_of(given: str | list[dict[str, Any]], instructions: str | None) -> list[dict[str, Any]]:
    """A conversation as chat completions have it.

    Raises:
        ApiError: an item is of a kind that is not served; the error names it.
    """
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not given:
        raise bad_request("input is empty", "input")
    for index, item in enumerate(given):
        where = f"input[{index}]"
        kind = item.get("type") or "message"
        if kind == "message":
            role = item.get("role")
            if role not in _ROLES:
                raise bad_request(f"{where}.role must be one of {', '.join(_ROLES)}", f"{where}.role")
            messages.append({"role": role, "content": _text(item.get("content"), f"{where}.content")})
        elif kind == "function_call":
            _add_call(messages, item, where)
        elif kind == "function_call_output":
            content = _text(item.get("output"), f"{where}.output")
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
        elif kind != "reasoning":  # what a model thought before is not shown to it again
            raise ApiError(
                400, f"items of the type {kind!r} are not supported", param=where, code="unsupported"
            )
    if not any(message["role"] != "system" for message in messages):
        raise bad_request("input holds no message", "input")
    return messages


def _text(given: Any, where: str) -> str:
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise bad_request(f"{where} must be a text, or a list of parts", where)
    texts = []
    for index, part in enumerate(given):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, dict) else None
        if kind not in (*_TEXTS, "refusal") or not isinstance(text, str):
            place = f"{where}[{index}]"
            raise ApiError(400, f"{place} is no text: only text is served", param=place, code="unsupported")
        texts.append(text)
    return "".join(texts)


def _add_call(messages: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    """Calls that follow each other are one message of the assistant's."""
    if not all(isinstance(item.get(name), str) for name in ("call_id", "name", "arguments")):
        raise bad_request(f"{where} needs call_id, name and arguments, as texts", where)
    function = {"name": item["name"], "arguments": item["arguments"]}
    call = {"id": item["call_id"], "type": "function", "function": function}
    if messages and messages[-1]["role"] == "assistant":
        messages[-1].setdefault("tool_calls", []).append(call)
    else:
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})


def _tool(tool: dict[str, Any], index: int) -> dict[str, Any]:
    kind = tool.get("type")
    if kind != "function":
        where = f"tools[{index}].type"
        raise ApiError(400, f"tools of the type {kind!r} are not supported", param=where, code="unsupported")
    return {"type": "function", "function": {name: tool[name] for name in tool if name != "type"}}


def _tool_choice(given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    return {"type": given.get("type"), "function": {"name": given.get("name")}}


def _format(given: TextOptions | None) -> Any:
    form = given.format if given else None
    if form is None or form.get("type") != "json_schema":
        return form
    return {"type": "json_schema", "json_schema": {name: form[name] for name in form if name != "type"}}


class Response:
    """One answer: the object that a whole answer is, and that the events of a stream hold.

    Args:
        call: the request's; its id becomes that of the response.
        assistant: reads what the model writes.
    """

    def __init__(self, request: ResponsesRequest, call: Call, assistant: Assistant) -> None:
        self._request, self._assistant = request, assistant
        self._id, self._created = f"resp_{call.id}", int(time.time())
        self._output, self._usage, self._thought = Output(), Usage(), 0
        self._status = "in_progress"

    @property
    def incomplete(self) -> bool:
        """Whether the answer was cut off."""
        return self._status == "incomplete"

    def add(self, part: Part) -> list[Told]:
        """Go on by a part; gives the events that tell it."""
        self._usage.add(part)
        deltas, logprobs = self._assistant.add(part), self._assistant.logprobs(part)
        if deltas and all("reasoning_content" in delta for delta in deltas):
            self._thought += part.tokens
        told: list[Told] = []
        tokens = logprobs["content"] if logprobs else []
        for delta in deltas:
            told += self._output.add(delta, tokens if "content" in delta else [])
            if "content" in delta:
                tokens = []
        if self._assistant.finish_reason is not None:
            self._status = "incomplete" if self._assistant.finish_reason == "length" else "completed"
            told += self._output.end(self._status)
        return told

    def to_dict(self) -> dict[str, Any]:
        """How it is now."""
        request, usage = self._request, self._usage
        ended = self._status != "in_progress"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": self._status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if self.incomplete else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": request.model,
            "output": self._output.items if ended else [],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": request.reasoning.effort if request.reasoning else None, "summary": None},
            "store": False,
            "temperature": request.temperature,
            "text": {"format": (request.text.format if request.text else None) or {"type": "text"}},
            "tool_choice": request.tool_choice or "auto",
            "tools": request.tools or [],
            "top_p": request.top_p,
            "truncation": "disabled",
            "user": request.user,
            "metadata": request.metadata or {},
            "usage": {
                "input_tokens": usage.prompt,
                "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
                "output_tokens": usage.completion,
                "output_tokens_details": {"reasoning_tokens": self._thought},
                "total_tokens": usage.prompt + usage.completion,
            }
            if ended
            else None,
        }


async def responses(gateway: Gateway, call: Call) -> Answer:
    """Answer a request."""
    request, unknown = read(call.body, ResponsesRequest)
    _, (assistant,), parts = ask(gateway, call, chat_of(request))
    response = Response(request, call, assistant)
    if request.stream:
        return Events(_events(response, await first_of(parts)), ignored(unknown))
    async with aclosing(parts):
        async for _, part in parts:
            response.add(part)
    return json_reply(response.to_dict(), headers=ignored(unknown))


async def _events(
    response: Response, parts: AsyncGenerator[tuple[int, Part], None]
) -> AsyncGenerator[bytes, None]:
    number = 0

    def tell(name: str, fields: dict[str, Any]) -> bytes:
        nonlocal number
        made = named_event(name, {"type": name, "sequence_number": number, **fields})
        number += 1
        return made

    for name in ("response.created", "response.in_progress"):
        yield tell(name, {"response": response.to_dict()})
    async with aclosing(parts):
        async for _, part in parts:
            for name, fields in response.add(part):
                yield tell(name, fields)
    last = "response.incomplete" if response.incomplete else "response.completed"
    yield tell(last, {"response": response.to_dict()})
