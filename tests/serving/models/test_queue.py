"""A Python model's own queue: each request is ended exactly once, whatever happens."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from serving import probe
from serving.models import stand_in
from serving.models.queue import Queue

KEY = "3f9a"


class Caller:
    """One request, and how it ended: `answers`, `codes` of errors.

    Args:
        rows: that it has.
        first: it carries the key of whoever started the server.
    """

    def __init__(self, rows: int = 1, *, first: bool = False) -> None:
        self.left, self.ended = False, threading.Event()
        self.codes: list[int | None] = []
        self._parameters = json.dumps({probe.PARAMETER: KEY} if first else {})
        sender = stand_in.ResponseSender(self._receive)
        sender.is_cancelled = lambda: self.left  # type: ignore[method-assign]
        self.request: Any = stand_in.InferenceRequest({"x": np.zeros((rows, 1))}, [], sender)
        self.request.parameters = lambda: self._parameters
        self.request.caller = self

    def _receive(self, response: stand_in.InferenceResponse | None, final: bool) -> None:
        assert final and response is not None
        error = response.error()
        self.codes.append(None if error is None else error.code())
        self.ended.set()


class Model:
    """Answers when it is let; keeps which requests it answered together."""

    def __init__(self) -> None:
        self.together: list[list[Caller]] = []
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.broken = False

    def answers(self, requests: Sequence[Any]) -> list[Any]:
        self.together.append([request.caller for request in requests])
        self.begun.release()
        assert self.go.acquire(timeout=10)
        if self.broken:
            raise RuntimeError("of the model")
        return [stand_in.InferenceResponse([]) for _ in requests]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def queue(model: Model, monkeypatch: pytest.MonkeyPatch) -> Queue:
    monkeypatch.setenv(probe.PROBE_KEY, KEY)
    return Queue(model.answers, _rows, most_rows=4, most=3, model="a")


def _rows(request: Any) -> int:
    return len(request.tensor("x").as_numpy())


def _add(queue: Queue, *callers: Caller) -> None:
    for caller in callers:
        queue.add(caller.request)


def _codes(*callers: Caller) -> list[list[int | None]]:
    assert all(caller.ended.wait(10) for caller in callers)
    return [caller.codes for caller in callers]


def test_as_many_are_answered_together_as_fit_and_a_larger_one_alone(queue: Queue, model: Model) -> None:
    running, small, other, large = Caller(), Caller(2), Caller(2), Caller(9)
    _add(queue, running)
    model.begun.acquire()
    _add(queue, small, other, large)
    model.go.release(3)
    assert _codes(running, small, other, large) == [[None]] * 4
    assert model.together == [[running], [small, other], [large]]
    queue.close()


def test_a_full_queue_refuses_users_and_answers_the_probe_next(queue: Queue, model: Model) -> None:
    running, waiting, late, check = Caller(), [Caller() for _ in range(3)], Caller(), Caller(first=True)
    _add(queue, running)
    model.begun.acquire()
    _add(queue, *waiting, late, check)
    assert _codes(late) == [[stand_in.TritonError.UNAVAILABLE]]
    model.go.release(3)
    assert _codes(check, running, *waiting) == [[None]] * 5
    assert model.together == [[running], [check], waiting]
    queue.close()


def test_what_the_model_raises_ends_those_it_answered_and_no_others(queue: Queue, model: Model) -> None:
    running, waiting = Caller(), Caller()
    model.broken = True
    _add(queue, running)
    model.begun.acquire()
    _add(queue, waiting)
    model.go.release()
    assert _codes(running) == [[stand_in.TritonError.INTERNAL]]
    model.begun.acquire()
    model.broken = False
    model.go.release()
    assert _codes(waiting) == [[None]]
    queue.close()


def test_one_that_left_is_ended_once_though_the_others_fail(queue: Queue, model: Model) -> None:
    running, gone, there = Caller(), Caller(), Caller()
    _add(queue, running)
    model.begun.acquire()
    _add(queue, gone, there)
    gone.left, model.broken = True, True
    model.go.release(2)
    assert _codes(gone, there) == [[stand_in.TritonError.CANCELLED], [stand_in.TritonError.INTERNAL]]
    queue.close()
    assert len(gone.codes) == 1


def test_a_request_that_cannot_be_read_fails_alone(queue: Queue, model: Model) -> None:
    bad, good = Caller(), Caller()
    bad.request.tensor = lambda name: None
    _add(queue, bad, good)
    model.go.release()
    assert _codes(bad, good) == [[stand_in.TritonError.INTERNAL], [None]]
    queue.close()


def test_whoever_left_is_not_worked_for(queue: Queue, model: Model) -> None:
    running, gone, there = Caller(), Caller(), Caller()
    _add(queue, running)
    model.begun.acquire()
    _add(queue, gone, there)
    gone.left = True
    model.go.release(2)
    assert _codes(running, gone, there) == [[None], [stand_in.TritonError.CANCELLED], [None]]
    assert model.together == [[running], [there]]
    queue.close()


def test_a_stop_answers_what_runs_and_ends_what_waits(queue: Queue, model: Model) -> None:
    running, waiting, check = Caller(), Caller(), Caller(first=True)
    _add(queue, running)
    model.begun.acquire()
    _add(queue, waiting, check)
    closing = threading.Thread(target=queue.close)
    closing.start()
    model.go.release()
    closing.join(10)
    unavailable = [stand_in.TritonError.UNAVAILABLE]
    assert _codes(running, waiting, check) == [[None], unavailable, unavailable]
