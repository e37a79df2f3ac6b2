"""Requests whose server goes: what is handed on, by hypothesis, and what a caller sees, on real servers."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai as sdk
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI

from clients.errors import BadInput, ClientError, Overloaded, Timeout, Unavailable
from serving import service as services
from serving.gateway.app import application
from serving.gateway.balance import FAILURES
from serving.gateway.errors import ApiError
from serving.gateway.failover import Differs, Failover, Replay, with_seed
from serving.gateway.http import Call
from serving.gateway.replicas import Replicas
from serving.gateway.settings import GatewaySettings
from serving.gateway.triton import Part
from serving.ports import Ports
from serving.service import Service
from shoal.manifest import Manifest
from tests.processes import SERVER, descendants
from tests.serving.gateway.servers import Servers, model, tell

PROMPT = 7  # tokens


def part(text: str = "", tokens: int = 0, end: str = "", logprobs: str = "") -> Part:
    return Part(text, tokens, end, PROMPT, 0, logprobs, "", "")


def logprobs(first: int, last: int) -> str:
    """Of some tokens, as a decoder writes them: the chosen one first, and a likelier one."""
    entries = [
        {str(n): {"logprob": -n / 8, "rank": 2}, "999": {"logprob": -0.01, "rank": 1}}
        for n in range(first, last)
    ]
    return json.dumps(entries)


@st.composite
def runs(draw: st.DrawFn, text: str, tokens: int, with_logprobs: bool) -> list[Part]:
    """An answer in parts; where text and tokens are divided does not depend on each other."""
    number = draw(st.integers(1, 6))

    def cuts(most: int) -> list[int]:
        inner = draw(st.lists(st.integers(0, most), min_size=number - 1, max_size=number - 1))
        return [0, *sorted(inner), most]

    parts = []
    for (a, b), (c, d) in zip(pairwise(cuts(len(text))), pairwise(cuts(tokens)), strict=True):
        parts.append(part(text[a:b], d - c, "", logprobs(c, d) if with_logprobs else ""))
    return [*parts[:-1], replace(parts[-1], finish_reason="stop")]


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, int, bool, list[list[Part]]]:
    """A text, its tokens, whether there are log probabilities, and some runs, of which the last is whole."""
    text, tokens, with_logprobs = draw(st.text()), draw(st.integers(0, 12)), draw(st.booleans())
    made = [draw(runs(text, tokens, with_logprobs)) for _ in range(draw(st.integers(1, 4)))]
    cut = [run[: draw(st.integers(0, len(run) - 1))] for run in made[:-1]]
    return text, tokens, with_logprobs, [*cut, made[-1]]


@given(answers())
def test_everything_is_handed_on_once(answer: tuple[str, int, bool, list[list[Part]]]) -> None:
    text, tokens, with_logprobs, parts = answer
    replay, given_on = Replay(), []
    for run in parts:
        given_on += [new for each in run if (new := replay.add(each)) is not None]
        assert not replay.finished or run is parts[-1]
        if run is not parts[-1]:
            replay.restart()
    assert "".join(each.text for each in given_on) == text
    assert sum(each.tokens for each in given_on) == tokens
    told = [entry for each in given_on if each.logprobs for entry in json.loads(each.logprobs)]
    assert told == (json.loads(logprobs(0, tokens)) if with_logprobs else [])
    assert [each.finish_reason for each in given_on if each.finish_reason] == ["stop"]
    assert given_on[-1].finish_reason == "stop" and replay.finished and not replay.behind


@given(answers(), st.data())
def test_another_answer_is_noticed_before_any_of_it_is_handed_on(
    answer: tuple[str, int, bool, list[list[Part]]], data: st.DataObject
) -> None:
    text, tokens, with_logprobs, (*_, sent) = answer
    replay = Replay()
    for each in sent[:-1]:
        replay.add(each)
    known = "".join(each.text for each in sent[:-1])
    if not known:
        return
    place = data.draw(st.integers(0, len(known) - 1))
    other = text[:place] + ("a" if text[place] != "a" else "b") + text[place + 1 :]
    replay.restart()
    with pytest.raises(Differs, match="the text differs"):
        for each in data.draw(runs(other, tokens, with_logprobs)):
            new = replay.add(each)
            assert new is None or not new.text


def test_what_else_may_differ() -> None:
    def replayed(*again: Part) -> None:
        replay = Replay()
        replay.add(part("ab", 2, logprobs=logprobs(0, 2)))
        replay.restart()
        for each in again:
            replay.add(each)

    replayed(part("ab", 2, "stop", logprobs(0, 2)))
    slightly = logprobs(0, 2).replace("-0.125", "-0.12501")
    replayed(part("a", 2, "", slightly), part("b", 0, "stop"))
    for wrong in (
        part("a", 2, "stop", logprobs(0, 2)),
        part("ab", 1, "stop", logprobs(0, 2)),
        part("ab", 2, "stop", logprobs(0, 1)),
    ):
        with pytest.raises(Differs, match="ends earlier"):
            replayed(wrong)
    for wrong in (logprobs(1, 3), logprobs(0, 2).replace("-0.125", "-0.2")):
        with pytest.raises(Differs, match="log probability of token"):
            replayed(part("ab", 2, "stop", wrong))
    with pytest.raises(Differs, match="the prompt has 8 tokens instead of 7"):
        replayed(replace(part("ab", 2), input_tokens=8))


def test_what_is_told_of_the_prompt_is_told_once_and_stays() -> None:
    replay = Replay()
    first = replace(part("a", 1), cached_tokens=5, prompt_logprobs="[null]")
    assert replay.add(first) is first
    replay.restart()
    new = replay.add(replace(part("ab", 2, "stop"), cached_tokens=0, prompt_logprobs="[null]"))
    assert new == replace(part("b", 1, "stop"), cached_tokens=5)


def test_a_seed_is_drawn_where_none_is_given() -> None:
    assert with_seed({"seed": 0, "top_k": 3}) == {"seed": 0, "top_k": 3}
    drawn = {with_seed({"seed": given})["seed"] for given in (None, -1, None)} | {with_seed({})["seed"]}
    assert len(drawn) == 4 and all(0 <= seed < 2**53 for seed in drawn)


pytestmark = pytest.mark.anyio


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    """The first is the only one that takes new requests; the second and the third can go on."""
    made = Servers()
    for replica in made.each:
        tell(replica, model())
    for replica in made.each[1:]:
        for _ in range(FAILURES):
            replica.load.failed(time.monotonic() + 60)
    yield made
    await made.close()


GONE = Unavailable("127.0.0.1:1: it has gone")


def call(seconds: float = 60.0) -> Call:
    return Call("id", {}, b"", {}, None, time.monotonic() + seconds)


async def text_of(servers: Servers, of: str = "aa", waits: float = 0.0) -> str:
    found = []
    async for each in Failover(servers, waits).generate(call(), model(sha256=of), {}, "id"):
        found.append(each.text)
    return "|".join(found)


async def test_a_request_is_sent_again_before_its_first_part(servers: Servers) -> None:
    servers.scripts[0] = [[GONE], [GONE]]
    servers.scripts[1] = [[part("ab", 2, "stop")], []]
    assert await text_of(servers) == "ab"
    assert await Failover(servers, 0.0).infer(call(), model(), {}) == {}
    assert servers.asked == [0, 1, 0, 1]
    assert [replica.load.running for replica in servers.each] == [0, 0, 0]


async def test_it_is_sent_again_once(servers: Servers) -> None:
    servers.scripts[0], servers.scripts[1] = [[GONE], [GONE]], [[GONE], [GONE]]
    with pytest.raises(Unavailable):
        await text_of(servers)
    with pytest.raises(Unavailable):
        await Failover(servers, 0.0).infer(call(), model(), {})
    assert servers.asked == [0, 1, 0, 1]


@pytest.mark.parametrize("error", [BadInput("x"), Overloaded("x"), Timeout("x"), ClientError("x")])
async def test_errors_of_the_request_itself_are_not_tried_again(servers: Servers, error: Exception) -> None:
    servers.scripts[0] = [[error], [error], [part("a", 1), error]]
    with pytest.raises(type(error)):
        await text_of(servers)
    with pytest.raises(type(error)):
        await Failover(servers, 0.0).infer(call(), model(), {})
    with pytest.raises(type(error)):
        await text_of(servers)
    assert servers.asked == [0, 0, 0]


async def test_an_answer_goes_on_where_it_broke_off(servers: Servers) -> None:
    servers.scripts[0] = [[part("ab", 1), part("c", 2), GONE]]
    servers.scripts[1] = [[part("a", 1), part("bcd", 3), part("e", 1, "stop")]]
    assert await text_of(servers) == "ab|c|d|e"


async def test_an_answer_that_has_ended_needs_no_server(servers: Servers) -> None:
    servers.scripts[0] = [[part("ab", 2, "stop"), GONE]]
    assert await text_of(servers) == "ab" and servers.asked == [0]


async def lost(servers: Servers, match: str, **more: Any) -> None:
    with pytest.raises(ApiError, match=match) as found:
        await text_of(servers, **more)
    assert found.value.code == "stream_lost" and found.value.status == 503


async def test_an_answer_that_goes_on_otherwise_is_lost(servers: Servers) -> None:
    servers.scripts[0] = [[part("ab", 1), GONE]] * 3
    servers.scripts[1] = [
        [part("aX", 1), part("c", 1, "stop")],
        [part("a", 1)],
        [part("ab", 1), part("c", 1), GONE],
    ]
    await lost(servers, "another server answered otherwise: the text differs after 0 characters")
    await lost(servers, "the answer ends earlier")
    await lost(servers, "another server failed as well")


async def test_an_answer_of_another_version_is_lost(servers: Servers) -> None:
    for replica in servers.each[1:]:
        tell(replica, model(sha256="bb"))
    servers.scripts[0] = [[part("ab", 1), GONE]] * 2
    await lost(servers, "no server has the version that had begun")
    for replica in servers.each:
        tell(replica, model(sha256=""))  # nobody knows their files
    await lost(servers, "no server has the version that had begun", of="", waits=60.0)
    assert servers.asked == [0, 0]


# On real servers.

TOKENS = 5000
GREEDY: dict[str, Any] = {"temperature": 0}
SAMPLED: dict[str, Any] = {"temperature": 1, "seed": 7, "logprobs": 1}


def proven(source: Path, place: Path, **more: str) -> Path:
    """The tiny decoder with a manifest, so that the hash of its files is known.

    Args:
        more: further files of the version, by which it is another one.
    """
    repository = Path(shutil.copytree(source, place / "model_repository"))
    folder = repository / "tiny" / "1"
    for name, content in more.items():
        (folder / name).write_text(content)
    files = {
        str(path.relative_to(repository)): sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
    nothing: dict[str, Any] = {
        name: {} for name in ("recipe", "configs", "onnx", "tools", "machine", "evidence")
    }
    manifest = Manifest(
        **{"model": "tiny", "network": "tiny", "version": 1, "precision": "fp32"},
        **{"source": {"id": "tests"}, "files": files, **nothing},
        created=datetime(2026, 1, 1, tzinfo=timezone.utc).isoformat(),
    )
    (folder / "manifest.json").write_text(json.dumps(manifest.to_dict()))
    return repository


@pytest.fixture(scope="module")
def started(
    tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory, _own_cache: None
) -> Iterator[list[Service]]:
    """Two servers of one version, and one of another."""
    one = proven(tiny_repository, tmp_path_factory.mktemp("one"))
    other = proven(tiny_repository, tmp_path_factory.mktemp("other"), note="another version")
    running: list[Service] = []
    try:
        for repository in (one, one, other):
            running.append(services.start(repository, Ports(0, 0, 0), detach=True))
        yield running
    finally:
        for each in running:
            services.stop(each)


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each answer that was generated again, whether it had begun."""
    found: list[bool] = []
    restart = Replay.restart

    def noted(replay: Replay) -> None:
        found.append(replay.begun)
        restart(replay)

    monkeypatch.setattr(Replay, "restart", noted)
    return found


@contextmanager
def gateway(*behind: Service, recovery: float = 60.0) -> Iterator[tuple[OpenAI, Replicas]]:
    """A gateway in a thread, so that it can be asked which server runs a request."""
    catalogues = [each.health.replace("/health", "/catalogue") for each in behind]
    settings = GatewaySettings([each.grpc for each in behind], catalogues, recovery_seconds=recovery)
    app = application(settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        replicas: Replicas = app.state.gateway.replicas
        wait(lambda: all(replica.models.ready for replica in replicas._replicas))
        with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
            yield client, replicas
        wait(lambda: all(replica.models.ready for replica in replicas._replicas))
    finally:
        server.should_exit = True
        thread.join(30)


def wait(until: Any, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.02)


def kill_the_one_that_runs(replicas: Replicas, behind: list[Service]) -> None:
    (running,) = [n for n, replica in enumerate(replicas._replicas) if replica.load.running]
    for process in descendants(behind[running].pid, SERVER):
        process.kill()


def told(client: OpenAI, sampling: dict[str, Any], then: Any = None) -> list[Any]:
    """The choices of a stream; after the first something is done."""
    stream = client.completions.create(
        model="tiny",
        prompt="Fish swim",
        max_tokens=TOKENS,
        stream=True,
        extra_body={"ignore_eos": True},
        **sampling,
    )
    found = []
    for chunk in stream:
        found += chunk.choices
        if then is not None and len(found) == 1:
            then()
    return found


def whole(choices: list[Any]) -> tuple[str, list[str], list[float]]:
    """Text, reasons to end, and log probabilities."""
    text = "".join(choice.text for choice in choices)
    values = [
        value for choice in choices if choice.logprobs for value in choice.logprobs.token_logprobs or ()
    ]
    return text, [choice.finish_reason for choice in choices if choice.finish_reason], values


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("number", [2, 1])
def test_a_stream_outlives_its_server(
    started: list[Service], sampling: dict[str, Any], number: int, replayed: list[bool]
) -> None:
    """With another server of the version, and with one alone that is started again."""
    behind = started[:number]
    with gateway(*behind) as (client, replicas):
        text, ends, values = whole(told(client, sampling))
        assert ends == ["length"] and (len(values) == TOKENS) == ("logprobs" in sampling)
        kill = lambda: kill_the_one_that_runs(replicas, behind)  # noqa: E731
        again = whole(told(client, sampling, kill))
    assert again[:2] == (text, ends) and replayed == [True]
    assert again[2] == pytest.approx(values, abs=1e-3)


def test_a_whole_answer_outlives_its_server(started: list[Service], replayed: list[bool]) -> None:
    behind = started[:2]
    body = {"model": "tiny", "prompt": "Fish swim", "max_tokens": TOKENS, **GREEDY}
    with gateway(*behind) as (client, replicas):

        def ask() -> str:
            return client.completions.create(**body, extra_body={"ignore_eos": True}).choices[0].text

        undisturbed = ask()

        def kill() -> None:
            wait(lambda: any(replica.load.running for replica in replicas._replicas))
            kill_the_one_that_runs(replicas, behind)

        killer = threading.Thread(target=kill)
        killer.start()
        assert ask() == undisturbed
        killer.join()
    assert replayed == [False]


def test_a_stream_of_another_version_ends_in_an_error(started: list[Service]) -> None:
    behind = [started[0], started[2]]
    with gateway(*behind, recovery=0.0) as (client, replicas):
        assert len({model.sha256 for each in replicas._replicas for model in each.models.all()}) == 2
        with pytest.raises(sdk.APIError) as found:
            told(client, GREEDY, lambda: kill_the_one_that_runs(replicas, behind))
        assert found.value.code == "stream_lost"
