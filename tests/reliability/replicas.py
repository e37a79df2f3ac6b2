"""Three supervised servers behind one Envoy, and callers who do not know which one answers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tritonclient.grpc as triton_grpc

from clients import ClientError, GrpcClient, HttpClient
from clients.errors import translated
from deploy.envoy import EnvoySettings, Replica, config
from tests.processes import descendants
from tests.reliability.models import PROMPTS, ROWS, TABLE, TALES, TEXTS, WORDS
from tests.reliability.world import free_ports

PROBE_SECONDS = 1.0
DRAIN_SECONDS = 2 * PROBE_SECONDS
TALE = {"max_tokens": 40, "temperature": 0, "ignore_eos": True}
DEADLINE = 60.0  # of a call: what is measured is whether it is answered, on however slow a machine


class Server:
    """One supervisor, which is started and stopped as an orchestrator does it.

    Args:
        repository: is read.
        folder: for its state and its log.
    """

    def __init__(self, repository: Path, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        names = ("http", "grpc", "metrics", "health")
        self._ports = dict(zip(names, free_ports(len(names)), strict=True))
        self._command = [
            *(sys.executable, "-m", "serving.supervisor", str(repository), f"--drain={DRAIN_SECONDS}"),
            *(f"--{name}-port={port}" for name, port in self._ports.items()),
        ]
        self.replica = Replica("127.0.0.1", *(self._ports[name] for name in ("grpc", "http", "health")))
        self.start()

    @property
    def state(self) -> Path:
        """Folder of what it keeps."""
        return self._folder / "state"

    def start(self) -> None:
        environment = {**os.environ, "SHOAL_STATE": str(self.state)}
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, env=environment)

    def stop(self) -> None:
        """SIGTERM, as an orchestrator sends it, and wait."""
        self.process.terminate()
        self.process.wait(60)

    @property
    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._ports['health']}/health", timeout=2):
                return True
        except OSError:
            return False

    def wait(self, healthy: bool = True, seconds: float = 180.0) -> float:
        """Until `/health` says so; after how many seconds."""
        begun = time.monotonic()
        while self.healthy != healthy:
            assert time.monotonic() - begun < seconds, (self._folder / "log").read_text()[-2000:]
            time.sleep(0.05)
        return time.monotonic() - begun

    def processes(self, kind: str) -> list[psutil.Process]:
        """Those whose name begins so: see `tests.processes`."""
        return descendants(self.process.pid, kind)


@dataclass
class Counts:
    """How calls ended, since they were counted last.

    Attributes:
        answered: unary calls and whole streams.
        failed: unary calls that ended in an error or a wrong answer.
        lost: streams that ended in an error before their first token.
        cut: streams that ended in a typed error after it.
        untyped: what ended in something else than a `ClientError`.
    """

    answered: int = 0
    failed: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    untyped: list[str] = field(default_factory=list)


class Callers:
    """Callers of the two addresses until they are told to stop.

    Args:
        grpc, http: host:port of Envoy.
    """

    def __init__(self, grpc: str, http: str) -> None:
        self._grpc, self._http = grpc, http
        self._counts, self._lock, self._stop = Counts(), threading.Lock(), threading.Event()
        with GrpcClient(grpc, timeout=DEADLINE) as client:
            self._vector = client.embed([TEXTS[0]], model=WORDS)
            self._tale = self._streamed(client)
            self._row = client.predict(TABLE[:1], model=ROWS)
        kinds = [self._texts_grpc, self._texts_http, self._rows, self._streams_grpc, self._streams_http]
        self._threads = [threading.Thread(target=self._run, args=[kind], daemon=True) for kind in kinds]
        for thread in self._threads:
            thread.start()

    def counted(self) -> Counts:
        with self._lock:
            counts, self._counts = self._counts, Counts()
        return counts

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * DEADLINE)
            assert not thread.is_alive(), "a call did not end"

    def _run(self, kind: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                kind()
            except Exception as error:
                with self._lock:
                    self._counts.untyped.append(f"{kind.__name__}: {error!r}")
            self._stop.wait(0.02)

    def _unary(self, name: str, call: Callable[[], Any], right: Any) -> None:
        try:
            wrong = "" if np.allclose(call(), right, atol=1e-3) else "a wrong answer"
        except ClientError as error:
            wrong = f"{type(error).__name__}: {error}"
        with self._lock:
            if wrong:
                self._counts.failed.append(f"{name}: {wrong}")
            else:
                self._counts.answered += 1

    def _texts_grpc(self) -> None:
        with GrpcClient(self._grpc, timeout=DEADLINE) as client:
            self._unary("gRPC", lambda: client.embed([TEXTS[0]], model=WORDS), self._vector)

    def _texts_http(self) -> None:
        with HttpClient(self._http, timeout=DEADLINE) as client:
            self._unary("HTTP", lambda: client.embed([TEXTS[0]], model=WORDS), self._vector)

    def _rows(self) -> None:
        """NVIDIA's client, which keeps its connection."""

        def ask() -> Any:
            given = triton_grpc.InferInput("features", [1, TABLE.shape[1]], "FP32")
            given.set_data_from_numpy(TABLE[:1])
            with translated("tritonclient"):
                return client.infer(ROWS, [given], client_timeout=DEADLINE).as_numpy("prediction")

        with triton_grpc.InferenceServerClient(self._grpc) as client:
            for _ in range(50):
                self._unary("rows", ask, self._row)
                if self._stop.wait(0.02):
                    return

    def _streamed(self, client: GrpcClient | HttpClient) -> str:
        return "".join(part.text for part in client.generate(PROMPTS[0], model=TALES, **TALE))

    def _stream(self, client: GrpcClient | HttpClient) -> None:
        text, begun, ended = "", False, ""
        try:
            for part in client.generate(PROMPTS[0], model=TALES, **TALE):
                begun = True
                text += part.text
        except ClientError as error:
            ended = f"{type(client).__name__}: {type(error).__name__}: {error}"
        with self._lock:
            if ended:
                (self._counts.cut if begun else self._counts.lost).append(ended)
            elif text != self._tale:
                self._counts.failed.append(f"a stream of another text: {text[-40:]!r}")
            else:
                self._counts.answered += 1

    def _streams_grpc(self) -> None:
        with GrpcClient(self._grpc, timeout=DEADLINE) as client:
            self._stream(client)

    def _streams_http(self) -> None:
        with HttpClient(self._http, timeout=DEADLINE) as client:
            self._stream(client)


@contextmanager
def behind_envoy(repository: Path, folder: Path, count: int) -> Iterator[tuple[list[Server], Callers]]:
    """So many servers that serve, an Envoy before them, and callers who have begun."""
    program = shutil.which("envoy") or str(Path(sys.executable).with_name("envoy"))
    servers = [Server(repository, folder / str(index)) for index in range(count)]
    grpc, http = free_ports(2)
    file = folder / "envoy.yaml"
    settings = EnvoySettings(
        [one.replica for one in servers], grpc=grpc, http=http, probe_seconds=PROBE_SECONDS
    )
    file.write_text(config(settings))
    envoy = None
    try:
        for server in servers:
            server.wait()
        with (folder / "envoy.log").open("wb") as log:
            envoy = subprocess.Popen(
                [program, "-c", str(file), "--use-dynamic-base-id", "--concurrency", "1"],
                stdout=log,
                stderr=log,
            )
        callers = _first_answer(grpc, http)
        yield servers, callers
        callers.close()
    finally:
        if envoy is not None:
            envoy.terminate()
            envoy.wait(30)
        for server in servers:
            server.process.send_signal(signal.SIGTERM)
            server.process.send_signal(signal.SIGTERM)  # without draining
        for server in servers:
            server.process.wait(60)


def _first_answer(grpc: int, http: int) -> Callers:
    deadline = time.monotonic() + 60
    while True:
        try:
            return Callers(f"127.0.0.1:{grpc}", f"127.0.0.1:{http}")
        except ClientError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
