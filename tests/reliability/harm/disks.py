"""Disks and shared memory that fill up, files that are damaged, a clock that jumps."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from shoal import repository as store
from shoal.paths import write_atomic
from tests.reliability.harm.processes import some_stub
from tests.reliability.models import MODELS
from tests.reliability.scene import Scene


def _fill(path: Path, leave: int) -> None:
    """Make a file that takes all but so many bytes of its disk."""
    room = shutil.disk_usage(path.parent).free - leave
    with suppress(OSError), path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(room, 1))


@contextmanager
def disk_full(scene: Scene) -> Iterator[None]:
    """While it is, somebody asks for another version."""
    path = scene.world.disk / "full"
    _fill(path, 0)
    model = scene.chance.choice(MODELS)
    scene.ask(model, scene.other(model))
    scene.hold()
    yield
    path.unlink(missing_ok=True)


@contextmanager
def shared_memory_full(scene: Scene) -> Iterator[None]:
    path = scene.world.shared_memory() / "full"
    with suppress(OSError):
        _fill(path, 64 << 10)
    scene.hold()
    yield
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _damaged(scene: Scene, damage: Callable[[Path], None]) -> Iterator[None]:
    """A file of a version is not the one that was proven, and that version is asked for all the same."""
    model = scene.chance.choice(MODELS)
    version, before = scene.other(model), scene.asked[model]
    file = scene.network_file(model, version)
    saved = file.with_name("saved")
    file.rename(saved)
    damage(file)
    configs = store.version_of(scene.world.repository, model, version).configs
    with suppress(OSError):
        for name, config in configs.items():  # `shoal promote` would refuse it at once
            write_atomic(scene.world.repository / name / "config.pbtxt", config)
    if scene.chance.random() < 0.2:
        with suppress(psutil.Error):
            if stub := some_stub(scene):
                stub.kill()
    scene.hold()
    yield
    if file.is_dir():
        file.rmdir()
    saved.replace(file)
    for name, config in store.version_of(scene.world.repository, model, before).configs.items():
        write_atomic(scene.world.repository / name / "config.pbtxt", config)


@contextmanager
def file_swapped(scene: Scene) -> Iterator[None]:
    def damage(file: Path) -> None:
        shutil.copy(next(p for p in sorted(file.parent.parent.glob("*/model.onnx")) if p != file), file)

    yield from _damaged(scene, damage)


@contextmanager
def file_truncated(scene: Scene) -> Iterator[None]:
    def damage(file: Path) -> None:
        whole = file.with_name("saved").read_bytes()
        file.write_bytes(whole[: scene.chance.randrange(len(whole))])

    yield from _damaged(scene, damage)


@contextmanager
def file_unreadable(scene: Scene) -> Iterator[None]:
    """A folder lies in its place, which not even root reads."""
    yield from _damaged(scene, Path.mkdir)


@contextmanager
def clock_jumps(scene: Scene) -> Iterator[None]:
    hour, day = 3600, 86400
    scene.world.set_clock(scene.chance.choice([3 * hour, -3 * hour, 400 * day, -20 * day]))
    scene.hold()
    yield
    scene.world.set_clock(0)
