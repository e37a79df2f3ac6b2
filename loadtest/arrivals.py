"""When requests are due in an open loop, in which callers come whether or not others have their answers.

A closed loop sends the next request after an answer, so a slow server is asked less, and the time that
requests would have waited is never seen ("coordinated omission", G. Tene, How NOT to measure latency, 2015).
Here each request has a time at which it is due, and its latency counts from then.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shoal.errors import UsageError

POISSON, CONSTANT = "poisson", "constant"
KINDS = (POISSON, CONSTANT)
MOST_REQUESTS = 5_000_000  # of one test: 40 MB of times


def due_times(arrival: str, rate: float | None, seconds: float, *, seed: int = 0) -> NDArray[np.float64]:
    """When each request is due.

    Args:
        arrival: `poisson` (independent callers: pauses are exponentially distributed), `constant`, or the
            path of a trace, a file of JSON lines with `at`, in seconds.
        rate: requests per second; None: those of the trace. A trace is stretched to it.
        seconds: how long requests come. A trace that is shorter ends earlier.
        seed: the same seed gives the same times.

    Returns:
        Seconds from the beginning, in order, at least one, [n].

    Raises:
        UsageError: there is no rate, there are too many requests, or the trace cannot be used.
    """
    if arrival in KINDS:
        if rate is None:
            raise UsageError(f"--arrival {arrival} needs a rate", hint="add --rate, in requests per second")
        times = _spaced(arrival, _checked(rate, seconds), seconds, seed)
    else:
        times = _of_trace(Path(arrival), rate)
    due = times[times < seconds]
    if len(due) > MOST_REQUESTS:
        raise UsageError(f"{len(due)} requests are too many for one test", hint="choose fewer --seconds")
    return due if len(due) else np.zeros(1)


def in_turn(due: NDArray[np.float64], side: int, seconds: float) -> NDArray[np.float64]:
    """By how much later each request is due where two servers are asked in turn.

    Both get the same requests, at times that are alike within their turns. The second one begins every other
    pair of turns (ABBA), so a machine that becomes slower is slower for both.

    Args:
        due: as `due_times` gives them, [n].
        side: 0 or 1, which of the two servers.
        seconds: of a turn.

    Returns:
        Seconds, [n].
    """
    turn = due // seconds
    waits = (turn % 2 == 0) == bool(side)
    return (turn + waits) * seconds


def _checked(rate: float, seconds: float) -> float:
    if not (math.isfinite(rate) and rate > 0):
        raise UsageError(f"--rate {rate:g} is no rate", hint="give requests per second, above 0")
    if rate * seconds > MOST_REQUESTS:
        raise UsageError(
            f"{rate * seconds:.0f} requests are too many for one test", hint="choose fewer --seconds"
        )
    return rate


def _spaced(arrival: str, rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    count = max(1, round(rate * seconds))
    if arrival == CONSTANT:
        return np.arange(count) / rate
    # A Poisson process whose number is given, so that the rate is what was asked for in a short test, too.
    return np.sort(np.random.default_rng(seed).uniform(0, seconds, count))


def _of_trace(path: Path, rate: float | None) -> NDArray[np.float64]:
    times = np.array([_at(path, number, line) for number, line in _lines(path)])
    if not len(times):
        raise UsageError(f"{path} holds no request", hint='a line of it is {"at": 0.25}')
    if (np.diff(times) < 0).any():
        raise UsageError(f"the times in {path} are not in order", hint="sort its lines by their at")
    times -= times[0]
    if rate is not None:
        _checked(rate, 0.0)
        if times[-1] > 0:
            times *= (len(times) - 1) / rate / times[-1]
    return times


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = " or ".join(KINDS)
        raise UsageError(
            f"--arrival {path} cannot be read: {error}", hint=f"it is {known}, or a file of JSON lines"
        ) from error
    return [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _at(path: Path, number: int, line: str) -> float:
    try:
        at = float(json.loads(line)["at"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UsageError(f"line {number} of {path} has no time", hint='a line is {"at": 0.25}') from error
    if not math.isfinite(at):
        raise UsageError(f"line {number} of {path} has no time", hint='a line is {"at": 0.25}')
    return at
