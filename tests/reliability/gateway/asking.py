"""Requests to the gateway over plain sockets, and what is wrong with how they end.

Nothing here is shared with the gateway or with an SDK, so that an answer without an end is seen as one.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any

from tests.reliability.callers import DEADLINE, LATE_SECONDS, Ended
from tests.reliability.models import PROMPTS, TALES

SHORT, LONG = 40, 3000  # tokens of an answer
# What a request that is in order may be told, by the status.
TYPED = {503: {"overloaded", "unavailable", "stream_lost"}, 504: {"timeout"}}
_COMPLETIONS = "/v1/completions"


def body(which: int, tokens: int, *, stream: bool) -> dict[str, Any]:
    """A greedy request of so many tokens."""
    asked = {"model": TALES, "prompt": PROMPTS[which], "max_tokens": tokens, "temperature": 0}
    return {**asked, "ignore_eos": True, "stream": stream}


@dataclass
class Told:
    """What came of an answer.

    Attributes:
        events: whether it is a stream.
        error: code of the error that ended it; "": none.
        wrong: what is against the promise; "": nothing.
    """

    status: int
    events: bool = True
    text: str = ""
    fingerprint: str = ""
    error: str = ""
    reason: str = ""
    done: bool = False
    wrong: str = ""

    @property
    def how(self) -> str:
        """In a word or two."""
        return f"{self.status} {self.error}".strip() if self.error else "answered"


@dataclass
class Asker:
    """Sends requests, and judges how they end.

    Args:
        port: of the gateway on this machine.
        key: of its API.

    Attributes:
        known: (prompt, tokens) -> fingerprint of a version -> its greedy answer.
        without_keys: times, on the monotonic clock, in which no key was valid.
        ended: requests that have ended.
        other_version: answers that were those of another version than they said.
    """

    port: int
    key: str
    known: dict[tuple[int, int], dict[str, str]] = field(default_factory=dict)
    without_keys: list[tuple[float, float]] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    other_version: int = 0

    def head(self, length: int, seconds: float = DEADLINE) -> bytes:
        """The first lines of a request for an answer within some seconds."""
        lines = [
            f"POST {_COMPLETIONS} HTTP/1.1",
            f"host: 127.0.0.1:{self.port}",
            f"authorization: Bearer {self.key}",
            "content-type: application/json",
            f"x-stainless-read-timeout: {seconds:g}",
            f"content-length: {length}",
        ]
        return "\r\n".join([*lines, "", ""]).encode()

    def connected(self, receive_bytes: int = 0) -> socket.socket:
        """A connection; where `receive_bytes` is given, the kernel keeps about as much for it."""
        made = socket.socket()
        if receive_bytes:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        made.settimeout(5)
        made.connect(("127.0.0.1", self.port))
        return made

    def sent(self, asked: dict[str, Any], receive_bytes: int = 0) -> socket.socket:
        """A connection on which a request was sent, whose answer nobody reads yet."""
        content = json.dumps(asked).encode()
        made = self.connected(receive_bytes)
        made.sendall(self.head(len(content)) + content)
        return made

    @contextmanager
    def asked(self, given: dict[str, Any], seconds: float = DEADLINE) -> Iterator[HTTPResponse]:
        """The response to a request, which has begun to come."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=seconds + LATE_SECONDS + 1)
        headers = {
            "authorization": f"Bearer {self.key}",
            "content-type": "application/json",
            "x-stainless-read-timeout": f"{seconds:g}",
        }
        try:
            connection.request("POST", _COMPLETIONS, json.dumps(given), headers)
            yield connection.getresponse()
        finally:
            connection.close()

    def record(self, kind: str, which: int, tokens: int, *, stream: bool, seconds: float = DEADLINE) -> Ended:
        """One greedy request from beginning to end."""
        at = time.monotonic()
        try:
            with self.asked(body(which, tokens, stream=stream), seconds) as response:
                told = read(response)
        except (OSError, HTTPException) as error:
            return self.note(kind, at, Told(0, error=type(error).__name__, wrong=f"{error!r}"), seconds)
        self.judge(told, which, tokens, at)
        return self.note(kind, at, told, seconds)

    def note(self, kind: str, at: float, told: Told, seconds: float = DEADLINE) -> Ended:
        """Keep how a request has ended, which was sent at some time."""
        took, wrong = time.monotonic() - at, told.wrong
        if took > seconds + LATE_SECONDS:
            wrong = f"{wrong} late: {took:.1f} s".strip()
        made = Ended(kind, at, took, told.how, wrong)
        self.ended.append(made)
        return made

    def judge(self, told: Told, which: int, tokens: int, at: float) -> None:
        """Add what is wrong with an answer to a greedy request that was sent at some time."""
        versions = self.known[which, tokens]
        if told.wrong:
            return
        if told.error:
            told.wrong = self.refused(told, at)
            if not told.wrong and not any(text.startswith(told.text) for text in versions.values()):
                told.wrong = f"the beginning of no version's answer: {told.text!r}"
        elif told.reason != "length" or (told.events and not told.done):
            told.wrong = f"no end: finish_reason {told.reason!r}, [DONE] {told.done}"
        elif told.text not in versions.values():
            told.wrong = f"an answer of no version: {told.text!r}"
        elif versions.get(told.fingerprint) != told.text:
            self.other_version += 1

    def refused(self, told: Told, at: float) -> str:
        """What is wrong with an error that a request in order was told; "": nothing."""
        if told.status == 401 and any(
            begin - 1 < time.monotonic() and at < end + 2 for begin, end in self.without_keys
        ):
            return ""
        return "" if told.error in TYPED.get(told.status, ()) else f"told {told.status} {told.error}"


def read(response: HTTPResponse, each: Callable[[int], None] | None = None, begun: bytes = b"") -> Told:
    """All of an answer.

    Args:
        each: is told how many events of a stream have come, after each of them.
        begun: bytes of a stream's first line that were read before.
    """
    if not (response.getheader("content-type") or "").startswith("text/event-stream"):
        return whole(response.status, response.read(), dict(response.getheaders()))
    told, number = Told(response.status), 0
    while line := begun + response.readline():
        begun = b""
        if line.startswith(b"data: "):
            take(told, line[6:].strip())
            number += 1
            if each is not None:
                each(number)
    return told


def take(told: Told, data: bytes) -> None:
    """Add an event of a stream."""
    if told.done or told.error:
        told.wrong = told.wrong or f"an event after the end: {data!r}"
        return
    if data == b"[DONE]":
        told.done = True
        return
    value = json.loads(data)
    if "error" in value:
        # The code of an error names its status; it comes too late for the status itself.
        told.error = str(value["error"].get("code"))
        told.status = next((status for status, codes in TYPED.items() if told.error in codes), 500)
        return
    told.fingerprint = value["system_fingerprint"]
    for choice in value["choices"]:
        if told.reason and choice["text"]:
            told.wrong = told.wrong or "text after the finish reason"
        told.text += choice["text"]
        told.reason = choice["finish_reason"] or told.reason


def whole(status: int, content: bytes, headers: dict[str, str]) -> Told:
    """An answer that is no stream, as it came."""
    told = Told(status, events=False)
    try:
        value = json.loads(content)
        if status == 200:
            (choice,) = value["choices"]
            told.text, told.reason = choice["text"], choice["finish_reason"]
            told.fingerprint = value["system_fingerprint"]
        else:
            told.error = str(value["error"]["code"])
            if status == 503 and "retry-after" not in {name.lower() for name in headers}:
                told.wrong = "503 without retry-after"
    except (ValueError, KeyError, TypeError) as error:
        told.error, told.wrong = "untyped", f"{status}: {error!r} in {content[:200]!r}"
    return told
