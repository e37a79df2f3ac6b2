"""What goes wrong: each kind of fault does its harm when it is entered and takes it back when it is left."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from clients import AsyncGrpcClient, ClientError, GrpcClient
from shoal import repository as store
from shoal import rollouts
from shoal.errors import ShoalError
from shoal.manifest import manifests
from shoal.paths import write_atomic
from tests.reliability.callers import DEADLINE, GREEDY, LATE_SECONDS, Calls, Ended
from tests.reliability.models import PROMPTS, ROWS, TALES, VERSIONS, WORDS
from tests.reliability.world import World

MODELS = (WORDS, ROWS, TALES)
_HOLD = (0.2, 1.2)  # seconds
_STOPPED = (0.2, 4.0)  # some are noticed before they go on, and some are not


@dataclass
class Scene:
    """What a fault is given.

    Attributes:
        chance: where it draws from.
        asked: model -> the version that its user asked for last.
        said: what commands answered, counted.
    """

    world: World
    calls: Calls
    chance: random.Random
    asked: dict[str, int]
    said: dict[str, int] = field(default_factory=dict)

    def hold(self, seconds: tuple[float, float] = _HOLD) -> None:
        """Let it last for a while."""
        time.sleep(self.chance.uniform(*seconds))

    def network(self, model: str) -> str:
        """The folder whose versions are those of a model."""
        return next(m.network for m in manifests(self.world.repository) if m.model == model)

    def network_file(self, model: str, version: int) -> Path:
        """The weights of a version."""
        return self.world.repository / self.network(model) / str(version) / "model.onnx"

    def ask(self, model: str, version: int) -> bool:
        """Ask for a version as `shoal promote` does; whether the command said that it is asked for."""
        try:
            store.promote(self.world.repository, model, version)
        except (ShoalError, OSError) as error:
            name = type(error).__name__
            self.said[f"promote: {name}"] = self.said.get(f"promote: {name}", 0) + 1
            return False
        self.asked[model] = version
        self.said["promote: asked for"] = self.said.get("promote: asked for", 0) + 1
        return True

    def other(self, model: str) -> int:
        """A version that was not asked for."""
        return next(version for version in VERSIONS if version != self.asked[model])


# Processes.


def _some_stub(scene: Scene) -> psutil.Process | None:
    stubs = scene.world.stubs()
    return scene.chance.choice(stubs) if stubs else None


@contextmanager
def stub_killed(scene: Scene) -> Iterator[None]:
    if stub := _some_stub(scene):
        with suppress(psutil.Error):
            stub.kill()
    yield


@contextmanager
def stub_stopped(scene: Scene) -> Iterator[None]:
    stub = _some_stub(scene)
    with suppress(psutil.Error):
        if stub:
            stub.suspend()
    scene.hold(_STOPPED)
    yield
    with suppress(psutil.Error):
        if stub:
            stub.resume()


@contextmanager
def stub_out_of_memory(scene: Scene) -> Iterator[None]:
    """It cannot take a byte more, and is asked for something large."""
    stub = _some_stub(scene)
    with suppress(psutil.Error, ClientError):
        if stub:
            stub.rlimit(resource.RLIMIT_AS, (stub.memory_info().vms, resource.RLIM_INFINITY))
        with GrpcClient(scene.world.grpc, timeout=2.0) as client:
            client.embed(["many words " * 300] * 32, model=WORDS, batch_size=32)
    scene.hold()
    yield
    with suppress(psutil.Error):
        if stub and stub.is_running():
            stub.rlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextmanager
def server_killed(scene: Scene) -> Iterator[None]:
    if server := scene.world.server():
        with suppress(psutil.Error):
            server.kill()
    yield


@contextmanager
def server_stopped(scene: Scene) -> Iterator[None]:
    server = scene.world.server()
    with suppress(psutil.Error):
        if server:
            server.suspend()
    scene.hold(_STOPPED)
    yield
    with suppress(psutil.Error):
        if server:
            server.resume()


@contextmanager
def supervisor_killed(scene: Scene) -> Iterator[None]:
    scene.world.process.kill()
    yield


@contextmanager
def port_taken(scene: Scene) -> Iterator[None]:
    """The server dies, and before it is started again another program listens where it did."""
    server, end = scene.world.server(), time.monotonic() + 1.0
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if server:
        with suppress(psutil.Error):
            server.kill()
    while time.monotonic() < end:
        try:
            holder.bind(("127.0.0.1", scene.world.ports[0]))
            holder.listen()
            break
        except OSError:
            time.sleep(0.005)
    scene.hold()
    yield
    holder.close()


# Disks, files, memory that is shared, the clock.


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
            if stub := _some_stub(scene):
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


# Clients.


@contextmanager
def clients_leave(scene: Scene) -> Iterator[None]:
    with suppress(ClientError), GrpcClient(scene.world.grpc, timeout=DEADLINE) as client:
        for _ in range(scene.chance.randrange(1, 8)):
            stream = client.generate(PROMPTS[0], model=TALES, **{**GREEDY, "max_tokens": 400})
            next(stream)
            stream.close()
    yield


@contextmanager
def client_stalls(scene: Scene) -> Iterator[None]:
    """It asks for a long stream and reads a byte now and then."""
    body = json.dumps({"text_input": "a", "stream": True, "sampling_parameters": '{"max_tokens": 300}'})
    head = (
        f"POST /v2/models/{TALES}/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with suppress(OSError), socket.create_connection(("127.0.0.1", scene.world.ports[0]), timeout=2) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.sendall((head + body).encode())
        slow.recv(1)
        scene.hold()
        slow.recv(1)
    yield


@contextmanager
def client_floods(scene: Scene) -> Iterator[None]:
    """Three hundred requests at once, each of which must end as any other."""

    async def flood() -> list[Ended]:
        async with AsyncGrpcClient(scene.world.grpc, timeout=DEADLINE) as client:

            async def one(number: int) -> Ended:
                at, how = time.monotonic(), "answered"
                try:
                    if number % 3:
                        await client.embed([f"fish {number}"], model=WORDS)
                    else:
                        await client.complete(PROMPTS[0], model=TALES, **{**GREEDY, "max_tokens": 4})
                except ClientError as error:
                    how = type(error).__name__
                seconds = time.monotonic() - at
                late = f"late: {seconds:.1f} s" if seconds > DEADLINE + LATE_SECONDS else ""
                return Ended("flood", at, seconds, how, late)

            return await asyncio.gather(*(one(number) for number in range(300)))

    scene.calls.ended += asyncio.run(flood())
    yield


_GARBAGE = (
    b"\x00" * 300,
    b"GET / HTTP/9.9\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 200,
    b"POST /v2/models/words/infer HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n{",
    b"POST /v2/models/words/infer HTTP/1.1\r\nContent-Length: 5\r\n\r\n[[[[[",
    b'POST /v2/models/rows/infer HTTP/1.1\r\nContent-Length: 24\r\n\r\n{"inputs":[{"name":"a"}]}',
    b"POST /v2/models/tales/generate HTTP/1.1\r\nContent-Length: 26\r\n\r\n"
    + b'{"text_input":"\xff\xfe\x80abcd"} ',
    b"POST /v2/models/tales/generate_stream HTTP/1.1\r\nContent-Length: 40\r\n\r\n"
    + b'{"text_input":1e999,"stream":"no"}      ',
    b"POST /v2/models/%2e%2e%2f/versions/-1/infer HTTP/1.1\r\nInference-Header-Content-Length: -1\r\n\r\n",
)


@contextmanager
def client_sends_garbage(scene: Scene) -> Iterator[None]:
    for port in scene.world.ports:
        for garbage in scene.chance.sample(_GARBAGE, 4):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.3) as one:
                one.sendall(garbage)
                one.settimeout(0.1)
                one.recv(100)
    yield


# People who ask for versions.


@contextmanager
def promoted(scene: Scene) -> Iterator[None]:
    """Sometimes they wait for it: what is then said to be served must be."""
    model = scene.chance.choice(MODELS)
    version = scene.chance.choice(VERSIONS)
    if scene.ask(model, version) and scene.chance.random() < 0.3:
        configs = store.version_of(scene.world.repository, model, version).configs
        try:
            rollouts.wait_until_served(scene.world.repository, configs, 20)
            said = "wait: served"
        except ShoalError as error:
            said = f"wait: {type(error).__name__}"
        scene.said[said] = scene.said.get(said, 0) + 1
    yield


@contextmanager
def rolled_back(scene: Scene) -> Iterator[None]:
    model = scene.chance.choice(MODELS)
    try:
        scene.asked[model] = store.rollback(scene.world.repository, model).version
        said = "rollback: asked for"
    except ShoalError as error:
        said = f"rollback: {type(error).__name__}"
    scene.said[said] = scene.said.get(said, 0) + 1
    yield


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        do: what does the harm, and takes it back.
        weight: how often it is drawn, beside the others.
        kills: it is worth doing only to a service that is well.
        needs: what it cannot be done without: `mounts`, `clock`, or nothing.
    """

    do: Callable[[Scene], AbstractContextManager[None]]
    weight: float
    kills: bool = False
    needs: str = ""

    @property
    def name(self) -> str:
        """In words."""
        return self.do.__name__.replace("_", " ")

    def possible(self, world: World) -> bool:
        """Whether it can be done here."""
        return {"": True, "mounts": world.mounts, "clock": world.clock_moves}[self.needs]


KINDS = (
    Kind(stub_killed, 4, kills=True),
    Kind(stub_stopped, 3, kills=True),
    Kind(stub_out_of_memory, 2, kills=True),
    Kind(server_killed, 3, kills=True),
    Kind(server_stopped, 2, kills=True),
    Kind(supervisor_killed, 2, kills=True),
    Kind(port_taken, 1, kills=True),
    Kind(shared_memory_full, 2, kills=True, needs="mounts"),
    Kind(disk_full, 6, needs="mounts"),
    Kind(file_swapped, 4),
    Kind(file_truncated, 4),
    Kind(file_unreadable, 4),
    Kind(clock_jumps, 6, needs="clock"),
    Kind(clients_leave, 12),
    Kind(client_stalls, 8),
    Kind(client_floods, 8),
    Kind(client_sends_garbage, 12),
    Kind(promoted, 9),
    Kind(rolled_back, 8),
)
