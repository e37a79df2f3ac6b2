"""What our engine spends on a decoder, in process: the second half of `make bench-llm`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from tokenizers import Tokenizer

from loadtest import products
from serving.generation.engine import Engine
from serving.generation.params import SamplingParams
from serving.generation.prefix import RowPrefixes
from serving.generation.runtime import Runner, open_runner
from serving.generation.scheduler import Limits
from serving.generation.sequence import Chunk, Request
from shoal import corpus, show

COPIED_TOKENS = 512


def own_costs(path: Path, tokenizer: Tokenizer, out: Console) -> dict[str, Any]:
    """What our engine spends, in process."""
    runner = open_runner(path, rows=Limits(max_num_seqs=32).rows, max_length=2048)
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
    products_of_steps = products.milliseconds(path, batches)
    products_of_prompts = products.milliseconds(path, (256, 512), sampled=1)
    read = products.bandwidth()
    copies = _copies(runner)
    turns = {cached: _chat(runner, tokenizer, cached) for cached in (0, 8192)}
    outside = turns[0]["outside_share"]
    row_bytes = runner.memory.bytes_per_token * runner.max_length
    out.print("prefill: " + ", ".join(f"{n} tokens at {rate:.0f} tokens/s" for n, rate in prefill.items()))
    told = ", ".join(f"{n}: {ms:.1f}" for n, ms in products_of_steps.items())
    out.print(f"matrix products of a step by themselves, ms, by rows: {told}")
    told = ", ".join(f"{n}: {ms:.0f}" for n, ms in products_of_prompts.items())
    out.print(f"of a prompt, by tokens: {told}; weights are read at {read / 1e9:.0f} GB/s")
    out.print(
        f"cache: {runner.memory.bytes_per_token / 1e3:.0f} kB a token, {row_bytes / 1e6:.0f} MB a full row"
    )
    for cached, name in ((0, "without"), (8192, "with")):
        times = ", ".join(f"{value:.0f}" for value in turns[cached]["first_token_ms"])
        out.print(f"chat of five turns, {name} prefix cache: first token after {times} ms")
    told = ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in copies.items())
    out.print(f"copies of {COPIED_TOKENS} tokens for the prefix cache: {told}")
    out.print(f"outside of the session: {outside:.1%} of a step")
    return {
        "step_ms": steps,
        "prefill_tokens_per_second": prefill,
        "products_ms": {"step": products_of_steps, "prompt": products_of_prompts},
        "bytes_per_second": read,
        "bytes_per_token": runner.memory.bytes_per_token,
        "copies_seconds": copies,
        "chat": turns,
    }


def _copies(runner: Runner) -> dict[str, float]:
    """Seconds to keep a prompt's keys and values, and to write them into another row."""
    prompt = list(range(1, COPIED_TOKENS + 1))
    runner.prefill(0, prompt, 0, [0])

    def kept() -> RowPrefixes:
        prefixes = RowPrefixes(runner, COPIED_TOKENS, left=0)
        prefixes.keep(prompt, 0)
        return prefixes

    return {
        "kept": _median_seconds(kept, 5),
        "restored": _median_seconds(partial(kept().restore, prompt, 1), 5),
    }


def _chat(runner: Runner, tokenizer: Tokenizer, cached: int) -> dict[str, Any]:
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
