"""What a service has promised (service level objectives), and how much of a load was within it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.errors import UsageError

LATENCY, FIRST_TOKEN, BETWEEN_TOKENS = "latency", "ttft", "itl"
_BOUND = re.compile(r"(?:(ttft|itl|latency)_)?p(\d{1,2}(?:\.\d+)?)=(\d+(?:\.\d+)?)(ms|s)")
_TIMES = 5  # an open loop asks for so many times as long as a bound
_EXAMPLES = "p99=80ms, or ttft_p95=500ms,itl_p95=60ms"


@dataclass(frozen=True)
class Bound:
    """One promise: a percentile of a metric is at most so much.

    Attributes:
        metric: `latency`, `ttft` (time to first token) or `itl` (between tokens).
        percentile: above 0 and below 100.
        milliseconds: the most.
    """

    metric: str
    percentile: float
    milliseconds: float

    def __str__(self) -> str:
        name = "" if self.metric == LATENCY else f"{self.metric}_"
        return f"{name}p{self.percentile:g}={self.milliseconds:g}ms"


def parse(text: str) -> tuple[Bound, ...]:
    """Read what `--slo` takes.

    Raises:
        UsageError: it is not of that form.
    """
    bounds = []
    for part in text.replace(" ", "").split(","):
        found = _BOUND.fullmatch(part)
        if found is None or not 0 < float(found[2]) < 100 or float(found[3]) == 0:
            raise UsageError(f"{part!r} is no promise", hint=f"write {_EXAMPLES}")
        factor = 1000.0 if found[4] == "s" else 1.0
        bounds.append(Bound(found[1] or LATENCY, float(found[2]), factor * float(found[3])))
    return tuple(bounds)


def check(bounds: Sequence[Bound], *, generates: bool, seconds: float | None) -> None:
    """Whether a test can tell if a promise holds.

    Args:
        generates: whether the model generates text.
        seconds: how long an open loop asks; None: a closed loop.

    Raises:
        UsageError: it cannot.
    """
    for bound in bounds:
        if bound.metric != LATENCY and not generates:
            raise UsageError(f"{bound} is about tokens, and this model gives none", hint="write p99=80ms")
        if (
            seconds is not None
            and bound.metric != BETWEEN_TOKENS
            and seconds < _TIMES * bound.milliseconds / 1e3
        ):
            raise UsageError(
                f"a test of {seconds:g} s cannot tell whether {bound} holds: what waits is answered in time",
                hint=f"--seconds {_TIMES * bound.milliseconds / 1e3:.0f} or more",
            )


def least_requests(bounds: Sequence[Bound]) -> int:
    """So many requests that the percentiles are not simply the longest of them."""
    return max((math.ceil(100 / (100 - bound.percentile)) for bound in bounds), default=1)


def judged(
    bounds: Sequence[Bound], metrics: Mapping[str, NDArray[np.float64]], *, steady: bool = True
) -> dict[str, Any]:
    """How a load stands to what was promised.

    Args:
        metrics: milliseconds of each request by metric, [n] each, in the same order; infinite for a request
            that failed, and not a number where an answer has no such figure (a single token has no time
            between tokens).
        steady: whether what waited did not grow; else no promise is met, since it would be missed later.

    Returns:
        `bounds` (for each the text, the percentile that was `reached` in ms, None if it is infinite, and
        whether it `holds`), `goodput` (the share of requests within all of them), `steady`, and `met`.
    """
    rows, within = [], np.ones(len(metrics[LATENCY]), dtype=bool)
    for bound in bounds:
        values = metrics[bound.metric]
        within &= ~(values > bound.milliseconds)
        reached = percentile(values, bound.percentile)
        rows.append(
            {
                "bound": str(bound),
                "reached": reached if np.isfinite(reached) else None,
                "holds": bool(reached <= bound.milliseconds),
            }
        )
    return {
        "bounds": rows,
        "goodput": float(within.mean()),
        "steady": steady,
        "met": steady and all(row["holds"] for row in rows),
    }


def percentile(values: NDArray[np.float64], which: float) -> float:
    """The least value that so many percent do not exceed: a bound holds if so many requests are within it."""
    known = values[~np.isnan(values)]
    return float(np.percentile(known, which, method="inverted_cdf")) if len(known) else 0.0
