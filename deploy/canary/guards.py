"""What a canary is judged by: errors, quantiles of the time that requests take, and agreement of answers.

Each guard has two questions. Is the new version worse? An e-process answers, and one that says so takes the
canary back at once. Is it good enough? Confidence sequences answer. What neither has answered is open: no
requests, or too few, never mean good. Of agreement one confidence sequence answers both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from deploy.canary.statistics import Times, WorseRate, evidence_against, rate_interval
from shoal.errors import UsageError

Verdict = Literal["open", "good", "worse"]
FORM = "errors, errors<=1%, p99, p99<=1.25x, agreement or agreement>=0.995"
ERRORS, TIME, AGREEMENT = "errors", "time", "agreement"
_GUARD = re.compile(
    r"errors(?:<=(?P<points>\d+(?:\.\d+)?)%)?"
    r"|agreement(?P<least>>=(?P<agree>\d+(?:\.\d+)?))?|p(?P<share>\d{1,2}(?:\.\d+)?)(?:<=(?P<times>\d+(?:\.\d+)?)x)?"
)
_ERRORS_MORE, _TIMES, _AGREE = 0.01, 1.25, 0.995
ALPHA = 0.01  # that a version which is no worse is taken back, and that one which is worse is called good


@dataclass(frozen=True)
class Guard:
    """One condition.

    Attributes:
        share: of the requests whose time counts, such as 0.99; None: something else counts.
        most: how many times as long as the old version's that time may be; of errors, by how much the share
            of requests that fail may be larger, such as 0.01; of agreement, the share of answers that may
            differ.
        kind: what counts: errors, time or agreement.
    """

    share: float | None
    most: float
    kind: str = ERRORS

    @classmethod
    def parse(cls, given: str) -> Guard:
        """Read one of `FORM`.

        Raises:
            UsageError: it is something else.
        """
        found = _GUARD.fullmatch(given.strip())
        if not found:
            raise UsageError(f"{given!r} is no guard", hint=FORM)
        if given.strip().startswith(AGREEMENT):
            least = float(found["agree"] or _AGREE)
            if not 0.0 < least < 1.0:
                raise UsageError(f"{given}: the share must be more than 0 and less than 1", hint=FORM)
            return cls(None, round(1.0 - least, 9), AGREEMENT)
        if found["share"] is None:
            most = float(found["points"]) / 100 if found["points"] else _ERRORS_MORE
            if not 0.0 < most < 1.0:
                raise UsageError(f"{given}: the bound must be more than 0 and less than 100 %")
            return cls(None, most)
        share, most = float(found["share"]) / 100, float(found["times"] or _TIMES)
        if not 0.0 < share < 1.0 or most <= 1.0:
            raise UsageError(f"{given}: the share must be more than 0, and the bound more than 1x", hint=FORM)
        return cls(share, most, TIME)

    def __str__(self) -> str:
        if self.kind == AGREEMENT:
            return f"agreement>={1.0 - self.most:g}"
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
        compared, differed: requests that both answered, and those that they answered differently.
    """

    guards: Sequence[Guard]
    ratio: int
    old: Seen = field(default_factory=Seen)
    new: Seen = field(default_factory=Seen)
    tests: list[WorseRate] = field(default_factory=list)
    compared: int = 0
    differed: int = 0
    _kept: dict[float, tuple[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tests = self.tests or [WorseRate(self.ratio) for _ in self.guards]

    def add(self, request: Answered) -> None:
        """Count a request.

        Times of requests that failed do not count, nor do those before 50 have told what is usual.
        """
        for guard, test in zip(self.guards, self.tests, strict=True):
            if guard.kind == ERRORS:
                test.add(request.failed, new=request.new)
            elif (
                guard.share is not None
                and request.seconds is not None
                and not request.failed
                and self.old.times.number >= 50
            ):
                # The bound is known before the request is. If the new version's times, divided by what is
                # allowed, are no longer than the old one's, it exceeds the bound no more often.
                usual = self._usual(guard.share)
                test.add(request.seconds > usual * (guard.most if request.new else 1.0), new=request.new)
        seen = self.new if request.new else self.old
        seen.number += 1
        seen.failed += request.failed
        if request.seconds is not None and not request.failed:
            seen.times.add(request.seconds)

    def compare(self, *, agree: bool) -> None:
        """Count a request that both versions have answered."""
        self.compared += 1
        self.differed += not agree

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

    def _agreement(self, guard: Guard) -> dict[str, Any]:
        alpha = ALPHA / len(self.guards)
        low, high = rate_interval(self.differed, self.compared, alpha)
        verdict: Verdict = "worse" if low > guard.most else "good" if high <= guard.most else "open"
        return {
            "guard": str(guard),
            "verdict": verdict,
            "old": None,
            "new": 1.0 - self.differed / self.compared if self.compared else None,
            "old_interval": [None, None],
            "new_interval": [1.0 - high, 1.0 - low],
            "evidence": round(evidence_against(guard.most, self.differed, self.compared, alpha), 3),
        }

    def _row(self, guard: Guard, test: WorseRate) -> dict[str, Any]:
        if guard.kind == AGREEMENT:
            return self._agreement(guard)
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
            "compared": self.compared,
            "differed": self.differed,
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
        tests = [WorseRate(**test) for test in kept["tests"]]
        return cls(guards, kept["ratio"], old, new, tests, kept["compared"], kept["differed"])


def _plain(interval: tuple[float, float]) -> list[float | None]:
    return [None if math.isinf(each) else each for each in interval]
