"""What a search for a setting has seen and found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from loadtest.tuning.space import Setting


@dataclass(frozen=True)
class Judged:
    """One test of a setting at a rate.

    Attributes:
        met: whether the promise was kept.
        goodput: share of the requests within it.
        reached: percentiles in ms by the bound's text; None: no answer.
        client_limited: whether the processes that send were the limit.
        alone: whether requests hardly met each other.
    """

    met: bool
    goodput: float
    reached: dict[str, float | None]
    client_limited: bool = False
    alone: bool = False


@dataclass
class Tried:
    """A setting and what became of it.

    Attributes:
        rate: requests per second at which it kept the promise, or, where it never did, an estimate for the
            proposals; None: it failed.
        asked: the lowest rate at which it missed the promise; None: it failed before.
        kept: whether it kept the promise at `rate`.
        tests: how many it took.
        error: why it failed; "": it did not.
    """

    setting: Setting
    rate: float | None
    kept: bool
    tests: int
    asked: float | None = None
    error: str = ""


@dataclass
class Found:
    """What a search found, and everything it did.

    Attributes:
        same: rates of what is served now, measured twice, or three times where two were far apart.
        tried: further settings, in their order.
        confirmed: for each candidate that had a chance, its setting, the lowest rate at which it won a round
            (None: it won none), and the rounds: their rates, and whether it and what is served now kept the
            promise.
        winner: the setting that won; None: no difference.
        fresh: the highest rate at which the winner kept the promise on requests that the search did not have.
        client_limited: how many tests were limited by the processes that send.
    """

    same: list[float] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)
    confirmed: list[dict[str, Any]] = field(default_factory=list)
    winner: Setting | None = None
    fresh: float | None = None
    client_limited: int = 0

    @property
    def base(self) -> float:
        """The rate of what is served now: the best of those measured."""
        return max(self.same)

    @property
    def noise(self) -> float:
        """How much better the best is than the next one, as a ratio: one of three may be spoiled."""
        *_, second, best = sorted(self.same)
        return best / second

    @property
    def rate(self) -> float:
        """The highest rate of the winner, or of what is served now.

        That at which the winner was found is the best of many tests, so another day may not see it again.
        """
        return self.base if self.fresh is None else self.fresh

    def to_dict(self) -> dict[str, Any]:
        """As plain types."""
        return {
            "same": self.same,
            "tried": [vars(tried) for tried in self.tried],
            "confirmed": self.confirmed,
            "winner": self.winner,
            "fresh": self.fresh,
            "client_limited": self.client_limited,
        }
