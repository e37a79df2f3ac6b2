"""Requests with structures wait for them apart from all others, and each hears once how it ends."""

from __future__ import annotations

import queue
import threading
from dataclasses import replace
from typing import Any

import pytest

from serving.generation.admission import Admission
from serving.generation.engine import QueueFull
from serving.generation.params import BadRequest, SamplingParams
from serving.generation.sequence import Failure, Request

SECONDS = 30.0


class Structures:
    """Compiles `wait` only once it is told to, or fails as it is closed, and refuses `bad`."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.closed = False

    def matcher(self, kind: str, definition: Any) -> str:
        if definition.startswith("wait"):
            self.begun.set()
            assert self.go_on.wait(SECONDS)
        if definition.endswith("bad"):
            raise BadRequest("structured_outputs: regex: it is bad")
        if definition == "wait" and self.closed:
            raise OSError("the process that tries grammars has died")
        return f"{kind} {definition}"

    def close(self) -> None:
        self.closed = True
        self.go_on.set()


class Caller:
    """Sends one request and keeps whatever comes of it."""

    def __init__(self, definition: str, deadline: float | None = None) -> None:
        self.heard: queue.Queue[Any] = queue.Queue()
        self.left = False
        params = SamplingParams(structured_outputs=("regex", definition))
        self.request = Request(
            [1], params, False, self.heard.put, is_cancelled=lambda: self.left, deadline=deadline
        )


def _admission(
    structures: Structures, most: int = 8, clock: Any = lambda: 0.0
) -> tuple[Admission, queue.Queue[Request]]:
    submitted: queue.Queue[Request] = queue.Queue()
    return Admission(structures, submitted.put, most, clock), submitted


def test_a_request_is_submitted_with_its_structure_in_turn() -> None:
    admission, submitted = _admission(Structures())
    for definition in ("a", "b", "c"):
        caller = Caller(definition)
        admission.add(caller.request, caller.heard.put)
    assert [submitted.get(timeout=SECONDS).matcher for _ in range(3)] == ["regex a", "regex b", "regex c"]
    admission.close()


def test_what_cannot_be_compiled_or_submitted_is_refused_once() -> None:
    caller = Caller("bad")
    admission, _ = _admission(Structures())
    admission.add(caller.request, caller.heard.put)
    assert str(caller.heard.get(timeout=SECONDS)) == "structured_outputs: regex: it is bad"
    admission.close()

    def full(request: Request) -> None:
        raise QueueFull("the queue is full")

    caller = Caller("good")
    admission = Admission(Structures(), full, 8)
    admission.add(caller.request, caller.heard.put)
    assert isinstance(caller.heard.get(timeout=SECONDS), QueueFull)
    admission.close()
    assert caller.heard.empty()


def test_no_more_wait_than_may() -> None:
    structures = Structures()
    admission, submitted = _admission(structures, most=2)
    callers = [Caller("wait"), Caller("a"), Caller("b"), Caller("c")]
    admission.add(callers[0].request, callers[0].heard.put)
    assert structures.begun.wait(SECONDS)
    for caller in callers[1:3]:
        admission.add(caller.request, caller.heard.put)
    with pytest.raises(QueueFull, match="^the queue is full: 2 structures wait to be compiled"):
        admission.add(callers[3].request, callers[3].heard.put)
    structures.go_on.set()
    assert [submitted.get(timeout=SECONDS).matcher for _ in range(3)] == ["regex wait", "regex a", "regex b"]
    admission.close()


def test_who_has_left_or_is_late_is_not_compiled_for() -> None:
    now = [0.0]
    structures = Structures()
    admission, submitted = _admission(structures, clock=lambda: now[0])
    slow, late, left, last = Caller("wait", deadline=5.0), Caller("a", deadline=5.0), Caller("b"), Caller("c")
    for caller in (slow, late, left, last):
        admission.add(caller.request, caller.heard.put)
    assert structures.begun.wait(SECONDS)
    now[0], left.left = 6.0, True
    structures.go_on.set()
    assert submitted.get(timeout=SECONDS).matcher == "regex c"
    assert [caller.heard.get(timeout=SECONDS)[0] for caller in (slow, late, left)] == [
        Failure.DEADLINE,
        Failure.DEADLINE,
        Failure.CANCELLED,
    ]
    admission.close()
    assert submitted.empty() and all(caller.heard.empty() for caller in (slow, late, left, last))


def test_who_waits_as_the_server_stops_is_told_so() -> None:
    structures = Structures()
    admission, submitted = _admission(structures)
    callers = [Caller("wait"), Caller("a"), Caller("bad")]
    for caller in callers:
        admission.add(caller.request, caller.heard.put)
    assert structures.begun.wait(SECONDS)
    admission.close()
    assert [caller.heard.get(timeout=SECONDS) for caller in callers] == [
        (Failure.STOPPING, "the server is stopping")
    ] * 3
    assert submitted.empty() and all(caller.heard.empty() for caller in callers)


def test_once_the_end_has_come_whoever_comes_is_told_so_too() -> None:
    structures = Structures()
    admission, submitted = _admission(structures)
    callers = [Caller("wait"), Caller("a"), Caller("b")]
    for caller in callers[:2]:
        admission.add(caller.request, caller.heard.put)
    assert structures.begun.wait(SECONDS)
    admission.end()
    admission.end()
    admission.add(callers[2].request, callers[2].heard.put)
    assert [caller.heard.get(timeout=SECONDS) for caller in callers] == [
        (Failure.STOPPING, "the server is stopping")
    ] * 3
    admission.close()
    assert submitted.empty() and all(caller.heard.empty() for caller in callers)


def test_who_leaves_or_is_late_while_the_structure_is_compiled_hears_that_once() -> None:
    """Whether it is compiled in the end or not; and one who can neither be asked nor told stops nobody."""
    for definition, failure in (("wait", Failure.CANCELLED), ("wait bad", Failure.DEADLINE)):
        now = [0.0]
        structures = Structures()
        admission, submitted = _admission(structures, clock=lambda now=now: now[0])
        caller, dead, last = Caller(definition, deadline=5.0), Caller("a"), Caller("c")
        broken = replace(dead.request, is_cancelled=_broken, deliver=_broken)
        admission.add(caller.request, caller.heard.put)
        admission.add(broken, dead.heard.put)
        admission.add(last.request, last.heard.put)
        assert structures.begun.wait(SECONDS)
        caller.left = failure is Failure.CANCELLED
        now[0] = 6.0 if failure is Failure.DEADLINE else 0.0
        structures.go_on.set()
        assert submitted.get(timeout=SECONDS).matcher == "regex c"
        assert caller.heard.get(timeout=SECONDS)[0] is failure
        admission.close()
        assert submitted.empty() and caller.heard.empty() and dead.heard.empty() and last.heard.empty()


def _broken(*args: Any) -> Any:
    raise OSError("the line is dead")
