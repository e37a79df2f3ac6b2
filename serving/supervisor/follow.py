"""Takes up what changes in a repository that is served, as `serving.supervisor.rollout` decides.

What has changed is started in a server of its own first, where its files are compared with their manifests
and each model must answer. Only then the one that serves is told to load it: Triton takes down an ensemble
whose steps do not fit. While that goes on the repository is looked at, and the server too; what an earlier
version still has to answer may take as long as it takes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol

from serving.supervisor.logs import say
from serving.supervisor.rollout import Attempt, Rollout
from serving.supervisor.snapshot import ModelSpec, specs_in
from shoal.change import JOURNAL
from shoal.errors import RepositoryError, ShoalError

FOLLOW_SECONDS = 1.0  # between two looks at the repository


class Server(Protocol):
    """What is done to the server that users call; `serving.supervisor.served.Served` is the real one."""

    def letting_go(self, attempt: Attempt) -> None: ...
    def take(self, shown: Mapping[str, ModelSpec], attempt: Attempt) -> None: ...
    def settled(self, shown: Mapping[str, ModelSpec]) -> None: ...
    def lost(self, error: ShoalError) -> None: ...


class Follower:
    """Follows a repository for one server that runs.

    Args:
        rollout: what is desired, served and so on.
        repository: the model repository.
        trial: starts models in a server of their own, and ends it; raises ShoalError where they are not what
            was measured, do not answer, or are not asked for any more, which its second argument says.
        server: the one that users call.
        told: called after each change: whether anything is refused now.
        job: what runs work that takes its time.
    """

    def __init__(
        self,
        rollout: Rollout,
        repository: Path,
        trial: Callable[[Mapping[str, ModelSpec], Callable[[], bool]], None],
        server: Server,
        told: Callable[[bool], None],
        job: type[Job] | None = None,
    ) -> None:
        self._rollout, self._repository, self._told = rollout, repository, told
        self._trial, self._server = trial, server
        self._make_job = job or Job
        self._job: Job | None = None
        self._next = 0.0
        self._unreadable: dict[str, str] = {}
        self._begun = 0.0

    def look(self, draining: Collection[str]) -> None:
        """Go on with what is to be done, without waiting for anything.

        Args:
            draining: models of which earlier versions still end their requests.
        """
        now = self._rollout.clock()
        if now >= self._next:
            self._next = now + FOLLOW_SECONDS
            self._see()
            self._rollout.drains(draining)
        if self._job is not None:
            if self._job.is_alive():
                return
            job, self._job = self._job, None
            job.then(job.error)
        elif attempt := self._rollout.attempt():
            self._begin(attempt)

    def _see(self) -> None:
        if (self._repository / JOURNAL).exists():  # its files are changing together
            return
        unreadable: dict[str, str] = {}
        found = specs_in(
            self._repository,
            self._rollout.desired,
            lambda name, error: unreadable.update({name: error.strerror or str(error)}),
        )
        for name in unreadable.keys() - self._unreadable.keys():
            say(f"not looked at: the config of {name} cannot be read: {unreadable[name]}", level="error")
        self._unreadable = unreadable
        if not found:
            reason = f"{self._repository} holds no models any more"
            if self._rollout.refuse(self._rollout.served, {}, reason):
                say(f"not taken up: {reason}", level="error", hint="shoal export")
                self._told(True)
            return
        before = bool(self._rollout.refused)
        self._rollout.see(found)
        if before and not self._rollout.refused:  # it is back to what is served
            self._told(False)

    def _begin(self, attempt: Attempt) -> None:
        self._begun = self._rollout.clock()
        needed = self._needed(attempt)
        if not needed:  # models are let go, and that is all
            self._take(attempt)
            return
        say("trying new versions", models=sorted(needed))
        self._run(
            lambda: self._trial(needed, lambda: self._rollout.is_desired(attempt)),
            lambda error: self._tried(attempt, error),
        )

    @staticmethod
    def _needed(attempt: Attempt) -> dict[str, ModelSpec]:
        """What a trial takes: the models that change, and the steps of those that are ensembles."""
        changed = attempt.changed & attempt.target.keys()
        names = changed.union(*(attempt.target[name].steps for name in changed)) & attempt.target.keys()
        return {name: attempt.target[name] for name in names}

    def _tried(self, attempt: Attempt, error: ShoalError | None) -> None:
        if error is not None:
            self._refuse(attempt, error)
        else:
            self._take(attempt)

    def _take(self, attempt: Attempt) -> None:
        shown = {name: model for name, model in self._rollout.served.items() if name not in attempt.names}
        shown |= attempt.target
        self._server.letting_go(attempt)
        self._run(lambda: self._server.take(shown, attempt), lambda error: self._taken(attempt, error))

    def _taken(self, attempt: Attempt, error: ShoalError | None) -> None:
        if error is not None:  # what was served is loaded again
            back, shown = Attempt(attempt.before, attempt.target), dict(self._rollout.served)
            self._server.letting_go(back)
            self._run(
                lambda: self._server.take(shown, back), lambda failed: self._back(attempt, error, failed)
            )
            return
        self._rollout.taken(attempt)
        self._server.settled(self._rollout.served)
        self._told(bool(self._rollout.refused))
        seconds = round(self._rollout.clock() - self._begun, 2)
        say("serving new versions", seconds=seconds, models=sorted(attempt.changed))

    def _back(self, attempt: Attempt, error: ShoalError, failed: ShoalError | None) -> None:
        if failed is not None:
            self._server.lost(failed)
        else:
            self._server.settled(self._rollout.served)
        self._refuse(attempt, error)

    def _refuse(self, attempt: Attempt, error: ShoalError) -> None:
        if self._rollout.refuse(attempt.names, attempt.target, error.message):
            say(f"not taken up: {error.message}", level="error", hint=error.hint or "shoal rollback")
        self._told(True)

    def _run(self, work: Callable[[], None], then: Callable[[ShoalError | None], None]) -> None:
        self._job = self._make_job(work, then)
        self._job.start()


class Job(threading.Thread):
    """Work that takes its time, and what is to be done with its outcome."""

    def __init__(self, work: Callable[[], None], then: Callable[[ShoalError | None], None]) -> None:
        super().__init__(name="rollout", daemon=True)
        self._work, self.then = work, then
        self.error: ShoalError | None = None

    def run(self) -> None:
        try:
            self._work()
        except ShoalError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 - it is told as the reason of a refusal
            self.error = RepositoryError(f"{type(error).__name__}: {error}")
