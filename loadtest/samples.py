"""Every request of a load test as arrays, and the figures that are drawn from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Rows about a part of an answer that streams, and not about a request.
STREAM_PARTS = ("first token", "between tokens")
PERCENTILES = (50, 95, 99)
BINS = 24


@dataclass(frozen=True)
class Samples:
    """Requests in the order they ended.

    Attributes:
        ended: seconds since the first request was sent, float [n].
        protocol: `grpc` or `http`, [n].
        latency: milliseconds, float [n].
        failure: "" or what went wrong, [n].
    """

    ended: NDArray[np.float64]
    protocol: NDArray[np.str_]
    latency: NDArray[np.float64]
    failure: NDArray[np.str_]

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[Any]]) -> Samples:
        """Make the samples from `recorder`'s rows, at least one; their first four columns are read."""
        ended = np.array([row[0] for row in rows], dtype=float)
        latency = np.array([row[2] for row in rows], dtype=float)
        begin = float((ended - latency / 1e3).min())
        return cls(ended - begin, np.array([r[1] for r in rows]), latency, np.array([r[3] for r in rows]))

    def __len__(self) -> int:
        return len(self.ended)

    @property
    def succeeded(self) -> NDArray[np.bool_]:
        """Which requests were answered with a result."""
        return self.failure == ""

    def summary(self) -> dict[str, Any]:
        """Counts, rates and percentiles of latency, in all and by protocol, and failures by reason."""
        everything = np.ones(len(self), dtype=bool)
        reasons = Counter(self.failure[~self.succeeded].tolist())
        return {
            "seconds": float(self.ended.max()),
            "total": self._figures(everything),
            "protocols": {p: self._figures(self.protocol == p) for p in sorted(set(self.protocol.tolist()))},
            "failures": [{"reason": reason, "count": count} for reason, count in reasons.most_common(20)],
        }

    def _figures(self, chosen: NDArray[np.bool_]) -> dict[str, Any]:
        latency = self.latency[chosen & self.succeeded]
        figures: dict[str, Any] = {
            "requests": int(chosen.sum()),
            "failures": int((chosen & ~self.succeeded).sum()),
            "per_second": len(latency) / float(self.ended.max()),
        }
        for percentile in PERCENTILES:
            figures[f"p{percentile}"] = float(np.percentile(latency, percentile)) if len(latency) else None
        figures["mean"] = float(latency.mean()) if len(latency) else None
        figures["max"] = float(latency.max()) if len(latency) else None
        return figures

    def over_time(self) -> dict[str, NDArray[np.float64]]:
        """`time` (middle of each bin, s), `per_second`, `failed_per_second` and the percentiles (ms)."""
        edges = np.linspace(0.0, float(self.ended.max()) + 1e-9, BINS + 1)
        width = edges[1]
        which = np.digitize(self.ended, edges) - 1
        series = {
            "time": (edges[:-1] + edges[1:]) / 2,
            "per_second": np.bincount(which[self.succeeded], minlength=BINS)[:BINS] / width,
            "failed_per_second": np.bincount(which[~self.succeeded], minlength=BINS)[:BINS] / width,
        }
        for percentile in PERCENTILES:
            series[f"p{percentile}"] = np.array(
                [
                    np.percentile(part, percentile) if len(part) else np.nan
                    for part in (self.latency[self.succeeded & (which == bin)] for bin in range(BINS))
                ]
            )
        return series


@dataclass(frozen=True)
class Streams:
    """The answers of a decoder, as their readers saw them.

    Attributes:
        parts: milliseconds by `STREAM_PARTS`, [n] each.
        ended: seconds since the first request was sent, of each answer, [n].
        tokens: of each answer, [n].
    """

    parts: dict[str, NDArray[np.float64]]
    ended: NDArray[np.float64]
    tokens: NDArray[np.int64]

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[Any]]) -> Streams:
        """Make the figures from `recorder`'s rows."""
        answers = [row for row in rows if row[4] not in STREAM_PARTS]
        begin = min(row[0] - row[2] / 1e3 for row in answers)
        return cls(
            {
                name: np.array([row[2] for row in rows if row[4] == name], dtype=float)
                for name in STREAM_PARTS
            },
            np.array([row[0] - begin for row in answers]),
            np.array([row[5] for row in answers], dtype=np.int64),
        )

    def summary(self, seconds: float) -> dict[str, Any]:
        """Tokens, their rate over a time, and percentiles of each part."""
        parts = {}
        for name, values in self.parts.items():
            if len(values):
                figures = {f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES}
                parts[name] = {"requests": len(values), **figures, "max": float(values.max())}
        tokens = int(self.tokens.sum())
        return {"tokens": tokens, "tokens_per_second": tokens / float(seconds), "parts": parts}
