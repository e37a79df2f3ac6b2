"""Whether other processes took CPU time while something was measured: figures were off by three for that."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
from rich.console import Console

MOST = 0.05  # of the time of all CPUs


@contextmanager
def watched(out: Console) -> Iterator[None]:
    """Warn on `out` if others took more than a twentieth of all CPUs during the block.

    The time of this process, and of those that it has started, is not counted. Time that the hypervisor took
    away is.
    """
    own, (busy, every) = _own(), _all()
    yield
    now_busy, now_every = _all()
    others = (now_busy - busy - (_own() - own)) / max(now_every - every, 1e-9)
    if others > MOST:
        out.print(
            f"warning: other processes took {others:.0%} of the CPUs meanwhile: do not trust these figures",
            style="yellow",
        )


def _own() -> float:
    """CPU seconds of this process, of its descendants, and of those of them that have ended."""
    seconds = sum(os.times()[:4])
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            seconds += sum(child.cpu_times()[:4])
    return seconds


def _all() -> tuple[float, float]:
    """CPU seconds of the machine in which work was done or time was stolen, and all there were."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # A guest's time is part of the user's.
    every = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return every - idle, every
