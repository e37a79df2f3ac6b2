"""A peer that serves over HTTP: its server as a child process, and a streaming client."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loadtest.peers.load import Answer, Send, give_up, say

HOST = "127.0.0.1"
# A script of a peer finds `loadtest` from here.
ROOT = Path(__file__).parent.parent.parent


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _healthy(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


class NotServing(Exception):
    """A server that ended, or was not ready in time; the message says so in one line."""


@contextmanager
def running(
    command: Sequence[str | Path], port: int, log: Path, environment: dict[str, str], seconds: float = 600
) -> Iterator[None]:
    """As `serving`, for a script whose only server it is: it ends where the server does not come up."""
    say(f"starting the server (log: {log})")
    start = time.monotonic()
    try:
        with serving(command, port, log, environment, seconds):
            say(f"ready after {time.monotonic() - start:.0f} s")
            yield
    except NotServing as error:
        give_up(str(error))


@contextmanager
def serving(
    command: Sequence[str | Path],
    port: int,
    log: Path,
    environment: dict[str, str],
    seconds: float = 600,
    health: str = "/health",
) -> Iterator[int]:
    """The server, from its first healthy answer on; its process id. It is stopped at the end, however that
    comes.

    Args:
        health: the path that answers 200 once the server is ready.

    Raises:
        NotServing: it does not come up.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=os.environ | environment, cwd=ROOT
        )
    try:
        start = time.monotonic()
        while not _healthy(port, health):
            if process.poll() is not None:
                raise NotServing(f"the server ended with {process.returncode} (log: {log})")
            if time.monotonic() - start > seconds:
                raise NotServing(f"the server is not ready after {seconds:.0f} s (log: {log})")
            time.sleep(0.2)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def sender(
    port: int,
    path: str,
    body: Callable[[list[int]], dict[str, Any]],
    tokens: Callable[[dict[str, Any]], int | None],
) -> Send:
    """Streams one completion per thread. `tokens` finds the number of all its tokens where an event tells."""

    def complete(prompt: list[int]) -> Answer:
        answer = Answer()
        connection = http.client.HTTPConnection(HOST, port, timeout=600)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(body(prompt)), headers)
            response = connection.getresponse()
            if response.status != 200:
                raise OSError(f"{path} answered {response.status}: {response.read(500)!r}")
            for line in response:
                if line.startswith(b"data: {"):
                    answer.times.append(time.perf_counter())
                    answer.tokens = tokens(json.loads(line[6:])) or answer.tokens
        finally:
            connection.close()
        return answer

    def send(prompts: list[list[int]]) -> list[Answer]:
        with ThreadPoolExecutor(len(prompts)) as pool:
            try:
                return list(pool.map(complete, prompts))
            except (OSError, http.client.HTTPException) as error:
                give_up(f"a request failed: {error}")

    return send
