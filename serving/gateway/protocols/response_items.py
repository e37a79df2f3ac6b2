"""The output of OpenAI's `/v1/responses`: items made from deltas of an answer, and the events of a stream.

Source: https://platform.openai.com/docs/api-reference/responses-streaming. Items follow each other: what the
model thinks, its message, and its calls of functions. A new kind of delta ends the item before.
"""

from __future__ import annotations

import uuid
from typing import Any

Told = tuple[str, dict[str, Any]]  # name of an event, and its fields


class Output:
    """Collects the items of one answer.

    Attributes:
        items: those that have begun, as a response holds them.
    """

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._kind = ""  # of the last item, while it is open

    def add(self, delta: dict[str, Any], logprobs: list[Any]) -> list[Told]:
        """Go on by a delta of a chat; gives the events that tell it.

        Args:
            logprobs: of the text's tokens; empty: not asked for, or the delta has no text.
        """
        told: list[Told] = []
        if delta.get("reasoning_content"):
            told += self._text("reasoning", delta["reasoning_content"], [])
        if delta.get("content"):
            told += self._text("message", delta["content"], logprobs)
        for call in delta.get("tool_calls", ()):
            told += self._call(call)
        return told

    def end(self, status: str) -> list[Told]:
        """End the last item.

        Args:
            status: of the item, `completed` or `incomplete`.
        """
        told = [] if self.items else self._begin("message", _message())
        return told + self._end(status)

    def _text(self, kind: str, text: str, logprobs: list[Any]) -> list[Told]:
        told: list[Told] = []
        if self._kind != kind:
            told += self._end("completed")
            told += self._begin(kind, _message() if kind == "message" else _reasoning())
        part = self.items[-1]["content"][0]
        part["text"] += text
        fields = {**self._place(), "content_index": 0, "delta": text}
        if kind == "message":
            part["logprobs"] += logprobs
            told.append(("response.output_text.delta", {**fields, "logprobs": logprobs}))
        else:
            told.append(("response.reasoning_text.delta", fields))
        return told

    def _call(self, call: dict[str, Any]) -> list[Told]:
        told: list[Told] = []
        if "id" in call:
            told += self._end("completed")
            item = {
                "type": "function_call",
                "id": _new("fc"),
                "call_id": call["id"],
                "name": call["function"]["name"],
                "arguments": "",
                "status": "in_progress",
            }
            told += self._begin("function_call", item)
        if more := call["function"]["arguments"]:
            self.items[-1]["arguments"] += more
            told.append(("response.function_call_arguments.delta", {**self._place(), "delta": more}))
        return told

    def _begin(self, kind: str, item: dict[str, Any]) -> list[Told]:
        self._kind = kind
        parts = item.get("content", [])
        shown = {**item, "content": []} if parts else dict(item)
        self.items.append(item)
        told = [("response.output_item.added", {"output_index": self._index, "item": shown})]
        if parts:
            fields = {**self._place(), "content_index": 0, "part": _copy(parts[0])}
            told.append(("response.content_part.added", fields))
        return told

    def _end(self, status: str) -> list[Told]:
        if not self._kind:
            return []
        item, kind, self._kind = self.items[-1], self._kind, ""
        item["status"] = status
        told: list[Told] = []
        if kind == "function_call":
            fields = {**self._place(), "name": item["name"], "arguments": item["arguments"]}
            told.append(("response.function_call_arguments.done", fields))
        else:
            part = item["content"][0]
            fields = {**self._place(), "content_index": 0, "text": part["text"]}
            if kind == "message":
                fields["logprobs"] = part["logprobs"]
            name = "output_text" if kind == "message" else "reasoning_text"
            told.append((f"response.{name}.done", fields))
            done = {**self._place(), "content_index": 0, "part": _copy(part)}
            told.append(("response.content_part.done", done))
        told.append(("response.output_item.done", {"output_index": self._index, "item": _copy(item)}))
        return told

    @property
    def _index(self) -> int:
        return len(self.items) - 1

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.items[-1]["id"], "output_index": self._index}


def _message() -> dict[str, Any]:
    part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    head = {"type": "message", "id": _new("msg"), "role": "assistant", "status": "in_progress"}
    return {**head, "content": [part]}


def _reasoning() -> dict[str, Any]:
    part = {"type": "reasoning_text", "text": ""}
    return {
        "type": "reasoning",
        "id": _new("rs"),
        "summary": [],
        "status": "in_progress",
        "content": [part],
    }


def _copy(value: dict[str, Any]) -> dict[str, Any]:
    """An event tells how an item is now, whatever is added to it before the event is written."""
    return {name: list(held) if isinstance(held, list) else held for name, held in value.items()}


def _new(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"
