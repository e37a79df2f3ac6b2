"""Who may call the gateway, and how much: on the real service, by OpenAI's own SDK where it matters."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai as sdk
import pytest
from openai import OpenAI

from serving.gateway.bodies import most_tokens
from serving.gateway.endpoints import ENDPOINTS
from serving.gateway.keys import KeyStore, Limits
from serving.gateway.page import FILES
from serving.gateway.settings import GatewaySettings
from serving.service import Service
from shoal.errors import UsageError
from tests.serving.gateway.running import Running, gateway

CHAT = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> KeyStore:
    made = KeyStore(tmp_path_factory.mktemp("keys") / "keys.json")
    made.add("first")
    return made


@pytest.fixture(scope="module")
def closed(service: Service, store: KeyStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("closed") / "log"
    with gateway(service, f"--keys={store.path}", log=log) as made:
        yield made
    assert "shoal-" not in log.read_text()


def client(closed: Running, secret: str, retries: int = 0) -> OpenAI:
    return OpenAI(base_url=f"{closed.url}/v1", api_key=secret, max_retries=retries)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: str(endpoint.path))
def test_every_route_is_closed_unless_it_says_otherwise(closed: Running, endpoint: object) -> None:
    path = endpoint.path.replace("{name:path}", "minilm").replace("{task}", "nothing")  # type: ignore[attr-defined]
    for method in endpoint.methods:  # type: ignore[attr-defined]
        send = closed.get if method == "GET" else lambda path, **more: closed.post(path, {}, **more)
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer "},
            {"x-api-key": "x"},
        ):
            status, body, told = send(path, **headers)
            assert status == (200 if endpoint.public else 401)  # type: ignore[attr-defined]
            if status == 401:
                assert told["www-authenticate"] == "Bearer" and "shoal-" not in str(body)
    assert {each.path for each in ENDPOINTS if each.public} == {"/health", "/openapi.json", *FILES}


def test_a_key_opens_until_it_is_revoked(closed: Running, store: KeyStore) -> None:
    _, secret = store.add("mine")
    time.sleep(1)
    with client(closed, secret) as mine:
        assert mine.embeddings.create(model="minilm", input="Fish.").data
        store.revoke("mine")
        time.sleep(1)
        with pytest.raises(sdk.AuthenticationError) as found:
            mine.embeddings.create(model="minilm", input="Fish.")
        assert found.value.code == "invalid_api_key"


def test_a_key_sees_its_models_only(closed: Running, store: KeyStore) -> None:
    _, secret = store.add("embedder", models=["minilm"])
    time.sleep(1)
    with client(closed, secret) as one:
        assert [model.id for model in one.models.list()] == ["minilm"]
        for call in (
            lambda: one.chat.completions.create(model="smollm2", messages=CHAT),
            lambda: one.models.retrieve("smollm2"),
        ):
            with pytest.raises(sdk.NotFoundError) as found:
                call()
            assert found.value.code == "model_not_found"


def test_requests_a_minute(closed: Running, store: KeyStore) -> None:
    _, secret = store.add("slow", limits=Limits(requests_per_minute=2))
    time.sleep(1)
    with client(closed, secret) as slow:
        first = slow.embeddings.with_raw_response.create(model="minilm", input="Fish.")
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        slow.models.list()
        with pytest.raises(sdk.RateLimitError) as found:
            slow.embeddings.create(model="minilm", input="Fish.")
    headers = found.value.response.headers
    assert found.value.code == "rate_limit_exceeded"
    assert 0 < int(headers["retry-after-ms"]) <= 60_000 and 1 <= int(headers["retry-after"]) <= 60


def test_tokens_a_minute_are_those_that_were_used(closed: Running, store: KeyStore) -> None:
    _, secret = store.add("short", limits=Limits(tokens_per_minute=200))
    time.sleep(1)
    with client(closed, secret) as short:
        answer = short.chat.completions.create(
            model="smollm2", messages=CHAT, max_tokens=30, temperature=0, extra_body={"ignore_eos": True}
        )
        assert answer.usage is not None and answer.usage.completion_tokens == 30
        told = short.embeddings.with_raw_response.create(model="minilm", input="Fish.")
        left = int(told.headers["x-ratelimit-remaining-tokens"])
        assert 200 - answer.usage.total_tokens - 40 < left <= 200 - answer.usage.total_tokens
        with pytest.raises(sdk.RateLimitError):
            for _ in range(12):
                short.chat.completions.create(
                    model="smollm2", messages=CHAT, max_tokens=30, extra_body={"ignore_eos": True}
                )


def test_without_keys_only_loopback_is_served(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "192.0.2.1", "example.org", "::"):
        with pytest.raises(UsageError, match="without API keys the gateway serves 127.0.0.1 only"):
            GatewaySettings(host=host)
        GatewaySettings(host=host, keys=tmp_path / "keys.json")
    for host in ("127.0.0.1", "localhost", "::1"):
        GatewaySettings(host=host)
        # In a container it listens on all addresses, and Docker publishes its port at one.
        GatewaySettings(host="0.0.0.0", published=host)
    with pytest.raises(UsageError, match="only, not 192.0.2.1"):
        GatewaySettings(host="0.0.0.0", published="192.0.2.1")


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b'{"max_tokens": 100}', 104),
        (b'{"max_completion_tokens": 100, "n": 3}', 309),
        (b'{"max_output_tokens": 7}', 13),
        (b'{"prompt": ["a", "b", "c"], "max_tokens": 100}', 311),
        (b'{"prompt": [[1], [2]], "max_tokens": 100}', 210),
        (b'{"prompt": [1, 2, 3], "max_tokens": 100}', 110),
        (b'{"input": "abcd"}', 4),
        (b'{"max_tokens": "x"}', 4),
        (b'{"max_tokens": -5}', 4),
        (b"[]" * 10, 5),
        (b"\xff\xfe" * 8, 4),
    ],
)
def test_what_a_request_may_use_is_guessed_before_it_runs(body: bytes, tokens: int) -> None:
    assert most_tokens(body) == tokens


def test_answers_are_reserved_before_they_are_made(closed: Running, store: KeyStore) -> None:
    """Five chats at once that may use 150 tokens each, with a key that has 300 a minute: two of them run."""
    _, secret = store.add("reserving", limits=Limits(tokens_per_minute=300))
    time.sleep(1)
    with client(closed, secret) as mine, ThreadPoolExecutor(5) as pool:
        whole = {"ignore_eos": True}

        def ask(_: int) -> int:
            try:
                mine.chat.completions.create(model="smollm2", messages=CHAT, max_tokens=100, extra_body=whole)
            except sdk.RateLimitError:
                return 0
            return 1

        assert sum(pool.map(ask, range(5))) == 2
        with pytest.raises(sdk.RateLimitError, match="may use .* and the key has 300 a minute") as raised:
            mine.chat.completions.create(model="smollm2", messages=CHAT, max_tokens=1000)
        assert raised.value.response.headers["x-should-retry"] == "false"


def test_a_path_that_there_is_not_tells_what_may_be_meant(running: Running) -> None:
    assert "ends in /v1" in running.get("/models")[1]["error"]["message"]
    status, told, _ = running.get("/v1/chat/completions")
    assert status == 405 and "it takes POST" in told["error"]["message"]
