"""`make bench-encoders`: an embedder under callers whose texts have different lengths.

Texts have 5 to 120 words. What the machine can do is measured in process: the same texts, sorted by length,
through the tokenizer and the session, in batches of the size that is fastest here. Beside it, turn by turn,
callers in a process of their own ask a service of `shoal serve` over gRPC: one text a call, or 32 texts a
call. A caller sends its next request once it has its answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from clients import AsyncGrpcClient
from export.encoder.rows import TextEncoder
from serving import service
from serving.onnxruntime.options import Options
from serving.onnxruntime.sessions import open_session
from serving.ports import Ports
from shoal import corpus, machine, show
from shoal.manifest import Manifest, served_manifests

WORDS = (5, 120)
TEXTS, BATCHES = 256, (4, 8, 16, 32)
# Callers, and texts of each call.
LOADS = ((1, 1), (8, 1), (16, 1), (32, 1), (4, 32))


def main() -> None:
    """Measure, print a table, and JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load in a block")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        print(json.dumps(asyncio.run(_call(json.loads(options.client)))))
        return
    manifest = next(iter(served_manifests(options.repository, options.model)))
    texts = mixed_texts(TEXTS)
    alone = InProcess(options.repository, manifest)
    running = service.start(options.repository, ports=Ports(0, 0, 0))
    blocks: list[dict[str, Any]] = []
    try:
        for number in range(options.blocks + 1):
            block: dict[str, Any] = {"in process": alone.rate(texts)}
            for callers, size in LOADS:
                asked = {"url": running.grpc, "model": options.model, "callers": callers, "size": size}
                block[f"{callers} x {size}"] = _client(asked | {"seconds": options.seconds})
            if number:  # the first warms up
                blocks.append(block)
    finally:
        service.stop(running)
    rows = {key: _median([block[key] for block in blocks]) for key in blocks[0]}
    out = Console()
    out.print(
        f"{machine.cpu_model()}, {machine.available_cpus()} CPUs, {manifest.precision}, medians of blocks"
    )
    out.print(_table(rows))
    print(json.dumps({"machine": machine.describe(), "rows": rows, "blocks": blocks}))


def mixed_texts(count: int) -> list[str]:
    """Texts of 5 to 120 words, each number of words as likely as another."""
    chance = random.Random(0)  # noqa: S311 - a load, not a secret
    words = " ".join(corpus.passages()).split()
    found = []
    for _ in range(count):
        first = chance.randrange(len(words) - WORDS[1])
        found.append(" ".join(words[first : first + chance.randint(*WORDS)]))
    return found


class InProcess:
    """The tokenizer and the session of a served version, called without a server.

    Args:
        repository: has the version.
        manifest: of the version.
    """

    def __init__(self, repository: Path, manifest: Manifest) -> None:
        tokenizer = next(repository / name for name in manifest.files if name.endswith("tokenizer.json"))
        self._encode = TextEncoder(tokenizer, "text", 256, 0, ("input_ids", "attention_mask"))
        path = repository / manifest.network / str(manifest.version) / "model.onnx"
        self._session = open_session(path, Options.from_config({"instance_group": [{"count": 1}]}))

    def rate(self, texts: list[str]) -> float:
        """Texts per second, sorted by length, in batches of the size that is fastest here."""
        ordered = sorted(texts, key=len)
        return max(self._rate(ordered, size) for size in BATCHES)

    def _rate(self, ordered: list[str], size: int) -> float:
        began = time.perf_counter()
        for first in range(0, len(ordered), size):
            feed = self._encode([{"text": [text]} for text in ordered[first : first + size]])
            self._session.run(None, feed)
        return len(ordered) / (time.perf_counter() - began)


def _client(asked: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.bench_encoders", "--client", json.dumps(asked)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout))


async def _call(asked: dict[str, Any]) -> dict[str, Any]:
    texts = mixed_texts(TEXTS)
    seconds: list[float] = []

    async def caller(client: AsyncGrpcClient, number: int, end: float) -> int:
        chance, done = random.Random(number), 0  # noqa: S311
        while (began := time.perf_counter()) < end:
            await client.embed(chance.choices(texts, k=asked["size"]), model=asked["model"])
            seconds.append(time.perf_counter() - began)
            done += asked["size"]
        return done

    async with AsyncGrpcClient(asked["url"], timeout=60) as client:
        await client.embed(texts[:1], model=asked["model"])
        used, began = time.process_time(), time.perf_counter()
        end = began + asked["seconds"]
        done = await asyncio.gather(*(caller(client, n, end) for n in range(asked["callers"])))
        elapsed, used = time.perf_counter() - began, time.process_time() - used
    low, high = np.percentile(1e3 * np.array(seconds), (50, 99))
    return {
        "rate": sum(done) / elapsed,
        "p50_ms": float(low),
        "p99_ms": float(high),
        "client_cpus": used / elapsed,
    }


def _median(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return {key: statistics.median([value[key] for value in values]) for key in values[0]}
    return statistics.median(values)


def _table(rows: dict[str, Any]) -> Any:
    made = show.table(
        "mixed lengths", ["callers x texts", "#texts/s", "#share", "#p50 ms", "#p99 ms", "#client CPUs"]
    )
    limit = rows["in process"]
    made.add_row("in process, sorted", f"{limit:.0f}", "100%", "", "", "")
    for key, row in rows.items():
        if key != "in process":
            made.add_row(
                key,
                f"{row['rate']:.0f}",
                f"{row['rate'] / limit:.0%}",
                f"{row['p50_ms']:.1f}",
                f"{row['p99_ms']:.1f}",
                f"{row['client_cpus']:.2f}",
            )
    return made


if __name__ == "__main__":
    main()
