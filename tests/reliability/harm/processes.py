"""Processes that die, stop, run out of memory, or find their port taken."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from clients import ClientError, GrpcClient
from tests.reliability.models import WORDS
from tests.reliability.scene import Scene

_STOPPED = (0.2, 4.0)  # some are noticed before they go on, and some are not


def some_stub(scene: Scene) -> psutil.Process | None:
    stubs = scene.world.stubs()
    return scene.chance.choice(stubs) if stubs else None


@contextmanager
def stub_killed(scene: Scene) -> Iterator[None]:
    if stub := some_stub(scene):
        with suppress(psutil.Error):
            stub.kill()
    yield


@contextmanager
def stub_stopped(scene: Scene) -> Iterator[None]:
    stub = some_stub(scene)
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
    stub = some_stub(scene)
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
