"""Whether a Triton really serves: its processes are looked at, and each model is asked for an answer."""

from __future__ import annotations

import threading
import time
import urllib.error
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

import psutil

from serving import probe
from serving.embedded import Server, stubs

LOOK_SECONDS = 0.25  # between two looks at the processes
ASK_SECONDS = 1.0  # between two questions to a model
ANSWER_SECONDS = 10.0  # which a loaded server may take
FAILURES = 3  # in a row, until a model counts as lost
_BUSY = (429, 503)  # answers of a server that has too much to do: it lives


@dataclass
class Health:
    """What is known of a model: when it answered last, and how often it has failed since."""

    seconds: float = 0.0
    failures: int = 0
    reason: str = ""
    failed: dict[str, int] = field(default_factory=dict)


class Watch:
    """Looks at one server until something is wrong with it.

    Args:
        server: that has just become ready.
        headers: for endpoints that are closed.
        told: called with a model's name and health after each of its answers.
        leaving: processes that end when their last request has ended: others have taken their place.

    Raises:
        OSError, ValueError, http.client.HTTPException: the server does not answer, ready as it was.
    """

    def __init__(
        self,
        server: Server,
        headers: Mapping[str, str],
        told: Callable[[str, Health], None],
        leaving: Collection[psutil.Process] = (),
    ) -> None:
        self._server = server
        self._told = told
        self._stubs = {process: _model(process) for process in stubs(server) if process not in leaving}
        questions = probe.questions(server.http, headers=headers)
        self.health = {question.model: Health() for question in questions}
        self._ended = threading.Event()
        self._askers = [
            threading.Thread(target=self._ask, args=[question], daemon=True) for question in questions
        ]
        for thread in self._askers:
            thread.start()

    def problem(self) -> tuple[str, str] | None:
        """What is wrong now: a reason for the metrics, and a sentence; None: nothing."""
        if not self._server.alive:
            return "server died", "tritonserver ended by itself"
        for process, model in self._stubs.items():
            if _ended(process):
                return "model process died", f"the process of {model} ended"
        for name, health in self.health.items():
            if health.failures >= FAILURES:
                return "no answer", f"{name} failed {health.failures} times in a row: {health.reason}"
        return None

    def let_go(self, models: Collection[str]) -> dict[psutil.Process, str]:
        """Expect the processes of these models to end from now on; they are returned, with their models."""
        leaving = {process: model for process, model in self._stubs.items() if model in models}
        self._stubs = {process: model for process, model in self._stubs.items() if process not in leaving}
        return leaving

    def close(self) -> None:
        """Ask no more."""
        self._ended.set()

    def _ask(self, question: probe.Question) -> None:
        health = self.health[question.model]
        while not self._ended.wait(ASK_SECONDS):
            start = time.monotonic()
            kind = ""
            try:
                probe.send(question.request(), timeout=ANSWER_SECONDS)
            except urllib.error.HTTPError as error:
                kind, health.reason = ("busy" if error.code in _BUSY else "error"), probe.reason_of(error)
            except (OSError, HTTPException) as error:
                kind, health.reason = "no answer", probe.reason_of(error)
            if self._ended.is_set():
                return
            health.seconds = time.monotonic() - start
            health.failures = 0 if kind in ("", "busy") else health.failures + 1
            if kind:
                health.failed[kind] = health.failed.get(kind, 0) + 1
            self._told(question.model, health)


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
