"""A thousand faults drawn at random, under users of all three models: `make test-faults`.

`SHOAL_FAULTS` is their number, `SHOAL_SEED` draws the same ones again (what the machine does meanwhile is
another matter).
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from clients import ClientError
from shoal.errors import ShoalError
from tests.reliability import callers, models, report
from tests.reliability.kinds import KINDS
from tests.reliability.models import MODELS
from tests.reliability.scene import Scene, scene_of, wait_until_served

FAULTS = int(os.environ.get("SHOAL_FAULTS", "1000"))
SEED = int(os.environ.get("SHOAL_SEED") or time.time_ns() % 1_000_000)
LOOK_EVERY = 50  # faults, after which everything must come to rest
REST_SECONDS = 120.0
NOTICED_SECONDS = 3.0


def _served(scene: Scene, model: str) -> str:
    """What is wrong with what is served of a model; "": nothing."""
    version = scene.asked[model]
    made, calls = scene.world, scene.calls
    end = time.monotonic() + REST_SECONDS
    while True:
        try:
            wait_until_served(scene, model, version, REST_SECONDS)
            break
        except ShoalError as error:
            # What was refused for want of memory, say, is tried again.
            if time.monotonic() > end:
                return f"{model} {version}: {error.message}"
            time.sleep(1)
    answers: list[Any] = []

    def answered() -> bool:
        try:
            answers[:] = callers.answers_of(calls, model)
            return True
        except (ClientError, InferenceServerException, OSError):  # it is only now that a death is noticed
            return False

    if not made.wait(answered, REST_SECONDS):
        return f"{model} {version} does not answer"
    found = {calls.version_of(model, which, got) for which, got in enumerate(answers)}
    if found != {models.VERSIONS.index(version)}:
        return f"{model} {version} was asked for, and answers are of {found}"
    return ""


def _at_rest(scene: Scene) -> list[str]:
    """What does not come back to how it should be."""
    made, wrong = scene.world, []
    if not made.wait(made.healthy, REST_SECONDS):
        return ["not healthy again"]
    for model in MODELS:
        wrong += filter(None, [_served(scene, model)])
    expected = 1 + len(made.stubs())
    if not made.wait(lambda: len(made.processes()) == expected, 60):
        wrong.append(f"processes are left over: {made.processes()}")
    left = [path.name for path in made.repository.rglob("*") if path.name in ("saved", "full")]
    return wrong + left


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_every_request_ends_and_what_was_asked_for_is_served(small_repository: Path, tmp_path: Path) -> None:
    print(f"\nseed {SEED}: SHOAL_SEED={SEED} SHOAL_FAULTS={FAULTS} make test-faults")
    chance = random.Random(SEED)
    with scene_of(small_repository, tmp_path, chance) as scene:
        made, calls = scene.world, scene.calls
        threads = callers.start(calls)
        possible = [kind for kind in KINDS if kind.possible(made)]
        weights = [kind.weight for kind in possible]
        done: Counter[str] = Counter()
        recovered: dict[str, list[float]] = defaultdict(list)
        wrong: list[str] = []
        begun = time.monotonic()
        for number in range(1, FAULTS + 1):
            (kind,) = chance.choices(possible, weights)
            if kind.kills and not made.wait(made.healthy, REST_SECONDS):
                wrong.append(f"fault {number}: not healthy again")
            at = time.monotonic()
            with kind.do(scene):
                done[kind.name] += 1
            # Some do no harm, e.g. a process that is stopped for a moment.
            noticed = kind.kills and made.wait(lambda: not made.healthy(), NOTICED_SECONDS)
            if noticed and made.wait(made.healthy, REST_SECONDS):
                recovered[kind.name].append(time.monotonic() - at)
            if number % LOOK_EVERY == 0 or number == FAULTS:
                found = [f"after fault {number} ({kind.name}): {text}" for text in _at_rest(scene)]
                wrong += found
                seconds = time.monotonic() - begun
                print(
                    f"{number} faults, {len(calls.ended)} requests, {seconds:.0f} s {found or ''}", flush=True
                )
        calls.stop.set()
        for thread in threads:
            thread.join(callers.DEADLINE + callers.LATE_SECONDS + 5)
        hanging = [thread.name for thread in threads if thread.is_alive()]
        restarts, ends = made.metric("shoal_restarts_total"), Counter(made.ends)
    missed = [kind.name for kind in KINDS if not kind.possible(made)]
    broken = [one for one in calls.ended if one.wrong]
    report.write(
        "faults",
        {
            "seed": SEED,
            "faults": dict(done.most_common()),
            "not_possible_here": missed,
            "seconds": round(time.monotonic() - begun),
            "healthy_again_s": {
                name: {"median": round(statistics.median(found), 1), "longest": round(max(found), 1)}
                for name, found in recovered.items()
            },
            "supervisor_ended": {str(code): count for code, count in ends.items()},
            "restarts_of_the_last_supervisor": restarts,
            "commands": scene.said,
            "requests": report.requests(calls.ended),
            "broken_promises": len(broken) + len(wrong) + len(hanging),
        },
    )
    for one in broken[:20]:
        wrong.append(f"{one.kind} at {one.at - begun:.1f} s: {one.how} {one.wrong}")
    assert not wrong and not hanging, "\n".join([*wrong, *hanging])
    assert len(done) == len(possible) or FAULTS < 200
