"""What OpenAI's SDK does with answers by itself.

The asyncio client, helpers for streams, parsed calls of tools, and their results sent back."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import pytest
from openai import AsyncOpenAI, OpenAI, pydantic_function_tool
from pydantic import BaseModel, Field

from tests.serving.gateway.running import Running

CHAT: Any = [{"role": "user", "content": "Name a fish that swims in shoals."}]
GREEDY: dict[str, Any] = {"model": "smollm2", "temperature": 0}


class Fish(BaseModel):
    name: str = Field(max_length=16)
    fins: Literal[1, 2, 3]


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Oslo", "Rome"]
    days: Literal[1, 2, 3]


def test_the_asyncio_client_gets_the_same(openai: OpenAI, running: Running) -> None:
    whole = openai.chat.completions.create(messages=CHAT, max_tokens=24, **GREEDY)
    expected = openai.embeddings.create(model="minilm", input="Fish.").data[0].embedding

    async def ask() -> None:
        async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
            answers = await asyncio.gather(
                *(client.chat.completions.create(messages=CHAT, max_tokens=24, **GREEDY) for _ in range(8))
            )
            assert {answer.choices[0].message.content for answer in answers} == {
                whole.choices[0].message.content
            }
            assert len({answer.id for answer in answers}) == 8
            text = ""
            async for chunk in await client.chat.completions.create(
                messages=CHAT, max_tokens=24, stream=True, **GREEDY
            ):
                text += chunk.choices[0].delta.content or ""
            assert text == whole.choices[0].message.content
            vector = (await client.embeddings.create(model="minilm", input="Fish.")).data[0].embedding
            assert vector == pytest.approx(expected, abs=2e-3)
            assert [model.id async for model in client.models.list()] == ["minilm", "smollm2"]

    asyncio.run(ask())


def test_the_helper_for_streams_puts_the_same_message_together(openai: OpenAI) -> None:
    # The helper raises where an answer is cut off.
    asked: dict[str, Any] = {**GREEDY, "messages": CHAT, "stop": ".", "logprobs": True, "top_logprobs": 2}
    whole = openai.chat.completions.create(**asked)
    with openai.chat.completions.stream(stream_options={"include_usage": True}, **asked) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    content = whole.choices[0].message.content
    assert "".join(event.delta for event in events if event.type == "content.delta") == content
    assert [event.content for event in events if event.type == "content.done"] == [content]
    told, expected = final.choices[0].logprobs, whole.choices[0].logprobs
    assert told is not None and told.content is not None and expected is not None and expected.content
    assert [entry.token for entry in told.content] == [entry.token for entry in expected.content]
    assert final.choices[0].message.content == content
    assert final.usage is not None and whole.usage is not None  # but for what the prefix cache held
    assert final.usage.prompt_tokens == whole.usage.prompt_tokens
    assert final.usage.completion_tokens == whole.usage.completion_tokens
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason == "stop"


def test_a_structured_answer_is_parsed_out_of_a_stream(openai: OpenAI) -> None:
    with openai.chat.completions.stream(
        messages=[{"role": "user", "content": "Describe a fish."}],
        response_format=Fish,
        max_tokens=120,
        **GREEDY,
    ) as stream:
        done = [event.parsed for event in stream if event.type == "content.done"]
        final = stream.get_final_completion()
    (parsed,) = done
    assert isinstance(parsed, Fish) and final.choices[0].message.parsed == parsed
    assert json.loads(final.choices[0].message.content or "") == parsed.model_dump()


def test_a_tool_is_called_and_its_result_is_read(openai: OpenAI) -> None:
    """The SDK's own objects go back into the conversation, with all fields that it has added."""
    tools: Any = [pydantic_function_tool(Weather)]
    messages: list[Any] = [{"role": "user", "content": "Will it rain in Oslo?"}]
    asked: dict[str, Any] = {**GREEDY, "tools": tools, "max_tokens": 100}
    answer = openai.chat.completions.parse(
        messages=messages, tool_choice="required", parallel_tool_calls=False, **asked
    ).choices[0]
    (call,) = answer.message.tool_calls or []
    wanted = call.function.parsed_arguments
    assert isinstance(wanted, Weather) and answer.finish_reason == "tool_calls"
    with openai.chat.completions.stream(
        messages=messages, tool_choice="required", parallel_tool_calls=False, **asked
    ) as stream:
        told = [
            event.parsed_arguments for event in stream if event.type == "tool_calls.function.arguments.done"
        ]
        streamed = stream.get_final_completion().choices[0].message
    assert told == [wanted]

    def go_on(message: Any, result: str) -> tuple[str, int]:
        done = openai.chat.completions.create(
            messages=[
                *messages,
                message,
                {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": result},
            ],
            **asked | {"max_tokens": 24},
        )
        assert done.usage is not None
        return done.choices[0].message.content or "", done.usage.prompt_tokens

    text, tokens = go_on(answer.message, "Rain.")
    assert (text, tokens) == go_on(streamed, "Rain.")
    # The result stands in the prompt, once.
    more, longer = go_on(answer.message, "Rain." + " rain" * 20)
    assert more and longer == tokens + 20
