"""Two services behind one gateway, users who call it, and what must be so when all is quiet."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from openai import APIConnectionError, APIStatusError, OpenAI

from serving.gateway.keys import KeyStore, Limits
from serving.ports import free_port
from shoal import repository as store
from shoal import rollouts
from shoal.errors import ShoalError
from tests.processes import STUB, descendants
from tests.reliability.callers import DEADLINE, LATE_SECONDS, Ended
from tests.reliability.gateway.asking import LONG, SHORT, Asker, Told, body, read
from tests.reliability.models import PROMPTS, TALES, TEXTS, VERSIONS, WORDS
from tests.reliability.world import World, world
from tests.serving.gateway.running import Running, gateway

ROWS, QUEUE = 4, 8  # of each service: requests that its decoder runs, and that may wait
REST_SECONDS = 120.0
_PLENTY = Limits(requests_per_minute=10**9, tokens_per_minute=10**9, concurrent=10**6)


@dataclass(frozen=True)
class _Behind:
    grpc: str
    health: str


class Redis:
    """A Redis that can go and come back; it keeps nothing on the disk."""

    def __init__(self, program: str, folder: Path) -> None:
        self.port = free_port("redis", 0)
        self._command = [program, f"--port {self.port}", "--bind 127.0.0.1", "--save", "", f"--dir {folder}"]
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        """Start it, also again."""
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()


@dataclass
class Scene:
    """What a fault is given.

    Attributes:
        worlds: the two services.
        redis: where quotas are counted; None: there is no redis-server here.
        keys: the file of keys.
        chance: where faults draw from.
        asked: the version of the decoder that each service was asked for last.
        behind_time: threads of clients that are slower than a fault lasts.
        half_open: connections of callers who do nothing.
    """

    worlds: list[World]
    gateway: Running
    metrics_port: int
    redis: Redis | None
    keys: KeyStore
    asker: Asker
    chance: random.Random
    asked: list[int]
    vectors: list[Any] = field(default_factory=list)
    behind_time: list[threading.Thread] = field(default_factory=list)
    half_open: list[socket.socket] = field(default_factory=list)
    quiet: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)

    def hold(self, least: float = 0.2, most: float = 1.2) -> None:
        """Let it last for a while."""
        time.sleep(self.chance.uniform(least, most))

    def promote(self, number: int, version: int) -> bool:
        """Ask a service for a version of the decoder, as `shoal promote` does; whether it was asked for."""
        made = self.worlds[number]
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(rollouts.VARIABLE, str(made.state))
                store.promote(made.repository, TALES, version)
        except (ShoalError, OSError):  # such as another promotion that runs
            return False
        self.asked[number] = version
        return True

    def serves(self, number: int, version: int) -> str:
        """Wait until a service serves a version of the decoder; what is wrong: "": nothing."""
        made, end = self.worlds[number], time.monotonic() + REST_SECONDS
        if not made.wait(made.healthy, REST_SECONDS):
            return f"service {number} is not healthy again"
        configs = store.version_of(made.repository, TALES, version).configs
        while True:
            try:
                assert self.promote(number, version) or time.monotonic() < end
                with pytest.MonkeyPatch.context() as patch:
                    patch.setenv(rollouts.VARIABLE, str(made.state))
                    rollouts.wait_until_served(made.repository, configs, REST_SECONDS)
                return ""
            except ShoalError as error:
                if time.monotonic() > end:
                    return f"service {number}, version {version}: {error.message}"
                time.sleep(1)

    def spent(self, number: int) -> float:
        """Seconds of CPU time that the models of a service have used."""
        total = 0.0
        for process in descendants(self.worlds[number].process.pid, STUB):
            try:
                times = process.cpu_times()
                total += times.user + times.system
            except psutil.Error:
                continue
        return total

    def running_requests(self) -> float:
        """What the gateway says on its port for metrics."""
        return _metric(self.metrics_port, "shoal_gateway_running_requests")

    def rows(self) -> float:
        """Requests that the decoders run, or that wait there, as both servers say."""
        names = ("shoal_generation_running", "shoal_generation_waiting")
        return sum(_metric(made.ports[2], name) for made in self.worlds for name in names)

    def open_files(self) -> int:
        """File descriptors of the gateway, sockets included, but for connections to Redis.

        Those are kept: as many as requests ever ran at once.
        """
        process = psutil.Process(self.gateway.pid)
        port = self.redis.port if self.redis else 0
        kept = [each for each in process.net_connections("tcp") if each.raddr and each.raddr.port == port]
        return process.num_fds() - len(kept)

    def connections(self) -> int:
        """Connections of callers that the gateway has."""
        port = self.asker.port
        found = psutil.Process(self.gateway.pid).net_connections("tcp")
        return sum(1 for each in found if each.laddr.port == port and each.status != psutil.CONN_LISTEN)

    def memory(self) -> int:
        """Bytes of the gateway in memory."""
        return int(psutil.Process(self.gateway.pid).memory_info().rss)


def _metric(port: int, name: str) -> float:
    """A metric, summed over its labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    found = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{")]
    assert found, f"port {port} does not tell {name}"
    return sum(found)


@contextmanager
def scene_of(repository: Path, folder: Path, chance: random.Random) -> Iterator[Scene]:
    """Both services serve version 2, and the answers of both versions are known."""
    program = shutil.which("redis-server")
    redis = Redis(program, folder) if program else None
    keys = KeyStore(folder / "keys" / "keys.json")
    _, secret = keys.add("faults", limits=_PLENTY)
    for name in ("one", "two"):
        (folder / name).mkdir()
    metrics_port = free_port("metrics", 0)
    try:
        with (
            world(repository, folder / "one", own_disk=False) as one,
            world(repository, folder / "two", own_disk=False) as two,
            gateway(
                _Behind(one.grpc, f"http://{one.watch}/health"),
                *(f"--triton={two.grpc}", f"--catalogue=http://{two.watch}/catalogue"),
                *(f"--keys={keys.path}", f"--metrics-port={metrics_port}"),
                *([f"--storage=redis://127.0.0.1:{redis.port}"] if redis else []),
                log=folder / "gateway.log",
            ) as running,
        ):
            asker = Asker(int(running.url.rsplit(":", 1)[1]), secret)
            scene = Scene([one, two], running, metrics_port, redis, keys, asker, chance, [2, 2])
            _learn(scene)
            yield scene
    finally:
        if redis:
            redis.kill()


def _learn(scene: Scene) -> None:
    """Record the answers of each version before anything is broken."""
    asker = scene.asker
    for version in VERSIONS:
        for number in range(2):
            assert not scene.serves(number, version)
        time.sleep(2.5)  # until the gateway has read of it, once a second
        for which in range(len(PROMPTS)):
            for tokens in (SHORT, LONG):
                with asker.asked(body(which, tokens, stream=False), 60) as response:
                    told = read(response)
                assert told.reason == "length" and told.fingerprint.startswith("fp_"), told
                asker.known.setdefault((which, tokens), {})[told.fingerprint] = told.text
    assert all(len(set(found.values())) == len(VERSIONS) for found in asker.known.values())
    with client(scene) as sdk:
        scene.vectors = [sdk.embeddings.create(model=WORDS, input=text).data[0].embedding for text in TEXTS]


def client(scene: Scene) -> OpenAI:
    """OpenAI's SDK. It tells the gateway the deadline, and waits for longer itself."""
    return OpenAI(
        base_url=f"{scene.gateway.url}/v1",
        api_key=scene.asker.key,
        timeout=DEADLINE + LATE_SECONDS + 1,
        max_retries=0,
        default_headers={"x-stainless-read-timeout": f"{DEADLINE:g}"},
    )


def embedded(scene: Scene, sdk: OpenAI, which: int) -> Ended:
    """One request for a vector by OpenAI's SDK."""
    at, told = time.monotonic(), Told(200)
    try:
        vector = sdk.embeddings.create(model=WORDS, input=TEXTS[which]).data[0].embedding
        if not np.allclose(vector, scene.vectors[which], atol=1e-3):
            told.wrong = "another vector"
    except APIStatusError as error:
        told = Told(error.status_code, error=str(error.code))
        told.wrong = scene.asker.refused(told, at)
    except APIConnectionError as error:
        told = Told(0, error=type(error).__name__, wrong=f"{error.__cause__!r}")
    return scene.asker.note("embeddings, OpenAI's SDK", at, told)


def _streams(scene: Scene, tokens: int, *, stream: bool) -> None:
    kind = f"{'streams' if stream else 'whole answers'} of {tokens} tokens"
    while _may_go_on(scene):
        scene.asker.record(kind, random.randrange(len(PROMPTS)), tokens, stream=stream)


def _embeddings(scene: Scene) -> None:
    with client(scene) as sdk:
        while _may_go_on(scene):
            embedded(scene, sdk, random.randrange(len(TEXTS)))


def _may_go_on(scene: Scene) -> bool:
    while scene.quiet.is_set() and not scene.stop.is_set():
        time.sleep(0.05)
    return not scene.stop.wait(0.05)


@contextmanager
def users(scene: Scene) -> Iterator[list[threading.Thread]]:
    """Four users, for the length of a block."""
    threads = [
        threading.Thread(target=_streams, args=[scene, SHORT], kwargs={"stream": True}, name="short"),
        threading.Thread(target=_streams, args=[scene, LONG], kwargs={"stream": True}, name="long"),
        threading.Thread(target=_streams, args=[scene, SHORT], kwargs={"stream": False}, name="whole"),
        threading.Thread(target=_embeddings, args=[scene], name="embeddings"),
    ]
    for thread in threads:
        thread.daemon = True
        thread.start()
    try:
        yield threads
    finally:
        scene.stop.set()
        for thread in threads:
            thread.join(DEADLINE + LATE_SECONDS + 5)
