"""The state machine of rollouts, driven at random: promotes, damage, kills and slow drains in any order."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serving.supervisor import follow
from serving.supervisor.follow import Follower, Job
from serving.supervisor.rollout import RETRY_SECONDS, Attempt, Rollout, groups
from serving.supervisor.snapshot import ModelSpec
from shoal.errors import RepositoryError, ServerError, ShoalError

VERSIONS = st.integers(1, 4)
SERVICES = st.sampled_from(["text", "table"])


def _service(name: str, version: int) -> dict[str, ModelSpec]:
    """An ensemble of a network and a tokenizer that both models share, whose config does not change."""
    network = f"{name}_network"
    ensemble = f'platform: "ensemble" ensemble_scheduling {{ step {{ model_name: "{network}" }} }}'
    return {
        name: ModelSpec(ensemble, ()),
        network: ModelSpec(f"version_policy {{ specific {{ versions: {version} }} }}", (version,)),
    }


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
            found |= _service(name, version)
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


def test_models_that_share_a_step_change_together() -> None:
    ensemble = 'platform: "ensemble" ensemble_scheduling { step { model_name: "tokenizer" } }'
    shown = {
        "one": ModelSpec(ensemble, ()),
        "two": ModelSpec(ensemble, ()),
        "tokenizer": ModelSpec("", (1,)),
        "apart": ModelSpec("", (1,)),
    }
    assert groups(shown) == [frozenset({"apart"}), frozenset({"one", "two", "tokenizer"})]
    before = {name: shown[name] for name in ("two", "tokenizer")}
    attempt = Attempt({**before, "tokenizer": ModelSpec("", (2,))}, before)
    assert attempt.changed == {"two", "tokenizer"}


class Triton:
    """A server that remembers what it was told, and fails to load what it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.fails: set[int] = set()

    def letting_go(self, attempt: Attempt) -> None:
        self.asked.append(("let go", *sorted(attempt.changed)))

    def take(self, shown: Mapping[str, ModelSpec], attempt: Attempt) -> None:
        network = attempt.target["text_network"]
        self.asked.append(("take", *map(str, network.versions)))
        if network.versions[0] in self.fails:
            raise ServerError("there is no memory for it")

    def lost(self, error: ShoalError) -> None:
        self.asked.append(("lost", error.message))

    def settled(self, shown: Mapping[str, ModelSpec]) -> None:
        self.asked.append(("settled", *map(str, shown["text_network"].versions)))


class Now(Job):
    """Work that is done at once."""

    def start(self) -> None:
        self.run()

    def is_alive(self) -> bool:
        return False


@pytest.fixture
def following(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Following]:
    made = Following(tmp_path)
    monkeypatch.setattr(follow, "specs_in", lambda *_: _service("text", made.wanted))
    yield made


class Following:
    """A follower of one service, on a clock of its own."""

    def __init__(self, folder: Path) -> None:
        self.now, self.wanted = 1000.0, 1
        self.told: list[bool] = []
        self.tried: list[float] = []
        self.refuses = False
        self.triton = Triton()
        self.rollout = Rollout(folder / "state.json", lambda: self.now)
        self.rollout.see(_service("text", 1))
        self.rollout.started(_service("text", 1))
        self.follower = Follower(self.rollout, folder, self.trial, self.triton, self.told.append, Now)

    def trial(self, target: Mapping[str, ModelSpec], asked: Callable[[], bool]) -> None:
        self.tried.append(self.now)
        self.asked = asked
        if self.refuses:
            raise ServerError("it does not start")

    def look(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.follower.look(())


def test_what_was_refused_is_tried_again_and_told_once(
    following: Following, capfd: pytest.CaptureFixture[str]
) -> None:
    """A file may have been repaired, and a server may have met Triton's crash at its start."""
    following.refuses = True
    for second in range(100):
        following.wanted = 2 if 2 <= second < 90 else 1
        following.look()
    assert [round(at - 1000) for at in following.tried] == [3, 34, 65]
    assert set(following.told[:-1]) == {True} and following.told[-1] is False
    assert capfd.readouterr().out.count("not taken up: it does not start") == 1
    assert following.triton.asked == []


def test_a_trial_that_nobody_asks_for_any_more_is_told_so(following: Following) -> None:
    following.wanted = 2
    for _ in range(3):
        following.look()
    asked = following.asked
    assert asked()
    following.wanted = 3
    following.look()
    assert not asked()


def test_a_repository_that_was_empty_for_a_moment_is_no_refusal(
    following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(follow, "specs_in", lambda *_: {})
        following.look()
        assert "holds no models any more" in following.rollout.reason("text")
    following.look()
    assert not following.rollout.refused and following.told == [True, False]


def test_what_was_served_and_is_not_since_a_start_is_missing(following: Following) -> None:
    assert not following.rollout.missing
    following.rollout.ended()
    following.rollout.started({})  # a full disk, say
    assert following.rollout.missing == {"text", "text_network"}
    following.rollout.started(_service("text", 1))
    assert not following.rollout.missing


def test_what_cannot_be_loaded_after_its_trial_is_taken_back(following: Following) -> None:
    """For want of memory, say: what was served is loaded again, and the change is tried later."""
    following.wanted = 2
    following.triton.fails = {2}
    for _ in range(5):
        following.look()
    go = ("let go", "text", "text_network")
    back = [go, ("take", "2"), go, ("take", "1"), ("settled", "1")]
    assert following.triton.asked == back and following.told == [True]
    assert following.rollout.phase("text_network") == "refused"
    assert following.rollout.reason("text_network") == "there is no memory for it"
    following.triton.fails = set()
    following.look(RETRY_SECONDS)
    for _ in range(3):
        following.look()
    assert following.triton.asked[len(back) :] == [back[0], ("take", "2"), ("settled", "2")]
    assert following.told == [True, False] and following.rollout.phase("text_network") == "served"


def test_what_cannot_be_taken_back_is_lost(following: Following) -> None:
    """Then the server serves neither, and only another one mends that."""
    following.wanted = 2
    following.triton.fails = {1, 2}
    for _ in range(5):
        following.look()
    go = ("let go", "text", "text_network")
    assert following.triton.asked == [
        go,
        ("take", "2"),
        go,
        ("take", "1"),
        ("lost", "there is no memory for it"),
    ]
    assert following.rollout.reason("text_network") == "there is no memory for it"


def test_a_drain_takes_as_long_as_it_takes_and_others_go_on(following: Following) -> None:
    """The versions that drain are kept, over several promotions."""
    for version in (2, 3, 4):
        following.wanted = version
        for _ in range(4):
            following.now += 1
            following.follower.look({"text_network"})
    assert following.rollout.served["text_network"].versions == (4,)
    assert following.rollout.draining["text_network"] == (1, 2, 3)
    assert {("text_network", version) for version in (1, 2, 3, 4)} <= following.rollout.held
    following.look(10_000)
    assert following.rollout.draining == {}
    assert following.rollout.held == {("text_network", 4)}
