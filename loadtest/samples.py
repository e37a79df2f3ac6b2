"""Every request of a load test as arrays, and the figures that are drawn from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest import slo

# What Locust calls the parts of an answer that streams.
FIRST_TOKEN, BETWEEN_TOKENS = "first token", "between tokens"
STREAM_PARTS = (FIRST_TOKEN, BETWEEN_TOKENS)
PERCENTILES = (50, 95, 99)
BINS = 24
_HARDLY = 0.1  # requests that run at once, on average
# When it ended (seconds since 1970), protocol, milliseconds, failure, size; then its number, by how many
# milliseconds it was sent late, milliseconds to the first token and between tokens, and tokens of what was
# asked, or None for each.
Row = tuple[Any, ...]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Samples:
    """Requests in the order of their numbers; without numbers, in the order they ended.

    Attributes:
        ended: seconds since the first request was sent (in an open loop: was due), [n].
        protocol: `grpc` or `http`, [n].
        latency: milliseconds, in an open loop from when it was due, [n].
        failure: "" or what went wrong, [n].
        size: of the answer, bytes or tokens, [n].
        index: which request of an open loop it is; -1 in a closed loop, [n].
        lag: milliseconds by which a request of an open loop was sent late, [n].
        first, between: milliseconds to the first token and between tokens, [n].
        read: tokens of what was asked, [n].

    Where there is no such figure, it is not a number.
    """

    ended: Floats
    protocol: NDArray[np.str_]
    latency: Floats
    failure: NDArray[Any]
    size: Floats
    index: NDArray[np.int64]
    lag: Floats
    first: Floats
    between: Floats
    read: Floats

    @classmethod
    def from_rows(cls, rows: Sequence[Row]) -> Samples:
        """Make the samples from `recorder`'s rows, at least one."""
        rows = sorted(rows, key=lambda row: (-1 if row[5] is None else row[5], row[0]))

        def column(place: int) -> Floats:
            return np.array([np.nan if row[place] is None else row[place] for row in rows], dtype=float)

        ended, latency = column(0), column(2)
        return cls(
            ended - float((ended - latency / 1e3).min()),
            np.array([row[1] for row in rows]),
            latency,
            np.array([row[3] for row in rows], dtype=object),  # a type of text would have the longest's width
            column(4),
            np.array([-1 if row[5] is None else row[5] for row in rows], dtype=np.int64),
            *(column(place) for place in (6, 7, 8, 9)),
        )

    def __len__(self) -> int:
        return len(self.ended)

    @property
    def succeeded(self) -> NDArray[np.bool_]:
        """Which requests were answered with a result."""
        return self.failure == ""

    def metrics(self, *, generates: bool) -> dict[str, Floats]:
        """Milliseconds of each request by the metrics of `loadtest.slo`; infinite where it failed."""
        found = {slo.LATENCY: self.latency}
        if generates:
            found |= {slo.FIRST_TOKEN: self.first, slo.BETWEEN_TOKENS: self.between}
        return {name: np.where(self.succeeded, values, np.inf) for name, values in found.items()}

    def steady(self, seconds: float) -> bool:
        """Whether requests that wait did not grow more, in the second half of an open loop, than by chance.

        A server that is asked for more than it can answer lets them grow, and may still answer the last in
        time if the test is short.

        Args:
            seconds: how long requests came.
        """
        due = self.ended - self.latency / 1e3
        waiting = [int(((due <= at) & (self.ended > at)).sum()) for at in (seconds / 2, seconds)]
        came = int((due > seconds / 2).sum())
        return waiting[1] - waiting[0] <= max(3 * came**0.5, 0.1 * came)

    def alone(self, seconds: float) -> bool:
        """Whether requests of an open loop hardly met each other, so that a lower rate would change nothing.

        Args:
            seconds: how long requests came.
        """
        return float(self.latency.sum()) / 1e3 / seconds < _HARDLY

    def summary(self, seconds: float = 0.0) -> dict[str, Any]:
        """Counts, rates and percentiles of latency, in all and by protocol, and failures by reason.

        Args:
            seconds: how long requests came at least: a rate is not that of the requests' own time alone.
        """
        span = max(seconds, float(self.ended.max()))
        everything = np.ones(len(self), dtype=bool)
        reasons = Counter(self.failure[~self.succeeded].tolist())
        read = self.read[self.succeeded]
        return {
            "input_tokens": int(np.nansum(read)) if not np.isnan(read).all() else None,
            "seconds": span,
            "total": self._figures(everything, span),
            "protocols": {
                p: self._figures(self.protocol == p, span) for p in sorted(set(self.protocol.tolist()))
            },
            "failures": [{"reason": reason, "count": count} for reason, count in reasons.most_common(20)],
        }

    def _figures(self, chosen: NDArray[np.bool_], span: float) -> dict[str, Any]:
        latency = self.latency[chosen & self.succeeded]
        figures: dict[str, Any] = {
            "requests": int(chosen.sum()),
            "failures": int((chosen & ~self.succeeded).sum()),
            "per_second": len(latency) / span,
        }
        for percentile in PERCENTILES:
            figures[f"p{percentile}"] = slo.percentile(latency, percentile) if len(latency) else None
        figures["mean"] = float(latency.mean()) if len(latency) else None
        figures["max"] = float(latency.max()) if len(latency) else None
        return figures

    def over_time(self) -> dict[str, Floats]:
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
                    slo.percentile(part, percentile) if len(part) else np.nan
                    for part in (self.latency[self.succeeded & (which == bin)] for bin in range(BINS))
                ]
            )
        return series

    def parts(self) -> dict[str, Floats]:
        """Milliseconds by `STREAM_PARTS` of the answers that have them, [m] each."""
        found = {FIRST_TOKEN: self.first, BETWEEN_TOKENS: self.between}
        return {name: values[self.succeeded & ~np.isnan(values)] for name, values in found.items()}

    def columns(self) -> dict[str, list[Any]]:
        """Every request, in their order, as JSON holds it."""
        return {
            "index": self.index.tolist(),
            "ended": _plain(self.ended),
            "latency": _plain(self.latency),
            "first": _plain(self.first),
            "between": _plain(self.between),
            "succeeded": self.succeeded.tolist(),
        }

    def streams(self, seconds: float = 0.0) -> dict[str, Any]:
        """Of generated text: tokens, their rate, and percentiles of each part of an answer; see `summary`."""
        parts = {}
        for name, values in self.parts().items():
            if len(values):
                figures = {f"p{p}": slo.percentile(values, p) for p in PERCENTILES}
                parts[name] = {"requests": len(values), **figures, "max": float(values.max())}
        tokens = int(self.size[self.succeeded].sum())
        return {
            "tokens": tokens,
            "tokens_per_second": tokens / max(seconds, float(self.ended.max())),
            "parts": parts,
        }


def _plain(values: Floats) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 4) for value in values]
