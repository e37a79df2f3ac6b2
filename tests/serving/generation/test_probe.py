"""Whether the engine answers at all can be asked at any time, by who knows the key; on the real server."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients import AsyncGrpcClient, ClientError
from serving.embedded import Server, running
from serving.heartbeat import Page
from tests.serving.generation.metrics import metric, settled

KEY = "3f9a"
QUESTION = {"text_input": "ready?", "sampling_parameters": '{"max_tokens": 1, "temperature": 0}'}


def _ask(server: Server, **more: object) -> str:
    """The answer, or the error."""
    url = f"http://{server.http}/v2/models/tiny/generate"
    try:
        with urllib.request.urlopen(url, json.dumps(QUESTION | more).encode(), timeout=300) as answer:
            return str(json.load(answer)["text_output"])
    except urllib.error.HTTPError as error:
        return str(json.load(error)["error"])


@pytest.fixture
def server(tiny_repository: Path, monkeypatch: pytest.MonkeyPatch, _own_cache: None) -> Iterator[Server]:
    monkeypatch.setenv("SHOAL_PROBE_KEY", KEY)
    with running(tiny_repository) as started:
        yield started


def test_the_timeout_in_the_body_is_a_deadline(server: Server) -> None:
    """Of `generate` as of any request, though Triton hands it on as a parameter like any other."""
    long = {"sampling_parameters": '{"max_tokens": 4000, "ignore_eos": true}'}
    assert "deadline exceeded: no complete answer after" in _ask(server, timeout=50_000, **long)
    assert _ask(server, timeout=20_000_000) == _ask(server) == _ask(server, timeout=0)
    for wrong in ("soon", -5, True, 1.5):
        assert "it must be a whole number of microseconds" in _ask(server, timeout=wrong)
    assert settled(server, "running")


def test_a_probe_is_answered_while_forty_streams_run_and_wait(server: Server) -> None:
    (path,) = server.heartbeats.glob("[0-9]*")
    page = Page(path)
    expected = _ask(server)
    ended: list[str] = []

    async def scenario() -> None:
        async with AsyncGrpcClient(server.grpc, timeout=120) as client:

            async def stream(number: int) -> None:
                try:
                    async for _ in client.generate(
                        f"{number} fish", model="tiny", max_tokens=None, temperature=0, ignore_eos=True
                    ):
                        pass
                except ClientError as error:
                    ended.append(str(error))

            tasks = [asyncio.create_task(stream(number)) for number in range(40)]
            assert await asyncio.to_thread(settled, server, "waiting", 24.0)
            beats, requests = page.beats, metric(server, "requests_total")
            for _ in range(5):
                before = page.steps
                assert await asyncio.to_thread(_ask, server, shoal_probe=KEY) == expected
                print(f"a probe took {page.steps - before} steps")
                for more in ({}, {"shoal_probe": "another"}, {"shoal_probe": 7}):
                    assert "queue is full: 24 requests wait" in await asyncio.to_thread(_ask, server, **more)
            while page.beats == beats:  # as long as it takes: the questions may have taken less than a beat
                await asyncio.sleep(0.05)
            assert page.working and not ended
            assert await asyncio.to_thread(settled, server, "waiting", 24.0)
            assert metric(server, "requests_total") >= requests  # those that were refused; no probe
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scenario())
    assert settled(server, "running")
    assert "a probe has 1 to 16 tokens and max_tokens 1" in _ask(
        server, shoal_probe=KEY, text_input="a b " * 9
    )
