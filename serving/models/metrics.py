"""What the engine counts, as Triton's custom metrics on its metrics port."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from serving.generation.engine import Engine
from serving.models.backend_utils import pb_utils

PUBLISH_SECONDS = 0.25
FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_PREFIX = "shoal_generation_"


class Metrics:
    """Publishes an engine's state, four times a second at most.

    Args:
        engine: whose `stats` are read.
        labels: of every metric.
    """

    def __init__(self, engine: Engine, labels: dict[str, str]) -> None:
        self._engine = engine
        self._labels = labels
        self._next = 0.0
        self._families: list[Any] = []  # Triton wants them to outlive their metrics
        stats = engine.stats
        self._counters: list[tuple[Any, Callable[[], float]]] = [
            (self._metric("COUNTER", name, text), read)
            for name, text, read in (
                ("prompt_tokens_total", "Tokens of prompts", lambda: stats.prompt_tokens),
                (
                    "cached_tokens_total",
                    "Prompt tokens that were cached",
                    lambda: stats.cached_tokens,
                ),
                ("output_tokens_total", "Tokens generated", lambda: stats.generated_tokens),
                ("guessed_tokens_total", "Tokens guessed ahead", lambda: stats.guessed_tokens),
                ("accepted_tokens_total", "Guessed tokens that were right", lambda: stats.accepted_tokens),
                ("model_seconds_total", "Seconds inside the ONNX session", lambda: stats.model_seconds),
                ("busy_seconds_total", "Seconds of steps altogether", lambda: stats.busy_seconds),
            )
        ]
        self._gauges: list[tuple[Any, Callable[[], float]]] = [
            (self._metric("GAUGE", name, text), read)
            for name, text, read in (
                ("running", "Requests that have a row of the cache", lambda: engine.running),
                ("waiting", "Requests in the queue", lambda: engine.waiting),
                ("prefix_cache_tokens", "Tokens in the prefix cache", lambda: engine.cached_prefix_tokens),
            )
        ]
        self._rate = self._metric("GAUGE", "tokens_per_second", "Tokens generated, over the last interval")
        self._first_token = self._metric(
            "HISTOGRAM", "first_token_seconds", "Time to first token", buckets=list(FIRST_TOKEN_BUCKETS)
        )
        family = self._family("COUNTER", "requests_total", "Requests by how they ended")
        self._ended = {reason: family.Metric(labels=labels | {"reason": reason}) for reason in _REASONS}
        self._published: dict[int, float] = {}
        self._before = (time.monotonic(), 0)

    def publish(self) -> None:
        """Publish, unless that was done a moment ago."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + PUBLISH_SECONDS
        stats = self._engine.stats
        for metric, read in self._counters:
            self._raise_to(metric, read())
        for metric, read in self._gauges:
            metric.set(read())
        for reason, metric in self._ended.items():
            self._raise_to(metric, stats.finished[reason])
        then, tokens = self._before
        self._rate.set((stats.generated_tokens - tokens) / (now - then) if now > then else 0.0)
        self._before = (now, stats.generated_tokens)
        while stats.first_token_seconds:
            self._first_token.observe(stats.first_token_seconds.popleft())

    def close(self) -> None:
        """Let go of Triton's objects: metrics first, then their families."""
        self._counters, self._gauges, self._ended = [], [], {}
        self._rate = self._first_token = None
        self._families.clear()

    def _raise_to(self, counter: Any, value: float) -> None:
        """A counter of Triton's takes increments only."""
        more = value - self._published.get(id(counter), 0.0)
        if more > 0:
            counter.increment(more)
            self._published[id(counter)] = value

    def _family(self, kind: str, name: str, text: str) -> Any:
        kinds = pb_utils.MetricFamily
        family = kinds(name=_PREFIX + name, description=text, kind=getattr(kinds, kind))
        self._families.append(family)
        return family

    def _metric(self, kind: str, name: str, text: str, **options: Any) -> Any:
        return self._family(kind, name, text).Metric(labels=self._labels, **options)


_REASONS = (
    "stop",
    "length",
    "deadline exceeded",
    "cancelled",
    "stopping",
    "unmet",
    "internal",
    "refused",
)
