"""Which of several servers takes a request: the less busy one of two that are drawn by chance.

Of two random choices the less busy one is nearly as good as the least busy of all, and several gateways that
do not know of each other do not all run to the same server (Mitzenmacher, 2001, "The power of two choices in
randomized load balancing"). A server that fails again and again is left out for a while, and one that comes
back gets its share little by little, since its caches are empty.

Nothing here waits or reads a clock: times are those of `time.monotonic`, in seconds, and are given.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
FAILURES = 3  # in a row, after which a server is left out
EJECTED_SECONDS, MOST_EJECTED_SECONDS = 1.0, 30.0
SLOW_SECONDS = 10.0  # in which a server that has come back gets to its full share
_LEAST_SHARE = 0.1


class Load:
    """What one gateway knows of how a server does.

    Attributes:
        running: requests of this gateway that run there.
    """

    def __init__(self) -> None:
        self.running = 0
        self._failures = 0
        self._ejections = 0
        self._back = -math.inf

    def answered(self, now: float) -> None:
        """A request was answered, or a part of it."""
        self._failures = 0
        if now >= self._back + SLOW_SECONDS:
            self._ejections = 0

    def failed(self, now: float) -> None:
        """The server could not be reached, or did not answer in time.

        It is left out after `FAILURES` in a row, each time twice as long, until it has done well for a while.
        Requests that fail together with the one which decided so are not counted again.
        """
        if self.is_ejected(now):
            return
        self._failures += 1
        if self._failures >= FAILURES:
            self._failures = 0
            self._back = now + min(EJECTED_SECONDS * 2**self._ejections, MOST_EJECTED_SECONDS)
            self._ejections = min(self._ejections + 1, 16)

    def is_ejected(self, now: float) -> bool:
        """Whether it is left out."""
        return now < self._back

    def came_back(self, now: float) -> None:
        """The server serves again, after it did not."""
        self._back = max(self._back, now)

    def cost(self, now: float) -> float:
        """How busy it would be with one more request, by the share that it should have."""
        share = min(max((now - self._back) / SLOW_SECONDS, _LEAST_SHARE), 1.0)
        return (self.running + 1) / share


def pick(candidates: Sequence[T], cost: Callable[[T], float], rng: random.Random) -> T:
    """The cheaper of two candidates that are drawn by chance; there is at least one."""
    return min(rng.sample(candidates, min(2, len(candidates))), key=cost)
