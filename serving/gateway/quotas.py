"""How much each key may use: requests and tokens within a minute, and requests at the same time.

Requests are counted exactly, one by one, in a window that moves. Tokens are counted in two windows of a
minute. The earlier one counts by the share of it that is less than a minute ago, as if its tokens had been
used evenly. So any number of tokens takes the same memory.

Rates are counted in this process, or in Redis for several replicas together. Requests at the same time are
always counted in this process, so that one that dies leaves nothing counted.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from limits import RateLimitItemPerMinute
from limits.errors import ConfigurationError, StorageError
from limits.storage import MemoryStorage, storage_from_string

from serving.gateway.keys import Key
from shoal.errors import MissingDependency, ShoalError, UsageError

Which = Literal["requests", "tokens", "concurrent"]
OnError = Literal["refuse", "allow"]
_WINDOW = 60  # seconds
_STORAGE_SECONDS = 1.0  # for each question to Redis
_CONCURRENT_SECONDS = 1.0  # when to try again: nobody knows when a request of the same key ends
_ANY = 1 << 52  # a limit that nothing reaches, which Redis' numbers still hold exactly
_SCHEMES = ("redis", "rediss", "redis+unix")

_log = logging.getLogger(__name__)


class Window(NamedTuple):
    """Where a key stands.

    Args:
        limit: how much it may use in a minute.
        remaining: how much of that it may use now.
        reset_seconds: until all of it may be used again, if the key sends nothing more.
    """

    limit: int
    remaining: int
    reset_seconds: float


class QuotaExceeded(ShoalError):
    """A request that its key may not make now.

    Args:
        which: the limit.
        retry_after_seconds: when to try again, if the key sends nothing else before; None: never, because
            the request alone needs more than the limit.
        limit, remaining, reset_seconds: see `Window`; of "concurrent" in requests.
    """

    def __init__(
        self,
        which: Which,
        retry_after_seconds: float | None,
        limit: int,
        remaining: int,
        reset_seconds: float,
    ) -> None:
        what = {
            "requests": f"this key may make {limit} requests a minute",
            "tokens": f"this key may use {limit} tokens a minute, of which {remaining} are left",
            "concurrent": f"this key may have {limit} requests running at the same time",
        }[which]
        hint = (
            "ask for less in one request: a shorter input, or a smaller max_tokens"
            if retry_after_seconds is None
            else f"try again in {format_seconds(retry_after_seconds)}"
        )
        super().__init__(what, hint=hint)
        self.which = which
        self.retry_after_seconds = retry_after_seconds
        self.limit = limit
        self.remaining = remaining
        self.reset_seconds = reset_seconds


class StorageUnavailable(ShoalError):
    """What counts the rates does not answer, so that it is unknown whether the key may make the request."""


class Grant:
    """A request that may run, until `release`, or until the end of `async with` on it.

    Args:
        key: whose it is.
        requests, tokens: where the key stood just after this request was counted; None: it has no such limit,
            or what counts did not answer and `on_error` is "allow".
        counted: the tokens that are counted for it; None: they are not counted.
    """

    def __init__(self, key: Key, end: Callable[[], None]) -> None:
        self.key = key
        self.requests: Window | None = None
        self.tokens: Window | None = None
        self.counted: int | None = None
        self._end: Callable[[], None] | None = end

    def release(self) -> None:
        """The request has ended; a second call does nothing."""
        end, self._end = self._end, None
        if end is not None:
            end()

    async def __aenter__(self) -> Grant:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Quotas:
    """Counts what keys use.

    Args:
        storage_uri: `memory://`, or where Redis is: `redis://`, `rediss://` or `redis+unix://`.
        on_error: what becomes of requests while Redis does not answer: "refuse" raises `StorageUnavailable`,
            "allow" lets them run uncounted. Requests at the same time are limited in any case.

    Raises:
        UsageError: the address is not one of these.
        MissingDependency: the client of Redis is not installed.
    """

    def __init__(self, storage_uri: str = "memory://", *, on_error: OnError = "refuse") -> None:
        self._rates = _Rates(storage_uri)
        self._on_error = on_error
        self._running: dict[str, int] = {}  # requests that run, by the id of their key
        self._last: dict[str, float] = {}  # when a request was granted last, as `time.time` says
        self._gone = False

    async def take(self, key: Key, tokens_estimate: int) -> Grant:
        """Count a request before it runs. One that is refused counts for nothing.

        Args:
            tokens_estimate: the most that it will use, prompt and answer; `settle` corrects it.

        Raises:
            QuotaExceeded: the key has used up a limit.
            StorageUnavailable: Redis does not answer, and `on_error` is "refuse".
        """
        grant = Grant(key, self._begin(key))
        try:
            grant.tokens = await self._take_tokens(grant, max(0, tokens_estimate))
            try:
                grant.requests = await self._take_request(key)
            except QuotaExceeded:
                await self._correct(grant, 0)
                raise
            if grant.tokens or grant.requests:
                self._answers(True)
        except StorageUnavailable as error:
            self._answers(False, error)
            if self._on_error == "refuse":
                grant.release()
                raise
        except BaseException:
            grant.release()
            raise
        return grant

    async def settle(self, grant: Grant, tokens_used: int) -> None:
        """Correct the tokens of a request to what it has used; call it as often as more is known.

        It never fails, because the answer may be on its way: where Redis does not answer, the estimate stays.
        What a request used beyond its estimate is counted even over the limit: later requests wait for it.
        """
        try:
            await self._correct(grant, max(0, tokens_used))
        except StorageUnavailable as error:
            self._answers(False, error)

    def _begin(self, key: Key) -> Callable[[], None]:
        running, limit = self._running.get(key.id, 0), key.limits.concurrent
        if limit is not None and running >= limit:
            raise QuotaExceeded("concurrent", _CONCURRENT_SECONDS, limit, 0, _CONCURRENT_SECONDS)
        self._running[key.id] = running + 1

        def end() -> None:
            self._running[key.id] -= 1
            if not self._running[key.id]:
                del self._running[key.id]

        return end

    async def _take_tokens(self, grant: Grant, tokens: int) -> Window | None:
        if (limit := grant.key.limits.tokens_per_minute) is None:
            return None
        name = _name(grant.key, "tokens", limit)
        taken = await self._rates.acquire(name, limit, tokens)
        counts = await self._rates.counts(name)
        window = Window(limit, counts.remaining(limit), counts.reset_seconds())
        if not taken:
            raise QuotaExceeded("tokens", counts.wait_seconds(limit, tokens), *window)
        grant.counted = tokens
        return window

    async def _take_request(self, key: Key) -> Window | None:
        if (limit := key.limits.requests_per_minute) is None:
            return None
        name = _name(key, "requests", limit)
        taken = await self._rates.acquire_entry(name, limit)
        oldest, count = await self._rates.moving_window(name, limit)
        now = time.time()
        if taken:
            self._last[key.id] = now
            return Window(limit, max(0, limit - count), float(_WINDOW))
        wait = max(0.001, oldest + _WINDOW - now)
        reset = max(wait, self._last.get(key.id, 0.0) + _WINDOW - now)
        raise QuotaExceeded("requests", wait, limit, max(0, limit - count), reset)

    async def _correct(self, grant: Grant, tokens: int) -> None:
        limit = grant.key.limits.tokens_per_minute
        if grant.counted is None or limit is None:
            return
        name, more = _name(grant.key, "tokens", limit), tokens - grant.counted
        if more < 0:
            # What was counted in an earlier window is not given back: that window fades by itself, and the
            # present one would go on counting less than nothing after it.
            counts = await self._rates.counts(name)
            more = max(more, -counts.current)
        if more:
            await self._rates.acquire(name, _ANY, more)
        grant.counted = tokens

    def _answers(self, answers: bool, error: StorageUnavailable | None = None) -> None:
        """Tell the log when Redis goes and when it comes back."""
        if answers == (not self._gone):
            return
        self._gone = not answers
        if answers:
            _log.warning("rates are counted again")
        else:
            meanwhile = {"refuse": "refused", "allow": "not counted"}[self._on_error]
            _log.error("%s; meanwhile requests of keys with rates are %s", error and error.message, meanwhile)


class Counts(NamedTuple):
    """The tokens of two windows, and in how many seconds each stops counting.

    The present window ends, and becomes the previous one, a minute before it stops counting.
    """

    previous: int
    previous_seconds: float
    current: int
    current_seconds: float

    def remaining(self, limit: int) -> int:
        """How many may be used now."""
        faded = math.floor(self.previous * self.previous_seconds / _WINDOW)
        return max(0, limit - faded - self.current)

    def reset_seconds(self) -> float:
        """Until nothing counts any more."""
        if self.current > 0:
            return self.current_seconds
        return self.previous_seconds if self.previous > 0 else 0.0

    def wait_seconds(self, limit: int, tokens: int) -> float | None:
        """Until so many may be used, if nothing else is; None: they never may."""
        if tokens > limit:
            return None
        room = limit - tokens - self.current  # for what is left of the previous window
        if room >= 0:
            if self.previous <= 0:
                return 0.0
            return max(0.0, self.previous_seconds - room * _WINDOW / self.previous)
        return self.current_seconds - (limit - tokens) * _WINDOW / self.current


def headers(of: Grant | QuotaExceeded) -> dict[str, str]:
    """The headers that OpenAI's clients read: `x-ratelimit-*`, and of a refusal when to try again.

    Where trying again never helps, they say so by `x-should-retry`.
    """
    if isinstance(of, Grant):
        return _rate_headers("requests", of.requests) | _rate_headers("tokens", of.tokens)
    made = {}
    if of.which != "concurrent":
        made = _rate_headers(of.which, Window(of.limit, of.remaining, of.reset_seconds))
    if of.retry_after_seconds is None:
        return made | {"x-should-retry": "false"}
    milliseconds = math.ceil(1000 * of.retry_after_seconds)
    return made | {
        "retry-after": str(max(1, math.ceil(of.retry_after_seconds))),
        "retry-after-ms": str(max(1, milliseconds)),
    }


def _rate_headers(which: str, window: Window | None) -> dict[str, str]:
    if window is None:
        return {}
    return {
        f"x-ratelimit-limit-{which}": str(window.limit),
        f"x-ratelimit-remaining-{which}": str(window.remaining),
        f"x-ratelimit-reset-{which}": format_seconds(window.reset_seconds),
    }


def format_seconds(seconds: float) -> str:
    """A time as OpenAI writes it, rounded up to milliseconds: `17ms`, `1s`, `8.64s`, `6m0s`, `1h0m0s`."""
    milliseconds = math.ceil(round(1000 * max(0.0, seconds), 6))  # 8.64 s are 8640.000000000001 ms
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    tail = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{tail}"
    return f"{minutes}m{tail}" if minutes else tail


def _name(key: Key, which: Which, limit: int) -> str:
    """What counts a limit of a key: a changed limit begins anew."""
    return RateLimitItemPerMinute(limit, namespace="shoal").key_for(key.id, which)


class _Rates:
    """A storage of `limits`: in memory, or Redis, whose answers are not waited for longer than a second.

    In memory it is not the asyncio storage of `limits`, which hands requests to a thread and takes ten times
    as long, but the other one, which never waits.
    """

    def __init__(self, uri: str) -> None:
        scheme = urlsplit(uri).scheme
        self._remote = scheme != "memory"
        if self._remote and scheme not in _SCHEMES:  # the address itself may have a password in it
            raise UsageError(
                f"rates cannot be counted in {scheme or 'that'}", hint="memory:// or redis://HOST:PORT"
            )
        self._storage: Any
        if not self._remote:
            self._storage = MemoryStorage()
            return
        if importlib.util.find_spec("redis") is None:
            raise MissingDependency("redis", extra="gateway-redis")
        try:
            self._storage = storage_from_string(
                f"async+{uri}", wrap_exceptions=True, implementation="redispy"
            )
        except (ConfigurationError, ValueError):  # they quote the address
            raise UsageError("the address of Redis cannot be read", hint="redis://HOST:PORT") from None

    async def acquire_entry(self, name: str, limit: int) -> bool:
        return bool(await self._answer(self._storage.acquire_entry(name, limit, _WINDOW, 1)))

    async def moving_window(self, name: str, limit: int) -> tuple[float, int]:
        oldest, count = await self._answer(self._storage.get_moving_window(name, limit, _WINDOW))
        return float(oldest), int(count)

    async def acquire(self, name: str, limit: int, amount: int) -> bool:
        return bool(
            await self._answer(self._storage.acquire_sliding_window_entry(name, limit, _WINDOW, amount))
        )

    async def counts(self, name: str) -> Counts:
        return Counts(*await self._answer(self._storage.get_sliding_window(name, _WINDOW)))

    async def _answer(self, asked: Any) -> Any:
        if not self._remote:
            return asked
        try:
            return await asyncio.wait_for(asked, _STORAGE_SECONDS)
        except asyncio.TimeoutError:
            why = f"no answer within {_STORAGE_SECONDS:g} s"
        except (StorageError, OSError) as error:
            behind = error.storage_error if isinstance(error, StorageError) else error
            why = type(behind).__name__  # what it says may have the address in it
        raise StorageUnavailable(
            f"Redis cannot count the requests of this key: {why}", hint="try again later"
        )
