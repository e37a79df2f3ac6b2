"""What a canary is judged by: errors, and quantiles of the time that requests take.

Each guard has two questions. Is the new version worse? An e-process answers, and one that says so takes the
canary back at once. Is it good enough? Confidence sequences answer. What neither has answered is open: no
requests, or too few, never mean good.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from deploy.canary.statistics import Times, WorseRate, rate_interval
from shoal.errors import UsageError

Verdict = Literal["open", "good", "worse"]
FORM = "errors, errors<=1%, p99 or p99<=1.25x"
_GUARD = re.compile(
    r"errors(?:<=(?P<points>\d+(?:\.\d+)?)%)?|p(?P<share>\d{1,2}(?:\.\d+)?)(?:<=(?P<times>\d+(?:\.\d+)?)x)?"
)
_ERRORS_MORE, _TIMES = 0.01, 1.25
ALPHA = 0.01  # that a version which is no worse is taken back, and that one which is worse is called good


@dataclass(frozen=True)
class Guard:
    """One condition.

    Attributes:
        share: of the requests whose time counts, such as 0.99; None: errors count.
        most: how many times as long as the old version's that time may be; of errors, by how much the share
            of requests that fail may be larger, such as 0.01.
    """

    share: float | None
    most: float

    @classmethod
    def parse(cls, given: str) -> Guard:
        """Read `errors`, `errors<=1%`, `p99` or `p99<=1.25x`.

        Raises:
            UsageError: it is something else.
        """
        found = _GUARD.fullmatch(given.strip())
        if not found:
            raise UsageError(f"{given!r} is no guard", hint=FORM)
        if found["share"] is None:
            most = float(found["points"]) / 100 if found["points"] else _ERRORS_MORE
            if not 0.0 < most < 1.0:
                raise UsageError(f"{given}: the bound must be more than 0 and less than 100 %")
            return cls(None, most)
        share, most = float(found["share"]) / 100, float(found["times"] or _TIMES)
        if not 0.0 < share < 1.0 or most <= 1.0:
            raise UsageError(f"{given}: the share must be more than 0, and the bound more than 1x", hint=FORM)
        return cls(share, most)

    def __str__(self) -> str:
        if self.share is None:
            return f"errors<={self.most * 100:g}%"
        return f"p{self.share * 100:g}<={self.most:g}x"


@dataclass(frozen=True)
class Answered:
    """A request that has ended.

    Attributes:
        new: whether it was of the new version's share.
        failed: whether it got no answer.
        seconds: that it took; None: that says nothing, as of a stream.
    """

    new: bool
    failed: bool
    seconds: float | None


@dataclass
class Seen:
    """What one version has answered."""

    number: int = 0
    failed: int = 0
    times: Times = field(default_factory=Times)


@dataclass
class Judge:
    """Counts requests of both versions, and says what each guard makes of them.

    Args:
        guards: at least one.
        ratio: requests of the old version for one of the new.
    """

    guards: Sequence[Guard]
    ratio: int
    old: Seen = field(default_factory=Seen)
    new: Seen = field(default_factory=Seen)
    tests: list[WorseRate] = field(default_factory=list)
    _kept: dict[float, tuple[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tests = self.tests or [WorseRate(self.ratio) for _ in self.guards]

    def add(self, request: Answered) -> None:
        """Count a request.

        Times of requests that failed do not count, nor do those before 50 have told what is usual.
        """
        for guard, test in zip(self.guards, self.tests, strict=True):
            if guard.share is None:
                test.add(request.failed, new=request.new)
            elif request.seconds is not None and not request.failed and self.old.times.number >= 50:
                # The bound is known before the request is. If the new version's times, divided by what is
                # allowed, are no longer than the old one's, it exceeds the bound no more often.
                usual = self._usual(guard.share)
                test.add(request.seconds > usual * (guard.most if request.new else 1.0), new=request.new)
        seen = self.new if request.new else self.old
        seen.number += 1
        seen.failed += request.failed
        if request.seconds is not None and not request.failed:
            seen.times.add(request.seconds)

    def _usual(self, share: float) -> float:
        """The old version's quantile in seconds, looked up anew after each 5 % more requests."""
        number, value = self._kept.get(share, (0, 0.0))
        if self.old.times.number >= 1.05 * number:
            number, value = self.old.times.number, self.old.times.quantile(share)
            self._kept[share] = number, value
        return value

    @property
    def verdict(self) -> Verdict:
        """Worse where one guard says so, good where all do."""
        verdicts = [row["verdict"] for row in self.rows()]
        if "worse" in verdicts:
            return "worse"
        return "good" if all(verdict == "good" for verdict in verdicts) else "open"

    def rows(self) -> list[dict[str, Any]]:
        """Guard by guard: `verdict`; `old` and `new`, each a rate or seconds, with their intervals; and
        `evidence`, how much of what it takes to be called worse there is, from 0 to 1."""
        return [self._row(guard, test) for guard, test in zip(self.guards, self.tests, strict=True)]

    def _row(self, guard: Guard, test: WorseRate) -> dict[str, Any]:
        alpha = ALPHA / len(self.guards)
        intervals = []
        for seen in (self.old, self.new):
            if guard.share is None:
                intervals.append(rate_interval(seen.failed, seen.number, alpha / 2))
            else:
                intervals.append(seen.times.interval(guard.share, alpha / 2))
        (old_low, _), (_, new_high) = intervals
        if guard.share is None:
            values = [seen.failed / seen.number if seen.number else None for seen in (self.old, self.new)]
            good = new_high <= old_low + guard.most
        else:
            values = [seen.times.quantile(guard.share) or None for seen in (self.old, self.new)]
            good = new_high <= old_low * guard.most
        needed = math.log(1.0 / alpha)
        worse = test.evidence >= needed
        verdict: Verdict = "worse" if worse else "good" if good else "open"
        return {
            "guard": str(guard),
            "verdict": verdict,
            "old": values[0],
            "new": values[1],
            "old_interval": _plain(intervals[0]),
            "new_interval": _plain(intervals[1]),
            "evidence": round(min(1.0, max(0.0, test.evidence / needed)), 3),
        }

    def to_dict(self) -> dict[str, Any]:
        """Give the value as plain JSON types."""
        return {
            "guards": [str(guard) for guard in self.guards],
            "ratio": self.ratio,
            "tests": [asdict(test) for test in self.tests],
            **{
                name: {"number": seen.number, "failed": seen.failed, "times": seen.times.to_dict()}
                for name, seen in (("old", self.old), ("new", self.new))
            },
        }

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> Judge:
        """Make the value from what `to_dict` gave."""
        old, new = (
            Seen(kept[name]["number"], kept[name]["failed"], Times.from_dict(kept[name]["times"]))
            for name in ("old", "new")
        )
        guards = [Guard.parse(given) for given in kept["guards"]]
        return cls(guards, kept["ratio"], old, new, [WorseRate(**test) for test in kept["tests"]])


def _plain(interval: tuple[float, float]) -> list[float | None]:
    return [None if math.isinf(each) else each for each in interval]
