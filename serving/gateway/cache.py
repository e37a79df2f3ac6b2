"""Answers that are given again to the same request, where the request leaves nothing to chance.

An answer is kept under a hash of the version that gave it (by its files), the path, the body in one canonical
form, and whose it is. Only whole answers are kept: no errors, and no streams.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, Protocol

import msgspec
import orjson

from serving.gateway.http import Answer, Call, Reply
from shoal.errors import MissingDependency, UsageError

Scope = Literal["key", "shared"]
# Which answers of an endpoint are kept; `certain`: those of text generation that leave nothing to chance.
Keeps = Literal["never", "always", "certain"]
HEADER = "x-cache"
_UNITS = {"KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
_ENTRY_BYTES = 512  # what an entry takes beside its content
_REDIS_SECONDS = 0.25  # for each question
_PAUSE_SECONDS = 5.0  # in which Redis is not asked again, after it has not answered
_KEPT_SECONDS = 86_400  # in Redis, which has the limit on its memory itself
_SCHEMES = ("redis://", "rediss://")

_log = logging.getLogger(__name__)


class Kept(msgspec.Struct, frozen=True):
    """An answer that was given.

    Attributes:
        content: of the response, JSON.
        headers: its own.
        tokens: that it was counted as.
    """

    content: bytes
    headers: dict[str, str]
    tokens: int


class Store(Protocol):
    """Where answers are kept, by keys of 64 hexadecimal digits."""

    async def get(self, key: str) -> Kept | None: ...
    async def put(self, key: str, kept: Kept) -> None: ...
    async def close(self) -> None: ...


class MemoryStore:
    """Answers in this process; those that were not asked for the longest go first.

    Args:
        most_bytes: that all may take.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most, self.bytes = most_bytes, 0
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    async def get(self, key: str) -> Kept | None:
        """An answer; None: there is none."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    async def put(self, key: str, kept: Kept) -> None:
        """Keep an answer, unless it is larger than all may be."""
        if key in self._kept:
            self.bytes -= _size(self._kept.pop(key))
        if _size(kept) > self._most:
            return
        self._kept[key] = kept
        self.bytes += _size(kept)
        while self.bytes > self._most:
            self.bytes -= _size(self._kept.popitem(last=False)[1])

    async def close(self) -> None:
        """There is nothing to end."""


class RedisStore:
    """Answers in Redis, for several gateways. While it does not answer, nothing is kept.

    Args:
        url: `redis://host:port`.

    Raises:
        MissingDependency: the client of Redis is not installed.
    """

    def __init__(self, url: str) -> None:
        if importlib.util.find_spec("redis") is None:
            raise MissingDependency("redis", extra="gateway-redis")
        from redis.asyncio import Redis  # noqa: PLC0415 - only who uses it has it installed

        self._redis = Redis.from_url(
            url, socket_timeout=_REDIS_SECONDS, socket_connect_timeout=_REDIS_SECONDS
        )
        self._again = 0.0

    async def get(self, key: str) -> Kept | None:
        """An answer; None: there is none, or Redis does not answer."""
        content = await self._ask(lambda: self._redis.get(_name(key)))
        try:
            return msgspec.msgpack.decode(content, type=Kept) if content is not None else None
        except msgspec.MsgspecError:  # of another version of this program
            return None

    async def put(self, key: str, kept: Kept) -> None:
        """Keep an answer for a day."""
        content = msgspec.msgpack.encode(kept)
        await self._ask(lambda: self._redis.set(_name(key), content, ex=_KEPT_SECONDS))

    async def close(self) -> None:
        """End the connections."""
        await self._redis.aclose()

    async def _ask(self, question: Callable[[], Awaitable[Any]]) -> Any:
        from redis.exceptions import RedisError  # noqa: PLC0415 - see above

        if time.monotonic() < self._again:
            return None
        try:
            return await question()
        except (RedisError, OSError, TimeoutError) as error:
            self._again = time.monotonic() + _PAUSE_SECONDS
            _log.warning("the response cache does not answer, and requests go on without it: %s", error)
            return None


def _name(key: str) -> str:
    return f"shoal:answer:{key}"


def _size(kept: Kept) -> int:
    headers = sum(len(name) + len(value) for name, value in kept.headers.items())
    return _ENTRY_BYTES + len(kept.content) + headers


def store_of(setting: str) -> Store:
    """The store that `--cache` names: `memory:64MB`, or `redis://host:port`.

    Raises:
        UsageError: it is neither.
        MissingDependency: the client of Redis is not installed.
    """
    if setting.startswith(_SCHEMES):
        return RedisStore(setting)
    found = re.fullmatch(r"memory:(\d{1,9})(KB|MB|GB)", setting)
    if found is None or not int(found[1]):
        raise UsageError(f"--cache {setting} cannot be read", hint="memory:64MB, or redis://host:port")
    return MemoryStore(int(found[1]) * _UNITS[found[2]])


def body_of(call: Call, keeps: Keeps) -> dict[str, Any] | None:
    """The body of a request whose answer is kept; None: it is not, as it would be another one next time."""
    if keeps == "never":
        return None
    try:
        body = orjson.loads(call.body)
        orjson.dumps(body)  # it may be nested too deep to be written
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return None
    if not isinstance(body, dict) or body.get("stream") or body.get("tools"):
        return None
    return body if keeps == "always" or _is_certain(body) else None


def _is_certain(body: Mapping[str, Any]) -> bool:
    """Whether a request of text generation is greedy, or names its seed."""
    temperature, seed = body.get("temperature"), body.get("seed")
    greedy = type(temperature) in (int, float) and temperature == 0
    return greedy or (type(seed) is int and seed != -1)


def key_of(version: str, path: str, body: Mapping[str, Any], whose: str) -> str:
    """The SHA-256 under which an answer is kept.

    Args:
        version: that answers, by the hash of its files.
        path: of the endpoint.
        body: fields in any order.
        whose: the key for which it is kept; "": for all.
    """
    canonical = orjson.dumps([version, path, whose, body], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(canonical).hexdigest()


class Cache:
    """Gives answers again.

    Args:
        store: where they are kept.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def close(self) -> None:
        """End the store's connections."""
        await self._store.close()

    async def answer(
        self, key: str, call: Call, work: Callable[[], Awaitable[Answer]], still: Callable[[], bool]
    ) -> Answer:
        """The answer that is kept, or that of some work, which is kept then.

        Args:
            key: see `key_of`.
            call: whose tokens are counted.
            work: answers the request. What it raises is raised.
            still: whether the version that the key names answers still.
        """
        kept = await self._store.get(key)
        if kept is not None:
            call.meter.add(kept.tokens)
            return Reply(kept.content, headers={**kept.headers, HEADER: "hit"})
        answer = await work()
        if not isinstance(answer, Reply):
            return answer
        if answer.status == 200 and still():
            await self._store.put(key, Kept(answer.content, dict(answer.headers), call.meter.tokens))
        return replace(answer, headers={**answer.headers, HEADER: "miss"})
