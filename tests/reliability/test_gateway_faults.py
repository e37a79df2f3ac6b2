"""Faults at random under load, on two services behind one gateway: `make test-gateway-faults`.

`SHOAL_FAULTS` and `SHOAL_STREAM_KILLS` are their numbers, `SHOAL_SEED` draws the same ones again (what the
machine does meanwhile is another matter).
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability import models, report
from tests.reliability.callers import Ended
from tests.reliability.gateway.asking import SHORT
from tests.reliability.gateway.callers import BODY_SECONDS, PATIENCE_SECONDS
from tests.reliability.gateway.kinds import KINDS
from tests.reliability.gateway.scene import (
    QUEUE,
    REST_SECONDS,
    ROWS,
    Scene,
    client,
    embedded,
    scene_of,
    users,
)
from tests.reliability.gateway.servers import kill_in_midst
from tests.reliability.models import PROMPTS, TEXTS

FAULTS = int(os.environ.get("SHOAL_FAULTS", "1000"))
STREAM_KILLS = int(os.environ.get("SHOAL_STREAM_KILLS", "500"))
SEED = int(os.environ.get("SHOAL_SEED") or time.time_ns() % 1_000_000)
LOOK_EVERY = 50  # faults, after which everything must come to rest
MORE_FILES = 16  # than at the beginning: connections to the servers
MORE_MEMORY = 150 << 20  # bytes: as many as a body of 100 MB takes, and what Python does not give back
IDLE_SECONDS = 2 * PATIENCE_SECONDS + 10.0  # in which one is left who does nothing


@pytest.fixture(scope="module")
def few_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of this package; the decoder is slow, and takes few requests."""
    folder = tmp_path_factory.mktemp("few")
    return models.make(folder, size=4, max_num_seqs=ROWS, max_queue_size=QUEUE)


@pytest.fixture
def scene(few_rows: Path, tmp_path: Path) -> Iterator[Scene]:
    """Two services and a gateway."""
    with scene_of(few_rows, tmp_path, random.Random(SEED)) as made:
        yield made


def _again(number: int) -> str:
    name = "SHOAL_FAULTS" if number == FAULTS else "SHOAL_STREAM_KILLS"
    return f"SHOAL_SEED={SEED} {name}={number} make test-gateway-faults"


def _answers(scene: Scene) -> list[str]:
    """What is wrong with answers to fresh requests, which nothing disturbs: all must be answered."""
    ended: list[Ended] = []
    for which in range(len(PROMPTS)):
        ended += [scene.asker.record("at rest", which, SHORT, stream=stream) for stream in (True, False)]
    with client(scene) as sdk:
        ended += [embedded(scene, sdk, which) for which in range(len(TEXTS))]
    return [f"at rest: {one.how} {one.wrong}" for one in ended if one.how != "answered" or one.wrong]


def _at_rest(scene: Scene, files: int, memory: int) -> list[str]:
    """What does not come back to how it should be. Users are quiet meanwhile."""
    made = scene.worlds[0]
    wrong: list[str] = []
    scene.quiet.set()
    wrong += filter(None, [scene.serves(number, 2) for number in range(2)])
    for thread in scene.behind_time:
        thread.join(BODY_SECONDS + 10)
    scene.behind_time.clear()
    # Those of callers who do nothing are still open on our side.
    if not made.wait(lambda: scene.connections() == 0, IDLE_SECONDS):
        wrong.append(f"the gateway has {scene.connections()} connections, and nobody does anything")
    for connection in scene.half_open:
        connection.close()
    scene.half_open.clear()
    time.sleep(2)  # until the gateway has read what is served
    # The first requests may meet a connection to a server that was killed just now.
    made.wait(lambda: not _answers(scene), 20)
    wrong += _answers(scene)
    if not made.wait(lambda: scene.running_requests() == 0, 20):
        wrong.append(f"{scene.running_requests():.0f} requests run, and nobody asks")
    if not made.wait(lambda: scene.rows() == 0, 20):
        wrong.append(f"{scene.rows():.0f} rows of the decoders are taken, and nobody asks")
    if not made.wait(lambda: scene.connections() == 0, 20):
        wrong.append(f"the gateway has {scene.connections()} connections, and nobody asks")
    if not made.wait(lambda: scene.open_files() <= files + MORE_FILES, 20):
        wrong.append(f"the gateway has {scene.open_files()} files open, {files} at the beginning")
    if scene.memory() > memory + MORE_MEMORY:
        wrong.append(f"the gateway takes {scene.memory() >> 20} MiB, {memory >> 20} at the beginning")
    scene.quiet.clear()
    return wrong


def _write(scene: Scene, name: str, begun: float, wrong: list[str], **more: object) -> None:
    report.write(
        name,
        {
            "seed": SEED,
            **more,
            "seconds": round(time.monotonic() - begun),
            "requests": report.requests(scene.asker.ended),
            "answers_of_another_version_than_named": scene.asker.other_version,
            "broken_promises": len(wrong),
        },
    )


def _broken(scene: Scene, begun: float) -> list[str]:
    return [
        f"{one.kind} at {one.at - begun:.1f} s, {one.seconds:.1f} s: {one.how} {one.wrong}"
        for one in scene.asker.ended
        if one.wrong
    ]


@pytest.mark.faults
@pytest.mark.timeout(7200)
def test_every_request_ends_and_the_gateway_comes_to_rest(scene: Scene) -> None:
    print(f"\nseed {SEED}: {_again(FAULTS)}")
    possible = [kind for kind in KINDS if scene.redis is not None or not kind.redis]
    weights = [kind.weight for kind in possible]
    done: Counter[str] = Counter()
    wrong: list[str] = []
    files, memory = scene.open_files(), scene.memory()
    begun = time.monotonic()
    with users(scene) as threads:
        for number in range(1, FAULTS + 1):
            # Each kind once, and then as often as its weight says.
            (kind,) = possible[number - 1 : number] or scene.chance.choices(possible, weights)
            for made in scene.worlds if kind.kills else []:
                if not made.wait(made.healthy, REST_SECONDS):
                    wrong.append(f"fault {number}: not healthy again")
            seen = len(_broken(scene, begun))
            kind.do(scene)
            done[kind.name] += 1
            for text in _broken(scene, begun)[seen:]:
                print(f"fault {number} ({kind.name}): {text}; {_again(FAULTS)}", flush=True)
            if number % LOOK_EVERY == 0 or number == FAULTS:
                found = [f"after fault {number}: {text}" for text in _at_rest(scene, files, memory)]
                wrong += found
                seconds, count = time.monotonic() - begun, len(scene.asker.ended)
                print(f"{number} faults, {count} requests, {seconds:.0f} s {found or ''}", flush=True)
    wrong += [f"{thread.name} does not end" for thread in threads if thread.is_alive()]
    wrong += _broken(scene, begun)
    missed = [kind.name for kind in KINDS if kind not in possible]
    figures = {"files": [files, scene.open_files()], "mib": [memory >> 20, scene.memory() >> 20]}
    _write(
        scene, "gateway_faults", begun, wrong, faults=dict(done), not_possible_here=missed, gateway=figures
    )
    assert not wrong, "\n".join([_again(FAULTS), *wrong[:40]])


@pytest.mark.faults
@pytest.mark.timeout(14400)
def test_a_stream_whose_server_is_killed_is_whole_or_told_lost(scene: Scene) -> None:
    print(f"\nseed {SEED}: {_again(STREAM_KILLS)}")
    wrong: list[str] = []
    files, memory = scene.open_files(), scene.memory()
    begun = time.monotonic()
    for number in range(1, STREAM_KILLS + 1):
        # A server that was killed is called healthy until the supervisor sees it: then both would be gone.
        if not scene.worlds[0].wait(
            lambda: all(w.server() and w.healthy() for w in scene.worlds), REST_SECONDS
        ):
            wrong.append(f"stream {number}: not healthy again")
        ended = kill_in_midst(scene, scene.chance.randrange(1, 100), seconds=60.0)
        if ended.how not in ("answered", "503 stream_lost") and not ended.wrong:
            wrong.append(f"stream {number}: {ended.how}")
        if ended.wrong:
            print(f"stream {number}: {ended.how} {ended.wrong}; {_again(STREAM_KILLS)}", flush=True)
        elif number % LOOK_EVERY == 0:
            print(f"{number} streams, {time.monotonic() - begun:.0f} s", flush=True)
    wrong += _at_rest(scene, files, memory)
    wrong += _broken(scene, begun)
    _write(scene, "gateway_stream_kills", begun, wrong, streams=STREAM_KILLS)
    assert not wrong, "\n".join([_again(STREAM_KILLS), *wrong[:40]])
