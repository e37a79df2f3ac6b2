"""One Triton that serves: its models are loaded and let go, and it is looked after meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from http.client import HTTPException
from urllib.error import HTTPError

from serving import probe
from serving.embedded import Server
from serving.supervisor.liveness import Liveness
from serving.supervisor.readiness import Health, Readiness
from serving.supervisor.rollout import Attempt, Models, Rollout, groups
from serving.supervisor.snapshot import ModelSpec, Snapshot
from shoal.errors import ServerError, ShoalError, in_one_line


class Served:
    """Some of the operations of `serving.supervisor.follow`, on the server that users call.

    Args:
        server: that has just started.
        snapshot: of the repository, which it is shown.
        headers: that open its closed endpoints.
        timeout: seconds in which models must be loaded and answer.
        told: see `readiness.Readiness`.
    """

    def __init__(
        self,
        server: Server,
        snapshot: Snapshot,
        headers: Mapping[str, str],
        timeout: float,
        told: Callable[[str, Health], None],
    ) -> None:
        self.server, self._snapshot = server, snapshot
        self._headers, self._timeout, self._told = headers, timeout, told
        self.liveness = Liveness(server)
        self.readiness = Readiness({}, told)

    def begin(
        self, chosen: Models, rollout: Rollout, check: Callable[[Models], None]
    ) -> tuple[Models, list[ShoalError]]:
        """Find out what of the models shown at the start is served, and load others in the place of the rest.

        Args:
            chosen: what was shown.
            check: raises ShoalError where models are not what was measured.

        Returns:
            What is served, and why others are refused, where that is news.

        Raises:
            ServerError: nothing is served.
        """
        reasons = self._not_loaded()
        loaded: Models = {}
        news, failed = [], None
        for names in groups(chosen):
            group = {name: chosen[name] for name in names}
            try:
                # What an ensemble needs has the reason, and the ensemble has none.
                for name in sorted(names & reasons.keys(), key=lambda name: (not reasons[name], name)):
                    raise ServerError(
                        f"{name} is not loaded: {in_one_line(reasons[name]) or 'Triton gives no reason'}"
                    )
                self._ask(group, names)
                loaded |= group
                continue
            except ShoalError as error:
                failed = error
                news += [error] if rollout.refuse(names, group, error.message) else []
            try:
                if other := rollout.instead(group):
                    check(other)
                # Without another choice, what was loaded of the group goes.
                change = Attempt(other, group)
                self.letting_go(change)
                rest = {name: model for name, model in chosen.items() if name not in names}
                self.take({**rest, **other}, change)
                loaded |= other
            except ShoalError as error:
                news += [error] if other and rollout.refuse(names, other, error.message) else []
        if not loaded:
            raise ServerError(f"no model is served: {failed.message if failed else 'there is none'}")
        self._snapshot.show(loaded)
        self.settled(loaded)
        return loaded, news

    def letting_go(self, attempt: Attempt) -> None:
        """The processes of what changes may end from now on, those of a change that failed half way too."""
        self.liveness.adopt()
        self.liveness.let_go(attempt.changed)

    def take(self, shown: Mapping[str, ModelSpec], attempt: Attempt) -> None:
        """Load what changes, steps before the ensembles of them, and let go what goes last.

        Args:
            shown: all that the server serves then.

        Raises:
            ServerError: something is not loaded, or does not answer.
        """
        self._snapshot.show(shown)
        gone = attempt.changed - attempt.target.keys()
        ensembles = {name for name in attempt.changed - gone if attempt.target[name].steps}
        for name in sorted(attempt.changed, key=lambda name: (name in gone, name in ensembles, name)):
            action = "unload" if name in gone else "load"
            try:
                probe.control(self.server.http, name, action, timeout=self._timeout, headers=self._headers)
            except (OSError, HTTPException) as error:
                raise ServerError(f"{name}: {probe.reason_of(error)}") from error
        self._ask(attempt.target, attempt.changed)

    def settled(self, shown: Mapping[str, ModelSpec]) -> None:
        """Look after what is served now."""
        self.liveness.adopt()
        self.readiness.close()
        self.readiness = Readiness(self._questions(shown, shown.keys()), self._told)

    def lost(self, error: ShoalError) -> None:
        """Note that what was served before a change could not be loaded again."""
        self.liveness.lose(f"what was served could not be loaded again: {error.message}")

    def close(self) -> None:
        """Look after it no more."""
        self.liveness.close()
        self.readiness.close()

    def _not_loaded(self) -> dict[str, str]:
        try:
            return probe.not_loaded(self.server.http, timeout=self._timeout, headers=self._headers)
        except (OSError, HTTPException, ValueError) as error:
            raise ServerError(f"the server does not answer: {probe.reason_of(error)}") from error

    def _ask(self, models: Mapping[str, ModelSpec], names: Collection[str]) -> None:
        """Have each of these models that users call answer.

        Raises:
            ServerError: one does not.
        """
        for name, question in self._questions(models, names).items():
            try:
                probe.send(question.request(), timeout=self._timeout)
            except HTTPError as error:
                if error.code not in probe.BUSY:
                    raise ServerError(f"{name} does not answer: {probe.reason_of(error)}") from error
            except (OSError, HTTPException) as error:
                raise ServerError(f"{name} does not answer: {probe.reason_of(error)}") from error

    def _questions(
        self, models: Mapping[str, ModelSpec], names: Collection[str]
    ) -> dict[str, probe.Question]:
        """One for each of these that is no step of another."""
        steps = {step for model in models.values() for step in model.steps}
        try:
            return {
                name: probe.smallest(self.server.http, name, self._timeout, self._headers)
                for name in models
                if name in names and name not in steps
            }
        except (OSError, HTTPException, ValueError, KeyError) as error:
            raise ServerError(f"its models cannot be asked: {probe.reason_of(error)}") from error
