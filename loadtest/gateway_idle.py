"""Streams through the gateway in which nothing happens for now: what they cost, and whether all of them end.

The client is a process of its own. It says as JSON how many streams have begun, waits for a line, and says
how many have ended as they should.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from typing import Any

import aiohttp
import psutil

from loadtest.gateway_stub import IDLE
from shoal.machine import allow_all_files

_FILES = 500  # of a process beside its connections
_AT_ONCE = 200  # that begin at the same time
_QUIET_SECONDS = 5.0
_END_SECONDS = 120.0


def measure(gateway: int, url: str, stub: str, streams: int) -> dict[str, float]:
    """Open streams, look at the gateway, and let them end.

    Args:
        gateway: process id.
        url: host:port of the gateway.
        stub: host:port of the stub's HTTP behind it.
        streams: how many; fewer are opened where the system does not allow so many files.

    Returns:
        `streams` that had begun and `ended` of them, `rss_before` and `rss` of the gateway in bytes, `cpus`
        that it used meanwhile, `end_seconds` until the last one had ended.
    """
    process = psutil.Process(gateway)
    asked = {"url": url, "streams": min(streams, allow_all_files() - _FILES)}
    before = process.memory_info().rss
    command = [sys.executable, "-m", "loadtest.gateway_idle", "--client", json.dumps(asked)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin is not None and client.stdout is not None  # noqa: S101
        begun = json.loads(client.stdout.readline())
        used = sum(process.cpu_times()[:2])
        time.sleep(_QUIET_SECONDS)
        cpus = (sum(process.cpu_times()[:2]) - used) / _QUIET_SECONDS
        rss = process.memory_info().rss
        client.stdin.write("\n")
        client.stdin.flush()
        urllib.request.urlopen(urllib.request.Request(f"http://{stub}/end", method="POST")).close()
        ended = json.loads(client.stdout.readline())
    return {**begun, **ended, "rss_before": before, "rss": rss, "cpus": cpus}


async def client(asked: dict[str, Any]) -> None:
    """Open the streams, and read them to their ends."""
    few = asyncio.Semaphore(_AT_ONCE)
    told = asyncio.Event()
    begun = 0
    body = {"model": IDLE, "messages": [{"role": "user", "content": "Wait."}], "stream": True}
    connector, patience = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        f"http://{asked['url']}", connector=connector, timeout=patience, raise_for_status=True
    ) as session:

        async def one() -> bool:
            nonlocal begun
            async with few:
                response = await session.post("/v1/chat/completions", json=body)
                await response.content.readline()
            begun += 1
            if begun == asked["streams"]:
                told.set()
            rest = await response.read()
            return b'"finish_reason":"length"' in rest and rest.endswith(b"data: [DONE]\n\n")

        streams = [asyncio.ensure_future(one()) for _ in range(asked["streams"])]
        failed: asyncio.Future[Any] = asyncio.gather(*streams)
        all_begun: asyncio.Future[Any] = asyncio.ensure_future(told.wait())
        await asyncio.wait({failed, all_begun}, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            failed.result()
        print(json.dumps({"streams": begun}), flush=True)  # noqa: T201
        await asyncio.to_thread(sys.stdin.readline)
        began = time.perf_counter()
        done, _ = await asyncio.wait(streams, timeout=_END_SECONDS)
        ended = sum(not stream.exception() and stream.result() for stream in done)
        print(json.dumps({"ended": ended, "end_seconds": time.perf_counter() - began}))  # noqa: T201


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--client", required=True, help="JSON: url, streams")
    asyncio.run(client(json.loads(parser.parse_args().client)))
