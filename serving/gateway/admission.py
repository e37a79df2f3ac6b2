"""Who may send a request to a model now, and who waits: higher priorities first, and nobody in vain.

A server works on so many requests at once; more only wait there, in the order in which they came. So they
wait here, where those of higher priority are let in first, and where one that cannot be answered before its
deadline is refused at once, rather than after it has waited.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from serving.gateway.errors import bad_request, overloaded
from serving.gateway.http import Call
from serving.gateway.models import Model

HEADER = "x-shoal-priority"
HIGHEST = 9  # as keys have it
MOST_AT_ONCE = 256  # requests to a model that says nothing of its own queue
_NEWEST = 0.1  # how much the last answer counts in the running mean of their times


@dataclass(frozen=True)
class Room:
    """How many requests there is room for.

    Attributes:
        running: those that may be sent to the servers, before others wait.
        accepted: those that the servers take at most: one that asks for many answers may go beyond `running`.
        waiting: those that may wait here.
    """

    running: int
    accepted: int
    waiting: int


def room_of(model: Model, servers: int) -> Room:
    """The room for requests to a model on some servers.

    A few more than a decoder runs are sent, so that it never waits for the next one.
    """
    waiting = model.max_queue_size or MOST_AT_ONCE
    most = model.max_num_seqs
    if not most:  # the server makes batches of what waits there
        return Room(servers * waiting, servers * waiting, servers * waiting)
    running = most + min(max(1, most // 4), waiting)
    return Room(servers * running, servers * (most + waiting), servers * waiting)


def priority_of(call: Call) -> int:
    """The priority of a request: what its header asks for, but no more than its key has.

    Raises:
        ApiError: the header is no priority.
    """
    most = HIGHEST if call.caller is None else call.caller.priority
    given = call.headers.get(HEADER)
    if given is None:
        return 0 if call.caller is None else most
    if not (given.isascii() and given.isdigit() and int(given[:4]) <= HIGHEST):
        raise bad_request(f"{HEADER} must be a number from 0 to {HIGHEST}", HEADER)
    return min(int(given), most)


@dataclass(order=True)
class _Waiter:
    rank: tuple[int, int]  # lower ones first: the negative priority, and the order in which they came
    count: int = field(compare=False)
    entered: asyncio.Future[None] = field(compare=False)


class Line:
    """The requests to one model. Used inside of one event loop.

    Args:
        clock: the time, in seconds, by which deadlines are given.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiters: list[_Waiter] = []
        self._numbers = itertools.count()
        self._seconds: float | None = None
        self._room = Room(0, 0, 0)
        self.running = 0

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return sum(waiter.count for waiter in self._waiters)

    @asynccontextmanager
    async def place(self, count: int, room: Room, priority: int, deadline: float) -> AsyncIterator[None]:
        """Room for some requests, which are let in together; it is waited for.

        Args:
            count: how many.
            room: how much there is now.
            priority: higher ones are let in first, and among equals who came first.
            deadline: by which the answers must have come.

        Raises:
            ApiError: there is no room to wait in, or the deadline would pass before the answers.
        """
        if count > room.accepted:
            raise bad_request(f"{count} answers at once are asked for, at most {room.accepted} can be given")
        self._room = room
        if self._waiters or not self._fits(count):
            await self._wait(count, priority, deadline)
        else:
            self.running += count
        began = self._clock()
        try:
            yield
            self._learn(self._clock() - began)
        finally:
            self._leave(count)

    def _fits(self, count: int) -> bool:
        return self.running < self._room.running and self.running + count <= self._room.accepted

    def _learn(self, seconds: float) -> None:
        """Failures are not learnt from: they may come at once, or only at a deadline."""
        before = seconds if self._seconds is None else self._seconds
        self._seconds = before + _NEWEST * (seconds - before)

    def _leave(self, count: int) -> None:
        self.running -= count
        self._let_in()

    def _let_in(self) -> None:
        while self._waiters and self._fits(self._waiters[0].count):
            waiter = heapq.heappop(self._waiters)
            self.running += waiter.count
            waiter.entered.set_result(None)

    async def _wait(self, count: int, priority: int, deadline: float) -> None:
        waiter = _Waiter((-priority, next(self._numbers)), count, asyncio.get_running_loop().create_future())
        answer = self._seconds or 0.0
        ahead = sum(other.count for other in self._waiters if other < waiter)
        turn = answer * (ahead + count) / self._room.running
        patience = deadline - answer - self._clock()
        if turn > patience:
            raise overloaded(f"a turn comes in about {turn:.1f} s, too late for the deadline", turn)
        self._make_room(waiter, turn)
        heapq.heappush(self._waiters, waiter)
        self._let_in()
        try:
            await asyncio.wait({waiter.entered}, timeout=patience)
            if not waiter.entered.done():
                raise overloaded("no turn came in time for the deadline", turn)
            waiter.entered.result()
        except BaseException:
            if waiter in self._waiters:
                self._remove(waiter)
                self._let_in()
            elif waiter.entered.done() and waiter.entered.exception() is None:  # let in, and gone
                self._leave(count)
            raise

    def _make_room(self, newcomer: _Waiter, turn: float) -> None:
        """Those of lower priority, the last ones first, leave for one of higher priority."""
        lower = [waiter for waiter in self._waiters if waiter.rank[0] > newcomer.rank[0]]
        most = self._room.waiting - newcomer.count
        if self.waiting - sum(waiter.count for waiter in lower) > most:
            raise overloaded(f"{self.running} requests to this model run, and {self.waiting} wait", turn)
        while self.waiting > most:
            last = max(lower)
            lower.remove(last)
            self._remove(last)
            last.entered.set_exception(overloaded("requests of higher priority wait", turn))

    def _remove(self, waiter: _Waiter) -> None:
        self._waiters.remove(waiter)
        heapq.heapify(self._waiters)
