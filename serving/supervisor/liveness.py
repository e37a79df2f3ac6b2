"""Whether a server makes progress: its processes are looked at, and never asked for an answer of a model.

Lost liveness is what a restart mends, and it is one of these: a process has ended; a process is stopped or
hung (it neither beats nor uses the CPU, with no thread that could run); the engine of a decoder has work
and has made no step for `STUCK_SECONDS`; or a change of versions failed, and what was served before could
not be loaded again. A server that is slow, or refuses because it has too much to do, is
alive.

A model's process that is stopped is killed at once, so that it never goes on. After a second Triton 2.51
gives up on it and fails its requests; what it answers once it goes on is then taken for the answer to other
requests, whose callers get it, or ends the server.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from serving import probe
from serving.embedded import Server, stubs
from serving.heartbeat import DEAF_SECONDS, Page

LOOK_SECONDS = 0.25  # between two looks
STOPPED_SECONDS = 0.2  # between two looks for processes that are stopped; who is at both is killed
SILENT_SECONDS = 2.0  # without a beat, without CPU time, and without a thread that could run: hung
STUCK_SECONDS = 60.0  # of an engine with work, without a step
_RUNNABLE = "RD"  # states of a thread in /proc: it runs or could, or waits for a disk


@dataclass
class _Silence:
    """Since when a process has shown no progress.

    Attributes:
        beats, steps, spent: last seen: beats, steps of the engine, CPU seconds.
        beat, step, active: when each was seen to change last.
    """

    beats: int = -1
    steps: int = -1
    spent: float = -1.0
    beat: float = field(default_factory=time.monotonic)
    step: float = field(default_factory=time.monotonic)
    active: float = field(default_factory=time.monotonic)

    def hung(self, now: float) -> bool:
        """Whether that has lasted too long."""
        silent, idle = now - self.beat, now - self.active
        return silent > DEAF_SECONDS or (silent > SILENT_SECONDS and idle > SILENT_SECONDS)


class Liveness:
    """Looks at one server until it is dead.

    Args:
        server: that has just become ready.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._process = psutil.Process(server.pid)
        self._stubs: dict[psutil.Process, str] = {}
        self._leaving: dict[psutil.Process, str] = {}
        self._killed: set[psutil.Process] = set()
        self._open: dict[int, Page] = {}
        self._silences: dict[int, _Silence] = {}
        self._answered = 0
        self._looked = time.monotonic()
        self._closed = threading.Event()
        self._lost = ""
        self.adopt()
        threading.Thread(target=self._ask, name="liveness", daemon=True).start()
        threading.Thread(target=self._end_stopped, name="stopped", daemon=True).start()

    def problem(self) -> tuple[str, str] | None:
        """What is wrong now: a reason for the metrics, and a sentence; None: nothing."""
        now = time.monotonic()
        if (
            now - self._looked > 4 * LOOK_SECONDS
        ):  # this process itself has been held up, and perhaps all have
            self._silences.clear()
        self._looked = now
        return self._of_server(now) or self._of_models(now)

    def _of_server(self, now: float) -> tuple[str, str] | None:
        if self._lost:
            return "models lost", self._lost
        if not self._server.alive:
            return "server died", "tritonserver ended by itself"
        if self._hung(self._process, self._answered, now):
            return "server hung", f"tritonserver has given no sign of life for {SILENT_SECONDS:.0f} s"
        return None

    def _of_models(self, now: float) -> tuple[str, str] | None:
        for process, model in self._stubs.items():
            if process in self._killed:
                return "model process hung", f"the process of {model} was stopped, and is ended"
            if _ended(process):
                return "model process died", f"the process of {model} ended"
            page = self._page(process.pid)
            if page is None:  # another's Python model
                continue
            if self._hung(process, page.beats, now):
                return "model process hung", f"the process of {model} has given no sign of life"
            silence = self._silences[process.pid]
            if page.steps != silence.steps or not page.working:
                silence.steps, silence.step = page.steps, now
            if now - silence.step > STUCK_SECONDS:
                return "no progress", f"{model} has work, and has made no step for {STUCK_SECONDS:.0f} s"
        return None

    def lose(self, sentence: str) -> None:
        """Take the server for dead: what it should serve is not loaded, and cannot be."""
        self._lost = sentence

    def let_go(self, models: Iterable[str]) -> None:
        """Expect the processes of these models to end from now on, whenever their last requests end."""
        gone = set(models)
        for process in [process for process, model in self._stubs.items() if model in gone]:
            self._leaving[process] = self._stubs.pop(process)

    def adopt(self) -> None:
        """Look after the processes that are there now; those that were let go go on leaving.

        A model that has new processes was loaded again: Triton does so with a step of an ensemble whose files
        have another mtime or ctime, of which a hard link to them is enough. Its earlier processes leave.
        """
        known = {*self._stubs, *self._leaving}
        new = {process: _model(process) for process in stubs(self._server) if process not in known}
        self.let_go(new.values())
        self._stubs.update(new)

    @property
    def draining(self) -> Mapping[str, int]:
        """Model -> processes that have been let go and have not ended."""
        self._leaving = {process: model for process, model in self._leaving.items() if not _ended(process)}
        counts: dict[str, int] = {}
        for model in self._leaving.values():
            counts[model] = counts.get(model, 0) + 1
        return counts

    def close(self) -> None:
        """Look no more."""
        self._closed.set()

    def _ask(self) -> None:
        """Whether Triton's own threads live: an answer of `/v2/health/live` is its beat."""
        request = probe.request(f"{self._server.http}/v2/health/live")
        while not self._closed.wait(LOOK_SECONDS):
            try:
                probe.send(request, timeout=DEAF_SECONDS)
            except (OSError, http.client.HTTPException):
                continue
            self._answered += 1

    def _end_stopped(self) -> None:
        """Kill processes that are stopped, in a thread of its own: nothing else may hold this up."""
        before: set[psutil.Process] = set()
        while not self._closed.wait(STOPPED_SECONDS):
            found = {process for process in [*self._stubs, *self._leaving] if _is_stopped(process)}
            for process in found & before:
                self._killed.add(process)
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            before = found

    def _page(self, pid: int) -> Page | None:
        if pid not in self._open:
            path = self._server.heartbeats / str(pid)
            if not path.exists():
                return None
            try:
                self._open[pid] = Page(path)
            except (OSError, ValueError):
                return None
        return self._open[pid]

    def _hung(self, process: psutil.Process, beats: int, now: float) -> bool:
        silence = self._silences.setdefault(process.pid, _Silence())
        if beats != silence.beats:
            silence.beats, silence.beat, silence.active = beats, now, now
            return False
        try:
            times = process.cpu_times()
        except psutil.Error:  # it ended just now, which the next look tells
            return False
        spent = times.user + times.system
        if spent != silence.spent or _could_run(process.pid):
            silence.spent, silence.active = spent, now
        return silence.hung(now)


def _could_run(pid: int) -> bool:
    """Whether a thread of the process runs, waits for a CPU or for a disk."""
    for status in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            state = status.read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            continue
        if state in _RUNNABLE:
            return True
    return False


def _is_stopped(process: psutil.Process) -> bool:
    try:
        return bool(process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP))
    except psutil.NoSuchProcess:
        return False


def _ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # between the two questions
        return True


def _model(process: psutil.Process) -> str:
    """The model that a stub runs: the first of its arguments is a file of it, `.../NAME/VERSION/model.py`."""
    try:
        return Path(process.cmdline()[1]).parts[-3]
    except (psutil.Error, IndexError):
        return f"process {process.pid}"
