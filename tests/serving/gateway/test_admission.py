"""Who is let in first, who waits, and who is refused: by the order of events, on a clock that tests set."""

from __future__ import annotations

import asyncio
import random
from datetime import datetime, timezone
from typing import Any

import pytest

from serving.gateway.admission import HEADER, Line, Room, priority_of, room_of
from serving.gateway.errors import ApiError
from serving.gateway.http import Call
from serving.gateway.keys import Key
from serving.gateway.models import Model

pytestmark = pytest.mark.anyio
LATER = 1e6  # a deadline that is never reached
ONE = Room(running=1, accepted=4, waiting=3)


class Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


class Requests:
    """Requests to one model, which run until they are told to end."""

    def __init__(self, room: Room = ONE) -> None:
        self.clock, self.room = Clock(), room
        self.line = Line(self.clock)
        self.entered: list[str] = []
        self.refused: dict[str, ApiError] = {}
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def begin(self, name: str, priority: int = 0, count: int = 1, deadline: float = LATER) -> None:
        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._run(name, count, priority, deadline))
        await self.settle()

    async def _run(self, name: str, count: int, priority: int, deadline: float) -> None:
        try:
            async with self.line.place(count, self.room, priority, deadline):
                self.entered.append(name)
                await self._ends[name].wait()
        except ApiError as error:
            self.refused[name] = error

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
            await self.settle()

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await self.settle()

    async def settle(self) -> None:
        for _ in range(8):
            await asyncio.sleep(0)


async def test_higher_priorities_go_first_and_among_equals_who_came_first() -> None:
    requests = Requests(Room(running=1, accepted=1, waiting=9))
    for name, priority in {"a": 0, "b": 0, "c": 5, "d": 0, "e": 9, "f": 5}.items():
        await requests.begin(name, priority)
    await requests.end("a", "e", "c", "f", "b", "d")
    assert requests.entered == ["a", "e", "c", "f", "b", "d"]
    assert requests.line.running == requests.line.waiting == 0 and not requests.refused


async def test_one_who_waits_and_leaves_frees_the_place() -> None:
    requests = Requests()
    for name in "abcd":
        await requests.begin(name)
    await requests.begin("e")
    assert list(requests.refused) == ["e"] and requests.line.waiting == 3
    await requests.cancel("b")
    await requests.begin("f")
    await requests.end("a", "c", "d", "f")
    assert requests.entered == ["a", "c", "d", "f"] and requests.line.running == 0


async def test_one_who_is_let_in_as_he_leaves_takes_no_place() -> None:
    requests = Requests()
    for name in "abc":
        await requests.begin(name)
    requests._ends["a"].set()
    while requests.line.waiting == 2:  # until `b` is let in, which does not run yet
        await asyncio.sleep(0)
    await requests.cancel("b")
    assert requests.entered in (["a", "c"], ["a", "b", "c"])
    await requests.end("c")
    assert requests.line.running == requests.line.waiting == 0


async def test_a_full_line_refuses_and_says_when_to_come_again() -> None:
    requests = Requests()
    for name in "abcde":
        await requests.begin(name)
    error = requests.refused["e"]
    assert error.status == 503 and error.code == "overloaded" and "1 requests" in error.message
    assert int(error.headers["retry-after"]) >= 1 and int(error.headers["retry-after-ms"]) >= 1000


async def test_in_a_full_line_the_last_of_the_lowest_priority_leaves() -> None:
    requests = Requests()
    for name, priority in {"a": 0, "b": 0, "c": 1, "d": 0}.items():
        await requests.begin(name, priority)
    await requests.begin("e", 1)
    assert list(requests.refused) == ["d"] and requests.refused["d"].code == "overloaded"
    await requests.begin("f", 1, count=2)
    assert list(requests.refused) == ["d", "f"]  # for two places, one of equals would have to leave
    await requests.begin("g", 1)
    await requests.begin("h", 1)
    assert list(requests.refused) == ["d", "f", "b", "h"]
    await requests.end("a", "c", "e", "g")
    assert requests.entered == ["a", "c", "e", "g"]


async def test_what_cannot_be_answered_in_time_is_refused_at_once() -> None:
    requests = Requests()
    await requests.begin("a")
    requests.clock.at = 10.0
    await requests.end("a")  # an answer takes 10 s
    await requests.begin("b")
    await requests.begin("c", deadline=29.9)  # in 10 s it would be its turn, and in 20 s it had its answer
    assert "too late for the deadline" in requests.refused["c"].message
    assert requests.refused["c"].headers["retry-after"] == "10"
    await requests.begin("d", deadline=30.1)
    assert "d" not in requests.refused and requests.line.waiting == 1
    await requests.begin("e", priority=1, deadline=30.1)  # its turn is before that of `d`
    await requests.begin("f", deadline=49.9)
    assert list(requests.refused) == ["c", "f"]


async def test_one_who_finds_a_free_place_is_never_refused() -> None:
    requests = Requests()
    await requests.begin("a")
    requests.clock.at = 10.0
    await requests.end("a")
    await requests.begin("b", deadline=10.5)
    assert requests.entered == ["a", "b"]


async def test_one_whose_turn_does_not_come_in_time_is_refused() -> None:
    requests = Requests()
    await requests.begin("a")
    await requests.begin("b", deadline=0.01)  # nothing is known of how long answers take
    while "b" not in requests.refused:
        await asyncio.sleep(0.01)
    assert requests.refused["b"].message == "no turn came in time for the deadline"
    await requests.end("a")
    assert requests.line.running == requests.line.waiting == 0


async def test_failures_say_nothing_of_how_long_answers_take() -> None:
    requests = Requests()
    await requests.begin("a")
    requests.clock.at = 10.0
    await requests.cancel("a")
    await requests.begin("b")
    await requests.begin("c", deadline=10.5)
    assert not requests.refused


async def test_many_answers_at_once() -> None:
    requests = Requests(Room(running=2, accepted=4, waiting=4))
    await requests.begin("a", count=4)
    await requests.begin("b", count=3)
    await requests.begin("c")
    assert requests.entered == ["a"] and requests.line.running == 4 and requests.line.waiting == 4
    await requests.end("a")
    assert requests.entered == ["a", "b"] and requests.line.running == 3
    await requests.end("b", "c")
    assert requests.entered == ["a", "b", "c"]
    await requests.begin("d", count=5)
    assert requests.refused["d"].status == 400 and "at most 4" in requests.refused["d"].message


async def test_at_random_nobody_is_forgotten_and_nothing_leaks() -> None:
    chance = random.Random(0)
    requests = Requests(Room(running=3, accepted=5, waiting=6))
    alive: list[str] = []
    for number in range(600):
        if chance.random() < 0.55:
            await requests.begin(str(number), chance.randrange(3), chance.randrange(1, 4))
            alive.append(str(number))
        elif alive:
            name = alive.pop(chance.randrange(len(alive)))
            await (requests.end(name) if name in requests.entered else requests.cancel(name))
        assert 0 <= requests.line.running <= 5 and 0 <= requests.line.waiting <= 6
        assert requests.line.waiting == 0 or requests.line.running >= 3 - 1
    for name in [*requests.entered, *alive] * 2:
        await requests.end(name)
    assert requests.line.running == requests.line.waiting == 0
    assert all(task.done() for task in requests._tasks.values())


def test_the_room_of_a_model() -> None:
    def room(servers: int = 1, **limits: int) -> Room:
        return room_of(Model(name="m", **limits), servers)

    assert room(max_num_seqs=16, max_queue_size=24) == Room(20, 40, 24)
    assert room(3, max_num_seqs=16, max_queue_size=24) == Room(60, 120, 72)
    assert room(max_num_seqs=1, max_queue_size=8) == Room(2, 9, 8)
    assert room(max_queue_size=128) == Room(128, 128, 128)
    assert room() == Room(256, 256, 256)


def test_a_request_has_the_priority_of_its_key_or_a_lower_one() -> None:
    def priority(given: str | None, key: int | None) -> int:
        made: Any = key
        if key is not None:
            created = datetime(2026, 1, 1, tzinfo=timezone.utc)
            made = Key(id="0" * 12, name="a", priority=key, created=created)
        return priority_of(Call("id", {} if given is None else {HEADER: given}, b"", {}, made, 0.0))

    assert [priority(None, None), priority(None, 0), priority(None, 4)] == [0, 0, 4]
    assert [priority("9", None), priority("9", 4), priority("2", 4), priority("3", 0)] == [9, 4, 2, 0]
    for wrong in ("10", "-1", "1.5", "", "high", "٣", "9" * 5000):
        with pytest.raises(ApiError, match="must be a number from 0 to 9"):
            priority(wrong, None)
