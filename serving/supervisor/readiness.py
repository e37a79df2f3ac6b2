"""Whether a server answers: once a second each model that users call must have given a real answer.

Where it has answered users since the last look, that is the answer. Else it is asked one itself. A decoder
and an encoder-decoder answer that before users' requests. To other models the question waits with them in
Triton's queue, which has no lane for it (see `export.triton_config.set_batching`); a model that goes on
answering those before it is ready meanwhile. A server that does not answer in time is not ready, which
balancers read at `/health`; it is not started again for that, see `serving.supervisor.liveness`.
"""

from __future__ import annotations

import http.client
import re
import threading
import time
import urllib.error
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from serving import probe

ASK_SECONDS = 1.0  # between two questions to a model
ANSWER_SECONDS = 10.0  # which a model may take
# Triton 2.51 says so of a Python model whose process has ended, or never began, and does not start another.
_DEAD = re.compile(r"Stub process .* is not healthy")


@dataclass
class Health:
    """What is known of a model.

    Attributes:
        seconds: the last answer that it was asked for took so long.
        failures: questions without an answer since then.
        reason: of the last failure.
        failed: kind of failure -> how many.
        dead: how often in a row Triton has said that its process is dead.
    """

    seconds: float = 0.0
    failures: int = 0
    reason: str = ""
    failed: dict[str, int] = field(default_factory=dict)
    dead: int = 0


class Readiness:
    """Asks the models of one server, each in a thread of its own.

    Args:
        questions: one for each model.
        told: called with a model's name and health after each of its answers.
    """

    def __init__(self, questions: Mapping[str, probe.Question], told: Callable[[str, Health], None]) -> None:
        self._told = told
        self.health = {name: Health() for name in questions}
        self._ended = threading.Event()
        for question in questions.values():
            threading.Thread(target=self._ask, args=[question], daemon=True).start()

    @property
    def problem(self) -> str | None:
        """Which model did not answer its last question, and why; None: all did."""
        for name, health in self.health.items():
            if health.failures:
                return f"{name} did not answer: {health.reason}"
        return None

    @property
    def dead(self) -> tuple[str, str] | None:
        """What Triton itself says will never answer again, as `liveness.Liveness.problem`; None: nothing."""
        for name, health in self.health.items():
            if health.dead > 1:
                return "model process died", f"{name}: {health.reason}"
        return None

    def close(self) -> None:
        """Ask no more."""
        self._ended.set()

    def _ask(self, question: probe.Question) -> None:
        health = self.health[question.model]
        answered = _Answered(question)
        while not self._ended.wait(ASK_SECONDS):
            if answered.more():
                health.failures = health.dead = 0
                self._told(question.model, health)
                continue
            start = time.monotonic()
            kind = ""
            try:
                probe.send(question.request(), timeout=ANSWER_SECONDS)
            except urllib.error.HTTPError as error:
                kind, health.reason = (
                    ("busy" if error.code in probe.BUSY else "error"),
                    probe.reason_of(error),
                )
            except (OSError, http.client.HTTPException) as error:
                kind, health.reason = "no answer", probe.reason_of(error)
            if self._ended.is_set():
                return
            if answered.more() and kind == "no answer":
                kind = "busy"
            health.seconds = time.monotonic() - start
            health.failures = 0 if kind in ("", "busy") else health.failures + 1
            health.dead = health.dead + 1 if kind == "error" and _DEAD.search(health.reason) else 0
            if kind:
                health.failed[kind] = health.failed.get(kind, 0) + 1
            self._told(question.model, health)


class _Answered:
    """How many answers a model has given, as Triton counts them."""

    def __init__(self, question: probe.Question) -> None:
        self._question = question
        self._count = self._read()

    def more(self) -> bool:
        """Whether it has given one since the last look; no, if the server does not say."""
        before, self._count = self._count, self._read()
        return self._count > before >= 0

    def _read(self) -> int:
        try:
            return probe.answered(self._question, timeout=ANSWER_SECONDS)
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return -1
