"""Tests and intervals that hold at every moment, however often they are looked at.

An e-process has an expected value of at most 1 under its hypothesis, so the chance that it ever reaches
1/alpha is at most alpha (J. Ville, 1939). A confidence sequence holds at all times at once with a probability
of 1 - alpha.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# How much more often the new version is bad, in the alternatives that the test has in mind.
_MORE_OFTEN = (0.01, 0.03, 0.1, 0.3, 0.8)
_ANEW = 500  # blocks
_MOST_NEW, _MOST_OLD = 20, 2000  # requests that wait for the other version's
_STEP = math.log(1.01)  # two times that differ by less count as one
_PRIOR = 0.5  # of both counts of a rate (Jeffreys)
_PRIOR_REQUESTS = 50.0  # what the prior of a quantile is worth


@dataclass
class Blocks:
    """Puts requests of both versions together that ended at about the same time.

    A block is one request of the new version with all of the old one since the block before, at least one.
    How large it is depends on when requests come, and not on what became of them.

    Attributes:
        waiting_old, waiting_new: values of requests that no block has yet, in their order; the oldest are
            left out where one version has many and the other none.
    """

    waiting_old: list[float] = field(default_factory=list)
    waiting_new: list[float] = field(default_factory=list)

    def add(self, value: float, *, new: bool) -> list[tuple[float, list[float]]]:
        """Count a request, and give the blocks that it completes: the new version's value, and the old's."""
        waiting, most = (self.waiting_new, _MOST_NEW) if new else (self.waiting_old, _MOST_OLD)
        waiting.append(value)
        del waiting[:-most]
        blocks = []
        while self.waiting_new and self.waiting_old:
            taken = self.waiting_old[:] if len(self.waiting_new) == 1 else self.waiting_old[:1]
            del self.waiting_old[: len(taken)]
            blocks.append((self.waiting_new.pop(0), taken))
        return blocks


@dataclass
class WorseRate:
    """E-process against "requests of the new version are bad at most as often as of the old".

    The E-variable of a block is that of R. J. Turner, A. Ly and P. D. Grunwald, "Generic E-variables for
    exact sequential k-sample tests that allow for optional stopping" (2024), section 2; the rates in it are
    learned from earlier blocks, and mixed over several alternatives. It assumes that requests are independent
    of each other.

    A version may become bad after thousands of good requests, which speak against each alternative. So
    a product begins anew after every 500 blocks, and all products are mixed; a mixture of such processes is
    one.

    Attributes:
        sums: logarithm of the product of each alternative, from the first block on.
        starts: `sums` where each product began.
        blocks: that were counted.
        seen, bad: of the old version: requests in them, and bad ones among these.
    """

    sums: list[float] = field(default_factory=lambda: [0.0] * len(_MORE_OFTEN))
    starts: list[list[float]] = field(default_factory=lambda: [[0.0] * len(_MORE_OFTEN)])
    blocks: int = 0
    seen: int = 0
    bad: int = 0

    @property
    def evidence(self) -> float:
        """Natural logarithm of the e-value; the hypothesis is rejected where it reaches log(1/alpha)."""
        logs = np.array(self.sums) - np.array(self.starts)  # [products, alternatives]
        places = np.arange(len(self.starts))[:, None]
        logs = logs - np.log((places + 1.0) * (places + 2.0)) - math.log(len(_MORE_OFTEN))
        not_begun = -math.log(len(self.starts) + 1.0)  # what the other products are worth together
        return float(np.logaddexp.reduce(np.append(logs, not_begun)))

    def add(self, new: bool, bad: int, number: int) -> None:
        """Count a block: whether the new version's request was bad, and how many of the old one's were."""
        usual = (self.bad + 0.5) / (self.seen + 10.0)
        for place, more in enumerate(_MORE_OFTEN):
            worse = usual + (1.0 - usual) * more
            alike = (number * usual + worse) / (number + 1)
            self.sums[place] += (
                math.log((worse if new else 1.0 - worse) / (alike if new else 1.0 - alike))
                + bad * math.log(usual / alike)
                + (number - bad) * math.log((1.0 - usual) / (1.0 - alike))
            )
        self.blocks += 1
        self.seen += number
        self.bad += bad
        if self.blocks % _ANEW == 0:
            self.starts.append(self.sums.copy())


@dataclass
class Times:
    """Durations of requests, to within 1 %.

    Attributes:
        counts: logarithm of a time, in steps of 1 % -> requests.
    """

    counts: Counter[int] = field(default_factory=Counter)
    number: int = 0

    def add(self, seconds: float) -> None:
        """Count a request."""
        self.counts[_place(seconds)] += 1
        self.number += 1

    def ranked(self, rank: int) -> float:
        """The time of a rank, from 1 to `number`, in seconds; 0.0 below, and infinity above."""
        if rank < 1:
            return 0.0
        if rank > self.number:
            return math.inf
        places = sorted(self.counts)
        sums, total = [], 0
        for place in places:
            total += self.counts[place]
            sums.append(total)
        return math.exp(places[bisect.bisect_left(sums, rank)] * _STEP)

    def quantile(self, share: float) -> float:
        """The time within which a share of the requests is, in seconds; 0.0: there was none."""
        return self.ranked(math.ceil(share * self.number)) if self.number else 0.0

    def curve(self) -> list[tuple[float, float]]:
        """Times in seconds, in order, each with the share of the requests that took no longer."""
        total, found = 0, []
        for place in sorted(self.counts):
            total += self.counts[place]
            found.append((math.exp(place * _STEP), total / self.number))
        return found

    def interval(self, share: float, alpha: float) -> tuple[float, float]:
        """Confidence sequence of a quantile, in seconds.

        Those times are in it below which a number of requests lies that is no evidence against `share`:
        S. R. Howard and A. Ramdas, "Sequential estimation of quantiles with applications to A/B testing and
        best-arm identification" (2022), by the mixture of `rate_interval`.
        """
        limit = math.log(1.0 / alpha)

        def fits(below: int) -> bool:
            a, b = _PRIOR_REQUESTS * share, _PRIOR_REQUESTS * (1.0 - share)
            return _against(share, below, self.number, a, b) < limit

        middle = round(share * self.number)
        if not fits(middle):  # with very few requests rounding alone is evidence
            return 0.0, math.inf
        low = bisect.bisect_left(range(middle + 1), True, key=fits)
        high = middle + bisect.bisect_left(
            range(middle, self.number + 1), True, key=lambda below: not fits(below)
        )
        return self.ranked(low), self.ranked(high)

    def to_dict(self) -> dict[str, Any]:
        """Give the value as plain JSON types."""
        return {"counts": sorted(self.counts.items())}

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> Times:
        """Make the value from what `to_dict` gave."""
        counts = Counter({int(place): int(count) for place, count in kept["counts"]})
        return cls(counts, counts.total())


def rate_interval(bad: int, number: int, alpha: float) -> tuple[float, float]:
    """Confidence sequence of a rate: the rates against which the beta-binomial mixture is no evidence.

    H. Robbins, "Statistical methods related to the law of the iterated logarithm" (1970).
    """
    if number == 0:
        return 0.0, 1.0
    limit, middle = math.log(1.0 / alpha), bad / number

    def edge(fits: float, not_fits: float) -> float:
        for _ in range(60):
            half = (fits + not_fits) / 2
            if _against(half, bad, number, _PRIOR, _PRIOR) < limit:
                fits = half
            else:
                not_fits = half
        return fits

    low = 0.0 if bad == 0 else edge(middle, 0.0)
    high = 1.0 if bad == number else edge(middle, 1.0)
    return low, high


def evidence_against(rate: float, bad: int, number: int, alpha: float) -> float:
    """How much of what it takes there is to say that a rate is higher than `rate`, from 0 to 1."""
    if not number or bad / number <= rate:
        return 0.0
    return min(1.0, max(0.0, _against(rate, bad, number, _PRIOR, _PRIOR) / math.log(1.0 / alpha)))


def _against(rate: float, bad: int, number: int, a: float, b: float) -> float:
    """Logarithm of a mixture's likelihood over that of a rate."""
    if (rate <= 0.0 and bad) or (rate >= 1.0 and bad < number):
        return math.inf
    likely = bad * math.log(rate) if bad else 0.0
    likely += (number - bad) * math.log1p(-rate) if bad < number else 0.0
    return _log_beta(a + bad, b + number - bad) - _log_beta(a, b) - likely


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _place(seconds: float) -> int:
    return round(math.log(max(seconds, 1e-6)) / _STEP)
