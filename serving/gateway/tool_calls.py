"""Reads the calls of functions out of an answer, while it is written.

A call is `{"name": "f", "arguments": {...}}`. What stands around and between calls is the format's:

- Hermes: `<tool_call>\\n{...}\\n</tool_call>`, also behind text. Source: the chat templates of Hermes 3 and
  Qwen 2.5.
- Llama 3: `{...}; {...}` from the beginning of the answer, behind an optional `<|python_tag|>`, with
  `parameters` for `arguments`. Source: the chat templates of Llama 3.1 to 3.3, and for several calls vLLM's
  `llama_tool_parser.py`.
- Mistral: `[TOOL_CALLS][{...}, {...}]`, also behind text. Source: the chat templates of Mistral 7B v0.3 and
  Mistral Nemo.

Each character is read once, by state machines that know where in the JSON they are. Parsers that read the
incomplete JSON again for each token gave other calls for another splitting of the same text (vLLM issues
10395, 19056 and 21544).
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, TypeAlias

from serving.gateway.tool_json import SPACE, JsonValue
from shoal.tools import ToolFormat

PYTHON_TAG = "<|python_tag|>"
NAME, ARGUMENTS = "name", ("arguments", "parameters")
# Some models write these keys too. Their values are strings, and are not passed on.
IGNORED = ("type", "id")
NO_ARGUMENTS = "{}"
# What the value of a key begins with. Some models write null for no arguments.
_BEGINNINGS = dict.fromkeys((NAME, *IGNORED), '"') | dict.fromkeys(ARGUMENTS, "{n")
_LONGEST = 6 * 64 + 2  # characters of a name whose letters are all written as \uXXXX, with its quotes


@dataclass(frozen=True)
class Content:
    """Text of the answer that belongs to no call."""

    text: str


@dataclass(frozen=True)
class CallBegin:
    """A call has begun.

    Attributes:
        index: of the call in its answer, from 0.
        name: of the function.
    """

    index: int
    name: str


@dataclass(frozen=True)
class Arguments:
    """The next part of a call's arguments, which are a JSON object as the model writes it."""

    index: int
    delta: str


@dataclass(frozen=True)
class CallEnd:
    """A call is complete, and its arguments are valid JSON."""

    index: int


Event: TypeAlias = Content | CallBegin | Arguments | CallEnd


class CallParser:
    """Reads one answer piece by piece. However it is split, the joined content and calls are the same.

    Text that only looks like a call comes out as content, unchanged: a call of an unknown function, broken
    JSON, an unknown key. Only what may be the beginning of a call is held back. White space between
    content and a call, and what stands between two calls, is not content.

    Arguments are passed on while they are written, if the name came before them. If their JSON breaks after
    that, what was passed on cannot be taken back: the call gets no `CallEnd`, and the rest of the text is
    content. With `whole` a call is passed on when it is complete, so that a broken one is content from its
    beginning.

    Args:
        form: how the model writes calls.
        names: of the functions that may be called; none: all text is content.
        whole: whether to hold back each call until it is complete, for an answer that is not streamed.
    """

    def __init__(self, form: ToolFormat, names: Collection[str], *, whole: bool = False) -> None:
        self._names, self._whole = frozenset(names), whole
        self._expected = _expected(form) if names else {"text": {}}
        self._state = "start" if names and not form.begin else "text"
        self._word = ""  # the beginning of one of the texts that are expected
        self._held: list[str] = []  # what has been read and may still become content
        self._call: _Call | None = None
        self._waiting: list[Event] = []  # of a call that is held back
        self._out: list[Event] = []
        self._index = 0

    def add(self, text: str) -> list[Event]:
        """What the next piece of the answer says."""
        place = 0
        while place < len(text):
            if self._call is not None:
                place = self._in_call(self._call, text, place)
            elif self._state == "text" and not self._word:
                place = self._in_text(text, place)
            elif self._between(text[place]):
                place += 1
        return self._taken()

    def end(self) -> list[Event]:
        """What was held back, at the end of the answer. A call that was cut off gets no `CallEnd`."""
        if self._call is not None and self._call.name:
            self._begin(self._call)
            if self._call.arguments:
                self._give(Arguments(self._index, self._call.arguments))
            self._out += self._waiting
        elif self._state not in ("after", "next", "closed"):  # there it only ends or separates calls
            self._give_back()
        return self._taken()

    def _taken(self) -> list[Event]:
        taken, self._out = self._out, []
        return taken

    def _in_text(self, text: str, place: int) -> int:
        """Read content up to where a call may begin. Returns where the rest of the text begins."""
        markers = self._expected["text"]
        if not markers:
            self._give_back()
            self._content(text[place:])
            return len(text)
        end = min(
            (found for marker in markers if (found := text.find(marker[0], place)) >= 0), default=len(text)
        )
        said = text[place:end].rstrip(SPACE)
        if said:
            self._give_back()
            self._content(said)
        self._held.append(text[place + len(said) : end])  # white space, which a call may follow
        if end < len(text):
            self._between(text[end])
        return end + 1

    def _between(self, letter: str) -> bool:
        """Read one character outside of calls. False: it must be read again, as content."""
        if not self._word and letter in SPACE:
            if self._state not in ("after", "closed"):
                self._held.append(letter)
            return True
        word, expected = self._word + letter, self._expected[self._state]
        if not any(text.startswith(word) for text in expected):
            # None of the texts that are expected has its first character once more within itself. So no call
            # can have begun in what is given back, but for a second `[TOOL_CALLS]` right behind the first.
            self._give_up()
            return False
        self._held.append(letter)
        if word not in expected:
            self._word = word
            return True
        self._word, self._state = "", expected[word]
        if self._state == "call":
            self._call = _Call(self._names)
        elif self._state == "closed":
            self._held.clear()
        return True

    def _in_call(self, call: _Call, text: str, place: int) -> int:
        """Read a part of a call. Returns where the rest of the text begins."""
        end, streamed = call.take(text, place)
        if streamed and end > place:
            self._begin(call)
            self._give(Arguments(self._index, text[place:end]))
        if self._whole or not streamed:
            self._held.append(text[place:end])
        if call.broken:
            self._index += int(call.begun and not self._whole)
            self._call = None
            self._waiting.clear()
            self._give_up()
        elif call.done:
            self._begin(call)
            if not call.streaming:
                self._give(Arguments(self._index, call.arguments or NO_ARGUMENTS))
            self._give(CallEnd(self._index))
            self._out += self._waiting
            self._call, self._state = None, "after"
            self._waiting.clear()
            self._held.clear()
            self._index += 1
        return end

    def _begin(self, call: _Call) -> None:
        """Say once that a call has begun; what was held back is a part of it."""
        if not call.begun:
            call.begun = True
            self._give(CallBegin(self._index, call.name))
            if not self._whole:
                self._held.clear()

    def _give(self, event: Event) -> None:
        (self._waiting if self._whole else self._out).append(event)

    def _content(self, text: str) -> None:
        last = self._out[-1] if self._out else None
        if isinstance(last, Content):
            self._out[-1] = Content(last.text + text)
        elif text:
            self._out.append(Content(text))

    def _give_back(self) -> None:
        """What was held back is content after all."""
        self._content("".join(self._held))
        self._held.clear()

    def _give_up(self) -> None:
        """What was held back begins no call. White space at its end may still come before one."""
        held = "".join(self._held)
        said = held.rstrip(SPACE)
        self._content(said)
        self._held = [held[len(said) :]]
        self._state, self._word = "text", ""


def _expected(form: ToolFormat) -> dict[str, dict[str, str]]:
    """For each state outside of calls: the texts that may come, and the state behind each of them."""
    begin, end, between = form.begin.strip(), form.end.strip(), form.between.strip()
    first = {begin: "list" if form.listed else "open"} if begin else {}
    if form.listed:
        after = {between: "next", "]": "closed"}
    else:
        after = {text: state for text, state in ((end, "closed"), (between, "next")) if text} | first
    return {
        "start": {PYTHON_TAG: "open", "{": "call"},
        "text": first,
        "list": {"[": "open"},
        "open": {"{": "call"},
        "next": {"{": "call"},
        "after": after,
        "closed": first,
    }


class _Call:
    """The object that is one call, from behind its first `{`.

    Attributes:
        name: of the function; "" until it has come.
        arguments: what came before the name; "" if they came after it, or not at all.
        streaming: whether they come, or came, after the name, so that they can be passed on at once.
        begun: whether the parser has said that the call has begun.
        done: the object is complete.
        broken: what comes next cannot be part of a call.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.name = self.arguments = ""
        self.streaming = self.begun = self.done = self.broken = False
        self._names = names
        self._state: Literal["first", "key", "colon", "value", "after"] = "first"
        self._keys = {NAME, *ARGUMENTS, *IGNORED}  # that have not come
        self._key = ""
        self._value: JsonValue | None = None  # the key or value that is being read
        self._read: list[str] = []  # of it
        self._known: Collection[str] = ()  # what it may be; empty: anything

    def take(self, text: str, place: int) -> tuple[int, bool]:
        """Read on, up to where arguments begin or end that can be passed on.

        Returns:
            Where the rest begins, and whether what was read is a part of such arguments.
        """
        if self._value is not None and self._streams:
            place = self._value.take(text, place, len(text))
            self.broken = self._value.broken
            if self._value.done:
                self._value, self._state = None, "after"
            return place, True
        while place < len(text) and not (self.done or self.broken or self._streams):
            if self._value is not None:
                place = self._read_on(self._value, text, place)
            elif text[place] in SPACE:
                place += 1
            else:
                self._step(text[place])
                place += int(self._value is None and not self.broken)
        return place, False

    @property
    def _streams(self) -> bool:
        """Whether the value that is being read can be passed on."""
        return (
            self.streaming and self._value is not None and self._state == "value" and self._key in ARGUMENTS
        )

    def _step(self, letter: str) -> None:
        """What a character outside of keys and values means; a key or a value may begin with it."""
        state = self._state
        if state == "colon" and letter == ":":
            self._state = "value"
        elif state == "after" and letter == ",":
            self._state = "key"
        elif state == "after" and letter == "}" and self.name:
            self.done = True
        elif state in ("first", "key") and letter == '"':
            self._value, self._read, self._known = JsonValue(), [], self._keys
        elif state == "value" and letter in _BEGINNINGS[self._key]:
            self._value, self._read, self._known = JsonValue(), [], self._names if self._key == NAME else ()
            self.streaming |= letter == "{" and bool(self.name)
        else:
            self.broken = True

    def _read_on(self, value: JsonValue, text: str, place: int) -> int:
        """Read a part of a key or value. One that is not known ends at the character that shows it."""
        end = value.take(text, place, place + 1 if self._known else len(text))
        self._read.append(text[place:end])
        if value.broken or not self._fits(value.done):
            self.broken = True
            return place if self._known else end
        if value.done:
            self._complete("".join(self._read))
        return end

    def _fits(self, done: bool) -> bool:
        """Whether the string that is being read may be one of those that are known."""
        if not self._known:
            return True
        raw = "".join(self._read)
        if done or len(raw) > _LONGEST:
            return done and json.loads(raw) in self._known
        return "\\" in raw or any(known.startswith(raw[1:]) for known in self._known)

    def _complete(self, raw: str) -> None:
        """What a key or value means, which has been read to its end."""
        self._value = None
        if self._state != "value":
            self._key, self._state = json.loads(raw), "colon"
            self._keys -= set(ARGUMENTS) if self._key in ARGUMENTS else {self._key}
            return
        self._state = "after"
        if self._key == NAME:
            self.name = json.loads(raw)
        elif self._key in ARGUMENTS and raw != "null":
            self.arguments = raw
