"""What happens behind the gateway and beside it: servers that go, stop, change, and files that are gone."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException

import psutil

from tests.reliability.callers import Ended
from tests.reliability.gateway.asking import LONG, SHORT, Told, body, read
from tests.reliability.gateway.scene import Scene
from tests.reliability.models import VERSIONS

_STOPPED = (0.2, 4.0)  # seconds; some are noticed before they go on, and some are not


def _kill(scene: Scene, number: int) -> None:
    if server := scene.worlds[number].server():
        with suppress(psutil.Error):
            server.kill()


def triton_killed(scene: Scene) -> None:
    _kill(scene, scene.chance.randrange(2))


def triton_stopped(scene: Scene) -> None:
    if server := scene.worlds[scene.chance.randrange(2)].server():
        with suppress(psutil.Error):
            server.suspend()
            scene.hold(*_STOPPED)
            server.resume()


def supervisor_and_triton_killed(scene: Scene) -> None:
    number = scene.chance.randrange(2)
    _kill(scene, number)
    scene.worlds[number].process.kill()


def promoted_in_the_midst_of_a_stream(scene: Scene) -> None:
    """One service is asked for the other version, and then the other service."""
    numbers = scene.chance.sample(range(2), 2)
    version = next(each for each in VERSIONS if each != scene.asked[numbers[0]])

    def promote(came: int) -> None:
        if came in (1, 50):
            scene.promote(numbers[came != 1], version)

    for tokens in (LONG, SHORT):
        watched(scene, "stream, promotion in its midst", tokens, promote)
    scene.hold()


def killed_in_the_midst_of_a_stream(scene: Scene) -> None:
    """Whichever of the services does the most since the stream began is killed after some events."""
    kill_in_midst(scene, scene.chance.randrange(1, 100), seconds=20.0)


def kill_in_midst(scene: Scene, after: int, seconds: float) -> Ended:
    """A stream whose server is killed after some of its events."""
    before = [scene.spent(number) for number in range(2)]

    def kill(came: int) -> None:
        if came == after:
            _kill(scene, max(range(2), key=lambda number: scene.spent(number) - before[number]))

    return watched(scene, "stream, its server killed", LONG, kill, seconds)


def watched(
    scene: Scene, kind: str, tokens: int, each: Callable[[int], None], seconds: float = 20.0
) -> Ended:
    """A stream; after each event something is done with the number of those that have come."""
    asker, at, which = scene.asker, time.monotonic(), scene.chance.randrange(2)
    told = Told(0)
    try:
        with asker.asked(body(which, tokens, stream=True), seconds) as response:
            told = read(response, each)
    except (OSError, HTTPException) as error:
        told.error, told.wrong = type(error).__name__, f"{error!r}"
    asker.judge(told, which, tokens, at)
    return asker.note(kind, at, told, seconds)


def catalogue_unreachable(scene: Scene) -> None:
    """The supervisor of one service, or of both, stands still."""
    stopped = [made.process.pid for made in scene.chance.sample(scene.worlds, scene.chance.choice((1, 2)))]
    for pid in stopped:
        with suppress(psutil.Error):
            psutil.Process(pid).suspend()
    scene.hold(*_STOPPED)
    for pid in stopped:
        with suppress(psutil.Error):
            psutil.Process(pid).resume()


def redis_gone(scene: Scene) -> None:
    """It is killed, or stands still."""
    assert scene.redis is not None
    if scene.chance.random() < 0.5:
        scene.redis.kill()
        scene.hold()
        scene.redis.start()
    else:
        process = psutil.Process(scene.redis.process.pid)
        process.suspend()
        scene.hold()
        process.resume()


def keys_changed(scene: Scene) -> None:
    """The file of keys is written anew, damaged, or away for a while."""
    path = scene.keys.path
    kept, how = path.read_bytes(), scene.chance.choice(("written", "damaged", "away"))
    if how == "written":
        scene.keys.add("another")
        scene.hold()
        scene.keys.revoke("another")
    elif how == "damaged":
        path.write_bytes(kept[: scene.chance.randrange(len(kept))])
        scene.hold()
        path.write_bytes(kept)
    else:
        aside, begin = path.with_name("aside"), time.monotonic()
        # It is told before, since users are refused meanwhile, and again with its true end.
        scene.asker.without_keys.append((begin, begin + 60))
        path.rename(aside)
        scene.hold()
        aside.rename(path)
        scene.asker.without_keys[-1] = (begin, time.monotonic())
