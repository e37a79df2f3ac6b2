"""The client process of `loadtest.bench_rows`, and how it asks each server for the labels of one row."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio

from clients import AsyncGrpcClient
from clients.answers import Label, classify_rows, images, kinds_of
from clients.vocabulary import to_arrays, to_inputs
from loadtest.callers import called

FOREST_CLASSES = ("benign", "malignant")  # in scikit-learn's order
# The features of a row, or the content of a picture's file.
Row = list[float] | bytes
Classify = Callable[[Row], Awaitable[list[Label]]]


def rows_of(place: Path) -> list[Row]:
    """The rows of a JSON file, or the pictures of a folder."""
    if place.is_dir():
        return [file.read_bytes() for file in sorted(place.glob("*.jpg"))]
    return list(json.loads(place.read_text()))


@asynccontextmanager
async def _grpc(url: str, model: str) -> AsyncIterator[Classify]:
    """Our client."""
    async with AsyncGrpcClient(url) as client:

        async def classify(row: Row) -> list[Label]:
            if isinstance(row, bytes):
                return (await client.classify_images([row], model=model))[0]
            return (await client.classify_rows([row], model=model))[0]

        yield classify


@asynccontextmanager
async def _http(url: str, model: str) -> AsyncIterator[Classify]:
    """NVIDIA's asyncio client, since our own over HTTP blocks: it is aiohttp, as the peer's client is."""
    async with triton_aio.InferenceServerClient(url) as client:
        kinds = kinds_of(await client.get_model_metadata(model))

        async def classify(row: Row) -> list[Label]:
            (call,) = images([row], 1) if isinstance(row, bytes) else classify_rows([row], kinds, 1)
            result = await client.infer(model, to_inputs(triton.InferInput, call.inputs))
            names = [output["name"] for output in result.get_response()["outputs"]]
            return call.read(to_arrays(result, names))[0]

        yield classify


@asynccontextmanager
async def _fastapi(url: str, model: str) -> AsyncIterator[Classify]:
    """The peer, whose server has one model."""
    async with aiohttp.ClientSession(raise_for_status=True) as session:

        async def classify(row: Row) -> list[Label]:
            given: dict[str, Any] = (
                {"data": row, "headers": {"Content-Type": "image/jpeg"}}
                if isinstance(row, bytes)
                else {"json": {"features": row}}
            )
            async with session.post(f"http://{url}/classify", **given) as response:
                return [Label(**label) for label in await response.json()]

        yield classify


@asynccontextmanager
async def _mlserver(url: str, model: str) -> AsyncIterator[Classify]:
    """MLServer over HTTP: probabilities in the order of scikit-learn's classes, which it does not name."""
    async with aiohttp.ClientSession(raise_for_status=True) as session:

        async def classify(row: Row) -> list[Label]:
            entry = {"name": "rows", "shape": [1, len(row)], "datatype": "FP64", "data": row}
            asked = {"inputs": [entry], "outputs": [{"name": "predict_proba"}]}
            async with session.post(f"http://{url}/v2/models/{model}/infer", json=asked) as response:
                scores = (await response.json())["outputs"][0]["data"]
            found = [Label(name, score) for name, score in zip(FOREST_CLASSES, scores, strict=True)]
            return sorted(found, key=lambda label: -label.score)

        yield classify


WAYS: dict[str, Callable[[str, str], AbstractAsyncContextManager[Classify]]] = {
    "Shoal, gRPC": _grpc,
    "Shoal, HTTP": _http,
    "FastAPI": _fastapi,
    "FastAPI, scikit-learn": _fastapi,
    "MLServer": _mlserver,
}


async def answers(way: str, url: str, model: str, rows: Sequence[Row]) -> list[list[Label]]:
    """The labels of rows, asked one after the other."""
    async with WAYS[way](url, model) as classify:
        return [await classify(row) for row in rows]


async def measure(asked: dict[str, Any]) -> dict[str, float]:
    """One load: see `loadtest.callers.called`."""
    rows = rows_of(Path(asked["rows"]))
    async with WAYS[asked["way"]](asked["url"], asked["model"]) as classify:

        async def ask(chance: random.Random) -> int:
            await classify(chance.choice(rows))
            return 1

        return await called(ask, asked["callers"], asked["seconds"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--client", required=True, help="JSON: way, url, model, rows, callers, seconds")
    print(json.dumps(asyncio.run(measure(json.loads(parser.parse_args().client)))))
