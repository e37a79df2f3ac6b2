"""Users of the three models, of six kinds: our clients and NVIDIA's own, over gRPC and HTTP.

Each request is one record: it must end, in an answer of a version that there is or in a typed error, by its
deadline and `LATE_SECONDS`.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from geventhttpclient.response import HTTPConnectionClosed
from tritonclient.utils import InferenceServerException

from clients import BadInput, ClientError, Denied, GrpcClient, HttpClient, UnknownModel
from tests.reliability.models import PROMPTS, ROWS, TABLE, TALES, TEXTS, TOKENS, WORDS

DEADLINE = 4.0  # seconds
LATE_SECONDS = 2.0
GREEDY = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
# Of a request that is in order these would be untrue.
_NEVER = (BadInput, Denied)

Answers = dict[str, list[Any]]  # model -> what each version answers to each input


@dataclass
class Ended:
    """How a request ended.

    Attributes:
        kind: of its caller.
        at: when it was sent, on the monotonic clock.
        seconds: until it ended.
        how: `answered`, or the type of the error.
        wrong: what is against the promise; "": nothing.
    """

    kind: str
    at: float
    seconds: float
    how: str
    wrong: str = ""


@dataclass
class Calls:
    """Where the service is, what it answers, and how requests ended."""

    http: str
    grpc: str
    known: Answers = field(default_factory=dict)
    ended: list[Ended] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def version_of(self, model: str, which: int, got: Any) -> int | None:
        """Index of the version that answers so; None: none does."""
        for index, answers in enumerate(self.known[model]):
            if isinstance(got, str):
                if got == answers[which]:
                    return index
            elif np.shape(got) == np.shape(answers[which]) and np.allclose(got, answers[which], atol=1e-3):
                return index
        return None

    def record(self, kind: str, model: str, which: int, call: Callable[[], Any]) -> Ended:
        """One request from beginning to end."""
        at = time.monotonic()
        how, wrong = "answered", ""
        try:
            got = call()
            if self.version_of(model, which, got) is None:
                wrong = f"an answer of no version: {str(got)[:200]}"
        except _NEVER as error:
            how = type(error).__name__
            # A version that is not there, e.g. between a refusal and what comes after it.
            wrong = "" if isinstance(error, UnknownModel) else str(error)
        except ClientError as error:
            how = type(error).__name__
        except InferenceServerException as error:
            how = f"triton: {error.status()}"
        # What tritonclient lets through of a connection that ends.
        except (OSError, EOFError, HTTPConnectionClosed) as error:
            how = f"connection: {type(error).__name__}"
        except Exception as error:
            how, wrong = type(error).__name__, f"untyped: {error!r}"
        seconds = time.monotonic() - at
        if seconds > DEADLINE + LATE_SECONDS:
            wrong = f"{wrong} late: {seconds:.1f} s".strip()
        ended = Ended(kind, at, seconds, how, wrong)
        self.ended.append(ended)
        return ended


def _texts_grpc(calls: Calls) -> Iterator[tuple[int, Callable[[], Any]]]:
    with GrpcClient(calls.grpc, timeout=DEADLINE) as client:
        while True:
            which = random.randrange(len(TEXTS))
            yield which, lambda which=which: client.embed([TEXTS[which]], model=WORDS)[0]


def _texts_http(calls: Calls) -> Iterator[tuple[int, Callable[[], Any]]]:
    def ask(which: int) -> Any:
        with triton_http.InferenceServerClient(calls.http, network_timeout=DEADLINE) as client:
            given = triton_http.InferInput("text", [1, 1], "BYTES")
            given.set_data_from_numpy(np.array([[TEXTS[which].encode()]], object))
            return client.infer(WORDS, [given]).as_numpy("embedding")[0]

    while True:
        which = random.randrange(len(TEXTS))
        yield which, lambda which=which: ask(which)


def _rows_http(calls: Calls) -> Iterator[tuple[int, Callable[[], Any]]]:
    with HttpClient(calls.http, timeout=DEADLINE) as client:
        while True:
            which = random.randrange(len(TABLE))
            yield which, lambda which=which: client.predict(TABLE[which : which + 1], model=ROWS)[0]


def _rows_grpc(calls: Calls) -> Iterator[tuple[int, Callable[[], Any]]]:
    with triton_grpc.InferenceServerClient(calls.grpc) as client:
        while True:
            which = random.randrange(len(TABLE))

            def ask(which: int = which) -> Any:
                given = triton_grpc.InferInput("features", [1, TABLE.shape[1]], "FP32")
                given.set_data_from_numpy(TABLE[which : which + 1])
                return client.infer(ROWS, [given], client_timeout=DEADLINE).as_numpy("prediction")[0]

            yield which, ask


def _streams_ours(calls: Calls) -> Iterator[tuple[int, Callable[[], Any]]]:
    with GrpcClient(calls.grpc, timeout=DEADLINE) as grpc, HttpClient(calls.http, timeout=DEADLINE) as http:
        while True:
            which, client = random.randrange(len(PROMPTS)), random.choice((grpc, http))

            def ask(which: int = which, client: Any = client) -> str:
                parts = list(client.generate(PROMPTS[which], model=TALES, **GREEDY))
                reasons = [part.finish_reason for part in parts if part.finish_reason]
                return (
                    "".join(part.text for part in parts) if reasons == ["length"] else f"ended by {reasons}"
                )

            yield which, ask


def _streams_triton(calls: Calls) -> Iterator[tuple[int, Callable[[], Any]]]:
    def ask(which: int) -> str:
        came: Queue[Any] = Queue()
        inputs = []
        values = {
            "text_input": np.array([PROMPTS[which].encode()], object),
            "stream": np.array([True]),
            "sampling_parameters": np.array([json.dumps(GREEDY).encode()], object),
            "exclude_input_in_output": np.array([True]),
        }
        for name, value in values.items():
            inputs.append(
                triton_grpc.InferInput(name, list(value.shape), "BOOL" if value.dtype == bool else "BYTES")
            )
            inputs[-1].set_data_from_numpy(value)
        with triton_grpc.InferenceServerClient(calls.grpc) as client:
            client.start_stream(lambda result, error: came.put(error or result), stream_timeout=DEADLINE)
            client.async_stream_infer(TALES, inputs, enable_empty_final_response=True)
            text = ""
            while True:
                try:
                    got = came.get(timeout=DEADLINE + LATE_SECONDS)
                except Empty:
                    return "a stream without an end"
                if isinstance(got, InferenceServerException):
                    raise got
                response = got.get_response()
                if (value := got.as_numpy("text_output")) is not None:
                    text += value[0].decode()
                if response.parameters["triton_final_response"].bool_param:
                    return text

    while True:
        which = random.randrange(len(PROMPTS))
        yield which, lambda which=which: ask(which)


KINDS: dict[str, tuple[str, Callable[[Calls], Iterator[tuple[int, Callable[[], Any]]]]]] = {
    "texts, our gRPC client": (WORDS, _texts_grpc),
    "texts, tritonclient over HTTP": (WORDS, _texts_http),
    "rows, our HTTP client": (ROWS, _rows_http),
    "rows, tritonclient over gRPC": (ROWS, _rows_grpc),
    "streams, our clients": (TALES, _streams_ours),
    "streams, tritonclient over gRPC": (TALES, _streams_triton),
}


def _run(calls: Calls, kind: str, every: float) -> None:
    model, source = KINDS[kind]
    for which, call in source(calls):
        begun = time.monotonic()
        answered = calls.record(kind, model, which, call).how == "answered"
        pause = max(0.0, begun + every - time.monotonic()) if answered else 0.1
        if calls.stop.wait(pause):
            return


def start(calls: Calls, every: Mapping[str, float] | float = 0.02) -> list[threading.Thread]:
    """Callers until `calls.stop` is set: one of each kind, or of those that are named.

    Args:
        every: seconds between the beginnings of two requests, unless one takes longer.
    """
    paces = every if isinstance(every, Mapping) else dict.fromkeys(KINDS, every)
    threads = [
        threading.Thread(target=_run, args=[calls, kind, pace], daemon=True, name=kind)
        for kind, pace in paces.items()
    ]
    for thread in threads:
        thread.start()
    return threads


_ASK = {WORDS: _texts_http, ROWS: _rows_grpc, TALES: _streams_ours}


def answers_of(calls: Calls, model: str) -> list[Any]:
    """What a model answers to each input, by NVIDIA's client for arrays and ours for text."""
    count = {WORDS: len(TEXTS), ROWS: len(TABLE), TALES: len(PROMPTS)}[model]
    kept: dict[int, Any] = {}
    for which, call in _ASK[model](calls):
        if which not in kept:
            kept[which] = call()
        if len(kept) == count:
            return [kept[which] for which in range(count)]
    raise AssertionError("unreachable")
