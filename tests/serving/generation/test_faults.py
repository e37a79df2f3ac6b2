"""Many callers at once, callers who leave, and what is killed: on the real server."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import numpy as np
import psutil
import pytest

from clients import (
    AsyncGrpcClient,
    ClientError,
    GrpcClient,
    HttpClient,
    Overloaded,
    Timeout,
)
from serving import probe
from serving.embedded import Server, running, start, stop, stubs
from serving.ports import Ports
from shoal import corpus
from shoal.manifest import manifests
from tests.serving.generation.metrics import metric, settled

Client = GrpcClient | HttpClient
PROMPT = "Fish swim in shoals because"


def test_asyncio_streams_run_side_by_side_and_cancel(decoder_server: Server) -> None:
    async def scenario() -> list[str]:
        async with AsyncGrpcClient(decoder_server.grpc, timeout=300) as client:
            long = client.generate(PROMPT, max_tokens=1500, temperature=0, ignore_eos=True)
            await anext(long)
            answers = await asyncio.gather(
                *(client.complete(f"{PROMPT} {n}", max_tokens=8, temperature=0) for n in range(12))
            )
            await long.aclose()
            return [answer.text for answer in answers]

    cancelled = metric(decoder_server, "requests_total", 'reason="cancelled"')
    answers = asyncio.run(scenario())
    assert len(answers) == 12
    assert settled(decoder_server, "requests_total", cancelled + 1, 'reason="cancelled"')
    assert settled(decoder_server, "running")


def test_a_caller_who_leaves_is_not_generated_for(decoder_client: Client, decoder_server: Server) -> None:
    parts = decoder_client.generate(PROMPT, max_tokens=1900, temperature=0, ignore_eos=True)
    before = metric(decoder_server, "output_tokens_total")
    next(parts)
    parts.close()
    deadline, tokens = time.monotonic() + 20, -1.0
    while time.monotonic() < deadline and tokens != (tokens := metric(decoder_server, "output_tokens_total")):
        time.sleep(1.0)  # metrics are published four times a second
    assert tokens - before < 1000 and settled(decoder_server, "running")


def test_a_deadline_ends_a_long_answer(decoder_client: Client, decoder_server: Server) -> None:
    with pytest.raises(Timeout, match="deadline"):
        decoder_client.complete(PROMPT, max_tokens=2000, ignore_eos=True, timeout=0.7)
    assert settled(decoder_server, "running")


def test_bad_requests_at_once_neither_kill_nor_hold_the_server(decoder_repository: Path) -> None:
    """A stream that is cancelled as its request ends makes Triton 2.51 crash, or keep the model for ever."""
    server = start(decoder_repository, Ports(0, 0, 0))

    def ask(number: int) -> str:
        try:
            return str(client.complete(PROMPT, max_tokens=-5 if number % 2 else 4).output_tokens)
        except ClientError as error:
            return type(error).__name__

    try:
        with GrpcClient(server.grpc, timeout=300) as client, ThreadPoolExecutor(16) as pool:
            ends = Counter(pool.map(ask, range(160)))
        assert ends["BadInput"] == 80 and ends["4"] >= 70, ends
        assert server.alive
    finally:
        in_order = stop(server)
    assert in_order


def test_a_client_that_reads_a_byte_a_second_holds_up_nobody(decoder_server: Server) -> None:
    body = json.dumps({"text_input": PROMPT, "stream": True, "sampling_parameters": '{"max_tokens": 400}'})
    host, port = decoder_server.http.split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        head = "POST /v2/models/smollm2/generate_stream HTTP/1.1\r\nHost: x"
        slow.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        slow.recv(1)
        with GrpcClient(decoder_server.grpc, timeout=300) as client:
            assert client.complete(PROMPT, max_tokens=16, temperature=0).output_tokens == 16
        slow.recv(1)
        assert settled(decoder_server, "running")  # its answer was made, and waits for it


def _prompts(count: int) -> list[str]:
    return [text for text in corpus.texts(4 * count, words=(14, 0.5), seed=5) if len(text) > 20][:count]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [4, 64])
def test_answers_do_not_depend_on_who_joins_and_leaves(
    count: int, decoder_repository: Path, tmp_path: Path
) -> None:
    """Prompts alone, and while up to 31 others run; fp32 and int4 exactly, int8 to 99 %."""
    for manifest in manifests(decoder_repository, "smollm2"):
        repository = tmp_path / manifest.precision
        model = repository / "smollm2"
        version = str(manifest.version)
        shutil.copytree(decoder_repository / "smollm2" / version, model / version, copy_function=os.link)
        config = (decoder_repository / "smollm2" / "config.pbtxt").read_text()
        served = config.replace(config[config.index("versions:") :].split("\n")[0], f"versions: {version}")
        (model / "config.pbtxt").write_text(served)
        prompts = _prompts(count)
        with running(repository) as server, GrpcClient(server.grpc, timeout=240) as client:

            def ask(prompt: str, client: GrpcClient = client) -> str:
                return client.complete(prompt, max_tokens=16, temperature=0, ignore_eos=True).text

            alone = [ask(prompt) for prompt in prompts]
        with (
            running(repository) as server,
            GrpcClient(server.grpc, timeout=240) as client,
            ThreadPoolExecutor(32) as pool,
        ):
            together = list(pool.map(lambda prompt: ask(prompt, client), prompts))
        same = np.mean([a == b for a, b in zip(alone, together, strict=True)])
        print(f"{manifest.precision}: {same:.1%} of {count} answers are the same alone and among 31 others")
        assert same >= (0.99 if manifest.precision == "int8" else 1.0), manifest.precision


def _footprint(server: Server) -> tuple[int, int, int]:
    """Threads, open files and shared-memory regions of the server and its stubs."""
    processes = [psutil.Process(server.pid), *stubs(server)]
    regions = len(list(Path("/dev/shm").glob(f"shoal_{server.folder.name}_*")))
    return sum(p.num_threads() for p in processes), sum(p.num_fds() for p in processes), regions


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_requests_at_once_are_answered_or_refused(
    decoder_repository: Path, tmp_path: Path
) -> None:
    """And nothing is left of them: no row, thread, file or shared memory."""
    repository = Path(shutil.copytree(decoder_repository, tmp_path / "r", copy_function=os.link))
    with running(repository) as server:

        async def flood(count: int) -> list[str]:
            async with AsyncGrpcClient(server.grpc, timeout=300) as client:

                async def one(number: int) -> str:
                    parts = client.generate(f"{number} fish", max_tokens=2 + number % 3, temperature=0)
                    try:
                        async for _ in parts:
                            if number % 7 == 0:
                                await parts.aclose()
                                return "left"
                        return "answered"
                    except ClientError as error:
                        return type(error).__name__

                return await asyncio.gather(*(one(number) for number in range(count)))

        asyncio.run(flood(64))
        assert settled(server, "running")
        before = _footprint(server)
        outcomes = asyncio.run(flood(1000))
        kinds = {kind: outcomes.count(kind) for kind in set(outcomes)}
        print(f"1,000 requests at once: {kinds}")
        assert set(kinds) <= {"answered", "left", Overloaded.__name__} and kinds["answered"] >= 200
        assert settled(server, "running") and settled(server, "waiting")
        after = _footprint(server)
        # Triton keeps its pools of threads and connections; what grows with requests would be hundreds.
        assert all(later - earlier < 40 for earlier, later in zip(before, after, strict=True)), (
            before,
            after,
        )
        with GrpcClient(server.grpc) as client:
            assert client.complete(PROMPT, max_tokens=4).output_tokens == 4


def test_a_killed_stub_ends_streams_by_their_deadline(decoder_repository: Path, tmp_path: Path) -> None:
    repository = Path(shutil.copytree(decoder_repository, tmp_path / "r", copy_function=os.link))
    with running(repository) as server, GrpcClient(server.grpc, timeout=8.0) as client:
        ended: Queue[str] = Queue()

        def stream() -> None:
            try:
                for _ in client.generate(PROMPT, max_tokens=2000, ignore_eos=True):
                    pass
                ended.put("answered")
            except ClientError as error:
                ended.put(type(error).__name__)

        threads = [threading.Thread(target=stream) for _ in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(1.5)
        for stub in stubs(server):
            os.kill(stub.pid, signal.SIGKILL)
        outcomes = [ended.get(timeout=20) for _ in threads]
        for thread in threads:
            thread.join(5)
        print(f"streams under a killed stub: {sorted(outcomes)}")
        assert set(outcomes) <= {"Timeout", "Unavailable", "ServerFault"}
        assert probe.problem(server.http, timeout=3.0) is not None
