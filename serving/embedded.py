"""A tritonserver as a child process: start, wait until it answers, stop.

`serving.supervisor` is what keeps it serving.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from serving import heartbeat, probe
from serving.check import check
from serving.distribution import Distribution, Embedded
from serving.launch import launch_with
from serving.models.admission import METRICS
from serving.ports import ANY_PORTS, LOOPBACK, Ports, free_ports
from serving.server_log import Output, important_lines, lines_of
from shoal.errors import ServerError
from shoal.machine import is_elsewhere, kernel
from shoal.paths import cache_dir, check_path, write_json

START_SECONDS = 120.0
STOP_SECONDS = 15.0
# Before the end of that time models end their requests with an error. Triton goes on to unload them, which
# takes it some three seconds, since it looks at each thing once a second. What holds it up longer is an HTTP
# client that keeps its connection open, idle or not: for that Triton waits until its own time is over, and
# exits then. So its time must be over before ours.
ENDING_SECONDS, EXIT_SECONDS = 5.0, 2.0
ORPHAN_SECONDS = 2.0  # for requests of a server whose parent was killed, once its ports are needed
STATE = "state.json"

# Why a server at host:port does not serve, or None; takes `timeout` in seconds and `headers`.
Problem = Callable[..., str | None]


@dataclass(frozen=True)
class Server:
    """A running server, as recorded in its run folder.

    Attributes:
        pid: of tritonserver.
        started: when it was started, seconds since the epoch.
        ports: where it listens on 127.0.0.1.
        repository: the model repository it serves.
        folder: its run folder: backends, log, state.
        parent: pid of the process that started it; 0: not known.
        kernel: see `shoal.machine.kernel`; run folders may be shared with other machines.
    """

    pid: int
    started: float
    ports: Ports
    repository: Path
    folder: Path
    parent: int = 0
    kernel: str = field(default_factory=kernel)

    @property
    def log(self) -> Path:
        """What tritonserver and the models wrote."""
        return self.folder / "server.log"

    @property
    def heartbeats(self) -> Path:
        """Folder of its models' pages, see `serving.heartbeat`."""
        return self.folder / "heartbeats"

    @property
    def grpc(self) -> str:
        """host:port of the gRPC endpoint."""
        return f"{LOOPBACK}:{self.ports.grpc}"

    @property
    def http(self) -> str:
        """host:port of the HTTP endpoint."""
        return f"{LOOPBACK}:{self.ports.http}"

    @property
    def alive(self) -> bool:
        """Whether that very process still runs."""
        return process_of(self.pid, self.folder) is not None

    def to_dict(self) -> dict[str, Any]:
        """Give the value as plain JSON types."""
        return {
            **asdict(self),
            "repository": str(self.repository),
            "folder": str(self.folder),
            "log": str(self.log),
            "http": f"http://{self.http}",
            "grpc": self.grpc,
            "metrics": f"http://{LOOPBACK}:{self.ports.metrics}/metrics",
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Server:
        """Make the value from what `to_dict` gave."""
        return cls(
            values["pid"],
            values["started"],
            Ports(**values["ports"]),
            Path(values["repository"]),
            Path(values["folder"]),
            values.get("parent", 0),
            values.get("kernel", ""),
        )


def start(
    repository: Path,
    ports: Ports = ANY_PORTS,
    *,
    timeout: float = START_SECONDS,
    arguments: Sequence[str] = (),
) -> Server:
    """Start the embedded tritonserver alone, without a supervisor; it ends with the thread that called this.

    Args:
        repository: the model repository; versions with a manifest are checked against it first.
        ports: where to listen; a port of 0 becomes a free one.
        timeout: seconds until every model must answer a real inference.
        arguments: more for tritonserver, e.g. `--log-verbose=1`.

    Raises:
        RepositoryError: there are no models, or a file is not the one that was measured.
        ServerError: a port is taken, or the server crashed or did not get ready; with its own words.
    """
    return launch(Embedded.find(), repository, ports, timeout=timeout, arguments=arguments)


def launch(
    distribution: Distribution,
    repository: Path,
    ports: Ports,
    *,
    address: str = LOOPBACK,
    timeout: float = START_SECONDS,
    arguments: Sequence[str] = (),
    death: signal.Signals = signal.SIGTERM,
    headers: Mapping[str, str] | None = None,
    output: Output | None = None,
    open_snapshot: Callable[[Path], Path] | None = None,
    grace: float = STOP_SECONDS,
    problem: Problem = probe.problem,
) -> Server:
    """`start`, of any Triton, at any address, with any arguments: for who knows what to open to whom.

    Args:
        open_snapshot: makes in an empty folder what the server reads in the place of the repository; its
            caller has checked that.
        problem: what keeps the server from having started, or None.
        death: the signal by which it ends with this thread. After SIGTERM it refuses calls on open
            connections until it has ended; after SIGKILL a proxy sees them broken, and asks another server.
        headers: that open the endpoints which the arguments close, to ask whether it is ready.
        output: takes what the server writes; None: its log.
        grace: that `stop` will be called with: Triton exits by itself before that is over.
    """
    repository = repository.resolve()
    check_path(repository, "the repository")
    check_path(cache_dir(), "the cache")
    servers()  # clears what dead ones left
    if open_snapshot is None:
        check(repository, distribution.backends)
    arguments = [f"--exit-timeout-secs={max(1, int(grace - EXIT_SECONDS))}", *arguments]
    ports = take_ports(ports)
    folder = new_folder(_runs())
    server = None
    try:
        models = open_snapshot(folder) if open_snapshot else _in_ascii(repository, folder)
        process = _spawn(
            distribution, models, ports, folder, arguments, death, address=address, output=output
        )
        server = Server(process.pid, time.time(), ports, repository, folder, os.getpid())
        write_json(folder / STATE, server.to_dict())
        _wait_until_ready(server, process, timeout, headers, problem, output)
    except BaseException:
        if server is not None:
            stop(server, grace=2.0)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return server


@contextmanager
def running(repository: Path, ports: Ports = ANY_PORTS, **options: Any) -> Iterator[Server]:
    """A server for the length of a `with` block; any free ports unless told otherwise."""
    server = start(repository, ports, **options)
    try:
        yield server
    finally:
        stop(server)


def stop(server: Server, *, grace: float = STOP_SECONDS) -> bool:
    """Let running requests finish, end the server, its stubs and their shared memory.

    Args:
        grace: seconds before it is killed. What runs of text generation is ended with an error
            `ENDING_SECONDS` before, or at half of it where that is later.

    Returns:
        True if it ended by itself within the grace period.
    """
    process = process_of(server.pid, server.folder)
    left: list[psutil.Process] = []
    if process is not None:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
        finishing = max(grace - ENDING_SECONDS, grace / 2)
        _, left = psutil.wait_procs([process], timeout=finishing)
        if left:
            heartbeat.end_requests(server.heartbeats)
            _, left = psutil.wait_procs(left, timeout=grace - finishing)
    clean = not left
    # Stubs outlive a server that was killed.
    left += stubs(server)
    for straggler in left:
        with suppress(psutil.NoSuchProcess):
            straggler.kill()
    psutil.wait_procs(left, timeout=5)
    with suppress(ChildProcessError):
        os.waitpid(server.pid, os.WNOHANG)
    for region in Path("/dev/shm").glob(f"{_region_prefix(server.folder)}*"):  # noqa: S108 - Triton's place
        region.unlink(missing_ok=True)
    shutil.rmtree(server.folder, ignore_errors=True)
    return clean


def servers(repository: Path | None = None) -> list[Server]:
    """Servers of this user that still run, of one repository where given; what dead ones left is cleared."""
    found = []
    for state in sorted(_runs().glob(f"*/{STATE}")):
        try:
            server = Server.from_dict(json.loads(state.read_text()) | {"folder": str(state.parent)})
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if is_elsewhere(server.kernel):
            continue
        if not server.alive:
            stop(server)
        elif repository is None or server.repository == repository.resolve():
            found.append(server)
    return sorted(found, key=lambda server: server.started)


def take_ports(ports: Ports) -> Ports:
    """`free_ports`, where a server that its killed parent has left, and that still ends its requests, goes.

    Raises:
        ServerError: one is taken by another.
    """
    try:
        return free_ports(ports)
    except ServerError:
        if not _end_orphans({port for port in asdict(ports).values() if port}):
            raise
        return free_ports(ports)


def _end_orphans(wanted: set[int]) -> bool:
    """End servers on these ports whose parent was killed; whether there was one."""
    found = False
    for server in servers():
        process = process_of(server.pid, server.folder)
        if process is None or not wanted & set(asdict(server.ports).values()):
            continue
        with suppress(psutil.NoSuchProcess):
            if server.parent and process.ppid() != server.parent:
                stop(server, grace=ORPHAN_SECONDS)
                found = True
    return found


def _runs() -> Path:
    """The folder of run folders: in the cache, but if Triton's Python could import nothing from there."""
    place = cache_dir() / "run"
    return place if str(place).isascii() else Path(tempfile.gettempdir()) / f"shoal-{os.getuid()}"


def _in_ascii(repository: Path, folder: Path) -> Path:
    """A path to a repository that Triton's Python can import from."""
    if str(repository).isascii():
        return repository
    link = folder / "models"
    link.symlink_to(repository)
    return link


def new_folder(place: Path) -> Path:
    """An empty one, for its owner alone.

    Raises:
        ServerError: it cannot be made, or another user owns the place.
    """
    folder = place / uuid.uuid4().hex[:12]
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        if place.lstat().st_uid != os.getuid():
            raise ServerError(f"{place} belongs to another user", hint="set SHOAL_CACHE")
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise ServerError(f"{folder} cannot be made: {error.strerror}", hint="set SHOAL_CACHE") from error
    return folder


def _spawn(
    distribution: Distribution,
    models: Path,
    ports: Ports,
    folder: Path,
    arguments: Sequence[str],
    death: signal.Signals,
    *,
    address: str,
    output: Output | None,
) -> subprocess.Popen[bytes]:
    command = [
        *launch_with(os.getpid(), death),
        *distribution.command(folder),
        f"--model-repository={models}",
        f"--backend-config=python,shm-region-prefix-name={_region_prefix(folder)}",
        f"--http-address={address}",
        f"--http-port={ports.http}",
        f"--grpc-address={address}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-address={address}",
        f"--metrics-port={ports.metrics}",
        *arguments,
    ]
    (folder / "heartbeats").mkdir()
    with (folder / "server.log").open("wb") as log:
        return subprocess.Popen(
            command,
            env={
                **distribution.environment(),
                heartbeat.FOLDER: str(folder / "heartbeats"),
                METRICS: f"{LOOPBACK}:{ports.metrics}",
            },
            stdin=subprocess.DEVNULL,
            stdout=log if output is None else output.descriptor,
            stderr=subprocess.STDOUT,
            # Ctrl-C on the terminal reaches us, and we stop the server in order.
            start_new_session=True,
        )


def _wait_until_ready(
    server: Server,
    process: subprocess.Popen[bytes],
    timeout: float,
    headers: Mapping[str, str] | None,
    problem: Problem,
    output: Output | None,
) -> None:
    def words() -> str:
        return important_lines(output.lines() if output else lines_of(server.log))

    deadline = time.monotonic() + timeout
    reason = "it did not answer"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(f"Triton stopped while starting (exit code {process.returncode}):\n{words()}")
        try:
            said = problem(server.http, timeout=min(5.0, timeout), headers=headers)
        except probe.NeverStarts:
            raise ServerError(f"Triton could not start:\n{words()}") from None
        if said is None and process.poll() is None:  # or else it was another's answer
            return
        reason = said or "another server answers on its port"
        time.sleep(0.05)
    raise ServerError(
        f"Triton was not ready after {timeout:.0f} s: {reason}\n{words()}",
        hint="a larger --timeout, if the model is large",
    )


def _region_prefix(folder: Path) -> str:
    return f"shoal_{folder.name}_"


def stubs(server: Server) -> list[psutil.Process]:
    """The server's Python processes, by the shared-memory region that each names on its command line."""
    prefix = _region_prefix(server.folder)
    processes = psutil.process_iter(["cmdline"])
    return [p for p in processes if any(arg.startswith(prefix) for arg in p.info["cmdline"] or [])]


def process_of(pid: int, folder: Path) -> psutil.Process | None:
    """A process that was given this folder and lives; None: it has ended."""
    try:
        process = psutil.Process(pid)
        # A pid alone may be another's by now; the folder is on our command line and on no other.
        same = any(folder.name in argument for argument in process.cmdline())
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
