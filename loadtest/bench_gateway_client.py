"""The client process of `loadtest.bench_gateway`: how servers are asked for a vector and for an answer.

Nothing of our own clients is used: HTTP is aiohttp's, and gRPC the bare stub that its compiler has made.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import aiohttp
import grpc.aio
import numpy as np
import orjson
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from clients.generation import FLAGS
from loadtest.callers import called
from shoal import corpus, dialect

TOKENS = 32  # of an answer
_WORDS = 12  # of a text
_EMBEDDING = "embedding"
_PROMPTS = (
    "Tell me a long story about a fish.",
    "How does a ship stay afloat?",
    "Write about a walk in the mountains.",
    "Why is the sea salty?",
)


class Asks(Protocol):
    """How one kind of server is asked."""

    async def vector(self, text: str) -> NDArray[np.float32]:
        """The embedding of a text."""
        ...

    def answer(self, prompt: str) -> AsyncIterator[str]:
        """The texts of the parts of an answer of `TOKENS` tokens, chosen greedily."""
        ...


class OpenAI:
    """The API of OpenAI, as its SDK uses it: vectors in base64."""

    def __init__(self, url: str, model: str, session: aiohttp.ClientSession) -> None:
        self._url, self._model, self._session = url, model, session

    async def vector(self, text: str) -> NDArray[np.float32]:
        """See `Asks.vector`."""
        body = {"model": self._model, "input": text, "encoding_format": "base64"}
        async with self._session.post(f"http://{self._url}/v1/embeddings", json=body) as response:
            content = orjson.loads(await response.read())["data"][0]["embedding"]
        return np.frombuffer(b64decode(content), np.float32)

    async def answer(self, prompt: str) -> AsyncIterator[str]:
        """See `Asks.answer`."""
        sampling = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
        body = {"model": self._model, "messages": _conversation(prompt), "stream": True, **sampling}
        async with self._session.post(f"http://{self._url}/v1/chat/completions", json=body) as response:
            async for line in response.content:
                if line.startswith(b"data: [DONE]"):
                    return
                if line.startswith(b"data: "):
                    for choice in orjson.loads(line[6:])["choices"]:
                        if text := choice["delta"].get("content"):
                            yield text
        raise EOFError("the stream has no end")


class Http:
    """Triton's HTTP."""

    def __init__(self, url: str, model: str, session: aiohttp.ClientSession) -> None:
        self._url, self._model, self._session = url, model, session

    async def vector(self, text: str) -> NDArray[np.float32]:
        """See `Asks.vector`."""
        given = {"name": dialect.TEXT, "shape": [1, 1], "datatype": "BYTES", "data": [text]}
        place = f"http://{self._url}/v2/models/{self._model}/infer"
        async with self._session.post(place, json={"inputs": [given]}) as response:
            outputs = orjson.loads(await response.read())["outputs"]
        return np.array(next(each["data"] for each in outputs if each["name"] == _EMBEDDING), np.float32)

    async def answer(self, prompt: str) -> AsyncIterator[str]:
        """See `Asks.answer`."""
        place = f"http://{self._url}/v2/models/{self._model}/generate_stream"
        async with self._session.post(place, json=_generation(prompt)) as response:
            async for line in response.content:
                if line.startswith(b"data: "):
                    yield orjson.loads(line[6:])[dialect.TEXT_OUTPUT]


class Grpc:
    """Triton's gRPC, by the bare stub."""

    def __init__(self, url: str, model: str, stub: service_pb2_grpc.GRPCInferenceServiceStub) -> None:
        self._url, self._model, self._stub = url, model, stub

    async def vector(self, text: str) -> NDArray[np.float32]:
        """See `Asks.vector`."""
        request = pb.ModelInferRequest(model_name=self._model)
        given = request.inputs.add(name=dialect.TEXT, datatype="BYTES", shape=[1, 1])
        given.contents.bytes_contents.append(text.encode())
        response = await self._stub.ModelInfer(request)
        return np.frombuffer(_contents(response)[_EMBEDDING], np.float32)

    async def answer(self, prompt: str) -> AsyncIterator[str]:
        """See `Asks.answer`."""
        request = pb.ModelInferRequest(model_name=self._model)
        for name, value in _generation(prompt).items():
            datatype = "BOOL" if isinstance(value, bool) else "BYTES"
            given = request.inputs.add(name=name, datatype=datatype, shape=[1])
            if isinstance(value, bool):
                given.contents.bool_contents.append(value)
            else:
                given.contents.bytes_contents.append(value.encode())

        async def once() -> AsyncIterator[pb.ModelInferRequest]:
            yield request

        async for message in self._stub.ModelStreamInfer(once()):
            if message.error_message:
                raise EOFError(message.error_message)
            if text := _contents(message.infer_response).get(dialect.TEXT_OUTPUT):  # the last may have none
                yield text[4:].decode(errors="replace")


def _contents(response: pb.ModelInferResponse) -> dict[str, bytes]:
    """The outputs by name."""
    outputs = zip(response.outputs, response.raw_output_contents, strict=True)
    return {output.name: content for output, content in outputs}


def _conversation(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def _generation(prompt: str) -> dict[str, Any]:
    """The inputs that the gateway sends for the same request."""
    sampling = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    return {
        dialect.MESSAGES: json.dumps({"messages": _conversation(prompt), "add_generation_prompt": True}),
        dialect.SAMPLING: json.dumps(sampling),
        dialect.STREAM: True,
        dialect.EXCLUDE_INPUT: True,
        **{name: True for name in (*FLAGS, f"{dialect.RETURN}{dialect.STOP_REASON}")},
    }


@asynccontextmanager
async def _over_http(kind: type[OpenAI | Http], url: str, model: str) -> AsyncIterator[Asks]:
    connector, patience = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        connector=connector, timeout=patience, raise_for_status=True, json_serialize=_json
    ) as session:
        yield kind(url, model, session)


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


@asynccontextmanager
async def _over_grpc(url: str, model: str) -> AsyncIterator[Asks]:
    async with grpc.aio.insecure_channel(url) as channel:
        yield Grpc(url, model, service_pb2_grpc.GRPCInferenceServiceStub(channel))


def asks(protocol: str, url: str, model: str) -> AbstractAsyncContextManager[Asks]:
    """A connection to a server.

    Args:
        protocol: `openai`, `http` or `grpc`, the last two of Triton.
        url: host:port.
        model: its name.
    """
    if protocol == "grpc":
        return _over_grpc(url, model)
    return _over_http(OpenAI if protocol == "openai" else Http, url, model)


async def measure(asked: dict[str, Any]) -> dict[str, float]:
    """One load.

    Texts are others in each request, since Triton may keep answers; prompts are always the same ones.

    Args:
        asked: `protocol`, `url` and `model` as `asks` has them, `load`: `unary` or `stream`, `callers`, and
            `seconds`.

    Returns:
        `requests` and `parts` in all, `rate` and `parts_rate` of them a second, `part_us`: CPU time of this
        process for a part, and `p50_ms` and `p99_ms` of a request, or of the first part of a stream.
    """
    words = " ".join(corpus.passages()).split()
    drawn = random.Random()  # noqa: S311
    firsts: list[float] = []
    parts: list[int] = []
    async with asks(asked["protocol"], asked["url"], asked["model"]) as server:

        async def vector(_: random.Random) -> int:
            began = time.perf_counter()
            await server.vector(" ".join(drawn.choices(words, k=_WORDS)))
            firsts.append(time.perf_counter() - began)
            parts.append(1)
            return 1

        async def answer(chance: random.Random) -> int:
            began, count = time.perf_counter(), 0
            async for _ in server.answer(chance.choice(_PROMPTS)):
                if not count:
                    firsts.append(time.perf_counter() - began)
                count += 1
            parts.append(count)
            return count

        seen = await called(
            vector if asked["load"] == "unary" else answer, asked["callers"], asked["seconds"]
        )
    p50, p99 = np.percentile(1e3 * np.array(firsts[1:]), (50, 99))  # the first one connects
    return {
        "requests": len(parts),
        "rate": seen["rate"] * (len(parts) - 1) / sum(parts[1:]),
        "parts": sum(parts),
        "parts_rate": seen["rate"],
        "part_us": 1e6 * seen["client_cpus"] / seen["rate"],
        "p50_ms": float(p50),
        "p99_ms": float(p99),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--client", required=True, help="JSON, see `measure`")
    print(json.dumps(asyncio.run(measure(json.loads(parser.parse_args().client)))))
