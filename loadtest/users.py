"""Simulated users: real text of realistic lengths, over gRPC and over HTTP.

A scenario is a class; both inherit what they do and differ in how they speak. What a client raises is a
failure, under the name of its error.
"""

from __future__ import annotations

import random
import time
import weakref
from typing import Any

import grpc.experimental.gevent as grpc_gevent
from locust import User, constant, events, task

from clients import GrpcClient, HttpClient
from loadtest import workloads
from loadtest.asking import Seen, asker
from loadtest.samples import BETWEEN_TOKENS, FIRST_TOKEN
from shoal.admin import key_from_environment

grpc_gevent.init_gevent()  # gRPC's own threads must yield to Locust's greenlets


@events.init_command_line_parser.add_listener
def _add_arguments(parser: Any) -> None:
    group = parser.add_argument_group("shoal", "what to load, and where it is")
    group.add_argument("--model", default="minilm", help="the model to call")
    group.add_argument("--grpc-url", default="127.0.0.1:8001", help="host:port of Triton's gRPC endpoint")
    group.add_argument("--http-url", default="127.0.0.1:8000", help="host:port of Triton's HTTP endpoint")
    group.add_argument(
        "--workload", default="", help=f"{', '.join(workloads.NAMES)}, or a file of JSON lines"
    )
    group.add_argument("--deadline", type=float, default=10.0, help="deadline of a request in seconds")


# Connections of users that Locust has not let end; see `_close_connections`.
_OPEN: weakref.WeakSet[Any] = weakref.WeakSet()


@events.quit.add_listener
def _close_connections(**_: Any) -> None:
    """Close what is still open before Python ends: there gRPC would wait for gevent, which has ended."""
    for client in list(_OPEN):
        client.close()


def connect(protocol: str, options: Any, url: str = "") -> GrpcClient | HttpClient:
    """A connection, which is closed when Locust ends.

    Args:
        url: of another server than that of the options.
    """
    kind, usual = (GrpcClient, options.grpc_url) if protocol == "grpc" else (HttpClient, options.http_url)
    client = kind(url or usual, timeout=options.deadline, admin_key=key_from_environment())
    _OPEN.add(client)
    return client


class LoadUser(User):
    """What all users share: no pause, so that load is set by their number."""

    abstract = True
    wait_time = constant(0)

    def fire(
        self,
        protocol: str,
        name: str,
        milliseconds: float,
        size: int,
        failure: Exception | None = None,
        **context: float | None,
    ) -> None:
        """Tell Locust of a request that ends now, or of a part of one.

        Args:
            name: of what is asked.
            milliseconds: how long it took.
            size: of the answer, bytes or tokens.
            context: what else `recorder` keeps of it.
        """
        self.environment.events.request.fire(
            request_type=protocol,
            name=name,
            response_time=milliseconds,
            response_length=size,
            exception=failure,
            context=context,
        )


class WorkloadUser(LoadUser):
    """Sends one request of a workload after the other, in a random order."""

    abstract = True
    protocol: str
    generates: bool

    def on_start(self) -> None:
        """Connect, one connection a user, and look up what the model takes."""
        options = self.environment.parsed_options
        self.client = connect(self.protocol, options)
        self.asker = asker(self.client, options.model, generates=self.generates)
        self.requests = workloads.requests(options.workload, generates=self.generates)

    def on_stop(self) -> None:
        """Close the connection."""
        self.client.close()
        _OPEN.discard(self.client)

    @task
    def ask(self) -> None:
        """One request."""
        self.ask_for(random.choice(self.requests))  # noqa: S311 - load, not a secret

    def ask_for(self, request: workloads.Request) -> Seen | None:
        """Send it and tell Locust; the time is the caller's, from call to arrays. None: it failed."""
        start = time.perf_counter()
        try:
            seen = self.asker(self.client, request)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a failure and is counted
            self.fire(self.protocol, self.asker.name, _since(start), 0, error)
            time.sleep(0.1)  # a dead server must not be asked ten thousand times a second
            return None
        took, first = _since(start), seen.until_first(start)
        more = {"first": first, "between": seen.between, "read": seen.read}
        self.fire(self.protocol, self.asker.name, took, seen.size, None, **more)
        for name, milliseconds in ((FIRST_TOKEN, first), (BETWEEN_TOKENS, seen.between)):
            if milliseconds is not None:  # lines of their own on Locust's web page
                self.fire(self.protocol, name, milliseconds, seen.size)
        return seen


def _since(start: float) -> float:
    return 1e3 * (time.perf_counter() - start)


class RowUser(WorkloadUser):
    """Asks a model of any task that answers once."""

    abstract = True
    generates = False


class GrpcRowUser(RowUser):
    """Over gRPC."""

    protocol = "grpc"


class HttpRowUser(RowUser):
    """Over HTTP."""

    protocol = "http"
