"""Limits of keys: what is let through, what is told to who must wait, and what happens without Redis."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from datetime import datetime, timezone

import pytest

from serving.gateway.keys import Key, Limits
from serving.gateway.quotas import (
    Counts,
    Grant,
    QuotaExceeded,
    Quotas,
    StorageUnavailable,
    Window,
    format_seconds,
    headers,
)
from shoal.errors import UsageError

pytestmark = pytest.mark.anyio
MINUTE = 60.0
START = 29_700_000 * MINUTE  # where a window of tokens begins


def key(
    rpm: int | None = None, tpm: int | None = None, concurrent: int | None = None, name: str = "0" * 12
) -> Key:
    limits = Limits(requests_per_minute=rpm, tokens_per_minute=tpm, concurrent=concurrent)
    return Key(id=name, name="a", created=datetime(2026, 1, 1, tzinfo=timezone.utc), limits=limits)


class Clock:
    def __init__(self) -> None:
        self.at = START

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that `limits` and our own module read."""
    made = Clock()
    monkeypatch.setattr(time, "time", made)
    return made


async def refused(quotas: Quotas, of: Key, tokens: int = 1) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as error:
        await quotas.take(of, tokens)
    return error.value


async def test_requests_in_any_minute(clock: Clock) -> None:
    quotas, mine = Quotas(), key(rpm=3)
    for left in (2, 1, 0):
        grant = await quotas.take(mine, 0)
        assert grant.requests == Window(3, left, 60.0) and grant.tokens is None
        clock.at += 10
    error = await refused(quotas, mine)
    assert (error.which, error.limit, error.remaining) == ("requests", 3, 0)
    assert error.retry_after_seconds == pytest.approx(30)  # the first was 30 s ago
    assert error.reset_seconds == pytest.approx(50)  # the last was 10 s ago
    clock.at += 29.9
    assert (await refused(quotas, mine)).retry_after_seconds == pytest.approx(0.1)
    clock.at += 0.2
    assert (await quotas.take(mine, 0)).requests == Window(3, 0, 60.0)
    assert (await refused(quotas, mine)).retry_after_seconds == pytest.approx(9.9)


async def test_keys_do_not_share_a_limit(clock: Clock) -> None:
    quotas = Quotas()
    await quotas.take(key(rpm=1), 0)
    await quotas.take(key(rpm=1, name="1" * 12), 0)
    await refused(quotas, key(rpm=1))


async def test_tokens_fade_with_the_minute(clock: Clock) -> None:
    quotas, mine = Quotas(), key(tpm=1000)
    clock.at += 30
    assert (await quotas.take(mine, 600)).tokens == Window(1000, 400, 90.0)
    error = await refused(quotas, mine, 700)
    assert (error.which, error.limit, error.remaining, error.reset_seconds) == ("tokens", 1000, 400, 90.0)
    # In 30 s the window ends, and in 30 s more half of the 600 have faded.
    assert error.retry_after_seconds == pytest.approx(60)
    clock.at += 59.5
    assert (await refused(quotas, mine, 700)).retry_after_seconds == pytest.approx(0.5, abs=0.001)
    clock.at += 0.5
    assert (await quotas.take(mine, 700)).tokens == Window(1000, 0, 90.0)


async def test_settling_gives_back_or_takes_what_was_estimated_wrong(clock: Clock) -> None:
    quotas, mine = Quotas(), key(tpm=1000)
    grant = await quotas.take(mine, 900)
    await quotas.settle(grant, 100)
    assert (await quotas.take(mine, 500)).tokens == Window(1000, 400, 120.0)
    await quotas.settle(grant, 100)  # again: nothing changes
    await quotas.settle(grant, 900)
    error = await refused(quotas, mine, 500)
    assert error.remaining == 0
    # 1400 are counted: 500 more fit once 900 of them have faded, in the next minute.
    assert error.retry_after_seconds == pytest.approx(120 - 500 * 60 / 1400)
    clock.at += error.retry_after_seconds or 0.0
    clock.at += 0.1
    await quotas.take(mine, 500)


async def test_what_an_earlier_window_counted_is_not_given_back_to_the_present_one(clock: Clock) -> None:
    quotas, mine = Quotas(), key(tpm=1000)
    grant = await quotas.take(mine, 1000)
    clock.at += 90
    await quotas.settle(grant, 0)
    clock.at += 30
    assert (await quotas.take(mine, 1000)).tokens == Window(1000, 0, 120.0)
    await refused(quotas, mine)


async def test_what_is_larger_than_the_limit_is_never_worth_a_retry(clock: Clock) -> None:
    quotas, mine = Quotas(), key(tpm=1000)
    error = await refused(quotas, mine, 1001)
    assert error.retry_after_seconds is None and error.remaining == 1000 and "max_tokens" in str(error)
    assert headers(error) == {
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "1000",
        "x-ratelimit-reset-tokens": "0s",
        "x-should-retry": "false",
    }


async def test_a_request_that_is_refused_counts_for_nothing(clock: Clock) -> None:
    quotas, mine = Quotas(), key(rpm=1, tpm=1000, concurrent=1)
    async with await quotas.take(mine, 100):
        assert (await refused(quotas, mine, 100)).which == "concurrent"
    for _ in range(50):
        assert (await refused(quotas, mine, 100)).which == "requests"
        assert (await refused(quotas, mine, 901)).which == "tokens"
    clock.at += 60.1
    async with await quotas.take(mine, 0) as grant:
        assert grant.requests == Window(1, 0, 60.0) and grant.tokens is not None
        assert grant.tokens.remaining == 1000 - 99  # the 100 of a minute ago fade


async def test_requests_at_the_same_time() -> None:
    quotas, mine = Quotas(), key(concurrent=2)
    first = await quotas.take(mine, 0)
    async with await quotas.take(mine, 0):
        error = await refused(quotas, mine)
        assert (error.which, error.limit, error.remaining) == ("concurrent", 2, 0)
        assert headers(error) == {"retry-after": "1", "retry-after-ms": "1000"}
    again = await quotas.take(mine, 0)
    first.release()
    first.release()  # the second call gives no second place
    await quotas.take(mine, 0)
    await refused(quotas, mine)
    again.release()
    with pytest.raises(RuntimeError):
        async with await quotas.take(mine, 0):
            raise RuntimeError
    await quotas.take(mine, 0)


async def test_many_at_once_get_exactly_what_there_is() -> None:
    quotas, mine = Quotas(), key(rpm=50)
    done = await asyncio.gather(*(quotas.take(mine, 0) for _ in range(200)), return_exceptions=True)
    assert sum(isinstance(one, Grant) for one in done) == 50


@pytest.mark.parametrize(
    ("counts", "limit", "tokens", "remaining", "reset", "wait"),
    [
        ((0, 0.0, 0, 0.0), 100, 100, 100, 0.0, 0.0),
        ((100, 60.0, 0, 120.0), 100, 10, 0, 60.0, 6.0),
        ((100, 30.0, 0, 90.0), 100, 50, 50, 30.0, 0.0),
        ((100, 30.0, 50, 90.0), 100, 25, 0, 90.0, 15.0),
        ((0, 0.0, 80, 70.0), 100, 60, 20, 70.0, 40.0),
        ((0, 0.0, 80, 70.0), 100, 100, 20, 70.0, 70.0),
        ((0, 0.0, 300, 70.0), 100, 1, 0, 70.0, 50.2),
        ((0, 0.0, 0, 0.0), 100, 101, 100, 0.0, None),
    ],
)
def test_what_two_windows_mean(
    counts: tuple[int, float, int, float],
    limit: int,
    tokens: int,
    remaining: int,
    reset: float,
    wait: float | None,
) -> None:
    made = Counts(*counts)
    assert made.remaining(limit) == remaining and made.reset_seconds() == reset
    assert made.wait_seconds(limit, tokens) == (wait if wait is None else pytest.approx(wait))


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "0s"),
        (-1, "0s"),
        (0.0000001, "1ms"),
        (0.0001, "1ms"),
        (0.017, "17ms"),
        (0.9999, "1s"),
        (1, "1s"),
        (8.64, "8.64s"),
        (10, "10s"),
        (59.9999, "1m0s"),
        (90.951, "1m30.951s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
    ],
)
def test_times_are_written_as_openai_writes_them(seconds: float, written: str) -> None:
    assert format_seconds(seconds) == written


async def test_headers(clock: Clock) -> None:
    quotas, mine = Quotas(), key(rpm=1, tpm=1000)
    assert headers(await quotas.take(mine, 250)) == {
        "x-ratelimit-limit-requests": "1",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "750",
        "x-ratelimit-reset-tokens": "2m0s",
    }
    clock.at += 12.3456
    assert headers(await refused(quotas, mine)) == {
        "x-ratelimit-limit-requests": "1",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "47.655s",
        "retry-after": "48",
        "retry-after-ms": "47655",
    }
    assert headers(await quotas.take(key(), 10**9)) == {}


async def test_replicas_share_what_redis_counts(redis: str) -> None:
    one, other, mine = Quotas(redis), Quotas(redis), key(rpm=2, tpm=1000)
    grant = await one.take(mine, 600)
    assert grant.tokens is not None and grant.tokens.remaining == 400
    assert (await refused(other, mine, 500)).which == "tokens"
    await one.settle(grant, 100)
    assert (
        headers(await other.take(mine, 500)).items()
        >= {
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-remaining-tokens": "400",
        }.items()
    )
    error = await refused(one, mine, 100)
    assert error.which == "requests" and 50 < (error.retry_after_seconds or 0.0) <= 60
    await one.settle(grant, 5000)
    assert (await refused(other, mine, 1)).which == "tokens"


async def test_without_redis_requests_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    quotas, mine = Quotas("redis://:pass-word@127.0.0.1:1"), key(rpm=5, concurrent=1)
    for _ in range(3):  # each gives back its place
        with pytest.raises(StorageUnavailable, match="Redis cannot count") as error:
            await quotas.take(mine, 1)
        assert "pass-word" not in str(error.value) + caplog.text
    assert len(caplog.records) == 1 and "are refused" in caplog.text
    async with await quotas.take(key(concurrent=1), 1):  # nothing of it is counted in Redis
        await refused(quotas, key(concurrent=1))


async def test_without_redis_requests_run_if_that_is_wanted(caplog: pytest.LogCaptureFixture) -> None:
    quotas, mine = Quotas("redis://127.0.0.1:1", on_error="allow"), key(rpm=1, tpm=1, concurrent=1)
    for _ in range(3):
        async with await quotas.take(mine, 1) as grant:
            assert headers(grant) == {}
            assert (await refused(quotas, mine)).which == "concurrent"
        await quotas.settle(grant, 100)
    assert len(caplog.records) == 1 and "are not counted" in caplog.text


async def test_redis_may_go_and_come_back(redis: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "serving.gateway.quotas")
    quotas, mine = Quotas(redis), key(tpm=1000)
    grant = await quotas.take(mine, 100)
    working = quotas._rates._storage.acquire_sliding_window_entry
    quotas._rates._storage.acquire_sliding_window_entry = lambda *_: asyncio.sleep(60)  # it hangs
    with pytest.raises(StorageUnavailable, match="no answer within 1 s"):
        await quotas.take(mine, 100)
    await quotas.settle(grant, 0)  # which never fails
    quotas._rates._storage.acquire_sliding_window_entry = working
    assert (await quotas.take(mine, 100)).tokens is not None
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


@pytest.mark.parametrize(
    "uri", ["", "memcached://127.0.0.1", "redis+cluster://:pass-word@h", "redis://h:port"]
)
def test_an_address_that_is_none_is_refused(uri: str) -> None:
    with pytest.raises(UsageError) as error:
        Quotas(uri)
    assert "pass-word" not in str(error.value)


async def test_a_request_that_was_cancelled_gives_back_its_place() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        quotas = Quotas(f"redis://127.0.0.1:{silent.getsockname()[1]}")
        task = asyncio.create_task(quotas.take(key(rpm=1, concurrent=1), 0))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await quotas.take(key(concurrent=1), 0)
