"""What cannot be sent is told at once and in the same words by all three clients, as is a closed client."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clients import AsyncGrpcClient, BadInput, ClientError, GrpcClient, HttpClient, Timeout
from serving.embedded import Server

NOBODY = "127.0.0.1:1"
DEEP: Any = []
for _ in range(5000):
    DEEP = [DEEP]
SECONDS = "it must be a number of seconds above zero"
CALLS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda c: c.generate("Hi", timeout=0), f"timeout is 0, {SECONDS}"),
    (lambda c: c.generate("Hi", timeout=float("inf")), f"timeout is inf, {SECONDS}"),
    (lambda c: c.generate("Hi", timeout=1e30), f"timeout is 1e\\+30, {SECONDS}"),
    (lambda c: c.generate("Hi", timeout="x"), f"timeout is str, {SECONDS}"),
    (lambda c: c.generate("Hi", request_id=5), "request_id is int, not str"),
    (lambda c: c.generate("Hi", request_id="\ud800"), "request_id cannot be encoded as UTF-8"),
    (lambda c: c.generate("Hi", model=None), "model is NoneType, not str"),
    (
        lambda c: c.generate("Hi", structured_outputs={"json": DEEP}),
        "sampling parameters are nested",
    ),
    (lambda c: c.chat([], timeout=-1), f"timeout is -1, {SECONDS}"),
    (lambda c: c.chat([], model=["m"]), "model is list, not str"),
    (lambda c: c.chat([], logit_bias=object()), "sampling parameters cannot be written as JSON"),
    (lambda c: c.predict([[1.0]], model=["m"]), "model is list, not str"),
    (lambda c: c.embed(["a"], timeout=10**400), f"timeout is inf, {SECONDS}"),
    (lambda c: c.embed(None), "texts is NoneType, not a list"),
    (lambda c: c.embed(text for text in "ab"), "texts is generator, not a list"),
    (lambda c: c.embed({"a": 1}), "texts is dict, not a list"),
    (lambda c: c.embed([]), "texts is empty"),
    (lambda c: c.embed("a text"), "texts is one string"),
    (lambda c: c.embed(["a"], batch_size=0), "batch_size is 0, it must be a whole number above zero"),
    (lambda c: c.embed(["a"], batch_size="3"), "batch_size is '3', it must be"),
    (lambda c: c.embed(["a"], timeout=float("nan")), f"timeout is nan, {SECONDS}"),
    (lambda c: c.embed(["a"], timeout="5"), f"timeout is str, {SECONDS}"),
    (lambda c: c.embed(["a"], model="\ud800"), "model cannot be encoded as UTF-8"),
    (lambda c: c.embed(["a"], model=""), "model is empty"),
    (lambda c: c.classify(None, model="m"), "texts is NoneType, not a list"),
    (lambda c: c.classify_images(None, model="m"), "files is NoneType, not a list"),
    (lambda c: c.metadata(None), "model is NoneType, not str"),
    (lambda c: c.config("\ud800"), "model cannot be encoded as UTF-8"),
    (lambda c: c.ready(None), "model is NoneType, not str"),
    (lambda c: c.infer("m", None), "inputs is NoneType, not arrays by their names"),
    (
        lambda c: c.infer("m", {"text": np.array([["\ud800"]], object)}),
        "input text cannot be encoded",
    ),
    (lambda c: c.infer("m", {}, version=1), "version is int, not str"),
]


@pytest.mark.parametrize("kind", [GrpcClient, HttpClient, AsyncGrpcClient])
def test_what_cannot_be_sent_is_bad_input(kind: Any) -> None:
    async def ask_all() -> None:
        client = kind(NOBODY)
        for call, said in CALLS:
            with pytest.raises(BadInput, match=f"^{said}"):
                made = call(client)
                if inspect.isawaitable(made):
                    await made
        closed = client.close()
        if inspect.isawaitable(closed):
            await closed

    asyncio.run(ask_all())
    for timeout in (0, float("nan"), "1"):
        with pytest.raises(BadInput, match="timeout is"):
            kind(NOBODY, timeout=timeout)


@pytest.mark.parametrize("kind", [GrpcClient, HttpClient])
def test_a_closed_client_says_so(kind: Any) -> None:
    with kind(NOBODY) as client:
        pass
    for call in (
        lambda: client.embed(["a"]),
        lambda: client.metadata("m"),
        client.ready,
        lambda: client.generate("Hi"),
    ):
        with pytest.raises(ClientError, match="^the client is closed"):
            call()


def test_a_closed_asyncio_client_says_so(decoder_server: Server) -> None:
    async def close_it() -> None:
        client = AsyncGrpcClient(decoder_server.grpc, timeout=300)
        parts = client.generate("Fish swim in", max_tokens=1500, ignore_eos=True)
        assert await anext(parts)
        await client.close()
        with pytest.raises(ClientError, match="^the client is closed"):
            async for _ in parts:
                pass
        with pytest.raises(ClientError, match="^the client is closed"):
            await client.embed(["a"])

    asyncio.run(close_it())


@pytest.mark.parametrize("kind", [GrpcClient, HttpClient])
def test_a_closed_client_ends_its_streams(decoder_server: Server, kind: Any) -> None:
    client = kind(getattr(decoder_server, "http" if kind is HttpClient else "grpc"), timeout=300)
    parts = client.generate("Fish swim in", max_tokens=1500, ignore_eos=True)
    assert next(parts)
    client.close()
    with pytest.raises(ClientError, match="^the client is closed"):
        list(parts)


def test_a_reader_that_is_slow_meets_the_deadline_in_each_client(decoder_server: Server) -> None:
    options: dict[str, Any] = {"max_tokens": 30, "ignore_eos": True, "temperature": 0, "timeout": 2.0}

    async def slowly() -> None:
        async with AsyncGrpcClient(decoder_server.grpc) as client:
            async for _ in client.generate("Fish swim in", **options):
                await asyncio.sleep(0.3)

    for kind, address in ((GrpcClient, decoder_server.grpc), (HttpClient, decoder_server.http)):
        with kind(address) as client, pytest.raises(Timeout):
            for _ in client.generate("Fish swim in", **options):
                time.sleep(0.3)
    with pytest.raises(Timeout):
        asyncio.run(slowly())
