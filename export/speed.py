"""How long calls take, measured so that they compare."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

from shoal.machine import others_seconds
from shoal.progress import Silent

Subject = TypeVar("Subject", bound=Hashable)
Case = TypeVar("Case", bound=Hashable)
# A call, and how often it is repeated in each round.
Timed = tuple[Callable[[], Any], int]
# Share of the CPUs that others may take meanwhile. Where they take more, threads that wait for each other
# lose most, and what has fewer of them looks better than it is.
CROWDED = 0.1


class Others:
    """What other processes take of the CPUs that this one may use, from now on."""

    def __init__(self, cpus: int) -> None:
        self._cpus = cpus
        self._began, self._before = time.perf_counter(), others_seconds()

    def taken(self) -> float:
        """CPUs, on average until now."""
        busy = (others_seconds() - self._before) / (time.perf_counter() - self._began)
        spare = (
            os.cpu_count() or self._cpus
        ) - self._cpus  # where this process may use a part of the machine
        return max(0.0, busy - spare)


def is_crowded(others: float, cpus: int) -> bool:
    """Whether others took so many of the CPUs that nothing can be said."""
    return others > CROWDED * cpus


def median_seconds(
    calls: Mapping[Subject, Mapping[Case, Timed]],
    rounds: int,
    progress: Silent,
    step: str = "Measure speed",
) -> dict[Subject, dict[Case, float]]:
    """Median time of each call in seconds, after one that is not counted.

    Subjects are taken in turn, round after round, so that what the machine does meanwhile falls on all.

    Args:
        calls: by subject, such as a precision, and by case, such as a batch size.
        step: what people are told is done.
    """
    taken: dict[Subject, dict[Case, list[float]]] = {
        subject: {case: [] for case in cases} for subject, cases in calls.items()
    }
    with progress.step(step, total=rounds) as advance:
        for cases in calls.values():
            for call, _ in cases.values():
                call()
        for _ in range(rounds):
            for subject, cases in calls.items():
                for case, (call, repeats) in cases.items():
                    for _ in range(repeats):
                        start = time.perf_counter()
                        call()
                        taken[subject][case].append(time.perf_counter() - start)
            advance()
    return {
        subject: {case: statistics.median(seconds) for case, seconds in cases.items()}
        for subject, cases in taken.items()
    }
