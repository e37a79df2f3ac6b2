"""What is known of one request: filled in while it runs, and read once at its end by metrics, spans and the
audit log. Nothing here looks anything up, since some of it runs for each part of a stream."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serving.gateway.errors import ApiError
from shoal.tasks import EMBEDDING, GENERATION

LEFT, STOPPED = "left", "stopped"
# The status that nginx notes for callers who left; nobody is sent it.
LEFT_STATUS = 499
_RETRIES = "x-stainless-retry-count"
# More text of one request, or of its answer, is left out of the audit log, in bytes.
MOST_TEXT = 64 << 10
_OPERATIONS = {GENERATION: "chat", EMBEDDING: "embeddings"}


@dataclass
class Texts:
    """What was asked and answered, where the audit log keeps that.

    Attributes:
        body: of the request.
        reply: of a response that is no stream.
        answers: parts of what a decoder wrote, by the number of the answer.
    """

    body: bytes = b""
    reply: bytes = b""
    answers: dict[int, list[str]] = field(default_factory=dict)


@dataclass
class Record:
    """One request.

    Attributes:
        id: sent back in `x-request-id`, and told to Triton.
        endpoint: template of its path; "": there is no such path.
        method: of HTTP.
        public: whether the path takes no key.
        key: name of the caller's key; "": it has none, or none that is valid.
        model, version, task: of the model that answers, known once it is found; only models that are served.
        stream: whether the answer of a decoder comes in parts.
        choices: answers of decoders.
        input_tokens, cached_tokens, output_tokens: as the usage tells them: a prompt counts once.
        first, last: when the first and the last part of a stream came, in seconds since the beginning.
        finish_reasons: of its answers, as they ended.
        status: of HTTP; where a stream failed, that of its error; 499: the caller has left; 0: not known yet.
        error: code of what failed; "": nothing.
        cache: what the response cache did, `hit` or `miss`; "": it was not asked.
        retries: how often the caller's SDK has tried before.
        bytes_in, bytes_out: of the bodies.
        at: beginning, in seconds since 1970.
        began: the same on the clock of `time.monotonic`; `seconds`: how long it took, once it has ended.
        traceparent: what Triton is told, by W3C Trace Context; "": nothing.
        span: of `serving.gateway.tracing`.
        texts: None: they are not kept.
    """

    id: str = ""
    endpoint: str = ""
    method: str = ""
    public: bool = False
    key: str = ""
    model: str = ""
    version: str = ""
    task: str = ""
    stream: bool = False
    choices: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    first: float | None = None
    last: float = 0.0
    finish_reasons: list[str] = field(default_factory=list)
    status: int = 0
    error: str = ""
    cache: str = ""
    retries: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    at: float = field(default_factory=time.time)
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    traceparent: str = ""
    span: Any = None
    texts: Texts | None = None

    @property
    def operation(self) -> str:
        """`gen_ai.operation.name`; of tasks that the conventions have no name for, the task."""
        if self.endpoint == "/v1/completions":
            return "text_completion"
        return _OPERATIONS.get(self.task, self.task)

    @property
    def seconds_per_token(self) -> float | None:
        """Between two tokens of one answer, after its first; None: there were not two, or not in parts."""
        if self.first is None or not self.stream or self.output_tokens <= self.choices:
            return None
        return (self.last - self.first) * self.choices / (self.output_tokens - self.choices)

    def served_by(self, name: str, version: object, task: str) -> None:
        """The model is found, and the caller may use it."""
        self.model, self.version, self.task = name, str(version), task

    def took(self, body: bytes) -> None:
        """The whole body has come."""
        self.bytes_in = len(body)
        if self.texts is not None and len(body) <= MOST_TEXT:
            self.texts.body = body

    def sent(self, message: Mapping[str, Any]) -> None:
        """A message of ASGI is on its way to the caller."""
        body = message.get("body")
        if body is None:
            self.status = message["status"]
            return
        self.bytes_out += len(body)
        if self.texts is not None and len(body) <= MOST_TEXT:
            self.texts.reply = body  # a stream ends in an empty one

    def prompt(self, tokens: int, cached: int) -> None:
        """A prompt was read; so many of its tokens were computed before."""
        self.input_tokens += tokens
        self.cached_tokens += cached

    def part(self, index: int, text: str, tokens: int, finish_reason: str) -> None:
        """A part of an answer has come; this runs for each token of a stream."""
        self.output_tokens += tokens
        self.last = time.monotonic() - self.began
        if self.first is None:
            self.first = self.last
        if finish_reason:
            self.finish_reasons.append(finish_reason)
        if self.texts is not None:
            self.texts.answers.setdefault(index, []).append(text)

    def failed(self, error: ApiError) -> None:
        """The caller is told of an error, in a response or at the end of a stream."""
        self.status, self.error = error.status, error.code or "invalid"

    def left(self) -> None:
        """The caller has left before the answer was whole."""
        self.status, self.error = LEFT_STATUS, LEFT

    def stopped(self) -> None:
        """The gateway was told to stop before the answer was whole."""
        self.status, self.error = 503, STOPPED


def begun(
    number: str, method: str, endpoint: str, headers: Mapping[str, str], *, texts: bool, public: bool = False
) -> Record:
    """The record of a request whose headers have come.

    Args:
        texts: whether they are kept.
        public: see `Record`.
    """
    retries = headers.get(_RETRIES, "")
    return Record(
        number,
        endpoint,
        method,
        public,
        retries=int(retries) if retries.isdecimal() and len(retries) < 4 else 0,
        texts=Texts() if texts else None,
    )
