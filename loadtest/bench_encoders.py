"""`make bench-encoders`: an embedder under callers whose texts have different lengths.

Texts have 5 to 120 words. What the machine can do is measured in process: the same texts, sorted by length,
through the tokenizer and the session, in batches of the size that is fastest here. Beside it, turn by turn,
callers in a process of their own ask a service of `shoal serve` over gRPC: one text a call, or 32 texts a
call. A caller sends its next request once it has its answer. The same callers ask the peers for the same
texts, over HTTP: infinity's server and sentence-transformers behind FastAPI, made of the checkpoint that the
served version was made from. All servers run all the time, and one of them is asked at a time. Where there is
an fp32 version, OpenVINO runs its graph in process, as ONNX Runtime runs the served one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import openvino
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
from serving.ports import LOOPBACK, Ports
from shoal import corpus, machine, model_config, show
from shoal.errors import ShoalError
from shoal.manifest import Manifest, manifests, served_manifests
from shoal.progress import Bars

WORDS = (5, 120)
TEXTS, BATCHES = 256, (4, 8, 16, 32)
# Callers, and texts of each call.
LOADS = ((1, 1), (8, 1), (16, 1), (32, 1), (4, 32))
# The environment of each peer, and what its script is told besides the checkpoint and a port.
PEERS = {
    "infinity-torch": ("infinity", ("--engine", "torch")),
    "infinity-optimum": ("infinity", ("--engine", "optimum")),
    "FastAPI + sentence-transformers": ("sentence_transformers", ()),
}
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
    served = f"ONNX Runtime {manifest.precision}"
    alone = {served: InProcess(options.repository, manifest).rate}
    if original := _fp32(options.repository, options.model):
        alone["OpenVINO fp32"] = InOpenVino(options.repository, original).rate
    with ExitStack() as servers:
        running = service.start(options.repository, ports=Ports(0, 0, 0), gateway_port=0)
        servers.callback(service.stop, running)
        name = f"Shoal {manifest.precision}"
        engines = [
            {"engine": f"{name}, gRPC", "protocol": "grpc", "url": running.grpc, "model": options.model},
            {
                "engine": f"{name}, gateway, HTTP",
                "protocol": "http",
                "url": f"{LOOPBACK}:{running.record.gateway_port}/v1",
                "model": options.model,
            },
        ]
        started, left_out = peers(servers, options.peers, manifest)
        engines += started
        unlike = asyncio.run(differences(engines))
        blocks = [
            _block(alone, engines[:: 1 if number % 2 == 0 else -1], options.seconds)
            for number in range(options.blocks + 1)
        ][1:]  # the first warms up
    rows = medians(blocks)
    out = Console(width=120)
    out.print(f"{machine.name()}, {manifest.precision}, medians of blocks")
    rows["loads"] = {
        load: {engine["engine"]: found[engine["engine"]] for engine in engines}
        for load, found in rows["loads"].items()
    }
    out.print(_table(rows, served))
    about = {"machine": machine.describe(), "unlike": unlike, "left_out": left_out}
    print(json.dumps({**about, "rows": rows, "blocks": blocks}))


def peers(
    servers: ExitStack, chosen: Sequence[str], manifest: Manifest
) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Start the peers' servers with a version's checkpoint; those that cannot run are told, and why."""
    started, left_out = [], {}
    progress = Bars(err)
    for peer in chosen:
        try:
            checkpoint = find_checkpoint(str(manifest.source["id"]))
            check_source(checkpoint, [manifest])
            environment, told = PEERS[peer]
            arguments: list[str | Path] = ["--model", checkpoint.folder, *told]
            if environment == "infinity":
                arguments += ["--cache", kept_by(environment)]
            with progress.step(f"Start {peer} (its environment is made once)"):
                url = servers.enter_context(served_by(environment, peer, arguments))
        except (NotServing, ShoalError) as error:
            left_out[peer] = str(error)
            err.print(f"{peer} is left out: {error}", style="yellow", soft_wrap=True)
        else:
            name = f"{peer} fp32, HTTP"
            started.append({"engine": name, "protocol": "http", "url": url, "model": "model"})
    return started, left_out


async def differences(engines: Sequence[dict[str, str]]) -> dict[str, str]:
    """Which engines give other vectors than the first one, which is ours; this is told, too."""
    texts = mixed_texts(8)
    found, unlike = [], {}
    for engine in engines:
        async with _embedder(engine) as embed:
            vectors = np.asarray(await embed(texts))
        found.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    for engine, vectors in zip(engines, found, strict=True):
        cosine = float((vectors * found[0]).sum(axis=1).min())
        if cosine < ALIKE:
            unlike[engine["engine"]] = f"a cosine with ours is {cosine:.3f}"
            said = f"{engine['engine']} gives other vectors: {unlike[engine['engine']]}"
            err.print(said, style="yellow", soft_wrap=True)
    return unlike


def _fp32(repository: Path, model: str) -> Manifest | None:
    return next((each for each in manifests(repository, model) if each.precision == "fp32"), None)


def _block(
    alone: Mapping[str, Callable[[list[str]], float]], engines: Sequence[dict[str, str]], seconds: float
) -> dict[str, Any]:
    """Each load of each engine once, in turn."""
    loads: dict[str, dict[str, Any]] = {}
    limits = {engine: rate(mixed_texts(TEXTS)) for engine, rate in alone.items()}
    for callers, size in LOADS:
        for engine in engines:
            asked = engine | {"callers": callers, "size": size, "seconds": seconds}
            said = in_a_process("loadtest.bench_encoders", asked)
            loads.setdefault(f"{callers} x {size}", {})[engine["engine"]] = said
    return {"in process": limits, "loads": loads}


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
    """The tokenizer and the session of a version, called without a server.

    Args:
        repository: has the version.
        manifest: of the version.
    """

    def __init__(self, repository: Path, manifest: Manifest) -> None:
        tokenizer = next(repository / name for name in manifest.files if name.endswith("tokenizer.json"))
        self._encode = TextEncoder(tokenizer, "text", 256, 0, ("input_ids", "attention_mask"))
        path = repository / manifest.network / str(manifest.version) / "model.onnx"
        self._open(path, repository, manifest)

    def _open(self, path: Path, repository: Path, manifest: Manifest) -> None:
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
            self._run(self._encode([{"text": [text]} for text in ordered[first : first + size]]))
        return len(ordered) / (time.perf_counter() - began)

    def _run(self, feed: dict[str, NDArray]) -> None:
        self._session.run(None, feed)


class InOpenVino(InProcess):
    """The same in OpenVINO, which reads the ONNX file by itself and has all CPUs for one run."""

    def _open(self, path: Path, repository: Path, manifest: Manifest) -> None:
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        self._request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()

    def _run(self, feed: dict[str, NDArray]) -> None:
        self._request.infer(feed)


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
    if engine["protocol"] == "grpc":
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


def _table(rows: dict[str, Any], served: str) -> Any:
    made = show.table(
        "callers x texts of mixed lengths",
        ["load", "engine", "#texts/s", "#share", "#p50 ms", "#p99 ms", "#client CPUs"],
    )
    limit = rows["in process"][served]
    for engine, rate in rows["in process"].items():
        made.add_row("", f"{engine}, in process, sorted", f"{rate:.0f}", f"{rate / limit:.0%}", "", "", "")
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
