"""Rollouts of one service, step by step: what is tried, refused, taken back, drained and told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from serving.supervisor import follow
from serving.supervisor.follow import Follower, Job
from serving.supervisor.rollout import RETRY_SECONDS, Attempt, Rollout, groups
from serving.supervisor.snapshot import ModelSpec
from shoal.errors import ServerError, ShoalError
from tests.serving.supervisor.services import service


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
    monkeypatch.setattr(follow, "specs_in", lambda *_: service("text", made.wanted, made.asked_at))
    yield made


class Following:
    """A follower of one service, on a clock of its own."""

    def __init__(self, folder: Path) -> None:
        self.now, self.wanted, self.asked_at = 1000.0, 1, 500.0
        self.told: list[bool] = []
        self.tried: list[float] = []
        self.refuses = False
        self.triton = Triton()
        self.rollout = Rollout(folder / "state.json", lambda: self.now)
        self.rollout.see(service("text", 1))
        self.rollout.started(service("text", 1))
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


def test_what_is_asked_for_again_is_tried_at_once(following: Following) -> None:
    """As `shoal promote` does once a damaged file is restored: no text changes, only when it was written."""
    following.refuses, following.wanted = True, 2
    for second in range(20):
        following.asked_at = 500.0 if second < 10 else 600.0
        following.refuses = second < 10
        following.look()
    assert [round(at - 1000) for at in following.tried] == [1, 11]
    assert following.rollout.phase("text") == "served"


def test_a_refusal_tells_when_its_target_was_asked_for(following: Following) -> None:
    following.refuses, following.wanted = True, 2
    for _ in range(3):
        following.look()
    (refusal,) = following.rollout.to_dict()["refused"]
    assert refusal["asked"] == 500.0
    again = Rollout.load(following.rollout.path, lambda: following.now)
    again.see(service("text", 2, 500.0))
    assert again.attempt() is None, "it is not asked for again by a start"


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
    following.rollout.started(service("text", 1))
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
