"""The client process of `loadtest.bench_stream`: a round of requests at once, told as JSON.

Its CPU time counts from the first request on, so that Python's start is not part of it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton

from clients import AsyncGrpcClient
from clients.generation import request_arrays
from clients.vocabulary import to_inputs
from shoal.dialect import STREAM


async def measure(asked: dict[str, Any]) -> dict[str, Any]:
    """Send the prompts at once, and wait for the last token of all."""
    options = {"max_tokens": asked["tokens"], "ignore_eos": True, "temperature": 0, "timeout": 600}

    async def one(client: AsyncGrpcClient, prompt: str) -> tuple[int, list[float]]:
        if not asked["stream"]:
            await _whole(asked, prompt)
            return asked["tokens"], [time.perf_counter()]
        times, tokens = [], 0
        async for part in client.generate(prompt, model=asked["model"], **options):
            tokens += part.tokens
            times.append(time.perf_counter())
        return tokens, times

    async with AsyncGrpcClient(asked["url"]) as client:
        async for _ in client.generate("Fish", model=asked["model"], max_tokens=2):
            pass
        used, began = time.process_time(), time.perf_counter()
        answers = await asyncio.gather(*(one(client, prompt) for prompt in asked["prompts"]))
        elapsed = time.perf_counter() - began
        used = time.process_time() - used
    gaps = sorted(b - a for _, times in answers for a, b in pairwise(times))
    return {
        "rate": sum(tokens for tokens, _ in answers) / elapsed,
        "first_ms": 1e3 * sorted(times[0] - began for _, times in answers)[len(answers) // 2],
        "gap_ms": 1e3 * gaps[len(gaps) // 2] if gaps else 0.0,
        "parts": sum(len(times) for _, times in answers),
        "cpu_seconds": used,
    }


async def _whole(asked: dict[str, Any], prompt: str) -> None:
    """One response with the whole answer; our own client always streams, so this is NVIDIA's."""
    sampling = {"max_tokens": asked["tokens"], "ignore_eos": True, "temperature": 0}
    inputs = to_inputs(triton.InferInput, request_arrays(prompt, sampling) | {STREAM: np.array([False])})

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": asked["model"], "inputs": inputs}

    async with triton.InferenceServerClient(asked["url"]) as client:
        async for _, error in client.stream_infer(requests()):
            if error is not None:
                raise error


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(json.load(sys.stdin)))))
