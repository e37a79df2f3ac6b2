"""`make bench-stream`: what is lost between the steps of a decoder in process and its streams through gRPC.

Each block measures the same prompts and answers three times, turn by turn: the model's steps alone, in this
process, without anything around them; our asyncio client in a process of its own, with streams; and the
same client without streams. The share is the rate through gRPC in percent of the rate of the steps. The CPU
time of the stub, of tritonserver and of the client is that of the operating system, divided by the tokens
of the block.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from tokenizers import Tokenizer

from loadtest.bench_llm import engine_counters, prompts_of, served_alone
from loadtest.neighbours import watched
from serving import embedded
from serving.generation.engine import Engine
from serving.generation.params import SamplingParams
from serving.generation.runtime import Runner, graph_in, open_runner
from serving.generation.scheduler import Limits
from serving.generation.sequence import Request
from shoal import machine, show
from shoal.manifest import manifests

err = Console(stderr=True)


def main() -> None:
    """Measure, print a table, and JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--engine", action="store_true", help="only our engine, in process, beside the steps")
    options = parser.parse_args()
    found = {m.precision: m for m in manifests(options.repository, options.model)}
    if options.precision not in found:
        sys.exit(f"{options.repository} has no {options.precision} version of {options.model}")
    manifest = found[options.precision]
    folder = options.repository / manifest.network / str(manifest.version)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompts = prompts_of(tokenizer, max(options.streams))
    ids = [tokenizer.encode(prompt).ids for prompt in prompts]
    runner = open_runner(graph_in(folder), rows=Limits().rows, max_length=2048)
    if options.engine:
        for streams in options.streams:
            for _ in range(options.blocks):
                steps = steps_alone(runner, ids[:streams], options.tokens)
                rate, count = engine_alone(runner, tokenizer, ids[:streams], options.tokens)
                print(f"{streams} streams: {rate / steps:.1%} of {steps:.0f} tokens/s, in {count} steps")
        return
    rows = []
    with watched(err), served_alone(options.repository, manifest) as server:
        for streams in options.streams:
            blocks = []
            for number in range(options.blocks + 1):
                block = {
                    "steps": steps_alone(runner, ids[:streams], options.tokens),
                    "streamed": through_grpc(server, manifest.model, prompts[:streams], options.tokens, True),
                    "whole": through_grpc(server, manifest.model, prompts[:streams], options.tokens, False),
                }
                if number:  # the first warms up
                    blocks.append(block)
            rows.append({"streams": streams, **_summary(blocks), "blocks": blocks})
    out = Console(width=120)
    out.print(f"{machine.name()}; {options.tokens} tokens each, medians")
    out.print(_table(rows))
    print(json.dumps({"machine": machine.describe(), "precision": options.precision, "rows": rows}))


def steps_alone(runner: Runner, prompts: Sequence[Sequence[int]], tokens: int) -> float:
    """Tokens per second of the runs that a server needs: prompts by eight, then steps of all rows."""
    began = time.perf_counter()
    for first in range(0, len(prompts), 8):
        runner.prefill_together(first, prompts[first : first + 8])
    chosen = [1] * len(prompts)
    lengths = [len(prompt) for prompt in prompts]
    for _ in range(tokens - 1):
        runner.decode(chosen, lengths)
        lengths = [length + 1 for length in lengths]
    return len(prompts) * tokens / (time.perf_counter() - began)


def engine_alone(
    runner: Runner, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], tokens: int
) -> tuple[float, int]:
    """Tokens per second of our engine without Triton, with streams that nobody reads, and its steps."""
    engine = Engine(runner, Limits(), ends=[], decode=tokenizer.decode)
    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
    began = time.perf_counter()
    for prompt in prompts:
        engine.submit(Request(prompt, params, stream=True, deliver=lambda part: None))
    while not engine.idle:
        engine.step()
    return len(prompts) * tokens / (time.perf_counter() - began), engine.stats.steps


def through_grpc(
    server: embedded.Server, model: str, prompts: Sequence[str], tokens: int, stream: bool
) -> dict[str, Any]:
    """Rate, gaps between parts, and CPU time in microseconds a token; the client is another process."""
    processes = {"tritonserver": [psutil.Process(server.pid)], "stub": embedded.stubs(server)}
    before = {name: _cpu_seconds(found) for name, found in processes.items()}
    counted = engine_counters(server)
    asked = {"url": server.grpc, "model": model, "prompts": list(prompts), "tokens": tokens, "stream": stream}
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.bench_stream_client"],
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    said: dict[str, Any] = json.loads(done.stdout)
    total = len(prompts) * tokens
    cpu = {name: _cpu_seconds(found) - before[name] for name, found in processes.items()}
    cpu["client"] = said.pop("cpu_seconds")
    now = engine_counters(server)
    engine = {name: now[f"{name}_seconds"] - counted[f"{name}_seconds"] for name in ("model", "busy")}
    said["engine"] = engine | {"elapsed": total / said["rate"]}
    return said | {"cpu_us": {name: 1e6 * seconds / total for name, seconds in cpu.items()}}


def _cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def _summary(blocks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def median(values: Sequence[float]) -> float:
        return statistics.median(values)

    made: dict[str, Any] = {"steps": median([block["steps"] for block in blocks])}
    for kind in ("streamed", "whole"):
        made[kind] = {
            "rate": median([block[kind]["rate"] for block in blocks]),
            "share": median([block[kind]["rate"] / block["steps"] for block in blocks]),
            "gap_ms": median([block[kind]["gap_ms"] for block in blocks]),
            "parts": median([block[kind]["parts"] for block in blocks]),
            "cpu_us": {
                name: median([block[kind]["cpu_us"][name] for block in blocks])
                for name in ("stub", "tritonserver", "client")
            },
        }
    return made


def _table(rows: Sequence[dict[str, Any]]) -> Any:
    made = show.table(
        "tokens/s, and CPU microseconds a token",
        [
            "streams",
            "#steps",
            "#streamed",
            "#share",
            "#whole",
            "#share",
            "#stub",
            "#server",
            "#client",
            "#gap ms",
        ],
    )
    for row in rows:
        streamed, whole = row["streamed"], row["whole"]
        cpu = streamed["cpu_us"]
        made.add_row(
            str(row["streams"]),
            f"{row['steps']:.0f}",
            f"{streamed['rate']:.0f}",
            f"{streamed['share']:.0%}",
            f"{whole['rate']:.0f}",
            f"{whole['share']:.0%}",
            *(f"{cpu[name]:.0f}" for name in ("stub", "tritonserver", "client")),
            f"{streamed['gap_ms']:.1f}",
        )
    return made


if __name__ == "__main__":
    main()
