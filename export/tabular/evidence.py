"""The measured figures of a served estimator, and what they must reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from export.evidence import Check, Column, Measured, figure

PRECISION = "fp32"

# What an export must reach; see `TabularEvidence.CHECKS`: answers are the original's, but for how float32
# writes them.
LIMITS = {
    "agreement": 0.999,
    "max_abs_diff": 1e-3,
    "mean_abs_diff": 1e-4,
    "batch_invariance": 1e-5,
    "loss": 0.001,
}


@dataclass(frozen=True, kw_only=True)
class TabularEvidence(Measured):
    """The measured figures of one version of an estimator; see also `export.evidence.Measured`.

    A difference is between two scores, or between two predictions relative to the size of the original's.

    Attributes:
        rows: how many rows were compared, made ones included.
        rows_from: where the others are from: `held-out`, `eval-data`; `synthetic`: all are made.
        own_rows: how many are not made.
        numbers: `FLOAT` or `DOUBLE`: as what the wire carries numbers.
        agreement: share of rows whose first label is what the original predicts; of a regressor, share of
            rows whose prediction differs by at most 1e-4.
        max_abs_diff, mean_abs_diff: over rows, of a row's largest difference to the original.
        rounding_diff: how far the original's own answers move at most when rows are rounded to float32.
        on_edge: rows whose answer is the original's for a row that differs in its last bits: they lie on an
            edge that no two orders of summation agree about, and are not held against the export.
        refused: rows that the original refuses and the server too.
        not_refused: rows that the original refuses and the server answers.
        blur: share of a number that `on_edge` calls its last bits; 0: all bits are the original's, and no row
            is excused.
        batch_invariance: largest difference between a row's answer alone and inside a batch.
        latency_ms, reference_latency_ms: median of one row, milliseconds, in process.
        throughput, reference_throughput: rows per second at 256 rows, in process.
        metric: `accuracy` or `r2`; empty where the true labels are not known.
        value, reference_value: of the metric, exported and original.
        examples: rows that are answered otherwise, in words.
        cases: [batch size, rows] pairs that were compared.
    """

    CHECKS: ClassVar[tuple[Check, ...]] = (
        Check("agreement", "agreement", ".4f"),
        Check("max_abs_diff", "difference", ".2g", most=True),
        Check("mean_abs_diff", "mean difference", ".2g", most=True),
        Check("batch_invariance", "batch invariance", ".2g", most=True),
        Check("loss", "{0.metric} loses", ".4f", most=True),
    )

    precision: str = PRECISION
    rows: int
    rows_from: str
    own_rows: int
    numbers: str
    agreement: float
    max_abs_diff: float
    mean_abs_diff: float
    rounding_diff: float
    on_edge: int
    refused: int
    not_refused: int
    blur: float
    batch_invariance: float
    latency_ms: float
    throughput: float
    reference_latency_ms: float
    reference_throughput: float
    metric: str = ""
    value: float | None = None
    reference_value: float | None = None
    examples: tuple[str, ...] = ()
    cases: tuple[tuple[int, int], ...] = ()

    @property
    def loss(self) -> float | None:
        """What the version loses of the metric; None where the true labels are not known."""
        if self.value is None or self.reference_value is None:
            return None
        return self.reference_value - self.value

    @property
    def limits(self) -> Mapping[str, float]:
        """See `Measured`."""
        return LIMITS

    @property
    def failures(self) -> list[str]:
        """See `Measured`; figures, and then rows that show it. `raw` is the same comparison."""
        found = (check.failure(self, self.limits[check.key]) for check in self.CHECKS)
        missed = list(filter(None, found))
        return [*missed, *self.examples] if missed else []

    @classmethod
    def columns(cls, entries: Sequence[TabularEvidence]) -> list[Column]:
        """Size, largest difference of a score, agreement of labels, speed of one row and of 256."""
        apart = figure("#max |Δ|", "max_abs_diff", ".0e")
        scores = (f"#{entries[0].metric}", lambda entry: f"{entry.value:.4f} of {entry.reference_value:.4f}")
        scored = entries[0].value is not None
        return [
            figure("#kB", "size_bytes", ".0f", 1e3),
            *([] if scored else [apart]),
            figure("#agree", "agreement", ".1%"),
            figure("#ms ×1", "latency_ms", ".2f"),
            figure("#×256/s", "throughput", ",.0f"),
            *([scores] if scored else []),
        ]
