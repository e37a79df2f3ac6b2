"""Simulated users of a model that answers once: real text of realistic lengths, over gRPC and over HTTP.

A scenario is a class; both inherit what they do and differ in how they speak. What a client raises is a
failure, under the name of its error.
"""

from __future__ import annotations

import random
import time
import weakref
from abc import abstractmethod
from typing import Any

import grpc.experimental.gevent as grpc_gevent
import numpy as np
from locust import User, constant, events, task

from clients import ClientError, GrpcClient, HttpClient
from shoal import corpus, tensors
from shoal.admin import key_from_environment

grpc_gevent.init_gevent()  # gRPC's own threads must yield to Locust's greenlets

TEXTS = corpus.texts(2000)
# Tasks that take any text, and what their requests are called; the others get the row in the model's config.
FREE_TEXT = {
    "sentence-similarity": "embed",
    "text-classification": "classify",
    "token-classification": "entities",
    "text2text-generation": "rewrite",
}


@events.init_command_line_parser.add_listener
def _add_arguments(parser: Any) -> None:
    group = parser.add_argument_group("shoal", "what to load, and where it is")
    group.add_argument("--model", default="minilm", help="the model to call")
    group.add_argument("--grpc-url", default="127.0.0.1:8001", help="host:port of Triton's gRPC endpoint")
    group.add_argument("--http-url", default="127.0.0.1:8000", help="host:port of Triton's HTTP endpoint")
    group.add_argument("--deadline", type=float, default=10.0, help="deadline of a request in seconds")


# Connections of users that Locust has not let end; see `_close_connections`.
_OPEN: weakref.WeakSet[Any] = weakref.WeakSet()


@events.quit.add_listener
def _close_connections(**_: Any) -> None:
    """Close what is still open before Python ends: there gRPC would wait for gevent, which has ended."""
    for client in list(_OPEN):
        client.close()


class LoadUser(User):
    """What all users share: no pause, so that load is set by their number; one connection each."""

    abstract = True
    wait_time = constant(0)
    protocol: str

    @abstractmethod
    def connect(self, options: Any) -> Any:
        """A client of this protocol."""

    def on_start(self) -> None:
        """One connection a user."""
        self.client = self.connect(self.environment.parsed_options)
        _OPEN.add(self.client)

    def on_stop(self) -> None:
        """Close the connection."""
        self.client.close()
        _OPEN.discard(self.client)

    def fire(self, name: str, milliseconds: float, size: int, failure: Exception | None = None) -> None:
        """Tell Locust of a request, or of a part of one."""
        self.environment.events.request.fire(
            request_type=self.protocol,
            name=name,
            response_time=milliseconds,
            response_length=size,
            exception=failure,
            context={},
        )


class GrpcUser(LoadUser):
    """Over gRPC."""

    abstract = True
    protocol = "grpc"

    def connect(self, options: Any) -> GrpcClient:
        """See `LoadUser`."""
        return GrpcClient(options.grpc_url, timeout=options.deadline, admin_key=key_from_environment())


class HttpUser(LoadUser):
    """Over HTTP."""

    abstract = True
    protocol = "http"

    def connect(self, options: Any) -> HttpClient:
        """See `LoadUser`."""
        return HttpClient(options.http_url, timeout=options.deadline, admin_key=key_from_environment())


class RowUser(LoadUser):
    """Sends one row after the other to a model of any task that answers once."""

    abstract = True

    def on_start(self) -> None:
        """Connect, and look up what the model takes."""
        super().on_start()
        model = self.environment.parsed_options.model
        self.row: dict[str, Any] = {}
        self.action, self.varies = "infer", False
        try:
            config = self.client.config(model)
            self.row = tensors.sample_arrays(config, self.client.metadata(model))
        except ClientError:
            return  # what is asked of it fails, and is counted
        task = config.get("parameters", {}).get("task", {}).get("string_value", "")
        self.varies = task in FREE_TEXT
        self.action = FREE_TEXT.get(task, "infer")

    @task
    def infer(self) -> None:
        """One row; the time is the caller's, from call to arrays."""
        row = dict(self.row)
        if self.varies:
            text = random.choice(TEXTS)  # noqa: S311 - load, not a secret
            row["text"] = np.array([[text.encode()]], dtype=object)
        failure: Exception | None = None
        size = 0
        start = time.perf_counter()
        try:
            answer = self.client.infer(self.environment.parsed_options.model, row)
            size = sum(array.nbytes for array in answer.values())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a failure and is counted
            failure = error
            time.sleep(0.1)  # a dead server must not be asked ten thousand times a second
        self.fire(self.action, 1e3 * (time.perf_counter() - start), size, failure)


class GrpcRowUser(RowUser, GrpcUser):
    """Over gRPC."""


class HttpRowUser(RowUser, HttpUser):
    """Over HTTP."""
