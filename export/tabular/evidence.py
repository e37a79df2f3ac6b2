"""The measured figures of a served estimator, and what they must reach."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from export.raw.evidence import RawEvidence
from shoal.machine import available_cpus

PRECISION = "fp32"


@dataclass(frozen=True)
class Tolerance:
    """What an export must reach: answers are the original's, but for how float32 writes them."""

    min_agreement: float = 0.999
    max_abs_diff: float = 1e-3
    mean_abs_diff: float = 1e-4
    max_invariance: float = 1e-5
    max_metric_loss: float = 0.001


TOLERANCE = Tolerance()


@dataclass(frozen=True)
class TabularEvidence:
    """The measured figures of one version.

    A difference is between two scores, or between two predictions relative to the size of the original's.

    Attributes:
        precision: always `fp32`.
        size_bytes: of the ONNX file.
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
        raw: the same comparison in the form that all evidence has.
        cpus: threads the speed was measured with.
    """

    precision: str
    size_bytes: int
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
    raw: RawEvidence | None = None
    cpus: int = field(default_factory=available_cpus)

    @property
    def failures(self) -> list[str]:
        """What misses the tolerance, as figures, and then rows that show it; empty: proven. A NaN misses."""
        limit = TOLERANCE
        checks = [
            (
                self.agreement >= limit.min_agreement,
                f"agreement {self.agreement:.4f} < {limit.min_agreement}",
            ),
            (
                self.max_abs_diff <= limit.max_abs_diff,
                f"difference {self.max_abs_diff:.2g} > {limit.max_abs_diff:g}",
            ),
            (
                self.mean_abs_diff <= limit.mean_abs_diff,
                f"mean difference {self.mean_abs_diff:.2g} > {limit.mean_abs_diff:g}",
            ),
            (
                self.batch_invariance <= limit.max_invariance,
                f"batch invariance {self.batch_invariance:.2g} > {limit.max_invariance:g}",
            ),
        ]
        if self.value is not None and self.reference_value is not None:
            loss = self.reference_value - self.value
            text = f"{self.metric} loses {loss:.4f} > {limit.max_metric_loss}"
            checks.append((loss <= limit.max_metric_loss, text))
        missed = [text for passed, text in checks if not passed]
        return [*missed, *self.examples] if missed else []

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, with the verdict."""
        plain: dict[str, Any] = {
            "cases": [list(case) for case in self.cases],
            "examples": list(self.examples),
        }
        plain["raw"] = self.raw.to_dict() if self.raw else None
        return asdict(self) | plain | {"failures": self.failures, "proven": not self.failures}
