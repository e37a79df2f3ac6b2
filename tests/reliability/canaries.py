"""A model with versions that are alike, wrong now and then, or slow; callers of it through Envoy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc

from deploy.canary.rollout import create_folder
from deploy.canary.split import FLUSH, Folder
from deploy.envoy import EnvoySettings, config
from shoal.hashes import sha256
from tests.reliability.replicas import Server
from tests.reliability.world import free_ports

MODEL = "scores"
ALIKE, FAILING, SLOW, SAME = 2, 3, 4, 5  # beside version 1, which is served first; 5 answers as it does
CONFIG = """name: "scores"
backend: "python"
version_policy {{ specific {{ versions: {version} }} }}
max_batch_size: 0
input {{ name: "row" data_type: TYPE_FP32 dims: [ 4 ] }}
output {{ name: "score" data_type: TYPE_FP32 dims: [ 1 ] }}
instance_group {{ count: 1 kind: KIND_CPU }}
"""
CODE = """import random, time
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        time.sleep(0.004 * random.lognormvariate(0.0, 0.3) * {times})
        if random.random() < {failing}:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("a fault of this version"))
        score = np.array([{answer}.0], np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("score", score)])
"""


def add(
    repository: Path, version: int, *, failing: float = 0.0, times: float = 1.0, answer: int | None = None
) -> None:
    """A version as an export leaves it; it answers with its number, unless told otherwise."""
    folder = repository / MODEL / str(version)
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(CODE.format(answer=answer or version, failing=failing, times=times))
    text = CONFIG.format(version=version)
    entry: dict[str, Any] = {
        **{key: {} for key in ("onnx", "tools", "machine", "evidence")},
        **{"model": MODEL, "network": MODEL, "version": version, "precision": "fp32", "schema": 2},
        **{"source": {"id": "here"}, "recipe": {"task": None}, "created": "2026-01-01T00:00:00+00:00"},
        "files": {f"{MODEL}/{version}/model.py": sha256(folder / "model.py")},
        "configs": {MODEL: text},
    }
    (folder / "manifest.json").write_text(json.dumps(entry))
    if version == 1:
        (repository / MODEL / "config.pbtxt").write_text(text)
        (repository / MODEL / "served.json").write_text("[1]")


def make(folder: Path) -> Path:
    """The repository, below `folder`; version 1 is served."""
    repository = folder / "model_repository"
    add(repository, 1)
    add(repository, ALIKE)
    add(repository, FAILING, failing=0.05)
    add(repository, SLOW, times=2.0)
    add(repository, SAME, answer=1)
    return repository


class Callers:
    """Threads that ask Envoy until they are told to stop, with NVIDIA's client; each is another user.

    Attributes:
        answers: version that answered -> how often.
        failures: words of an error -> how often.
        of_user: user -> versions that answered it.
    """

    def __init__(self, grpc: int, users: int = 40, threads: int = 4) -> None:
        self.answers: Counter[int] = Counter()
        self.failures: Counter[str] = Counter()
        self.of_user: dict[str, set[int]] = defaultdict(set)
        self._grpc, self._users, self._lock, self._stop = grpc, users, threading.Lock(), threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=[number], daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a call did not end"

    def _run(self, number: int) -> None:
        given = triton_grpc.InferInput("row", [4], "FP32")
        given.set_data_from_numpy(np.zeros(4, np.float32))
        with triton_grpc.InferenceServerClient(f"127.0.0.1:{self._grpc}") as client:
            turn = number
            while not self._stop.is_set():
                turn += 7
                user = f"user-{turn % self._users}"
                try:
                    answer = client.infer(MODEL, [given], headers={"x-user": user}, client_timeout=60.0)
                    version = int(answer.as_numpy("score")[0])
                    with self._lock:
                        self.answers[version] += 1
                        self.of_user[user].add(version)
                except triton_grpc.InferenceServerException as error:
                    with self._lock:
                        self.failures[str(error.message())] += 1


class Scene:
    """A server, an Envoy in front of it, and `shoal canary` as users call it."""

    def __init__(self, repository: Path, folder: Path, grpc: int, server: Server) -> None:
        self.repository, self.folder, self.grpc, self.server = repository, folder, grpc, server
        self.steering = folder / "canary"
        self._begun: list[subprocess.Popen[str]] = []

    def begin(self, version: int, *options: str, kind: str = "canary") -> subprocess.Popen[str]:
        """`shoal canary`, or `shoal shadow`, in a process of its own."""
        command = [
            *(sys.executable, "-m", "shoal", kind, MODEL, str(version), "--folder", str(self.steering)),
            *("-r", str(self.repository), "--json", *options),
        ]
        environment = {**os.environ, "SHOAL_STATE": str(self.server.state)}
        self._begun.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        return self._begun[-1]

    def close(self) -> None:
        """End what a test that failed has left."""
        for process in self._begun:
            if process.poll() is None:
                process.terminate()
                process.wait(60)

    def canary(self, version: int, *options: str, kind: str = "canary") -> tuple[int, dict[str, Any]]:
        """`shoal canary` or `shoal shadow` to its end: exit code and what it printed."""
        process = self.begin(version, *options, kind=kind)
        text, _ = process.communicate(timeout=600)
        return process.returncode, json.loads(text)["rollout"]

    def rollout(self, *command: str) -> subprocess.CompletedProcess[str]:
        """`shoal rollout`."""
        given = [sys.executable, "-m", "shoal", "rollout", *command, "--folder", str(self.steering)]
        return subprocess.run(given, capture_output=True, text=True, timeout=60, check=False)

    def status(self) -> dict[str, Any]:
        """`shoal rollout status --json`."""
        return dict(json.loads(self.rollout("status", "--json").stdout)["rollout"] or {})

    def wait(self, least: int, seconds: float = 180.0) -> dict[str, Any]:
        """Until so many requests of the canary that runs are known."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.status()
            if found and found["phase"] == "running" and found["requests"]["new"]["number"] >= least:
                return found
            assert time.monotonic() < deadline, found
            assert self._begun[-1].poll() is None, found
            time.sleep(0.3)


@contextmanager
def scene(folder: Path, repository: Path) -> Iterator[Scene]:
    """See `Scene`."""
    program = shutil.which("envoy") or str(Path(sys.executable).with_name("envoy"))
    server = Server(repository, folder / "server")
    grpc, http, canary_grpc, canary_http, copies = free_ports(5)
    steering = Folder(
        (folder / "canary").absolute(), canary_grpc, canary_http, 0.5, copies, [server.replica.grpc_address]
    )
    create_folder(steering)
    file = folder / "envoy.yaml"
    file.write_text(
        config(EnvoySettings([server.replica], grpc=grpc, http=http, probe_seconds=0.5, canary=steering))
    )
    envoy = None
    try:
        server.wait()
        with (folder / "envoy.log").open("wb") as log:
            envoy = subprocess.Popen(
                [program, "-c", str(file), "--use-dynamic-base-id", "--concurrency", "1", *FLUSH.split()],
                stdout=log,
                stderr=log,
            )
        made = Scene(repository, folder, grpc, server)
        _wait_until_ready(grpc, envoy)
        try:
            yield made
        finally:
            made.close()
    finally:
        if envoy is not None:
            envoy.terminate()
            envoy.wait(30)
        server.process.terminate()
        server.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(60)


def _wait_until_ready(grpc: int, envoy: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{grpc}") as client:
        while time.monotonic() < deadline:
            assert envoy.poll() is None, "Envoy has ended"
            with suppress(triton_grpc.InferenceServerException):
                if client.is_server_ready():
                    return
            time.sleep(0.2)
    raise TimeoutError("Envoy does not answer")
