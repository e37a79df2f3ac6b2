"""The highest rate at which a service keeps what was promised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from loadtest import headless, report
from loadtest.samples import Samples
from shoal import show
from shoal.errors import ShoalError, UsageError
from shoal.progress import Silent

FIRST_RATE = 8.0
NEAR = 1.05  # as a ratio: so near the lowest rate that misses must come to the highest that meets
MOST_TRIALS, LEAST_RATE = 24, 0.05
_CONFIRMATIONS = 4


def find_max(plan: headless.Plan, folder: Path, *, progress: Silent | None = None) -> dict[str, Any]:
    """Search by doubling, then by halving the distance; what is found must hold for other requests, too.

    Args:
        plan: with `slo`; its rate, if it has one, is tried first. Each trial takes its `seconds`, or more
            where a low rate would give too few requests for a percentile.
        folder: gets the report of the trial that confirmed the rate, with all trials.

    Returns:
        The summary of that trial, with `trials` and `max_rate`, requests per second; `max_rate` is None if no
        rate kept the promise twice, and then the summary is of the trial which came nearest.

    Raises:
        UsageError: nothing is promised, or the tests are too short for it.
        ShoalError: see `headless.run`; or no rate was found at which the promise is missed.
    """
    if not plan.slo:
        raise UsageError("--find-max needs a promise", hint="add --slo p99=80ms")
    search = _Search(plan, folder, progress)
    low, high = search.bracket(plan.rate or FIRST_RATE)
    if low is not None and high is None:
        raise ShoalError(f"the promise holds even at {low:.4g} requests/s", hint="promise more")
    while low is not None and high is not None and high > NEAR * low and search.may_go_on:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if search.meets(middle) else (low, middle)
    best = search.confirmed(low) if low is not None else None
    samples, summary = search.last if best is not None else search.nearest
    summary = {**summary, "trials": search.trials, "max_rate": best}
    report.write(summary, samples, folder)
    return summary


class _Search:
    def __init__(self, plan: headless.Plan, folder: Path, progress: Silent | None) -> None:
        self._plan, self._folder, self._progress = plan, folder, progress
        self.trials: list[dict[str, Any]] = []
        self.last: tuple[Samples, dict[str, Any]]
        self.nearest: tuple[Samples, dict[str, Any]]  # of those that missed it, the largest share within it

    @property
    def may_go_on(self) -> bool:
        return len(self.trials) < MOST_TRIALS

    def meets(self, rate: float) -> bool:
        """Whether the promise holds at a rate. What the client took too long counts against it."""
        plan = self._plan.at(rate, len(self.trials))
        samples, summary = headless.measured(plan, self._folder, progress=self._progress)
        judged, limited = summary["slo"], summary["client"]["limited"]
        best = max((trial["goodput"] for trial in self.trials if not trial["met"]), default=-1.0)
        self.last = samples, summary
        if not self.trials or (not judged["met"] and judged["goodput"] > best):
            self.nearest = self.last
        self.trials.append(
            {
                "rate": rate,
                "seconds": plan.seconds,
                "goodput": judged["goodput"],
                "met": judged["met"],
                "steady": judged["steady"],
                "bounds": judged["bounds"],
                "client_limited": limited,
            }
        )
        return bool(judged["met"])

    def bracket(self, rate: float) -> tuple[float | None, float | None]:
        """A rate that meets the promise, and a higher one that does not; None for what there is not."""
        low = high = None
        while self.may_go_on and rate >= LEAST_RATE and (low is None or high is None):
            if self.meets(rate):
                low, rate = rate, rate * 2
            else:
                high, rate = rate, rate / 2
                if self.last[1]["slo"]["alone"]:  # a lower rate would change nothing
                    break
        return low, high

    def confirmed(self, rate: float) -> float | None:
        """The rate, or a little less, at which the promise holds once more."""
        for _ in range(_CONFIRMATIONS):
            if self.meets(rate):
                return rate
            rate /= NEAR
        return None


def as_table(summary: dict[str, Any]) -> Table:
    """The rates that were tried, for a terminal."""
    made = show.table("rates that were tried", ["#requests/s", "#goodput", "promise"])
    for trial in sorted(summary["trials"], key=lambda trial: trial["rate"]):
        missed = "missed, the client was the limit" if trial["client_limited"] else "missed"
        verdict = "met" if trial["met"] else missed if trial["steady"] else f"{missed}, more and more waited"
        made.add_row(f"{trial['rate']:.1f}", f"{trial['goodput']:.1%}", verdict)
    return made
