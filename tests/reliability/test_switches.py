"""Fifty thousand requests while versions change twenty times, none of which fails: `make test-switches`."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.reliability import callers, report
from tests.reliability.models import MODELS
from tests.reliability.scene import scene_of, wait_until_served

REQUESTS = int(os.environ.get("SHOAL_REQUESTS", "50000"))
SWITCHES = 20


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_no_request_fails_while_versions_change(small_repository: Path, tmp_path: Path) -> None:
    with scene_of(small_repository, tmp_path, random.Random(0)) as scene:
        begun = time.monotonic()
        threads = callers.start(scene.calls, 0.0)
        took = []
        for number in range(SWITCHES):
            while len(scene.calls.ended) < REQUESTS * (number + 0.5) / SWITCHES:
                time.sleep(0.05)
            model, at = MODELS[number % len(MODELS)], time.monotonic()
            assert scene.ask(model, scene.other(model))
            wait_until_served(scene, model, scene.asked[model])
            took.append(time.monotonic() - at)
        while len(scene.calls.ended) < REQUESTS:
            time.sleep(0.05)
        scene.calls.stop.set()
        for thread in threads:
            thread.join(10)
        seconds, restarts = time.monotonic() - begun, scene.world.metric("shoal_restarts_total")
    broken = [one for one in scene.calls.ended if one.wrong]
    report.write(
        "switches",
        {
            "switches": SWITCHES,
            "seconds": round(seconds),
            "switch_s": {"median": round(sorted(took)[SWITCHES // 2], 1), "longest": round(max(took), 1)},
            "requests": report.requests(scene.calls.ended),
            "restarts": restarts,
            "broken_promises": len(broken),
        },
    )
    assert not broken, broken[:10]
    assert Counter(one.how for one in scene.calls.ended).keys() == {"answered"}
    assert restarts == 0
