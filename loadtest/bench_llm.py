"""`make bench-llm`: text generation through gRPC streams, beside what users would pick instead, in one run.

Every engine gets the same prompts and gives as many new tokens, greedily, in each of four workloads. In
three of them (30 tokens of a prompt and 64 of its answer, 500 and 64, 1,500 and 100) as many requests as
`--concurrency` are submitted at once, the clock runs until the last one has its last token, and prefix
caches are off. In the fourth, `chat`, eight users share a system prompt of 200 tokens and ask four times
each, and prefix caches are on; what ours gave is printed. All engines take turns, once in each of
`--blocks`, each in a process of its own. Ours is called through the wire, by the asyncio client in this
process, and what its engine counted tells how much of that time was spent in the model's runs. The peers,
each in its own environment, are in `loadtest/peers`. Then our own costs, in process: of a step by batch and
context, of prefill, of the matrix products in them by themselves, of a row of the cache, and what the
prefix cache saves in a chat of five turns and its copies cost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from tokenizers import Tokenizer

from clients import AsyncGrpcClient
from export.generation.checkpoint import find_decoder, find_gguf
from loadtest.decoder_costs import own_costs
from loadtest.neighbours import watched
from loadtest.peers.environment import kept_by, python_of
from loadtest.peers.server import ROOT
from serving import embedded
from serving.generation.runtime import graph_in
from shoal import corpus, machine, model_config, show
from shoal.manifest import Manifest, manifests
from shoal.progress import Bars

PEERS = {"openvino": "run_openvino", "llama_cpp": "run_llama_cpp", "vllm": "run_vllm"}
CHAT = "chat"
WORKLOADS = ("30/64", "500/64", "1500/100", CHAT)  # tokens of a prompt and of its answer
CHAT_USERS, CHAT_TURNS = 8, 4
SYSTEM_TOKENS, QUESTION_TOKENS, ANSWER_TOKENS = 200, 30, 64
Rounds = list[list[list[str]]]  # of turns, of prompts that are sent at once
SHARES = ("model_share", "busy_share", "cached_share")  # of ours; see `ours`
CANNOT_RUN_HERE = 3  # a peer's exit code
err = Console(stderr=True)


def main() -> None:
    """Measure, print tables, and JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), help="prompt/new tokens")
    parser.add_argument("--blocks", type=int, default=3, help="in each every engine is measured once")
    parser.add_argument("--rounds", type=int, default=1, help="of each block, after one that warms up")
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
    out = Console(width=120)
    out.print(f"{machine.name()}, {' '.join(machine.cpu_flags())}")
    results, left_out = {}, dict[str, str]()
    for workload in options.workloads:
        with watched(err):
            results[workload] = compared(workload, options, chosen, tokenizer, left_out)
        out.print(comparison(workload, results[workload]))
        for engine, rows in results[workload].items():
            out.print(f"[dim]{escape(engine)}[/]", highlight=False)
            if rows[0]["model_share"] is not None:
                out.print(_of_the_time(rows))
            if rows[0]["cached_share"] is not None:
                out.print(_of_the_cache(rows[0]["cached_share"], tokenizer, options.rounds))
    costs = None if options.skip_costs else own_costs(graph_in(folder), tokenizer, out)
    about = {"machine": machine.describe(), "left_out": left_out}
    print(json.dumps({**about, "results": results, "costs": costs}))


def compared(
    workload: str,
    options: argparse.Namespace,
    chosen: Sequence[Manifest],
    tokenizer: Tokenizer,
    left_out: dict[str, str],
) -> dict[str, list[dict[str, Any]]]:
    """Every engine under one workload: for each a dict by concurrency, of all blocks together.

    Args:
        left_out: by peer, why it did not run; those that fail here are added.
    """
    if workload == CHAT:
        new_tokens = ANSWER_TOKENS
        loads = [chats_of(tokenizer, options.rounds + 1)]
    else:
        length, new_tokens = (int(part) for part in workload.split("/"))
        texts = prompts_of(tokenizer, max(options.concurrency), length)
        loads = [[[texts[:count]]] * (options.rounds + 1) for count in options.concurrency]
    found: dict[str, list[list[dict[str, Any]]]] = {}
    progress = Bars(err)
    engines: list[Manifest | str] = [*chosen, *options.peers]
    for block in range(options.blocks):
        for engine in engines[:: 1 if block % 2 == 0 else -1]:  # a machine that drifts favours none
            if isinstance(engine, str):
                if engine not in left_out:
                    with progress.step(
                        f"{workload}, block {block + 1}: {engine} (its environment is made once)"
                    ):
                        said = run_peer(engine, options, chosen[0], workload, loads, tokenizer, new_tokens)
                    if isinstance(said, str):
                        left_out[engine] = said
                        err.print(f"{engine}: {said}", highlight=False)
                    else:
                        name = f"{said['peer']} ({said['settings']})"
                        found.setdefault(name, []).append(said["results"])
                continue
            manifest = engine
            with progress.step(f"{workload}, block {block + 1}: Shoal, {manifest.precision}, gRPC streams"):
                rows = ours(options.repository, manifest, loads, new_tokens, cached=workload == CHAT)
                found.setdefault(f"Shoal {manifest.precision}", []).append(rows)
    return {
        name: [_together(rows) for rows in zip(*blocks, strict=True)]
        for name, blocks in sorted(found.items(), key=lambda item: not item[0].startswith("Shoal"))
        if len(blocks) == options.blocks  # else it failed meanwhile
    }


def _together(blocks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The same cell of all blocks: medians, and every rate."""
    rates = [rate for block in blocks for rate in block["all"]]
    made = {
        "concurrency": blocks[0]["concurrency"],
        "tokens_per_second": statistics.median(rates),
        "all": rates,
    }
    for key in ("ttft_ms_p50", "ttft_ms_max", "itl_ms_p50", *SHARES):
        values = [block[key] for block in blocks if block.get(key) is not None]
        made[key] = statistics.median(values) if values else None
    return made


def _of_the_time(rows: Sequence[dict[str, Any]]) -> str:
    """How much of the clock's time the model's runs have, and how much the engine has around them."""
    told = ", ".join(
        f"×{row['concurrency']}: {row['model_share']:.1%} and {row['busy_share'] - row['model_share']:.1%}"
        for row in rows
    )
    return f"of the time, in the model's runs and in the engine around them: {told}; the rest it waits"


def _of_the_cache(share: float, tokenizer: Tokenizer, rounds: int) -> str:
    """What the prefix cache gave, beside the most that it could have given."""
    known = total = 0
    earlier: list[list[int]] = []
    for turns in chats_of(tokenizer, rounds + 1):
        for texts in turns:
            prompts = [tokenizer.encode(text).ids for text in texts]
            for prompt in prompts:
                known += max((_shared(prompt, other) for other in earlier), default=0)
                total += len(prompt)
            earlier += prompts
    return (
        f"prefix cache: {share:.0%} of the prompts' tokens came from it; "
        f"{known / total:.0%} begin a prompt of an earlier turn"
    )


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two prompts begin with alike."""
    differing = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))


def chats_of(tokenizer: Tokenizer, rounds: int) -> Rounds:
    """Conversations that share a system prompt, others in each round.

    What the model is taken to have answered is text of the same length, so that every engine reads the same.
    """
    (system,) = prompts_of(tokenizer, 1, SYSTEM_TOKENS)
    said = iter(prompts_of(tokenizer, rounds * CHAT_TURNS * CHAT_USERS, QUESTION_TOKENS + ANSWER_TOKENS))
    made = []
    for _ in range(rounds):
        histories = [system] * CHAT_USERS
        turns = []
        for _ in range(CHAT_TURNS):
            exchanges = [next(said) for _ in histories]
            questions = [tokenizer.decode(tokenizer.encode(text).ids[:QUESTION_TOKENS]) for text in exchanges]
            turns.append([f"{history} {text}" for history, text in zip(histories, questions, strict=True)])
            histories = [f"{history} {text}" for history, text in zip(histories, exchanges, strict=True)]
        made.append(turns)
    return made


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
    repository: Path, manifest: Manifest, loads: Sequence[Rounds], new_tokens: int, *, cached: bool
) -> list[dict[str, Any]]:
    """The served model, from outside; a dict for each load.

    Args:
        cached: whether the prefix cache is on, of the size that the exporter chose.
    """
    made = []
    with served_alone(repository, manifest, cached=cached) as server:
        before = engine_counters(server)
        for rounds in loads:
            row = asyncio.run(_load(server.grpc, manifest.model, rounds, new_tokens))
            after = engine_counters(server)
            counted = {name: value - before.get(name, 0) for name, value in after.items()}
            row["model_share"] = counted["model_seconds"] / row["seconds"]
            row["busy_share"] = counted["busy_seconds"] / row["seconds"]
            row["cached_share"] = counted["cached_tokens"] / counted["prompt_tokens"] if cached else None
            made.append(row)
            before = after
    return made


def engine_counters(server: embedded.Server) -> dict[str, float]:
    """What the engine of the only model has counted, by the names in `serving/models/metrics.py`."""
    time.sleep(0.3)  # they are published between steps, and ten times a second while there are none
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ports.metrics}/metrics", timeout=10) as page:
        text = page.read().decode()
    found = re.findall(r"^shoal_generation_(\w+)_total\{[^}]*\} (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


@contextmanager
def served_alone(repository: Path, manifest: Manifest, *, cached: bool = False) -> Iterator[embedded.Server]:
    """A server of one version alone, without a prefix cache unless told otherwise."""
    with tempfile.TemporaryDirectory(dir=repository.resolve().parent, prefix=".bench-") as scratch:
        model = Path(scratch) / "model_repository" / manifest.network
        shutil.copytree(
            repository / manifest.network / str(manifest.version),
            model / str(manifest.version),
            copy_function=os.link,
        )
        config = model_config.parse((repository / manifest.network / "config.pbtxt").read_text())
        if not cached:
            config.parameters.pop("prefix_cache_tokens", None)
        config.version_policy.specific.versions[:] = [manifest.version]
        (model / "config.pbtxt").write_text(model_config.to_text(config))
        with embedded.running(model.parent) as server:
            yield server


async def _load(url: str, model: str, rounds: Rounds, new_tokens: int) -> dict[str, Any]:
    rates, first_tokens, gaps = [], [], []
    seconds = 0.0  # of all rounds, as the engine counts them

    async def one(client: AsyncGrpcClient, text: str, start: float) -> tuple[int, list[float]]:
        times, tokens = [], 0
        async for part in client.generate(
            text, model=model, timeout=600, max_tokens=new_tokens, ignore_eos=True, temperature=0
        ):
            tokens += part.tokens
            times.append(time.perf_counter() - start)
        return tokens, times

    async with AsyncGrpcClient(url) as client:
        for number, turns in enumerate(rounds):
            total, elapsed = 0, 0.0
            for texts in turns:
                start = time.perf_counter()
                answers = await asyncio.gather(*(one(client, text, start) for text in texts))
                elapsed += time.perf_counter() - start
                total += sum(tokens for tokens, _ in answers)
                if number:  # the first round warms up
                    first_tokens += [times[0] for _, times in answers]
                    gaps += [b - a for _, times in answers for a, b in pairwise(times)]
            seconds += elapsed
            if number:
                rates.append(total / elapsed)
    return {
        "seconds": seconds,
        "concurrency": len(rounds[0][0]),
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
    workload: str,
    loads: Sequence[Rounds],
    tokenizer: Tokenizer,
    new_tokens: int,
) -> dict[str, Any] | str:
    """What one peer reached in its own environment; or why it did not run."""
    source = str(manifest.source["id"])
    checkpoint = find_decoder(source)
    python = python_of(peer)
    if python is None:
        return "its environment cannot be made"
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "prompts.json"
        command = [
            *(str(python), "-m", f"loadtest.peers.{PEERS[peer]}"),
            *("--model", str(checkpoint.folder), "--new-tokens", str(new_tokens)),
            *("--cache", str(kept_by(peer)), "--rounds", str(options.rounds)),
        ]
        if workload == CHAT:
            chats = [
                [[tokenizer.encode(text).ids for text in texts] for texts in turns] for turns in loads[0]
            ]
            file.write_text(json.dumps(chats))
            command += ["--chats", str(file)]
        else:
            texts = max((rounds[0][0] for rounds in loads), key=len)
            file.write_text(json.dumps([tokenizer.encode(text).ids for text in texts]))
            command += ["--prompts", str(file), "--concurrency", *map(str, options.concurrency)]
        if peer == "llama_cpp":
            gguf = find_gguf(source)
            if gguf is None:
                return f"{source} ships no GGUF file"
            command += ["--gguf", str(gguf)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    if done.returncode:
        return (
            "it cannot run on this CPU" if done.returncode == CANNOT_RUN_HERE else "it failed, as told above"
        )
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def comparison(workload: str, results: dict[str, list[dict[str, Any]]]) -> Any:
    """Tokens per second with their range, and the time to first token under them."""
    counts = [row["concurrency"] for row in next(iter(results.values()))]
    made = show.table(
        f"{workload}: tokens/s, median (range), and median time to first token",
        ["engine", *(f"#×{count}" for count in counts)],
    )
    for engine, rows in results.items():
        cells = []
        for row in rows:
            rates = f"{row['tokens_per_second']:.0f} ({min(row['all']):.0f}-{max(row['all']):.0f})"
            cells.append(f"{rates}\n{row['ttft_ms_p50']:.0f} ms")
        made.add_row(engine.partition(" (")[0], *cells)
    return made


if __name__ == "__main__":
    main()
