"""A conversation to token ids. What people write in it stays text, and never becomes a control token.

Chat templates put what people write between control tokens such as `<|im_end|>`. A text that holds those
very characters would end its message and begin one of another role (transformers issue 29279). So they are
marked before the template sees them, the template's own control tokens are told from them afterwards, and
what stands between those is encoded by a tokenizer that knows no control tokens.

Knows `tokenizers` and the chat template, not Triton.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from tokenizers import Tokenizer

from serving.generation.params import BadRequest
from shoal.chat import ChatTemplate
from shoal.errors import BadInput
from shoal.tools import without_tools

# Characters that Unicode keeps for a program's own use, and that no text should hold.
_MARKS = [chr(point) for point in range(0xFDD0, 0xFDF0)]
_ROLE = re.compile(r"[a-z][a-z_]{0,31}")
# Names of a template's variables that are not for callers.
_RESERVED = ("messages", "tools", "documents", "add_generation_prompt")


class Conversation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The input `messages`: a conversation and what its template may know.

    Attributes:
        messages: of OpenAI's chat API; `content` is text, or a list of parts of the type `text`.
        tools: functions that the model may call, in that API's form.
        chat_template_kwargs: further variables of the template, such as `enable_thinking`.
        continue_final_message: the answer goes on with the last message.
        add_generation_prompt: the prompt ends where the assistant's message begins.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] = {}
    continue_final_message: bool = False
    add_generation_prompt: bool = True

    @classmethod
    def from_json(cls, text: str) -> Conversation:
        """Read and check it.

        Raises:
            BadRequest: it is not JSON of this form; the message names the place.
        """
        try:
            raw = msgspec.json.decode(text)
            made = msgspec.convert({"messages": raw} if isinstance(raw, list) else raw, cls)
        except RecursionError:
            raise BadRequest("messages is nested too deep") from None
        except msgspec.ValidationError as error:
            raise BadRequest(f"messages: {error}") from None
        except (msgspec.DecodeError, ValueError) as error:
            raise BadRequest(f"messages is not JSON: {error}") from None
        if not made.messages:
            raise BadRequest("messages is empty: the conversation needs at least one")
        for name in _RESERVED:
            if name in made.chat_template_kwargs:
                raise BadRequest(f"chat_template_kwargs must not hold {name}")
        try:
            messages = [_message(message, index) for index, message in enumerate(made.messages)]
            return msgspec.structs.replace(made, messages=messages)
        except RecursionError:
            raise BadRequest("messages is nested too deep") from None


def _message(given: dict[str, Any], index: int) -> dict[str, Any]:
    """A message as templates take it: content is text, arguments of calls are mappings."""
    where = f"messages[{index}]"
    role = given.get("role")
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise BadRequest(f"{where}.role must be a word of small letters, such as user")
    message = {name: value for name, value in given.items() if value is not None}
    message["content"] = _text(given.get("content"), f"{where}.content")
    if calls := given.get("tool_calls"):
        message["tool_calls"] = _calls(calls, f"{where}.tool_calls")
    else:
        message.pop("tool_calls", None)
    return message


def _text(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest(f"{where} must be text, or a list of parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "input_text", "output_text") or not isinstance(part.get("text"), str):
            raise BadRequest(f"{where} holds a part of type {str(kind)[:40]!r}; this model reads text")
        texts.append(part["text"])
    return "\n".join(texts)


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise BadRequest(f"{where} must be a list")
    read = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRequest(f"{where} must hold objects with a function that has a name")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except ValueError:
                raise BadRequest(f"{where}: the arguments of {function['name'][:64]} are not JSON") from None
        if arguments is None:
            arguments = {}
        if not isinstance(arguments, dict):
            raise BadRequest(f"{where}: the arguments of {function['name'][:64]} must be an object")
        read.append({**call, "function": {**function, "arguments": arguments}})
    return read


class Renderer:
    """Renders and tokenizes conversations of one model.

    Args:
        tokenizer: of the model; it neither truncates nor pads.
        template: of the model.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer, self._template = tokenizer, template
        added = tokenizer.get_added_tokens_decoder()
        special = {token.content for token in added.values() if token.special and token.content}
        self._controls = {
            token.content: number
            for number, token in added.items()
            if token.content in special or (token.content and token.content in template.source)
        }
        self._all, self._special = _Controls(self._controls), _Controls(special)
        self._special_ids = {self._controls[text] for text in special}
        self._plain = Tokenizer.from_str(_without(self._controls, tokenizer))
        self._plain.no_truncation()
        self._plain.no_padding()

    def encode(self, conversation: Conversation, most: int) -> list[int]:
        """Token ids of the prompt.

        Args:
            most: characters that the rendered conversation may have.

        Raises:
            BadRequest: the template does not take the conversation, or it becomes too long.
        """
        tools, messages = conversation.tools, conversation.messages
        if "developer" not in self._template.source:
            messages = [m | {"role": "system"} if m["role"] == "developer" else m for m in messages]
        if not self._template.takes_tools:
            messages, tools = without_tools(messages, tools), None
        given = [messages, tools, conversation.chat_template_kwargs]
        held = json.dumps(given, ensure_ascii=False)
        mark = next((mark for mark in _MARKS if mark not in held), None)
        if mark is None:
            raise BadRequest("messages holds all the characters that Unicode reserves for programs")
        marked = [[self._marked(m, mark, m["role"]) for m in messages], *self._marked(given[1:], mark)]
        prompt = self._render(conversation, given, most)
        if marked == given:
            return list(self._tokenizer.encode(prompt, add_special_tokens=False).ids)
        kept = self._render(conversation, marked, 2 * most)
        if kept.replace(mark, "") != prompt:
            raise BadRequest(
                "messages holds a control token of this model, and its chat template looks at it: remove it"
            )
        return self._pieces(kept, mark)

    def _render(self, conversation: Conversation, given: list[Any], most: int) -> str:
        messages, tools, variables = given
        try:
            prompt = self._template.render(
                messages,
                tools=tools,
                continue_final_message=conversation.continue_final_message,
                add_generation_prompt=conversation.add_generation_prompt,
                variables=variables,
            )
        except BadInput as error:
            raise BadRequest(error.message) from None
        if len(prompt) > most:
            raise BadRequest(f"the conversation has {len(prompt)} characters, at most {most} are accepted")
        if not prompt:
            raise BadRequest("the chat template makes an empty prompt of this conversation")
        return prompt

    def _marked(self, value: Any, mark: str, role: str = "") -> Any:
        """A value of JSON in whose texts no control token is left; roles are words and stay.

        What an assistant said may hold tokens that are not special, which its template looks for: `</think>`.
        """
        if isinstance(value, str):
            return (self._special if role == "assistant" else self._all).broken(value, mark)
        if isinstance(value, list):
            return [self._marked(item, mark, role) for item in value]
        if isinstance(value, dict):
            return {
                self._marked(name, mark, role): item if name == "role" else self._marked(item, mark, role)
                for name, item in value.items()
            }
        return value

    def _pieces(self, marked: str, mark: str) -> list[int]:
        """Control tokens of the template by their names, and what stands between them as plain text."""
        ids: list[int] = []
        for piece, number in self._split(marked):
            if number is not None:
                ids.append(number)
                continue
            plain = self._plain.encode(piece.replace(mark, ""), add_special_tokens=False).ids
            if self._special_ids.intersection(plain):
                raise BadRequest(
                    "messages holds a control token that this tokenizer cannot read as text: remove it"
                )
            ids += plain
        return ids

    def _split(self, text: str) -> Iterator[tuple[str, int | None]]:
        place = 0
        for found in self._all.pattern.finditer(text):
            if found.start() > place:
                yield text[place : found.start()], None
            yield found[0], self._controls[found[0]]
            place = found.end()
        if place < len(text):
            yield text[place:], None


class _Controls:
    """Control tokens as texts.

    Args:
        texts: none of them empty.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        ordered = sorted(texts, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, ordered)) if ordered else r"(?!)")
        self._beginnings = {text[:size] for text in ordered for size in range(1, len(text))}
        self._ends = {text[size:] for text in ordered for size in range(1, len(text))}
        self._longest = max(map(len, ordered), default=0)

    def broken(self, text: str, mark: str) -> str:
        """A text with a mark inside each control token, and where it begins or ends with a part of one, which
        what stands beside it could complete."""
        text = self.pattern.sub(lambda found: mark.join((found[0][:1], found[0][1:])), text)
        sizes = range(1, min(self._longest, len(text) + 1))
        begins = any(text[:size] in self._ends for size in sizes)
        ends = any(text[-size:] in self._beginnings for size in sizes)
        return f"{mark if begins else ''}{text}{mark if ends else ''}"


def _without(controls: Iterable[str], tokenizer: Tokenizer) -> str:
    """A tokenizer as JSON for which these tokens are text like any other."""
    content = json.loads(tokenizer.to_str())
    names = set(controls)
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in names]
    content["post_processor"] = None
    return json.dumps(content)
