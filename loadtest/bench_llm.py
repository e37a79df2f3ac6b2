"""`make bench-llm`: text generation through gRPC streams, beside what users would pick instead, in one run.

Every engine gets the same prompts and gives as many new tokens, greedily, in each of three workloads:
30 tokens of a prompt and 64 of its answer, 500 and 64, 1,500 and 100. As many requests as `--concurrency` are
submitted at once, and the clock runs until the last one has its last token. Prefix caches are off. Ours is
called through the wire, by the asyncio client in this process. The peers, each in its own environment, are in
`loadtest/peers`. Then our own costs, in process: of a step by batch and context,
of prefill, of a row of the cache, and what the prefix cache saves in a chat of five turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from tokenizers import Tokenizer

from clients import AsyncGrpcClient
from export.generation.checkpoint import find_decoder, find_gguf
from serving import embedded
from serving.generation.engine import Engine
from serving.generation.params import SamplingParams
from serving.generation.runner import DecoderRunner
from serving.generation.scheduler import Limits
from serving.generation.sequence import Chunk, Request
from shoal import corpus, machine, model_config, show
from shoal.manifest import Manifest, manifests
from shoal.paths import cache_dir
from shoal.progress import Bars

PEERS = {"openvino": "run_openvino", "llama_cpp": "run_llama_cpp", "vllm": "run_vllm"}
PEER_FOLDER = Path(__file__).with_name("peers")
WORKLOADS = ("30/64", "500/64", "1500/100")  # tokens of a prompt and of its answer
CANNOT_RUN_HERE = 3  # a peer's exit code
err = Console(stderr=True)


def main() -> None:
    """Measure, print tables, and JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), help="prompt/new tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--precisions", nargs="*", default=["int8", "int4"], help="of ours")
    parser.add_argument("--skip-costs", action="store_true", help="only the comparison")
    options = parser.parse_args()
    versions = {m.precision: m for m in manifests(options.repository, options.model)}
    chosen = [versions[precision] for precision in options.precisions if precision in versions]
    if not chosen:
        sys.exit(f"{options.repository} has no {' or '.join(options.precisions)} version of {options.model}")
    folder = options.repository / chosen[0].network / str(chosen[0].version)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    out = Console()
    out.print(f"{machine.cpu_model()}, {machine.available_cpus()} CPUs, {' '.join(machine.cpu_flags())}")
    results = {}
    for workload in options.workloads:
        results[workload] = compared(workload, options, chosen, tokenizer)
        out.print(comparison(workload, results[workload], options.concurrency))
    costs = None if options.skip_costs else own_costs(folder / "model.onnx", tokenizer, out)
    print(json.dumps({"machine": machine.describe(), "results": results, "costs": costs}))


def compared(
    workload: str, options: argparse.Namespace, chosen: Sequence[Manifest], tokenizer: Tokenizer
) -> dict[str, list[dict[str, Any]]]:
    """Every engine under one workload."""
    length, new_tokens = (int(part) for part in workload.split("/"))
    texts = prompts_of(tokenizer, max(options.concurrency), length)
    results: dict[str, list[dict[str, Any]]] = {}
    progress = Bars(err)
    for manifest in chosen:
        with progress.step(f"{workload}: Shoal, {manifest.precision}, through gRPC streams"):
            results[f"Shoal {manifest.precision}"] = ours(options, manifest, texts, new_tokens)
    ids = [tokenizer.encode(text).ids for text in texts]
    for peer in options.peers:
        with progress.step(f"{workload}: {peer} (the first time, its environment is made)"):
            found = run_peer(peer, options, chosen[0], ids, new_tokens)
        if found is not None:
            results[f"{found['peer']} ({found['settings']})"] = found["results"]
    return results


def prompts_of(tokenizer: Tokenizer, count: int, length: int = 30) -> list[str]:
    """Texts that are exactly `length` tokens, each beginning in another place."""
    passages = corpus.passages()
    found: list[str] = []
    for first in range(len(passages)):
        text, last = passages[first], first + 1
        while len(ids := tokenizer.encode(text).ids) < length and last < len(passages):
            text, last = f"{text} {passages[last]}", last + 1
        text = tokenizer.decode(ids[:length])
        if len(tokenizer.encode(text).ids) == length:
            found.append(text)
        if len(found) == count:
            return found
    raise ValueError(f"the corpus has no {count} texts of {length} tokens")


def ours(
    options: argparse.Namespace, manifest: Manifest, texts: Sequence[str], new_tokens: int
) -> list[dict[str, Any]]:
    """The served model, from outside."""
    with served_alone(options.repository, manifest) as server:
        return [
            asyncio.run(_load(server.grpc, manifest.model, texts[:concurrency], new_tokens, options.rounds))
            for concurrency in options.concurrency
        ]


@contextmanager
def served_alone(repository: Path, manifest: Manifest) -> Iterator[embedded.Server]:
    """A server of one version alone, without a prefix cache."""
    with tempfile.TemporaryDirectory(dir=repository.resolve().parent, prefix=".bench-") as scratch:
        model = Path(scratch) / "model_repository" / manifest.network
        shutil.copytree(
            repository / manifest.network / str(manifest.version),
            model / str(manifest.version),
            copy_function=os.link,
        )
        lines = (repository / manifest.network / "config.pbtxt").read_text()
        (model / "config.pbtxt").write_text(_without_prefix_cache(lines, manifest.version))
        with embedded.running(model.parent) as server:
            yield server


def _without_prefix_cache(config: str, version: int) -> str:
    read = model_config.parse(config)
    read.parameters.pop("prefix_cache_tokens", None)
    read.version_policy.specific.versions[:] = [version]
    return model_config.to_text(read)


async def _load(url: str, model: str, texts: Sequence[str], new_tokens: int, rounds: int) -> dict[str, Any]:
    rates, first_tokens, gaps = [], [], []

    async def one(client: AsyncGrpcClient, text: str, start: float) -> tuple[int, list[float]]:
        times, tokens = [], 0
        async for part in client.generate(
            text, model=model, timeout=600, max_tokens=new_tokens, ignore_eos=True, temperature=0
        ):
            tokens += part.tokens
            times.append(time.perf_counter() - start)
        return tokens, times

    async with AsyncGrpcClient(url) as client:
        for number in range(rounds + 1):
            start = time.perf_counter()
            answers = await asyncio.gather(*(one(client, text, start) for text in texts))
            elapsed = time.perf_counter() - start
            if number:  # the first round warms up
                rates.append(sum(tokens for tokens, _ in answers) / elapsed)
                first_tokens += [times[0] for _, times in answers]
                gaps += [b - a for _, times in answers for a, b in pairwise(times)]
    return {
        "concurrency": len(texts),
        "tokens_per_second": statistics.median(rates),
        "all": rates,
        "ttft_ms_p50": 1e3 * statistics.median(first_tokens),
        "ttft_ms_max": 1e3 * max(first_tokens),
        "itl_ms_p50": 1e3 * statistics.median(gaps),
    }


def run_peer(
    peer: str,
    options: argparse.Namespace,
    manifest: Manifest,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
) -> dict[str, Any] | None:
    """One peer in its own environment; None where it cannot run here, which is told."""
    source = str(manifest.source["id"])
    checkpoint = find_decoder(source)
    setup = subprocess.run([PEER_FOLDER / "setup.sh", peer], stdout=subprocess.PIPE, text=True, check=False)
    if setup.returncode:
        err.print(f"{peer}: its environment cannot be made")
        return None
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "prompts.json"
        file.write_text(json.dumps(prompts))
        command = [
            *(str(Path(setup.stdout.strip()) / "bin" / "python"), "-m", f"loadtest.peers.{PEERS[peer]}"),
            *("--model", str(checkpoint.folder), "--prompts", str(file), "--rounds", str(options.rounds)),
            *("--new-tokens", str(new_tokens), "--cache", str(cache_dir() / "peers" / peer / "cache")),
            *("--concurrency", *map(str, options.concurrency)),
        ]
        if peer == "llama_cpp":
            gguf = find_gguf(source)
            if gguf is None:
                err.print(f"{peer}: {source} ships no GGUF file")
                return None
            command += ["--gguf", str(gguf)]
        root = PEER_FOLDER.parent.parent
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=root)
    if done.returncode:
        why = "cannot run on this CPU" if done.returncode == CANNOT_RUN_HERE else "failed"
        err.print(f"{peer} {why}, as told above")
        return None
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def comparison(workload: str, results: dict[str, list[dict[str, Any]]], concurrency: Sequence[int]) -> Any:
    """Tokens per second, and time to first token behind it."""
    columns = [f"#×{count}" for count in concurrency]
    made = show.table(
        f"{workload}: tokens/s (median time to first token, ms)", ["engine", *columns], wraps=["engine"]
    )
    for engine, rows in results.items():
        cells = []
        for row in rows:
            first = row["ttft_ms_p50"]
            cells.append(f"{row['tokens_per_second']:.0f} ({'-' if first is None else f'{first:.0f}'})")
        made.add_row(engine, *cells)
    return made


def own_costs(path: Path, tokenizer: Tokenizer, out: Console) -> dict[str, Any]:
    """What our engine spends, in process."""
    runner = DecoderRunner(path, rows=Limits(max_num_seqs=32).rows, max_length=2048)
    contexts, batches = (64, 256, 1024), (1, 4, 16, 32)
    steps = {
        context: {
            batch: 1e3 * _median_seconds(partial(runner.decode, [1] * batch, [context] * batch), 9)
            for batch in batches
        }
        for context in contexts
    }
    made = show.table("one step, ms, by batch", ["context", *(f"#×{batch}" for batch in batches)])
    for context, row in steps.items():
        made.add_row(f"{context} tokens", *(f"{row[batch]:.1f}" for batch in batches))
    out.print(made)
    prefill = {
        length: length / _median_seconds(partial(runner.prefill, 0, [1] * length, 0, [0]), 5)
        for length in (32, 128, 512)
    }
    turns = {cached: _chat(runner, tokenizer, cached) for cached in (0, 8192)}
    outside = turns[0]["outside_share"]
    row_bytes = runner.bytes_per_token * runner.max_length
    out.print("prefill: " + ", ".join(f"{n} tokens at {rate:.0f} tokens/s" for n, rate in prefill.items()))
    out.print(f"cache: {runner.bytes_per_token / 1e3:.0f} kB a token, {row_bytes / 1e6:.0f} MB a full row")
    for cached, name in ((0, "without"), (8192, "with")):
        times = ", ".join(f"{value:.0f}" for value in turns[cached]["first_token_ms"])
        out.print(f"chat of five turns, {name} prefix cache: first token after {times} ms")
    out.print(f"outside the ONNX session: {outside:.1%} of a step")
    return {
        "step_ms": steps,
        "prefill_tokens_per_second": prefill,
        "bytes_per_token": runner.bytes_per_token,
        "chat": turns,
    }


def _chat(runner: DecoderRunner, tokenizer: Tokenizer, cached: int) -> dict[str, Any]:
    """Five turns of a conversation that grows, through the engine."""
    engine = Engine(
        runner, Limits(max_num_seqs=32), ends=[], decode=tokenizer.decode, prefix_cache_tokens=cached
    )
    history: list[int] = []
    times = []
    params = SamplingParams(max_tokens=48, temperature=0, ignore_eos=True)
    for question in corpus.passages()[300:305]:
        history += tokenizer.encode(question).ids[:48]
        parts: list[Any] = []
        start = time.perf_counter()
        engine.submit(Request(list(history), params, True, parts.append))
        first = None
        while not (parts and isinstance(parts[-1], Chunk) and parts[-1].finish_reason):
            engine.step()
            first = first or (time.perf_counter() if parts else None)
        times.append(1e3 * ((first or start) - start))
        history += tokenizer.encode("".join(part.text for part in parts)).ids
    stats = engine.stats
    return {"first_token_ms": times, "outside_share": 1 - stats.model_seconds / stats.busy_seconds}


def _median_seconds(call: Callable[[], Any], times: int) -> float:
    call()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
