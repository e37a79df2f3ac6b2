"""A service as it is deployed: a supervisor that is started again whenever it ends, on disks of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.processes import STUB, descendants

DISK_MB, SHARED_MB = 96, 128
_LINE = ["unshare", "--mount", "--propagation", "private"]


def can_mount() -> bool:
    """Whether this user may mount file systems, which disks that fill up need."""
    return subprocess.run([*_LINE, "true"], capture_output=True, check=False).returncode == 0


def _clock_library(folder: Path) -> Path | None:
    """Built from `clock.c`; None: there is no compiler."""
    built = folder / "clock.so"
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    source = str(Path(__file__).with_name("clock.c"))
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(built), source, "-ldl"], check=True)
    return built


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


class World:
    """The service and what surrounds it.

    Args:
        repository: is copied.
        folder: for the disk, logs and state.
        flags: more for the supervisor.
        own_disk: of `DISK_MB`, and shared memory of its own, where this user may mount them.
    """

    def __init__(self, repository: Path, folder: Path, *flags: str, own_disk: bool = True) -> None:
        self.disk, self.folder = folder / "disk", folder
        self.disk.mkdir()
        self.mounts = own_disk and can_mount()
        if self.mounts:
            mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(self.disk)]
            subprocess.run(mount, check=True)
        self.repository = Path(shutil.copytree(repository, self.disk / "model_repository"))
        self.state = self.disk / "state"
        self.log = folder / "supervisor.log"
        self._clock, self._clock_library = folder / "clock", _clock_library(folder)
        self.set_clock(0)
        http, grpc, _, watch = self.ports = free_ports(4)
        self.http, self.grpc, self.watch = (f"127.0.0.1:{port}" for port in (http, grpc, watch))
        self.ends: list[int] = []
        self._command = [
            *(sys.executable, "-m", "serving.supervisor", str(self.repository)),
            *(
                f"--{name}-port={port}"
                for name, port in zip(("http", "grpc", "metrics", "health"), self.ports, strict=True)
            ),
            f"--state={self.state}",
            *flags,
        ]
        self._asked_to_end = threading.Event()
        self.process: subprocess.Popen[bytes]
        self._start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    # The supervisor, as a container engine treats it.

    def _start(self) -> None:
        environment = {
            **os.environ,
            "SHOAL_STATE": str(self.state),
            "SHOAL_CACHE": str(self.folder / "cache"),
        }
        if self.clock_moves:
            environment |= {"LD_PRELOAD": str(self._clock_library), "SHOAL_CLOCK": str(self._clock)}
        command = self._command
        if self.mounts:  # shared memory of its own, which a fault may fill
            line = f'mount -t tmpfs -o size={SHARED_MB}m tmpfs /dev/shm && exec "$@"'
            command = [*_LINE, "sh", "-c", line, "sh", *command]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def _keep(self) -> None:
        while True:
            self.ends.append(self.process.wait())
            if self._asked_to_end.wait(0.5):
                return
            self._start()

    def close(self) -> None:
        """Stop everything, and give the disk back."""
        self._asked_to_end.set()
        self.process.terminate()
        self._keeper.join(60)
        for left in self.processes():
            left.kill()
        if self.mounts:
            for _ in range(50):
                if (
                    subprocess.run(["umount", str(self.disk)], capture_output=True, check=False).returncode
                    == 0
                ):
                    break
                time.sleep(0.2)

    @property
    def clock_moves(self) -> bool:
        """Whether `set_clock` does anything, which takes a C compiler."""
        return self._clock_library is not None

    def set_clock(self, seconds: int) -> None:
        """Let the service's wall clock be so far ahead of that of this machine."""
        with self._clock.open("r+b" if self._clock.exists() else "wb") as file:
            file.write(seconds.to_bytes(8, sys.byteorder, signed=True))

    # What runs.

    def processes(self) -> list[psutil.Process]:
        """Every tritonserver and stub of this service, of trials and of what has died too."""
        place, found = f"={self.folder / 'cache'}/", []
        for process in psutil.process_iter(["name"]):
            if process.info["name"].startswith(("tritonserver", "triton_python")):
                with suppress(psutil.Error):
                    if any(place in f"{name}={value}" for name, value in process.environ().items()):
                        found.append(process)
        return found

    def server(self) -> psutil.Process | None:
        """The tritonserver that users call, if it runs."""
        port = f"--http-port={self.ports[0]}"
        for process in self.processes():
            with suppress(psutil.Error):
                if process.name() == "tritonserver" and port in process.cmdline():
                    return process
        return None

    def stubs(self) -> list[psutil.Process]:
        """Processes of its Python models."""
        server = self.server()
        return descendants(server.pid, STUB) if server else []

    def shared_memory(self) -> Path:
        """Where its `/dev/shm` is seen from outside."""
        return Path(f"/proc/{self.process.pid}/root/dev/shm")

    def healthy(self) -> bool:
        """Whether the supervisor says so."""
        try:
            with urllib.request.urlopen(f"http://{self.watch}/health", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def metric(self, name: str) -> float:
        """Sum of one of the supervisor's metrics over its labels; nan: it does not answer."""
        try:
            with urllib.request.urlopen(f"http://{self.watch}/metrics", timeout=5) as page:
                lines = page.read().decode().splitlines()
        except (urllib.error.URLError, OSError):
            return float("nan")
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    def wait(self, condition: Callable[[], Any], seconds: float) -> bool:
        """Until something holds; whether it came to that."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return True
            time.sleep(0.05)
        return False


@contextmanager
def world(repository: Path, folder: Path, *flags: str, own_disk: bool = True) -> Iterator[World]:
    """A service for the length of a block, which begins when it serves."""
    made = World(repository, folder, *flags, own_disk=own_disk)
    try:
        assert made.wait(made.healthy, 120), made.log.read_text()[-3000:]
        yield made
    finally:
        made.close()
