"""Which server takes a request, and when one is left out: without servers, by what their supervisors say."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.errors import Unavailable
from serving.gateway.balance import FAILURES, MOST_EJECTED_SECONDS, SLOW_SECONDS, Load, pick
from serving.gateway.errors import ApiError
from serving.gateway.models import Model, Models, Told
from serving.gateway.replicas import Replica
from serving.gateway.settings import GatewaySettings
from shoal.errors import UsageError
from tests.serving.gateway.servers import Servers, model, tell

pytestmark = pytest.mark.anyio


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    made = Servers()
    yield made
    await made.close()


def test_a_server_is_left_out_after_failures_in_a_row() -> None:
    load = Load()
    for _ in range(FAILURES - 1):
        load.failed(0.0)
    load.answered(0.0)
    for _ in range(FAILURES - 1):
        load.failed(0.0)
    assert not load.is_ejected(0.0)
    load.failed(0.0)
    assert load.is_ejected(0.0) and load.is_ejected(0.999) and not load.is_ejected(1.0)


def test_it_is_left_out_longer_each_time_until_it_does_well() -> None:
    load, now, times = Load(), 0.0, []
    for _ in range(7):
        for _ in range(FAILURES):
            load.failed(now)
        load.failed(now)  # one more that failed at the same time
        times.append(next(s for s in range(1, 100) if not load.is_ejected(now + s)))
        now += times[-1]
        load.answered(now)  # too early to forget
    assert times == [1, 2, 4, 8, 16, MOST_EJECTED_SECONDS, MOST_EJECTED_SECONDS]
    load.answered(now + SLOW_SECONDS)
    for _ in range(FAILURES):
        load.failed(now + SLOW_SECONDS)
    assert load.is_ejected(now + SLOW_SECONDS + 0.9) and not load.is_ejected(now + SLOW_SECONDS + 1.0)


def test_a_server_that_came_back_gets_its_share_little_by_little() -> None:
    load = Load()
    assert load.cost(100.0) == 1.0
    load.came_back(100.0)
    costs = [load.cost(100.0 + seconds) for seconds in (0.0, 2.5, 5.0, 10.0, 20.0)]
    assert costs == [10.0, 4.0, 2.0, 1.0, 1.0]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(0, 2**32))
def test_the_dearest_of_several_is_never_picked(costs: list[int], seed: int) -> None:
    chosen = pick(range(len(costs)), costs.__getitem__, random.Random(seed))
    others = costs[:chosen] + costs[chosen + 1 :]
    assert not others or costs[chosen] <= max(others)


async def test_the_least_busy_of_two_is_chosen(servers: Servers) -> None:
    for replica in servers.each:
        tell(replica, model())
    assert servers.chosen(model()) == {0, 1, 2}
    with servers.each[0].running(), servers.each[1].running():
        assert 2 in servers.chosen(model()) and servers.each[2].load.running == 0
        with servers.each[0].running():
            assert servers.chosen(model()) == {1, 2}
    assert [replica.load.running for replica in servers.each] == [0, 0, 0]


async def test_models_are_the_union_of_all(servers: Servers) -> None:
    with pytest.raises(ApiError, match="does not exist"):
        servers.find("m")
    assert servers.problem is not None
    tell(servers.each[0], model("b"), model("a"))
    tell(servers.each[1], model("a", "bb", 2))
    assert [(found.name, found.version) for found in servers.all()] == [("a", 2), ("b", 1)]
    assert servers.problem is None and servers.number("a") == 2 and servers.number("b") == 1
    assert {servers.find("a").sha256 for _ in range(60)} == {"aa", "bb"}
    assert servers.chosen(model("a")) == {0} and servers.chosen(model("a", "bb")) == {1}
    assert servers.chosen(model("a", "gone")) == {0, 1}
    for wrong in (None, 1, ""):
        with pytest.raises(ApiError, match="must be the name of a model"):
            servers.find(wrong)


async def test_a_server_that_drains_gets_nothing_new(servers: Servers) -> None:
    for replica in servers.each[:2]:
        tell(replica, model())
    tell(servers.each[0], model(), ready=False)
    assert servers.chosen(model()) == {1} and servers.problem is None
    tell(servers.each[1], model(), ready=False)  # better one that may answer than none
    assert servers.chosen(model()) == {0, 1} and servers.problem == "the model server does not serve"
    tell(servers.each[1], ready=False)  # no server runs
    assert servers.chosen(model()) == {0} and servers.find("m") == model()
    tell(servers.each[0], ready=False)
    with pytest.raises(Unavailable, match="m: no server runs that serves it"):
        servers.choose(model())
    assert [found.name for found in servers.all()] == ["m"]


async def test_a_server_that_fails_is_left_out_unless_all_do(servers: Servers) -> None:
    for replica in servers.each:
        tell(replica, model())
    for index in (0, 1):
        for _ in range(FAILURES):
            servers.each[index].load.failed(time.monotonic())
    assert servers.chosen(model()) == {2}
    for _ in range(FAILURES):
        servers.each[2].load.failed(time.monotonic())
    assert servers.chosen(model()) == {0, 1, 2}


async def test_another_server_has_the_same_version_and_answers(servers: Servers) -> None:
    first, second, third = servers.each
    tell(first, model())
    tell(second, model())
    tell(third, model(sha256="bb"))
    since = time.monotonic()

    async def another(of: Model, exact: bool = True, until: float = 0.0) -> Replica | None:
        return await servers.another(of, first, since=since, until=until, exact=exact)

    assert await another(model()) is second
    servers.reachable = [first, third]
    assert await another(model()) is None  # the first one was asked before it failed
    tell(first, model(), asked=since - 1)
    assert await another(model()) is None
    tell(first, model(), asked=since + 1)
    assert await another(model()) is first
    servers.reachable = [first, second, third]
    assert await another(model()) is second  # rather than the one that has just failed
    assert await another(model(sha256="")) is None  # nobody knows its files
    tell(second, model(sha256=""))
    assert await another(model(sha256=""), exact=False) is second
    # All serve, and none has this version: nothing is waited for.
    assert await another(model(sha256="cc"), until=time.monotonic() + 3600) is None


def test_a_supervisor_that_says_nothing_new_changes_nothing() -> None:
    back: list[str] = []
    models = Models("http://127.0.0.1:1/catalogue", came_back=lambda: back.append("back"))
    assert not models.ready and not models.down
    models.take(Told([model()], True), 1.0)
    assert models.ready and not back and models.asked == 1.0
    models.take(Told([], False), 2.0)
    assert models.down and not models.ready and models.all() == [model()]
    models.take(Told([model()], True), 3.0)
    assert back == ["back"] and models.changes["m"] == 0
    models.take(Told([model(sha256="bb")], True), 4.0)
    models.take(Told([model()], True), 5.0)
    assert back == ["back"] and models.changes["m"] == 2


async def test_what_names_a_version_is_never_that_of_another_time(servers: Servers) -> None:
    first, second, _ = servers.each
    tell(first, model())
    tell(second, model())
    assert (before := servers.version("m")) is not None
    tell(second, model(sha256="bb"))
    assert servers.version("m") is None
    tell(first, model(sha256="bb"))
    assert servers.version("m") not in (None, before)
    for replica in (first, second):
        tell(replica, model())
    assert servers.version("m") not in (None, before)
    tell(first, model(sha256=""))
    tell(second, model(sha256=""))
    assert servers.version("m") is None and servers.version("nothing") is None


def test_each_server_has_its_catalogue() -> None:
    wrong: list[dict[str, Any]] = [{"triton": ["a:1", "b:1"]}, {"triton": [], "catalogue": []}]
    for settings in wrong:
        with pytest.raises(UsageError, match="--triton and --catalogue go together"):
            GatewaySettings(**settings)
