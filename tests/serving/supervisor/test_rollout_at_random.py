"""The state machine of rollouts, driven at random: promotes, damage, kills and slow drains in any order."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serving.supervisor import follow
from serving.supervisor.follow import Follower, Job
from serving.supervisor.rollout import RETRY_SECONDS, Attempt, Rollout
from serving.supervisor.snapshot import ModelSpec
from shoal.errors import RepositoryError, ServerError, ShoalError
from tests.serving.supervisor.services import service

VERSIONS = st.integers(1, 4)
SERVICES = st.sampled_from(["text", "table"])


class Later(Job):
    """Work that is done when the test says so."""

    made: list[Later] = []  # noqa: RUF012 - emptied by each machine

    def start(self) -> None:
        self.done = False
        self.made.append(self)

    def is_alive(self) -> bool:
        return not self.done

    def finish(self) -> None:
        self.run()
        self.done = True


class World(RuleBasedStateMachine):
    """A repository, a server and a supervisor, of which each may fail at any time.

    What is modelled apart from the code under test: which versions are damaged, what the server has loaded,
    and which version of each service was loaded last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.now = 0.0
        self.wanted: dict[str, int] = {}
        self.damaged: set[tuple[str, int]] = set()
        self.loaded: dict[str, ModelSpec] | None = None
        self.last: dict[str, int] = {}
        self.drains: dict[str, set[int]] = {}
        self.restarts = 0
        self.full = self.gone = False
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(follow, "specs_in", lambda *_: self.shown())

    def teardown(self) -> None:
        self.settle()
        self.patch.undo()
        shutil.rmtree(self.folder)

    # What the follower is given.

    def letting_go(self, attempt: Attempt) -> None:
        for name in attempt.changed & attempt.before.keys():
            self.drains.setdefault(name, set()).update(attempt.before[name].versions)

    def take(self, shown: Mapping[str, ModelSpec], attempt: Attempt) -> None:
        if self.loaded is None:
            raise RepositoryError("there is no server")
        if self.full:  # and then it serves neither
            self.loaded = {n: model for n, model in self.loaded.items() if n not in attempt.changed}
            raise ServerError("there is no memory for it")
        self.check(attempt.target)  # what was tried may have been damaged since
        self.loaded = dict(shown)

    def settled(self, shown: Mapping[str, ModelSpec]) -> None:
        assert self.loaded is None or shown == self.loaded
        self.last = {}
        self.remember(shown)

    def lost(self, error: ShoalError) -> None:
        self.gone = True

    # The world.

    def shown(self) -> dict[str, ModelSpec]:
        found: dict[str, ModelSpec] = {}
        for name, version in self.wanted.items():
            found |= service(name, version)
        return found

    def check(self, models: Mapping[str, ModelSpec]) -> None:
        for name, model in models.items():
            for version in model.versions:
                if (name.partition("_")[0], version) in self.damaged:
                    raise RepositoryError(f"{name}/{version} is damaged")

    def remember(self, models: Mapping[str, ModelSpec]) -> None:
        self.last |= {
            name.partition("_")[0]: model.versions[0] for name, model in models.items() if model.versions
        }

    def begin(self) -> None:
        """A supervisor starts, and then a server."""
        self.rollout = Rollout.load(self.folder / "state.json", lambda: self.now)
        self.restart()

    def restart(self) -> None:
        Later.made.clear()
        before = dict(self.last)
        self.rollout.see(self.shown())
        chosen, _ = self.rollout.choose(self.check)
        self.loaded, self.drains, self.gone = (chosen or None), {}, False
        if self.loaded is None:  # a supervisor with nothing to serve ends, and is started again
            return
        self.rollout.started(chosen)
        self.remember(chosen)
        for name, version in before.items():
            kept = name in self.wanted and (name, version) not in self.damaged
            if kept:  # whatever was refused since
                assert chosen[f"{name}_network"].versions == (version,)
        self.last = {name: self.last[name] for name in self.last if name in self.wanted or name in chosen}
        self.follower = Follower(
            self.rollout, self.folder, lambda target, asked: self.check(target), self, lambda _: None, Later
        )

    @initialize()
    def first(self) -> None:
        self.wanted = {"text": 1, "table": 1}
        self.begin()

    @rule(name=SERVICES, version=VERSIONS)
    def promote(self, name: str, version: int) -> None:
        self.wanted[name] = version

    @precondition(lambda self: len(self.wanted) > 1)
    @rule(name=SERVICES)
    def remove(self, name: str) -> None:
        self.wanted.pop(name, None)

    @rule(name=SERVICES, version=VERSIONS)
    def damage(self, name: str, version: int) -> None:
        self.damaged.add((name, version))

    @rule(name=SERVICES, version=VERSIONS)
    def repair(self, name: str, version: int) -> None:
        self.damaged.discard((name, version))

    @rule(full=st.booleans())
    def fill_memory(self, full: bool) -> None:
        self.full = full

    @rule(seconds=st.sampled_from([1.0, 5.0, RETRY_SECONDS + 1]))
    def look(self, seconds: float) -> None:
        self.now += seconds
        if self.loaded is None:
            self.begin()
        elif self.gone:
            self.kill_server()
        else:
            self.follower.look({name for name, versions in self.drains.items() if versions})

    @precondition(lambda self: any(not job.done for job in Later.made))
    @rule()
    def finish_work(self) -> None:
        next(job for job in Later.made if not job.done).finish()

    @precondition(lambda self: any(self.drains.values()))
    @rule()
    def finish_requests(self) -> None:
        next(versions for versions in self.drains.values() if versions).clear()

    @precondition(lambda self: self.loaded is not None)
    @rule()
    def kill_server(self) -> None:
        self.rollout.ended()
        self.restarts += 1
        self.restart()

    @rule()
    def kill_supervisor(self) -> None:
        self.loaded = None
        self.begin()

    @rule()
    def lose_the_file(self) -> None:
        """A full disk, say: then nothing is known of what was good, and what is desired is served."""
        (self.folder / "state.json").write_text("{")
        self.loaded, self.last = None, {}
        self.begin()

    @invariant()
    def what_is_served_is_known(self) -> None:
        if self.loaded is None:
            return
        assert not self.rollout.trying or self.rollout.trying.names
        held = self.rollout.held
        for name, model in self.rollout.served.items():
            assert {(name, version) for version in model.versions} <= held
        if not any(not job.done for job in Later.made):
            for name, versions in self.drains.items():
                if name in self.rollout.draining:
                    assert versions <= set(self.rollout.draining[name])

    def settle(self) -> None:
        """Once nothing happens any more, what is served is what was asked for, or else the last good."""
        self.full = False
        for _ in range(40):
            self.look(RETRY_SECONDS + 1)
            while any(not job.done for job in Later.made):
                self.finish_work()
                self.look(0.0)
        if self.loaded is None:
            assert all((name, version) in self.damaged for name, version in self.wanted.items())
            return
        assert self.rollout.served == self.loaded
        for name, version in self.wanted.items():
            network = f"{name}_network"
            if (name, version) not in self.damaged:
                assert self.loaded[network].versions == (version,)
                assert self.rollout.phase(network) == "served" and not self.rollout.reason(network)
            else:
                assert self.rollout.phase(network) in ("refused", "trying", "served")
                if self.loaded.get(network) != self.shown()[network]:
                    assert "is damaged" in self.rollout.reason(network)
                    assert network not in self.loaded or self.loaded[network].versions == (self.last[name],)
        assert {name.partition("_")[0] for name in self.loaded} <= self.wanted.keys()


TestWorld = World.TestCase
TestWorld.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
