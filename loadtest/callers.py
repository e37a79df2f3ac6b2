"""Callers who send their next request once they have their answer, and what they see."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

# Sends one request of a caller's choice, and returns how many rows were answered.
Ask = Callable[[random.Random], Awaitable[int]]


async def called(ask: Ask, callers: int, seconds: float) -> dict[str, float]:
    """Some callers for some seconds, after one request that connects.

    Each chooses by random numbers of its own, the same in every run. CPU time counts from the first request
    on, so that Python's start is no part of it.

    Returns:
        `rate` in rows per second, `p50_ms` and `p99_ms` of a request, `client_cpus` that this process used.
    """
    took: list[float] = []

    async def caller(number: int, end: float) -> int:
        chance, rows = random.Random(number), 0  # noqa: S311 - a load, not a secret
        while (start := time.perf_counter()) < end:
            rows += await ask(chance)
            took.append(time.perf_counter() - start)
        return rows

    await ask(random.Random(0))  # noqa: S311
    used, began = time.process_time(), time.perf_counter()
    rows = await asyncio.gather(*(caller(number, began + seconds) for number in range(callers)))
    elapsed, used = time.perf_counter() - began, time.process_time() - used
    low, high = np.percentile(1e3 * np.array(took), (50, 99))
    return {
        "rate": sum(rows) / elapsed,
        "p50_ms": float(low),
        "p99_ms": float(high),
        "client_cpus": used / elapsed,
    }


def in_a_process(module: str, asked: dict[str, Any]) -> dict[str, Any]:
    """What `python -m MODULE --client JSON` says of a load, so that callers share no process with others."""
    command = [sys.executable, "-m", module, "--client", json.dumps(asked)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def medians(blocks: list[Any]) -> Any:
    """The median of each figure of blocks that have the same figures, in dicts to any depth."""
    if isinstance(blocks[0], dict):
        return {key: medians([block[key] for block in blocks]) for key in blocks[0]}
    return statistics.median(blocks)
