"""The service of `shoal serve`: a supervisor on this machine, which keeps the embedded Triton serving.

Nothing outside this machine can reach it: the embedded Triton is 2.51, and newer ones fix known
vulnerabilities. A deployment runs the official container, under the same supervisor, on the same repository.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import time
import urllib.error
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psutil

from serving import embedded, probe
from serving.distribution import Embedded
from serving.embedded import START_SECONDS, STOP_SECONDS, process_of, take_ports
from serving.launch import launch_with, python
from serving.ports import LOOPBACK, Ports, free_port
from serving.server_log import important_lines, lines_of
from serving.supervisor.record import Record
from serving.supervisor.settings import SupervisorSettings
from shoal.errors import ServerError, UsageError
from shoal.machine import is_elsewhere
from shoal.paths import cache_dir

# A supervisor that was told to stop gives its server `STOP_SECONDS`; then it has this long to end by itself.
_END_SECONDS = 10.0
_POLL_SECONDS = 0.05
_HEALTH_SECONDS = 5.0
_ABANDONED_SECONDS = 86400.0


@dataclass(frozen=True)
class Service:
    """A service that was started.

    Attributes:
        record: what its supervisor said of itself when this was read.
        folder: of its log and its record.
    """

    record: Record
    folder: Path

    @property
    def pid(self) -> int:
        """Process id of the supervisor."""
        return self.record.pid

    @property
    def repository(self) -> Path:
        """The model repository that it serves."""
        return self.record.repository

    @property
    def log(self) -> Path:
        """What the supervisor, Triton and the models wrote."""
        return _log(self.folder)

    @property
    def grpc(self) -> str:
        """host:port of the gRPC endpoint."""
        return f"{LOOPBACK}:{self.record.ports.grpc}"

    @property
    def http(self) -> str:
        """host:port of the HTTP endpoint."""
        return f"{LOOPBACK}:{self.record.ports.http}"

    @property
    def health(self) -> str:
        """URL that says with 200 or 503 whether requests are answered."""
        return f"http://{LOOPBACK}:{self.record.health_port}/health"

    @property
    def gateway(self) -> str | None:
        """URL of the gateway's root; None: it has none."""
        port = self.record.gateway_port
        return None if port is None else f"http://{LOOPBACK}:{port}"

    @property
    def alive(self) -> bool:
        """Whether the supervisor runs."""
        return process_of(self.pid, self.folder) is not None

    @property
    def problem(self) -> str | None:
        """What keeps it from answering requests; None: nothing."""
        if (end := self.end) is not None:
            return f"it has ended: {end.message}"
        try:
            asked = probe.request(f"{LOOPBACK}:{self.record.health_port}/health")
            probe.send(asked, timeout=_HEALTH_SECONDS)
            return None
        except urllib.error.HTTPError as error:
            return error.read().decode(errors="replace").strip()
        except (OSError, HTTPException) as error:
            return f"the supervisor does not answer: {getattr(error, 'reason', error)}"

    @property
    def refused(self) -> dict[str, str]:
        """Model -> why what the repository asks for of it is not served."""
        return {name: entry["reason"] for entry in self._rollout["refused"] for name in entry["models"]}

    @property
    def settled(self) -> bool:
        """Whether each model that the repository asks for is served, or refused."""
        desired, served, refused = self._rollout["desired"], self._rollout["served"], self.refused
        return all(name in refused or served.get(name) == model for name, model in desired.items())

    @property
    def _rollout(self) -> dict[str, Any]:
        """See `serving.supervisor.rollout.Rollout.to_dict`."""
        nothing: dict[str, Any] = {"desired": {}, "served": {}, "refused": []}
        try:
            return nothing | json.loads(self.record.state.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            return nothing

    @property
    def end(self) -> ServerError | None:
        """Why it ended by itself; None: it runs, or was told to stop."""
        record = Record.read(self.folder)
        if self.alive or record is None or (record.phase == "ended" and not record.error):
            return None
        return _error(record, self.folder)

    def to_dict(self) -> dict[str, Any]:
        """Give the value as plain JSON types."""
        return {
            "pid": self.pid,
            "started": self.record.started,
            "repository": str(self.repository),
            "http": f"http://{self.http}",
            "grpc": self.grpc,
            "metrics": f"http://{LOOPBACK}:{self.record.ports.metrics}/metrics",
            "health": self.health,
            "gateway": self.gateway,
            "log": str(self.log),
            "refused": self.refused,
        }


def start(
    repository: Path,
    ports: Ports,
    *,
    health_port: int = 0,
    gateway_port: int | None = None,
    host: str = LOOPBACK,
    detach: bool = False,
    timeout: float = START_SECONDS,
    arguments: Sequence[str] = (),
) -> Service:
    """Start a supervisor and return when what the repository asks for answers, or is refused.

    What is not what was measured, or does not answer, is refused; the last good version of it is served where
    there is one, and the others are: see `Service.refused`.

    Args:
        repository: the model repository.
        ports: where Triton listens; a port of 0 becomes a free one.
        health_port: where the supervisor answers; 0: any free port.
        gateway_port: where a gateway answers; 0: any free port; None: there is none.
        host: loopback only.
        detach: keep serving when this process ends; otherwise the service ends with the thread that called
            this function.
        timeout: seconds in which Triton must start, and then every model must answer.
        arguments: more for tritonserver, e.g. `--log-verbose=1`.

    Raises:
        UsageError: the address is not loopback, or an argument would set it.
        MissingDependency: there is no embedded Triton.
        ServerError: a port is taken, or nothing can be served; with the reason.
    """
    if host not in (LOOPBACK, "localhost"):
        raise UsageError(
            f"the embedded Triton listens on {LOOPBACK} only, not on {host}: it is 2.51, which has known"
            " vulnerabilities that newer containers fix",
            hint="to serve a network: docker compose up",
        )
    SupervisorSettings(repository, timeout=timeout, extra=tuple(arguments))  # says what is wrong with them
    Embedded.find()
    ports = take_ports(ports)
    health_port = free_port("health", health_port)
    gateway = [] if gateway_port is None else [f"--gateway-port={free_port('gateway', gateway_port)}"]
    for dead in ended(repository):
        stop(dead)
    folder = embedded.new_folder(_place())
    command = [
        *([] if detach else launch_with(os.getpid())),
        *(*python(), "-m", "serving.supervisor", str(repository.resolve())),
        f"--folder={folder}",
        f"--http-port={ports.http}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-port={ports.metrics}",
        f"--health-port={health_port}",
        *gateway,
        f"--timeout={timeout}",
        f"--grace={STOP_SECONDS}",
        "--auto-complete",
        *(f"--triton={argument}" for argument in arguments),
    ]
    try:
        with _log(folder).open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C on the terminal reaches us, and we stop the service in order.
                start_new_session=True,
            )
        try:
            return _wait_until_served(process, folder, timeout)
        except BaseException:
            _end(process.pid, folder)
            raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def stop(service: Service) -> bool:
    """Let running requests finish, then end the service.

    Returns:
        True if nothing had to be killed.
    """
    clean = _end(service.pid, service.folder)
    record = Record.read(service.folder)
    shutil.rmtree(service.folder, ignore_errors=True)
    return clean and (record is None or record.clean)


def services(repository: Path | None = None) -> list[Service]:
    """Services of this user that run, of one repository where given, the newest last."""
    return [service for service in _known(repository) if service.alive]


def ended(repository: Path | None = None) -> list[Service]:
    """Services that ended by themselves, and that nobody has stopped since: see `Service.end`."""
    return [service for service in _known(repository) if service.end is not None]


def _known(repository: Path | None) -> list[Service]:
    """Those that run or ended by themselves; what others left is cleared."""
    found = []
    for folder in sorted(_place().glob("*")):
        record = Record.read(folder)
        if record is None:  # its supervisor has only just been started, or could not write
            with suppress(OSError):
                if time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
            continue
        service = Service(record, folder)
        if is_elsewhere(record.kernel):
            continue
        if not service.alive and service.end is None:
            shutil.rmtree(folder, ignore_errors=True)
        elif repository is None or service.repository == repository.resolve():
            found.append(service)
    embedded.servers()  # clears what killed servers left
    return sorted(found, key=lambda service: service.record.started)


def _wait_until_served(process: subprocess.Popen[bytes], folder: Path, timeout: float) -> Service:
    """Until it serves, for which the supervisor has a limit of its own; and then until what else is asked for
    is tried, `timeout` seconds at most."""
    end = math.inf
    while True:
        over = process.poll() is not None
        record = Record.read(folder)
        if over and record is not None and record.phase == "ended" and not record.error:
            raise ServerError("it was stopped while it started")
        if over:
            raise _error(record, folder)
        if record is not None and record.phase == "serving":
            service = Service(record, folder)
            end = min(end, time.monotonic() + timeout)
            if service.settled or time.monotonic() > end:
                return service
        time.sleep(_POLL_SECONDS)


def _error(record: Record | None, folder: Path) -> ServerError:
    if record is not None and record.error:
        return ServerError(record.error, hint=record.hint)
    if record is not None and record.phase == "serving":  # its log is full of what is long over
        return ServerError("the supervisor was killed, or ended without a word", hint="shoal logs")
    return ServerError(f"the supervisor ended by itself:\n{important_lines(lines_of(_log(folder)))}")


def _end(pid: int, folder: Path) -> bool:
    """Have a supervisor end; whether it did so by itself."""
    process = process_of(pid, folder)
    if process is None:
        return True
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs([process], timeout=STOP_SECONDS + _END_SECONDS)
    for straggler in left:
        with suppress(psutil.NoSuchProcess):
            straggler.kill()
    psutil.wait_procs(left, timeout=5)
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return not left


def _log(folder: Path) -> Path:
    return folder / "server.log"


def _place() -> Path:
    return cache_dir() / "services"
