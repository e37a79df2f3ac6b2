"""Three real servers behind a real Envoy, and what happens to one of them: `make test-replicas`.

`SHOAL_ROUNDS` is how often each of it happens, `SHOAL_EVENTS` which of it, separated by commas.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.processes import SERVER, STUB
from tests.reliability import report
from tests.reliability.replicas import Callers, Server, behind_envoy

ROUNDS = int(os.environ.get("SHOAL_ROUNDS", "20"))


def _killed(servers: list[Server], chosen: Server) -> float:
    chosen.processes(SERVER)[0].kill()
    chosen.wait(healthy=False)
    return chosen.wait()


def _stopped(servers: list[Server], chosen: Server) -> float:
    chosen.stop()
    begun = time.monotonic()
    chosen.start()
    chosen.wait()
    return time.monotonic() - begun


def _hung(servers: list[Server], chosen: Server) -> float:
    chosen.processes(SERVER)[0].send_signal(signal.SIGSTOP)
    chosen.wait(healthy=False)
    return chosen.wait()


def _slow(servers: list[Server], chosen: Server) -> float:
    """Its processes get what the others leave."""
    processes = [*chosen.processes(SERVER), *chosen.processes(STUB)]
    threads = [thread.id for process in processes for thread in process.threads()]
    for priority, seconds in ((19, 5.0), (0, 0.0)):
        for thread in threads:
            with suppress(ProcessLookupError):  # it has ended
                os.setpriority(os.PRIO_PROCESS, thread, priority)
        time.sleep(seconds)
    return 0.0


def _rolling(servers: list[Server], chosen: Server) -> float:
    begun = time.monotonic()
    for server in servers:
        _stopped(servers, server)
    return time.monotonic() - begun


def _scaled(servers: list[Server], chosen: Server) -> float:
    """To one, and back to three."""
    others = [server for server in servers if server is not chosen]
    for server in others:
        server.stop()
    time.sleep(1)
    begun = time.monotonic()
    for server in others:
        server.start()
    for server in others:
        server.wait()
    return time.monotonic() - begun


EVENTS = {
    "kill -9": _killed,
    "stop": _stopped,
    "hang": _hung,
    "slow": _slow,
    "rolling restart": _rolling,
    "scale 3 to 1 to 3": _scaled,
}


def _around(callers: Callers, servers: list[Server], name: str, chosen: Server) -> dict[str, Any]:
    callers.counted()
    seconds = EVENTS[name](servers, chosen)
    time.sleep(2.5)  # two looks of Envoy, and what was under way
    counts = callers.counted()
    return {
        "seconds": seconds,
        "answered": counts.answered,
        "failed": counts.failed,
        "lost": counts.lost,
        "cut": counts.cut,
        "untyped": counts.untyped,
    }


@pytest.mark.faults
@pytest.mark.timeout(4 * 3600)
def test_no_call_fails_whatever_happens_to_one_of_three(small_repository: Path, tmp_path: Path) -> None:
    seen: dict[str, list[dict[str, Any]]] = defaultdict(list)
    chance = random.Random(17)
    events = os.environ.get("SHOAL_EVENTS", ",".join(EVENTS)).split(",")
    with behind_envoy(small_repository, tmp_path, 3) as (servers, callers):
        for number in range(ROUNDS):
            for name in events:
                seen[name].append(_around(callers, servers, name, chance.choice(servers)))
                print(f"{number + 1}/{ROUNDS} {name}: {seen[name][-1]}", flush=True)
    figures = {
        name: {
            "rounds": len(rounds),
            "answered": sum(one["answered"] for one in rounds),
            "unary_failed": sum(len(one["failed"]) for one in rounds),
            "streams_lost_before_first_token": sum(len(one["lost"]) for one in rounds),
            "streams_cut_with_typed_error": sum(len(one["cut"]) for one in rounds),
            "untyped": sum(len(one["untyped"]) for one in rounds),
            "seconds_until_it_serves_again": round(statistics.median(one["seconds"] for one in rounds), 1),
        }
        for name, rounds in seen.items()
    }
    report.write("replicas", {"rounds": ROUNDS, "events": figures})
    wrong = [
        line
        for rounds in seen.values()
        for one in rounds
        for line in (*one["failed"], *one["lost"], *one["untyped"])
    ]
    assert not wrong, wrong[:10]
    assert all(one["answered"] > 0 for rounds in seen.values() for one in rounds)
