"""Every request of a load test as arrays, and the figures that are drawn from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
        """From `recorder`'s rows, at least one: time of the end, protocol, milliseconds, failure."""
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
