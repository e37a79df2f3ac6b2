"""`make bench-encoders`: an embedder under callers whose texts have different lengths.

Texts have 5 to 120 words. What the machine can do is measured in process: the same texts, sorted by length,
through the tokenizer and the session, in batches of the size that is fastest here. Beside it, turn by turn,
callers in a process of their own ask a service of `shoal serve` over gRPC: one text a call, or 32 texts a
call. A caller sends its next request once it has its answer. The same callers ask the peers for the same
texts: infinity's server, made of the checkpoint that the served version was made from, over HTTP. All servers
run all the time, and one of them is asked at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from clients import AsyncGrpcClient
from export.checkpoint.source import check_source, find_checkpoint
from export.encoder.rows import TextEncoder
from loadtest.callers import called, in_a_process, medians
from loadtest.peers.environment import kept_by, served_by
from loadtest.peers.server import NotServing
from serving import service
from serving.onnxruntime.options import Options
from serving.onnxruntime.sessions import open_session
from serving.placement import on_gpu
from serving.ports import Ports
from shoal import corpus, machine, model_config, show
from shoal.errors import ShoalError
from shoal.manifest import Manifest, served_manifests
from shoal.progress import Bars

WORDS = (5, 120)
TEXTS, BATCHES = 256, (4, 8, 16, 32)
# Callers, and texts of each call.
LOADS = ((1, 1), (8, 1), (16, 1), (32, 1), (4, 32))
OURS = "Shoal, gRPC"
# The engines of infinity, by what they are called here.
PEERS = {"infinity-torch": "torch", "infinity-optimum": "optimum"}
# Cosine of a peer's vector and ours; below it is another model, or one that pools otherwise, and not INT8.
ALIKE = 0.98
Embed = Callable[[Sequence[str]], Awaitable[NDArray[np.float32]]]
err = Console(stderr=True)


def main() -> None:
    """Measure, print a table, and JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load in a block")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--client", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        print(json.dumps(asyncio.run(_call(json.loads(options.client)))))
        return
    manifest = next(iter(served_manifests(options.repository, options.model)))
    alone = InProcess(options.repository, manifest)
    with ExitStack() as servers:
        running = service.start(options.repository, ports=Ports(0, 0, 0))
        servers.callback(service.stop, running)
        engines = [{"engine": OURS, "url": running.grpc, "model": options.model}]
        engines += peers(servers, options.peers, manifest)
        asyncio.run(check_alike(engines))
        # The first warms up.
        blocks = [_block(alone, engines, options.seconds) for _ in range(options.blocks + 1)][1:]
    rows = medians(blocks)
    out = Console(width=120)
    out.print(f"{machine.name()}, {manifest.precision}, medians of blocks")
    out.print(_table(rows))
    print(json.dumps({"machine": machine.describe(), "rows": rows, "blocks": blocks}))


def peers(servers: ExitStack, chosen: Sequence[str], manifest: Manifest) -> list[dict[str, str]]:
    """Start the peers' servers with a version's checkpoint; one that cannot run is told, and left out."""
    started = []
    progress = Bars(err)
    for peer in chosen:
        try:
            checkpoint = find_checkpoint(str(manifest.source["id"]))
            check_source(checkpoint, [manifest])
            arguments = (
                "--model",
                checkpoint.folder,
                "--engine",
                PEERS[peer],
                "--cache",
                kept_by("infinity"),
            )
            with progress.step(f"Start {peer} (its environment is made once)"):
                url = servers.enter_context(served_by("infinity", PEERS[peer], arguments))
        except (NotServing, ShoalError) as error:
            err.print(f"{peer} is left out: {error}", style="yellow", soft_wrap=True)
        else:
            started.append({"engine": f"{peer}, fp32, HTTP", "url": url, "model": "model"})
    return started


async def check_alike(engines: Sequence[dict[str, str]]) -> None:
    """Warn where a peer gives other vectors than the first engine, which is ours."""
    texts = mixed_texts(8)
    found = []
    for engine in engines:
        async with _embedder(engine) as embed:
            vectors = np.asarray(await embed(texts))
        found.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    for engine, vectors in zip(engines, found, strict=True):
        cosine = float((vectors * found[0]).sum(axis=1).min())
        if cosine < ALIKE:
            said = f"{engine['engine']} gives other vectors: a cosine with ours is {cosine:.3f}"
            err.print(said, style="yellow", soft_wrap=True)


def _block(alone: InProcess, engines: Sequence[dict[str, str]], seconds: float) -> dict[str, Any]:
    """Each load of each engine once, in turn."""
    loads: dict[str, dict[str, Any]] = {}
    limit = alone.rate(mixed_texts(TEXTS))
    for callers, size in LOADS:
        for engine in engines:
            asked = engine | {"callers": callers, "size": size, "seconds": seconds}
            said = in_a_process("loadtest.bench_encoders", asked)
            loads.setdefault(f"{callers} x {size}", {})[engine["engine"]] = said
    return {"in process": limit, "loads": loads}


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
        one = Options.from_config({"instance_group": [{"count": 1}]})
        config = model_config.parse((repository / manifest.network / "config.pbtxt").read_text())
        self._session = open_session(path, one, gpu=0 if on_gpu(config) else None)

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


async def _call(asked: dict[str, Any]) -> dict[str, float]:
    """The client process: one load of one engine."""
    texts = mixed_texts(TEXTS)
    async with _embedder(asked) as embed:

        async def ask(chance: random.Random) -> int:
            return len(await embed(chance.choices(texts, k=asked["size"])))

        return await called(ask, asked["callers"], asked["seconds"])


@asynccontextmanager
async def _embedder(engine: dict[str, Any]) -> AsyncIterator[Embed]:
    """What makes vectors of texts with an engine: our client, or one of OpenAI's protocol."""
    if engine["engine"] == OURS:
        async with AsyncGrpcClient(engine["url"], timeout=60) as client:
            yield partial(client.embed, model=engine["model"])
        return

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60), raise_for_status=True) as session:

        async def embed(texts: Sequence[str]) -> NDArray[np.float32]:
            # As OpenAI's own client asks: base64 is less work for both than digits.
            body = {"model": engine["model"], "input": list(texts), "encoding_format": "base64"}
            async with session.post(f"http://{engine['url']}/embeddings", json=body) as response:
                answer = await response.json()
            return np.stack(
                [np.frombuffer(b64decode(row["embedding"]), np.float32) for row in answer["data"]]
            )

        yield embed


def _table(rows: dict[str, Any]) -> Any:
    made = show.table(
        "callers x texts of mixed lengths",
        ["load", "engine", "#texts/s", "#share", "#p50 ms", "#p99 ms", "#client CPUs"],
    )
    limit = rows["in process"]
    made.add_row("", "in process, sorted", f"{limit:.0f}", "100%", "", "", "")
    for load, engines in rows["loads"].items():
        for engine, row in engines.items():
            made.add_row(
                load,
                engine,
                f"{row['rate']:.0f}",
                f"{row['rate'] / limit:.0%}",
                f"{row['p50_ms']:.1f}",
                f"{row['p99_ms']:.1f}",
                f"{row['client_cpus']:.2f}",
            )
    return made


if __name__ == "__main__":
    main()
