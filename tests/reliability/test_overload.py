"""Ten minutes at four times of what the service can do: `make test-overload`.

Texts for all-MiniLM-L6-v2 by NVIDIA's client, and prompts for SmolLM2-135M over plain HTTP, come at random
moments (a Poisson process), whether those before them are answered or not. The time of an answer counts from
the moment in which its request was due. First the most that the service answers is measured; then 0.7 of that
is sent, and then four times of it.

Both models have short queues here (`max_queue_size`), as a promise of latency needs them, and the decoder few
rows (`max_num_seqs`): each request that runs beside others makes all of them slower. Each has a CPU of its
own (`intra_op_thread_count`), so that the one under more load does not take it from the other.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import tritonclient.grpc.aio as triton_grpc
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton
from tritonclient.utils import InferenceServerException

from tests.conftest import ROOT
from tests.reliability import report
from tests.reliability.world import World, world

SECONDS = float(os.environ.get("SHOAL_OVERLOAD_SECONDS", "600"))
BEFORE_SECONDS, CAPACITY_SECONDS, WARM_SECONDS = 0.4 * SECONDS, 40.0, 10.0
CALM, TIMES = 0.7, 4.0
DEADLINE = 30.0  # seconds
TEXTS, PROMPTS = "minilm", "smollm2"
SETTINGS = {
    "minilm_tokenizer": {"max_queue_size": "1"},
    "minilm_encoder": {"intra_op_thread_count": "1"},
    "smollm2": {"max_queue_size": "1", "max_num_seqs": "2", "intra_op_thread_count": "1"},
}
USERS = {TEXTS: 8, PROMPTS: 5}  # who call one after the other while the capacity is measured
WORDS = [
    "fish",
    "whale",
    "ocean",
    "current",
    "shoal",
    "water",
    "deep",
    "light",
    "river",
    "net",
    "boat",
    "storm",
]


@dataclass(frozen=True)
class Ended:
    """How a request ended; times in seconds, from the moment in which it was due."""

    model: str
    seconds: float
    how: str


def _text(chance: random.Random) -> str:
    """Between a sentence and a page."""
    return " ".join(chance.choices(WORDS, k=chance.randint(20, 220)))


class Callers:
    """Sends requests of both models, and keeps how they ended."""

    def __init__(self, service: World, seed: int) -> None:
        self._chance, self.ended = random.Random(seed), list[Ended]()
        self._grpc = triton_grpc.InferenceServerClient(service.grpc)
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self._url = f"http://{service.http}/v2/models/{PROMPTS}/generate"

    async def close(self) -> None:
        await self._grpc.close()
        await self._http.close()

    async def _embed(self) -> None:
        given = triton_grpc.InferInput("text", [1, 1], "BYTES")
        given.set_data_from_numpy(np.array([[_text(self._chance).encode()]], object))
        answer = await self._grpc.infer(TEXTS, [given], client_timeout=DEADLINE)
        assert answer.as_numpy("embedding").shape == (1, 384)

    async def _generate(self) -> None:
        body = {
            "text_input": _text(self._chance)[:200],
            "sampling_parameters": '{"max_tokens": 24, "temperature": 0, "ignore_eos": true}',
            "exclude_input_in_output": True,
        }
        timeout = aiohttp.ClientTimeout(total=DEADLINE)
        async with self._http.post(self._url, json=body, timeout=timeout) as response:
            said = await response.json()
            if response.status != 200:
                raise InferenceServerException(said["error"], status=str(response.status))
            assert said["text_output"]

    async def ask(self, model: str, due: float) -> Ended:
        """One request from beginning to end."""
        call: Callable[[], Awaitable[None]] = {TEXTS: self._embed, PROMPTS: self._generate}[model]
        how = "answered"
        try:
            await call()
        except InferenceServerException as error:
            full = "queue is full" in str(error.message())
            how = "refused" if full else f"{error.status()}: {error.message()}"
        except (TimeoutError, OSError, aiohttp.ClientError) as error:
            how = type(error).__name__
        ended = Ended(model, time.monotonic() - due, how)
        self.ended.append(ended)
        return ended

    async def closed(self, seconds: float) -> dict[str, float]:
        """Answers a second of each model, where so many users ask one after the other."""
        end = time.monotonic() + seconds

        async def user(model: str) -> None:
            while time.monotonic() < end:
                if (await self.ask(model, time.monotonic())).how != "answered":
                    await asyncio.sleep(0.01)

        users = itertools.chain.from_iterable([model] * count for model, count in USERS.items())
        await asyncio.gather(*map(user, users))
        found = Counter(one.model for one in self.ended if one.how == "answered")
        return {model: found[model] / seconds for model in USERS}

    async def open(self, rates: dict[str, float], seconds: float) -> list[Ended]:
        """Requests at these rates, a second, whatever becomes of those before them."""
        self.ended.clear()
        running = set[asyncio.Task[Ended]]()

        async def stream(model: str, rate: float) -> None:
            due = begun = time.monotonic()
            while (due := due + self._chance.expovariate(rate)) < begun + seconds:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                task = asyncio.create_task(self.ask(model, due))
                running.add(task)
                task.add_done_callback(running.discard)

        await asyncio.gather(*(stream(model, rate) for model, rate in rates.items()))
        await asyncio.gather(*running)
        return list(self.ended)


def _percentiles(ended: Sequence[Ended], model: str, how: str) -> dict[str, float]:
    found = [1e3 * one.seconds for one in ended if one.model == model and one.how == how]
    if not found:
        return {"count": 0}
    return {"count": len(found)} | {
        f"p{share}_ms": round(float(np.percentile(found, share)), 1) for share in (50, 90, 99)
    }


def _repository(folder: Path) -> Path:
    """Links to what `shoal export` made, with the settings of this test."""
    made = folder / "model_repository"
    for model in (TEXTS, f"{TEXTS}_tokenizer", f"{TEXTS}_encoder", PROMPTS):
        source = ROOT / "model_repository" / model
        (made / model).mkdir(parents=True)
        for entry in source.iterdir():
            if entry.is_dir():
                (made / model / entry.name).mkdir()
                for file in filter(Path.is_file, entry.iterdir()):  # beside a model may lie bytecode
                    os.link(file, made / model / entry.name / file.name)
        (made / model / "config.pbtxt").write_text(_config(source / "config.pbtxt", SETTINGS.get(model, {})))
    return made


def _config(path: Path, settings: dict[str, str]) -> str:
    config = text_format.Parse(path.read_text(), triton.ModelConfig())
    for key, value in settings.items():
        config.parameters[key].string_value = value
    return str(text_format.MessageToString(config))


async def _run(service: World) -> dict[str, Any]:
    callers = Callers(service, seed=7)
    await callers.closed(WARM_SECONDS)
    callers.ended.clear()
    most = await callers.closed(CAPACITY_SECONDS)
    before = await callers.open({model: CALM * rate for model, rate in most.items()}, BEFORE_SECONDS)
    during = await callers.open({model: TIMES * rate for model, rate in most.items()}, SECONDS)
    await callers.close()
    models = {}
    for model in USERS:
        calm = _percentiles(before, model, "answered")
        admitted = _percentiles(during, model, "answered")
        models[model] = {
            "capacity_per_s": round(most[model], 1),
            "calm": calm,
            "calm_refused": _percentiles(before, model, "refused")["count"],
            "overload_admitted": admitted,
            "overload_refused": _percentiles(during, model, "refused"),
            "admitted_per_s": round(admitted["count"] / SECONDS, 1),
            "p99_times": round(admitted["p99_ms"] / calm["p99_ms"], 2),
        }
    others = Counter(one.how for one in (*before, *during) if one.how not in ("answered", "refused"))
    return {"models": models, "ended_otherwise": dict(others)}


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_overload_is_refused_and_the_admitted_are_served(tmp_path: Path) -> None:
    with world(_repository(tmp_path), tmp_path, own_disk=False) as service:
        found = asyncio.run(_run(service))
        restarts = service.metric("shoal_restarts_total")
    report.write("overload", {"seconds": SECONDS, "times": TIMES, **found, "restarts": restarts})
    assert restarts == 0
    assert not found["ended_otherwise"]
    for model, figures in found["models"].items():
        # What is admitted is as much as without overload, and waits in a short queue.
        assert figures["admitted_per_s"] > 0.5 * figures["capacity_per_s"], model
        assert figures["p99_times"] < 4, model
