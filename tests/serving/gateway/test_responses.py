"""OpenAI's `/v1/responses`, with its own SDK, compared with chat completions of the same conversation."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import APIError, BadRequestError, OpenAI
from pydantic import BaseModel

from serving.gateway.protocols.response_items import Output
from serving.gateway.protocols.responses import messages_of
from tests.serving.gateway.running import Running

ASKED = "Name a fish."
GREEDY = {"temperature": 0, "max_tokens": 12}
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Fish(BaseModel):
    """An answer of a given form."""

    salt_water: bool


def _chat(openai: OpenAI, messages: list[dict[str, Any]]) -> Any:
    return openai.chat.completions.create(model="smollm2", messages=messages, **GREEDY)  # type: ignore[call-overload]


def test_a_text_is_answered_as_a_chat_is(openai: OpenAI) -> None:
    answer = openai.responses.create(
        model="smollm2", input=ASKED, instructions="Be short.", temperature=0, max_output_tokens=12
    )
    chat = _chat(openai, [{"role": "system", "content": "Be short."}, {"role": "user", "content": ASKED}])
    assert answer.output_text == chat.choices[0].message.content
    assert answer.usage is not None and chat.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (
        chat.usage.prompt_tokens,
        chat.usage.completion_tokens,
        chat.usage.total_tokens,
    )
    cut = chat.choices[0].finish_reason == "length"
    assert answer.status == ("incomplete" if cut else "completed")
    assert (answer.incomplete_details is not None) == cut


def test_a_conversation_of_items_is_one_of_messages(openai: OpenAI) -> None:
    parts = [{"type": "input_text", "text": text} for text in ("Name a ", "fish.")]
    items = [
        {"role": "user", "content": parts},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "A herring."}]},
        {"role": "user", "content": "Another."},
    ]
    answer = openai.responses.create(model="smollm2", input=items, temperature=0, max_output_tokens=12)  # type: ignore[arg-type]
    told = [("user", "Name a fish."), ("assistant", "A herring."), ("user", "Another.")]
    chat = _chat(openai, [{"role": role, "content": content} for role, content in told])
    assert answer.output_text == chat.choices[0].message.content


def test_a_stream_tells_what_the_whole_answer_holds(openai: OpenAI) -> None:
    asked = {"model": "smollm2", "input": ASKED, "temperature": 0, "max_output_tokens": 12}
    whole = openai.responses.create(**asked)
    events = list(openai.responses.create(**asked, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [events[0].type, events[1].type] == ["response.created", "response.in_progress"]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    done = [event.text for event in events if event.type == "response.output_text.done"]
    assert text == whole.output_text and done == [text]
    last = events[-1]
    assert last.type == f"response.{whole.status}" and last.response.output_text == text
    assert last.response.usage == whole.usage
    with openai.responses.stream(**asked) as stream:  # the SDK's own helper puts the text together
        assert [event.snapshot for event in stream if event.type == "response.output_text.delta"][-1] == text


def test_an_answer_of_a_given_form(openai: OpenAI) -> None:
    parsed = openai.responses.parse(
        model="smollm2", input="Do herrings live in salt water?", text_format=Fish, max_output_tokens=40
    )
    assert isinstance(parsed.output_parsed, Fish)


def test_calls_of_functions(openai: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "smollm2",
        "input": "What is the weather in Rome?",
        "tools": [WEATHER],
        "tool_choice": "required",
        "temperature": 0,
        "max_output_tokens": 60,
    }
    answer = openai.responses.create(**asked)
    calls = [item for item in answer.output if item.type == "function_call"]
    assert calls and all(call.name == "weather" for call in calls)
    assert all(set(json.loads(call.arguments)) == {"city"} for call in calls if call.status == "completed")
    done = [
        event.arguments
        for event in openai.responses.create(**asked, stream=True)
        if event.type == "response.function_call_arguments.done"
    ]
    assert done == [call.arguments for call in calls]
    # What the function gives goes back, and the model answers.
    items = [
        {"role": "user", "content": asked["input"]},
        calls[0].model_dump(),
        {"type": "function_call_output", "call_id": calls[0].call_id, "output": "Sunny."},
    ]
    after = openai.responses.create(model="smollm2", input=items, max_output_tokens=8)  # type: ignore[arg-type]
    assert after.status in ("completed", "incomplete") and after.output[0].type == "message"


def test_log_probabilities_are_those_of_the_chat(openai: OpenAI) -> None:
    answer = openai.responses.create(
        model="smollm2",
        input=ASKED,
        temperature=0,
        max_output_tokens=4,
        include=["message.output_text.logprobs"],
        top_logprobs=2,
    )
    chat = openai.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": ASKED}],
        temperature=0,
        max_tokens=4,
        logprobs=True,
        top_logprobs=2,
    )
    assert answer.output[0].type == "message"
    part = answer.output[0].content[0]
    assert part.type == "output_text" and part.logprobs is not None
    logprobs = chat.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert [(one.token, one.bytes, len(one.top_logprobs)) for one in part.logprobs] == [
        (one.token, one.bytes, len(one.top_logprobs)) for one in logprobs.content
    ]
    assert [one.logprob for one in part.logprobs] == pytest.approx(
        [one.logprob for one in logprobs.content], abs=1e-4
    )


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"role": "nobody", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "computer_call"}]}, "input[0]"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0]"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "response_format.json_schema"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_what_is_refused(openai: OpenAI, more: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as raised:
        openai.responses.create(**{"model": "smollm2", "input": "x", **more})
    assert raised.value.param == param


def test_a_stream_that_fails_raises_in_the_sdk(openai: OpenAI, running: Running) -> None:
    """Before the first event it is a status, as for every other request."""
    with pytest.raises(APIError):
        list(openai.responses.create(model="smollm2", input="word " * 9000, stream=True))
    given = {"model": "smollm2", "input": "x", "store": True, "max_output_tokens": 4}
    status, body, headers = running.post("/v1/responses", given)
    assert status == 200 and headers["x-shoal-ignored"] == "store" and body["store"] is False


def test_items_follow_each_other() -> None:
    output, told = Output(), []
    begun = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": "{}"}}
    for delta in (
        {"reasoning_content": "Hm"},
        {"reasoning_content": "m."},
        {"content": "I ask."},
        {"tool_calls": [begun]},
        {"tool_calls": [more]},
    ):
        told += output.add(delta, [])
    told += output.end("completed")
    assert [item["type"] for item in output.items] == ["reasoning", "message", "function_call"]
    assert output.items[0]["content"][0]["text"] == "Hmm." and output.items[2]["arguments"] == "{}"
    assert all(item["status"] == "completed" for item in output.items)
    names = [name for name, _ in told]
    assert names.count("response.output_item.added") == names.count("response.output_item.done") == 3
    assert [fields["output_index"] for name, fields in told if name == "response.output_item.done"] == [
        0,
        1,
        2,
    ]


def test_calls_that_follow_each_other_are_one_message() -> None:
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
    made = messages_of([{"role": "user", "content": "x"}, call, {**call, "call_id": "2"}], None)
    assert [message["role"] for message in made] == ["user", "assistant"]
    assert [one["id"] for one in made[1]["tool_calls"]] == ["1", "2"]
