"""How models are shown tools, and how they write calls of them: the formats of Hermes, Llama 3 and Mistral.

A template that shows tools decides the format. To a model whose template shows none, tools are described in
the system's message, and calls are asked for in the format of Hermes.

Sources: the chat templates of Qwen 2.5 and Hermes 3 (`<tool_call>`), of Llama 3.1 to 3.3, and of
Mistral 7B v0.3 (`[TOOL_CALLS]`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Tool = Mapping[str, Any]
Message = dict[str, Any]


@dataclass(frozen=True)
class ToolFormat:
    """How a model writes that it calls functions.

    Attributes:
        name: of the format.
        begin, end: around each call, or around the list of all where `listed`; "": nothing.
        between: what stands between two calls.
        arguments: the key under which a call has its arguments.
        listed: whether the calls stand in one list.
        special: whether `begin` is a special token, which an answer's text holds only where asked for.
    """

    name: str
    begin: str
    end: str
    between: str
    arguments: str
    listed: bool = False
    special: bool = False


HERMES = ToolFormat("hermes", "<tool_call>\n", "\n</tool_call>", "\n", "arguments")
LLAMA = ToolFormat("llama3", "", "", "; ", "parameters")
MISTRAL = ToolFormat("mistral", "[TOOL_CALLS]", "", ", ", "arguments", listed=True, special=True)
FORMATS = {form.name: form for form in (HERMES, LLAMA, MISTRAL)}


def format_of(template: str) -> ToolFormat:
    """The format in which a model with this chat template calls functions."""
    if MISTRAL.begin in template:
        return MISTRAL
    if "<tool_call>" not in template and ("<|python_tag|>" in template or '"parameters"' in template):
        return LLAMA
    return HERMES


def without_tools(messages: Sequence[Message], tools: Sequence[Tool] | None) -> list[Message]:
    """A conversation for a template that knows no tools: they, calls and results become text."""
    made = [_as_text(message) for message in messages]
    if not tools:
        return made
    described = _described(tools)
    if made and made[0]["role"] == "system":
        first = {**made[0], "content": f"{made[0]['content']}\n\n{described}".strip()}
        return [first, *made[1:]]
    return [{"role": "system", "content": described}, *made]


def _described(tools: Sequence[Tool]) -> str:
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (
        "You may call functions to help with the user's request. They are described here, one a line, with"
        f" the JSON schema of their arguments:\n{lines}\n\nTo call one, write its name and arguments like"
        ' this:\n<tool_call>\n{"name": "the name", "arguments": {"an argument": "its value"}}\n</tool_call>'
    )


def _as_text(message: Message) -> Message:
    """A message with its calls in its text; a result becomes what the user says."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if not message.get("tool_calls"):
        return message
    calls = [
        f"{HERMES.begin}{json.dumps(_call(entry['function']), ensure_ascii=False)}{HERMES.end}"
        for entry in message["tool_calls"]
    ]
    content = "\n".join([text for text in (message["content"],) if text] + calls)
    return {"role": message["role"], "content": content}


def _call(function: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": function["name"], "arguments": function.get("arguments") or {}}
