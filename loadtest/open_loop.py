"""Callers of an open loop: a request is sent when it is due, whatever became of the ones before it.

Each process of Locust has one user of this class. It sends every n-th request of the test, each in a greenlet
of its own, over a connection that no other request is using.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import gevent
import numpy as np
from gevent.pool import Group
from locust import events, task
from locust.exception import StopUser
from locust.runners import WorkerRunner

from clients import ClientError
from loadtest import arrivals, recorder, workloads
from loadtest.asking import Seen, asker
from loadtest.users import LoadUser, connect

WARM_CONNECTIONS, WARM_SECONDS = 4, 2.0


class Unfinished(Exception):
    """A request had no answer when the test had ended and its grace was over."""


@events.init_command_line_parser.add_listener
def _add_arguments(parser: Any) -> None:
    group = parser.add_argument_group("open loop", "see `shoal loadtest --rate`")
    group.add_argument("--rate", type=float, default=None, help="requests per second of all processes")
    group.add_argument("--arrival", default=arrivals.POISSON, help="poisson, constant, or a trace")
    group.add_argument("--seconds", type=float, default=10.0, help="how long requests come")
    group.add_argument("--grace", type=float, default=10.0, help="seconds to wait for the last answers")
    group.add_argument("--processes-in-all", type=int, default=1, help="among which requests are divided")
    group.add_argument("--seed", type=int, default=0, help="of times and requests")
    group.add_argument("--begins-at", type=float, default=0.0, help="seconds since 1970; 0: at once")
    group.add_argument("--beside", default="", help="host:port of a server that is asked in turn")
    group.add_argument("--turn", type=float, default=2.0, help="seconds for each of two servers")
    group.add_argument("--generates", action="store_true", help="the model generates text")


_DONE = "all requests of a process are sent"


@events.init.add_listener
def _end_when_all_are_done(environment: Any, **_: Any) -> None:
    runner, done = environment.runner, 0

    def count(environment: Any, **_: Any) -> None:
        nonlocal done
        done += 1
        if done == environment.parsed_options.processes_in_all:
            gevent.spawn(environment.runner.quit)

    if runner is not None and not isinstance(runner, WorkerRunner):
        runner.register_message(_DONE, count)


class OpenLoop(LoadUser):
    """Sends what is due, over one protocol or several in turn."""

    abstract = True
    protocols: tuple[str, ...]

    def on_start(self) -> None:
        """Connect, so that the first requests do not pay for it, and look up what the model takes."""
        options = self.environment.parsed_options
        self._servers = ("", options.beside) if options.beside else ("",)
        self._idle = {
            (protocol, url): [connect(protocol, options, url) for _ in range(WARM_CONNECTIONS)]
            for protocol in self.protocols
            for url in self._servers
        }
        clients = [client for clients in self._idle.values() for client in clients]
        gevent.joinall([gevent.spawn(_ready, client) for client in clients], timeout=WARM_SECONDS)
        first = next(
            (client for url in self._servers if _ready(client := self._idle[self.protocols[0], url][0])),
            clients[0],  # nobody answers, which the requests will tell
        )
        self._ask = asker(first, options.model, generates=options.generates)
        self._requests = workloads.requests(options.workload, generates=options.generates, seed=options.seed)
        self._waiting: dict[int, float] = {}

    @task
    def send(self) -> None:
        """Send all requests of this process; those of a second server have numbers after the first's."""
        options = self.environment.parsed_options
        number = getattr(self.environment.runner, "worker_index", 0)
        due = arrivals.due_times(options.arrival, options.rate, options.seconds, seed=options.seed)
        self._number_of_requests = len(due)
        if len(self._servers) > 1:
            shifts = [arrivals.in_turn(due, side, options.turn) for side in (0, 1)]
            due = np.concatenate([due + shift for shift in shifts])
        order = np.argsort(due, kind="stable")
        gevent.sleep(max(0.0, options.begins_at - time.time()))  # all processes begin together
        group, start, used = Group(), time.perf_counter(), time.process_time()
        for index in order[number :: options.processes_in_all].tolist():
            at = start + float(due[index])
            gevent.sleep(max(0.0, at - time.perf_counter()))
            self._waiting[index] = at
            group.spawn(self._one, index, at)
        group.join(timeout=options.grace)
        recorder.sender.update(cpu_seconds=time.process_time() - used, seconds=time.perf_counter() - start)
        for index in list(self._waiting):
            self._tell(index, None, Seen(0), Unfinished("no answer when the test ended"))
        self.environment.runner.send_message(_DONE)
        raise StopUser

    def _one(self, index: int, due: float) -> None:
        lag = 1e3 * (time.perf_counter() - due)
        protocol, options = self._protocol(index), self.environment.parsed_options
        side, place = divmod(index, self._number_of_requests)
        url = self._servers[side]
        idle = self._idle[protocol, url]
        client = idle.pop() if idle else connect(protocol, options, url)
        seen, failure = Seen(0), None
        try:
            seen = self._ask(client, self._requests[place % len(self._requests)])
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a failure and is counted
            failure = error
        idle.append(client)
        if index in self._waiting:  # else it comes after the end, and was counted then
            self._tell(index, lag, seen, failure)

    def _tell(self, index: int, lag: float | None, seen: Seen, failure: Exception | None) -> None:
        due = self._waiting.pop(index)
        took = 1e3 * (time.perf_counter() - due)
        self.fire(
            self._protocol(index),
            self._ask.name,
            took,
            seen.size,
            failure,
            index=index,
            lag=lag,
            first=seen.until_first(due),
            between=seen.between,
            read=seen.read,
        )

    def _protocol(self, index: int) -> str:
        return self.protocols[index % len(self.protocols)]


def _ready(client: Any) -> bool:
    with contextlib.suppress(ClientError):
        return bool(client.ready())
    return False


class GrpcOpenLoop(OpenLoop):
    """Over gRPC."""

    protocols = ("grpc",)


class HttpOpenLoop(OpenLoop):
    """Over HTTP."""

    protocols = ("http",)


class BothOpenLoop(OpenLoop):
    """Over gRPC and HTTP in turn."""

    protocols = ("grpc", "http")
