"""Who calls an engine with the toy model, and small limits for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.generation.engine import Engine
from serving.generation.params import SamplingParams
from serving.generation.scheduler import Limits
from serving.generation.sequence import Chunk, Request
from tests.serving.generation.toy import END, Toy

LIMITS = Limits(
    max_num_seqs=4, max_model_len=96, max_queue_size=64, max_num_batched_tokens=16, staging_rows=3
)


def decoded(tokens: Sequence[int]) -> str:
    return "".join(chr(ord("a") + token) for token in tokens if token != END)


@dataclass
class Caller:
    """Sends one request and keeps what comes."""

    prompt: list[int]
    params: SamplingParams
    stream: bool = True
    parts: list[Any] = field(default_factory=list)
    left: bool = False

    def request(self, **more: Any) -> Request:
        options = {"deliver": self.parts.append, "is_cancelled": lambda: self.left} | more
        return Request(self.prompt, self.params, self.stream, **options)

    @property
    def finals(self) -> list[Any]:
        return [p for p in self.parts if not isinstance(p, Chunk) or p.finish_reason]

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)


def engine_of(toy: Toy | None = None, **options: Any) -> tuple[Engine, Toy]:
    toy = toy or Toy(LIMITS.rows, LIMITS.max_model_len)
    options = {"prefix_cache_tokens": 256, "speculate": True} | options
    return Engine(toy, LIMITS, ends=[END], decode=decoded, **options), toy


def run(engine: Engine, callers: Sequence[Caller], steps: int = 2000) -> None:
    while not all(caller.finals for caller in callers):
        engine.step()
        steps -= 1
        assert steps, "a request starves"


def is_empty(engine: Engine) -> bool:
    return engine.running == 0 and engine.waiting == 0 and engine._scheduler.idle
