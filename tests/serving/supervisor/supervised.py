"""A supervisor that runs, for tests."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.processes import STUB, descendants


@dataclass
class Supervised:
    """A supervisor that runs."""

    process: subprocess.Popen[str]
    http: str
    grpc: str
    watch: str
    metrics: str
    key: Path
    log: Path

    def health(self) -> int:
        """Status of /health; 0: nobody there."""
        try:
            with urllib.request.urlopen(f"http://{self.watch}/health", timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def metric(self, name: str, label: str = "") -> float:
        """Sum of a metric over its labels."""
        with urllib.request.urlopen(f"http://{self.watch}/metrics", timeout=5) as response:
            lines = response.read().decode().splitlines()
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if re.match(rf"{name}[ {{]", line) and label in line
        )

    def wait(self, status: int, seconds: float = 60.0) -> float:
        """Until /health has a status; how long that took."""
        start = time.monotonic()
        while self.health() != status:
            assert time.monotonic() - start < seconds, self.log.read_text()[-2000:]
            time.sleep(0.05)
        return time.monotonic() - start

    def stubs(self) -> list[psutil.Process]:
        """Processes of Python models."""
        return descendants(self.process.pid, STUB)


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


@contextmanager
def supervising(repository: Path, folder: Path, *flags: str) -> Iterator[Supervised]:
    ports = [free_port() for _ in range(4)]
    names = ("http", "grpc", "metrics", "health")
    command = [sys.executable, "-m", "serving.supervisor", str(repository), *flags]
    command += [f"--{name}-port={port}" for name, port in zip(names, ports, strict=True)]
    key, log = folder / "secrets" / "admin_key", folder / "supervisor.log"
    with log.open("w") as output:
        process = subprocess.Popen([*command, f"--admin-key={key}"], stdout=output, stderr=output, text=True)
    made = Supervised(process, *(f"127.0.0.1:{ports[i]}" for i in (0, 1, 3, 2)), key, log)
    try:
        made.wait(200)
        yield made
    finally:
        process.terminate()
        process.wait(60)
