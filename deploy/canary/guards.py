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

from deploy.canary.statistics import Blocks, Times, WorseRate, evidence_against, rate_interval
from shoal.errors import UsageError

Verdict = Literal["open", "good", "worse"]
FORM = "errors, errors<=1%, p99, p99<=1.25x, agreement or agreement>=0.995"
ERRORS, TIME, AGREEMENT = "errors", "time", "agreement"
_GUARD = re.compile(
    r"errors(?:<=(?P<points>\d+(?:\.\d+)?)%)?"
    r"|agreement(?:>=(?P<agree>\d+(?:\.\d+)?))?|p(?P<share>\d{1,2}(?:\.\d+)?)(?:<=(?P<times>\d+(?:\.\d+)?)x)?"
)
_ERRORS_MORE, _TIMES, _AGREE = 0.01, 1.25, 0.995
_LATEST = 500  # requests that say how a version is now
_LEAST_KNOWN = 50  # times, before what is usual is known
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
            if not 0.5 <= least <= 0.9999:
                raise UsageError(f"{given}: the share must be from 0.5 to 0.9999", hint=FORM)
            return cls(None, round(1.0 - least, 9), AGREEMENT)
        if found["share"] is None:
            most = float(found["points"]) / 100 if found["points"] else _ERRORS_MORE
            if not 0.0001 <= most <= 0.5:
                raise UsageError(f"{given}: the bound must be from 0.01% to 50%")
            return cls(None, most)
        share, most = float(found["share"]) / 100, float(found["times"] or _TIMES)
        if not 0.0 < share <= 0.9999 or not 1.0 < most <= 100.0:
            raise UsageError(
                f"{given}: the percentile must be from 1 to 99.99, the bound more than 1x and at most 100x",
                hint=FORM,
            )
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
    """What one version has answered.

    Attributes:
        number, failed: requests that ended, and those without a result.
        times: of the others.
        last, last_times: whether the latest requests failed, and the latest times.
    """

    number: int = 0
    failed: int = 0
    times: Times = field(default_factory=Times)
    last: list[bool] = field(default_factory=list)
    last_times: list[float] = field(default_factory=list)

    def add(self, *, failed: bool, seconds: float | None) -> None:
        """Count a request."""
        self.number += 1
        self.failed += failed
        self.last = [*self.last[1 - _LATEST :], failed]
        if seconds is not None and not failed:
            self.times.add(seconds)
            self.last_times = [*self.last_times[1 - _LATEST :], seconds]

    def lately(self, share: float) -> float:
        """The time within which that share of the latest requests is, in seconds; 0.0: there was none."""
        values = sorted(self.last_times)
        return values[math.ceil(share * len(values)) - 1] if values else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Give the value as plain JSON types."""
        return {**vars(self), "times": self.times.to_dict()}

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> Seen:
        """Make the value from what `to_dict` gave."""
        return cls(**{**kept, "times": Times.from_dict(kept["times"])})


@dataclass
class Judge:
    """Counts requests of both versions, and says what each guard makes of them.

    Args:
        guards: at least one.
        tests: an e-process of each.
        ended, timed: pairs requests that have ended, and those with a time.
        known: times of the old version in blocks that were used: a bound is known before a block is.
        compared, differed: requests that both answered, and those that they answered differently.
    """

    guards: Sequence[Guard]
    old: Seen = field(default_factory=Seen)
    new: Seen = field(default_factory=Seen)
    tests: list[WorseRate] = field(default_factory=list)
    ended: Blocks = field(default_factory=Blocks)
    timed: Blocks = field(default_factory=Blocks)
    known: Times = field(default_factory=Times)
    compared: int = 0
    differed: int = 0
    _kept: dict[float, tuple[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tests = self.tests or [WorseRate() for _ in self.guards]

    def add(self, request: Answered) -> None:
        """Count a request. Times of requests that failed do not count."""
        (self.new if request.new else self.old).add(failed=request.failed, seconds=request.seconds)
        for new, old in self.ended.add(float(request.failed), new=request.new):
            for guard, test in zip(self.guards, self.tests, strict=True):
                if guard.kind == ERRORS:
                    test.add(new > 0, sum(each > 0 for each in old), len(old))
        if request.seconds is None or request.failed:
            return
        for new, old in self.timed.add(request.seconds, new=request.new):
            if self.known.number >= _LEAST_KNOWN:
                self._time(new, old)
            for each in old:
                self.known.add(each)

    def begin(self) -> None:
        """Pair no request that comes from now on with one from before a pause."""
        self.ended, self.timed = Blocks(), Blocks()

    def _time(self, new: float, old: Sequence[float]) -> None:
        for guard, test in zip(self.guards, self.tests, strict=True):
            if guard.share is not None:
                # If the new version's times, divided by what is allowed, are no longer than the old one's, it
                # exceeds the usual time no more often.
                usual = self._usual(guard.share)
                test.add(new > usual * guard.most, sum(each > usual for each in old), len(old))

    def compare(self, *, agree: bool) -> None:
        """Count a request that both versions have answered."""
        self.compared += 1
        self.differed += not agree

    def _usual(self, share: float) -> float:
        """The quantile of `known` in seconds, looked up anew after each 5 % more requests."""
        number, value = self._kept.get(share, (0, 0.0))
        if self.known.number >= 1.05 * number:
            number, value = self.known.number, self.known.quantile(share)
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
            most = (values[0] or 0.0) + guard.most
            late, _ = rate_interval(sum(self.new.last), len(self.new.last), alpha)
            beyond = (values[1] or 0.0) > most or late > most
        else:
            values = [seen.times.quantile(guard.share) or None for seen in (self.old, self.new)]
            good = new_high <= old_low * guard.most
            usual = values[0] or 0.0
            late = self.new.lately(guard.share) > max(usual, self.old.lately(guard.share)) * guard.most
            beyond = (values[1] or 0.0) > usual * guard.most or late
        needed = math.log(1.0 / alpha)
        worse = beyond and test.evidence >= needed  # what is allowed is not called worse
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
            "ended": asdict(self.ended),
            "timed": asdict(self.timed),
            "known": self.known.to_dict(),
            "compared": self.compared,
            "differed": self.differed,
            "tests": [asdict(test) for test in self.tests],
            "old": self.old.to_dict(),
            "new": self.new.to_dict(),
        }

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> Judge:
        """Make the value from what `to_dict` gave."""
        return cls(
            [Guard.parse(given) for given in kept["guards"]],
            Seen.from_dict(kept["old"]),
            Seen.from_dict(kept["new"]),
            [WorseRate(**test) for test in kept["tests"]],
            Blocks(**kept["ended"]),
            Blocks(**kept["timed"]),
            Times.from_dict(kept["known"]),
            kept["compared"],
            kept["differed"],
        )


def _plain(interval: tuple[float, float]) -> list[float | None]:
    return [None if math.isinf(each) else each for each in interval]
