"""Half an hour at 70 % of what the service can do: nothing may grow. `make test-soak`.

Of each process (server, models, supervisor) memory, file descriptors and threads are looked at every five
seconds, and the shared memory of all; of each the slope is estimated by least squares, with its 95 %
confidence interval. Neighbouring samples are not independent, so the interval is too narrow by that; what
counts is therefore growth that is both sure and large enough to matter.
"""

from __future__ import annotations

import os
import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from scipy import stats

from tests.reliability import callers, report
from tests.reliability.callers import KINDS
from tests.reliability.scene import scene_of
from tests.reliability.world import World

SECONDS = float(os.environ.get("SHOAL_SOAK_SECONDS", "1800"))
CAPACITY_SECONDS, SHARE, SAMPLE_SECONDS = 20.0, 0.7, 5.0
WARM_SHARE = 0.2  # of the samples, at the beginning, in which caches fill
# One step of a pool of threads, in half an hour, is a steep slope and no leak, which would go on.
STEP = {"memory_mb": 0.0, "descriptors": 1.0, "threads": 1.0, "shared_memory_mb": 0.0}
# Growth in an hour that is none.
NOISE = {"memory_mb": 8.0, "descriptors": 2.0, "threads": 1.0, "shared_memory_mb": 1.0}


def _sample(world: World) -> dict[tuple[str, str], float]:
    """(process, measure) -> value."""
    found: dict[tuple[str, str], float] = {}
    named = {"supervisor": psutil.Process(world.process.pid), "tritonserver": world.server()}
    named |= {Path(stub.cmdline()[1]).parts[-3]: stub for stub in world.stubs()}
    for name, process in named.items():
        if process is not None:
            found[name, "memory_mb"] = _anonymous(process.pid) / 2**20
            found[name, "descriptors"] = process.num_fds()
            found[name, "threads"] = process.num_threads()
    used = sum(path.stat().st_blocks * 512 for path in world.shared_memory().iterdir())
    found["all", "shared_memory_mb"] = used / 2**20
    return found


def _anonymous(pid: int) -> int:
    """Bytes of a process that are of no file, in memory and in swap.

    A leak is one of these. Pages of files, the program's own among them, come and go as the kernel likes.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(
        1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith(("RssAnon", "VmSwap"))
    )


def slope(times: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Growth an hour, and the half width of its 95 % confidence interval."""
    if len(set(values)) == 1:
        return 0.0, 0.0
    fit = stats.linregress(times, values)
    return 3600 * fit.slope, 3600 * fit.stderr * float(stats.t.ppf(0.975, len(times) - 2))


def _slopes(samples: Sequence[tuple[float, Mapping[tuple[str, str], float]]]) -> dict[str, Any]:
    kept = samples[int(WARM_SHARE * len(samples)) :]
    series: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for at, sample in kept:
        for key, value in sample.items():
            series[key].append((at, value))
    made = {}
    for (name, measure), points in sorted(series.items()):
        times, values = zip(*points, strict=True)
        growth, width = slope(times, values)
        made[f"{name} {measure}"] = {
            "first": round(values[0], 1),
            "last": round(values[-1], 1),
            "an_hour": round(growth, 2),
            "plus_minus": round(width, 2),
            "grows": bool(growth - width > NOISE[measure] and values[-1] - values[0] > STEP[measure]),
        }
    return made


def test_what_grows_is_seen() -> None:
    times = [5.0 * number for number in range(100)]
    noise = [(-1) ** number for number in range(100)]
    flat, width = slope(times, noise)
    assert abs(flat) < width
    growth, width = slope(times, [at / 36 + one for at, one in zip(times, noise, strict=True)])
    assert abs(growth - 100) < width + 10 and growth - width > NOISE["memory_mb"]


@pytest.mark.faults
@pytest.mark.timeout(7200)
def test_nothing_grows(small_repository: Path, tmp_path: Path) -> None:
    with scene_of(small_repository, tmp_path, random.Random(0)) as scene:
        calls, world = scene.calls, scene.world
        threads = callers.start(calls, 0.0)
        time.sleep(CAPACITY_SECONDS)
        calls.stop.set()
        for thread in threads:
            thread.join(10)
        most = {kind: sum(one.kind == kind for one in calls.ended) / CAPACITY_SECONDS for kind in KINDS}
        calls.ended.clear()
        calls.stop.clear()
        threads = callers.start(calls, {kind: 1 / (SHARE * rate) for kind, rate in most.items()})
        samples, begun = [], time.monotonic()
        while (at := time.monotonic() - begun) < SECONDS:
            samples.append((at, _sample(world)))
            time.sleep(SAMPLE_SECONDS)
        calls.stop.set()
        for thread in threads:
            thread.join(10)
        restarts = world.metric("shoal_restarts_total")
    slopes = _slopes(samples)
    broken = [one for one in calls.ended if one.wrong or one.how != "answered"]
    report.write(
        "soak",
        {
            "seconds": round(SECONDS),
            "capacity_per_s": round(sum(most.values())),
            "sent_per_s": round(len(calls.ended) / SECONDS),
            "slopes": slopes,
            "requests": report.requests(calls.ended),
            "restarts": restarts,
            "broken_promises": len(broken),
        },
    )
    assert not broken, broken[:10]
    assert restarts == 0
    assert not [name for name, found in slopes.items() if found["grows"]]
