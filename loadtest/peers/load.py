"""The load that every peer gets. Standard library only: it runs inside the peers' environments."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

# A peer that cannot run on this machine's CPU, as opposed to one that failed.
CANNOT_RUN_HERE = 3


@dataclass
class Answer:
    """One request's tokens, and when the client saw each step of them."""

    tokens: int = 0
    times: list[float] = field(default_factory=list)


# Submits all prompts at once, and returns when the last has all its tokens.
Send = Callable[[list[list[int]]], list[Answer]]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all peers share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--prompts", type=Path, help="JSON: lists of token ids")
    given.add_argument("--chats", type=Path, help="JSON: rounds of turns of prompts; prefix caches are on")
    parser.add_argument("--cache", type=Path, required=True, help="folder for what is kept between runs")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Reads the command line and the prompts. SIGTERM then ends the script in order, with its server."""
    options = parser.parse_args()
    if options.chats:
        options.chats = json.loads(options.chats.read_text())
        options.prompts = [prompt for turns in options.chats for prompts in turns for prompt in prompts]
        options.concurrency = [len(options.chats[0][0])]
    else:
        options.prompts = json.loads(options.prompts.read_text())
    if len(options.prompts) < max(options.concurrency):
        parser.error(f"{max(options.concurrency)} requests at once need as many prompts")
    options.model = options.model.resolve()
    options.cache.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return options


def say(text: str) -> None:
    """Progress."""
    sys.stderr.write(f"{text}\n")


def give_up(text: str, code: int = 1) -> NoReturn:
    """Ends with one line that tells why."""
    say(text)
    sys.exit(code)


def measure(send: Send, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rounds at each concurrency, or of the chats, after a first round that warms up."""
    if options.chats:
        return [_measured(send, options, options.chats)]
    return [
        _measured(send, options, [[options.prompts[:concurrency]]] * (options.rounds + 1))
        for concurrency in options.concurrency
    ]


def _measured(send: Send, options: argparse.Namespace, rounds: list[list[list[list[int]]]]) -> dict[str, Any]:
    """Some rounds of turns, each a list of prompts that are sent at once."""
    rates: list[float] = []
    first_tokens: list[float] = []
    gaps: list[float] = []
    for number, turns in enumerate(rounds):
        tokens, elapsed = 0, 0.0
        for prompts in turns:
            start = time.perf_counter()
            answers = send(prompts)
            for answer in answers:
                # llama.cpp adds some where the last token ends within a character.
                if answer.tokens < options.new_tokens:
                    give_up(f"a request got {answer.tokens} tokens instead of {options.new_tokens}")
            elapsed += max(answer.times[-1] for answer in answers) - start
            tokens += sum(answer.tokens for answer in answers)
            if number:
                first_tokens += [answer.times[0] - start for answer in answers]
                for answer in answers:
                    gaps += [later - earlier for earlier, later in itertools.pairwise(answer.times)]
        rate = tokens / elapsed
        say(f"{len(turns[0])} at once, {f'round {number}' if number else 'warm-up'}: {rate:.0f} tokens/s")
        if number:
            rates.append(rate)
    return {
        "concurrency": len(rounds[0][0]),
        "tokens_per_second": statistics.median(rates),
        "all": rates,
        "ttft_ms_p50": 1e3 * statistics.median(first_tokens),
        "ttft_ms_max": 1e3 * max(first_tokens),
        "itl_ms_p50": 1e3 * statistics.median(gaps) if gaps else None,
    }


def report(peer: str, version: str, settings: str, results: list[dict[str, Any]]) -> None:
    """The result, as JSON in the last line."""
    result = {"peer": peer, "version": version, "settings": settings, "results": results}
    sys.stdout.write(json.dumps(result) + "\n")
