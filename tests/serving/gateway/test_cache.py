"""The response cache: what is kept, for whom, and how much; without servers but for the last test."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from serving.gateway import cache as module
from serving.gateway.cache import Cache, Keeps, Kept, MemoryStore, RedisStore, body_of, key_of, store_of
from serving.gateway.errors import ApiError
from serving.gateway.http import Answer, Call, Events, Reply
from serving.gateway.keys import KeyStore
from serving.service import Service
from shoal.errors import UsageError
from tests.serving.gateway.running import gateway

pytestmark = pytest.mark.anyio
KEY = "0" * 64


def call(body: Any = None) -> Call:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Call("id", {}, content, {}, None, 0.0)


def kept(size: int) -> Kept:
    return Kept(b"x" * size, {}, 1)


async def answered(cache: Cache, answer: Answer | Exception, key: str = KEY, still: bool = True) -> Any:
    """What comes of a request, the header, and the tokens that were counted; the work counts 5."""
    made = call()

    async def work() -> Answer:
        made.meter.add(5)
        if isinstance(answer, Exception):
            raise answer
        return answer

    got = await cache.answer(key, made, work, still=lambda: still)
    assert isinstance(got, Reply)
    return got.content, got.headers["x-cache"], made.meter.tokens


@pytest.mark.parametrize("store", ["memory", "redis"])
async def test_an_answer_is_given_again(store: str, redis: str) -> None:
    cache = Cache(store_of("memory:1MB" if store == "memory" else redis))
    first = Reply(b"first", headers={"x-shoal-ignored": "a"})
    assert await answered(cache, first) == (b"first", "miss", 5)
    assert await answered(cache, Reply(b"second")) == (b"first", "hit", 5)
    again = await cache.answer(KEY, call(), lambda: asyncio.sleep(0, first), still=lambda: True)
    assert again.headers == {"x-shoal-ignored": "a", "x-cache": "hit"}
    assert await answered(cache, Reply(b"second"), key="1" * 64) == (b"second", "miss", 5)
    await cache.close()


async def test_errors_streams_and_answers_of_another_version_are_not_kept() -> None:
    cache = Cache(store_of("memory:1MB"))
    with pytest.raises(ApiError):
        await answered(cache, ApiError(400, "wrong"))
    assert await answered(cache, Reply(b"wrong", status=404)) == (b"wrong", "miss", 5)
    assert await answered(cache, Reply(b"old"), still=False) == (b"old", "miss", 5)

    async def parts() -> Any:
        yield b"data: 1\n\n"

    events = Events(parts())
    assert await cache.answer(KEY, call(), lambda: asyncio.sleep(0, events), still=lambda: True) is events
    assert await answered(cache, Reply(b"right")) == (b"right", "miss", 5)


async def test_memory_is_bounded_and_what_was_asked_for_last_stays() -> None:
    store = MemoryStore(4 * 1000)
    for name in "abc":
        await store.put(name, kept(1000 - 512))
    assert await store.get("a") is not None
    await store.put("d", kept(1000 - 512))
    await store.put("e", kept(1000 - 512))
    assert store.bytes == 4000
    assert [name for name in "abcde" if await store.get(name)] == ["a", "c", "d", "e"]
    await store.put("a", kept(10))
    assert store.bytes == 3000 + 522
    await store.put("a", kept(4000))  # more than all may take
    assert await store.get("a") is None and store.bytes == 3000


async def test_without_redis_requests_go_on(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    with socket.socket() as deaf:  # it takes connections, and says nothing
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        asked = 0
        store = RedisStore(f"redis://127.0.0.1:{deaf.getsockname()[1]}")
        real = store._redis.get

        def get(name: str) -> Any:
            nonlocal asked
            asked += 1
            return real(name)

        monkeypatch.setattr(store._redis, "get", get)
        cache = Cache(store)
        for _ in range(3):
            assert await answered(cache, Reply(b"right")) == (b"right", "miss", 5)
        assert asked == 1 and "requests go on without it" in caplog.text
        await cache.close()


async def test_what_another_program_keeps_in_redis_is_no_answer(redis: str) -> None:
    store = RedisStore(redis)
    await store._redis.set(module._name(KEY), b"\x93abc")
    assert await store.get(KEY) is None
    await store.close()


@pytest.mark.parametrize(
    ("keeps", "body", "is_kept"),
    [
        ("always", {"input": "a"}, True),
        ("never", {"input": "a"}, False),
        ("certain", {"prompt": "a"}, False),
        ("certain", {"temperature": 0}, True),
        ("certain", {"temperature": 0.0}, True),
        ("certain", {"temperature": False}, False),
        ("certain", {"temperature": 0, "stream": False, "tools": None}, True),
        ("certain", {"temperature": 0, "stream": True}, False),
        ("certain", {"temperature": 0, "tools": [{}]}, False),
        ("certain", {"temperature": 1}, False),
        ("certain", {"temperature": 1, "seed": 0}, True),
        ("certain", {"seed": -1}, False),
        ("certain", {"seed": None}, False),
        ("certain", {"seed": "1"}, False),
        ("always", [1], False),
        ("always", b"{", False),
        ("always", b"[" * 100_000, False),
        ("always", b'{"a": ' * 500 + b"1" + b"}" * 500, False),
    ],
)
def test_which_answers_are_kept(keeps: Keeps, body: Any, is_kept: bool) -> None:
    found = body_of(call(body), keeps)
    assert (found == body) if is_kept else (found is None)


def test_a_key_is_of_all_that_an_answer_depends_on() -> None:
    body = {"model": "m", "input": "a"}
    key = key_of("v", "/p", body, "k")
    assert key == key_of("v", "/p", dict(reversed(body.items())), "k") and len(key) == 64
    others = [
        key_of("w", "/p", body, "k"),
        key_of("v", "/q", body, "k"),
        key_of("v", "/p", body | {"input": "b"}, "k"),
        key_of("v", "/p", body | {"dimensions": 3}, "k"),
        key_of("v", "/p", body, ""),
    ]
    assert len({key, *others}) == 6


@pytest.mark.parametrize(
    "setting", ["memory", "memory:", "memory:0MB", "memory:1TB", "disk:1MB", "memory:-1"]
)
def test_what_names_no_store_is_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="--cache"):
        store_of(setting)


def test_on_a_real_server_each_key_has_its_own_answers(service: Service, tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    keys = [{"Authorization": f"Bearer {store.add(name)[1]}"} for name in ("a", "b")]
    embed = {"model": "minilm", "input": "Fish."}
    chat = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    with gateway(service, f"--keys={store.path}", "--cache=memory:1MB", log=tmp_path / "log") as running:

        def ask(path: str, body: Any, key: int) -> tuple[str | None, Any]:
            status, answer, headers = running.post(path, body, **keys[key])
            assert status == 200
            return headers.get("x-cache"), answer

        for path, body in (
            ("/v1/embeddings", embed),
            ("/v1/chat/completions", {**chat, "temperature": 0}),
            ("/v1/chat/completions", {**chat, "temperature": 1, "seed": 5}),
        ):
            miss, first = ask(path, body, 0)
            hit, second = ask(path, dict(reversed(body.items())), 0)
            assert (miss, hit) == ("miss", "hit") and first == second
            assert ask(path, body, 1)[0] == "miss"
        assert ask("/v1/chat/completions", chat, 0)[0] is None
        _, _, headers = running.post("/v1/embeddings", {"model": "minilm", "input": []}, **keys[0])
        assert "x-cache" not in headers
