"""Evidence for an estimator: the exported graph against the original, row by row.

The original gets a row as it is, in float64; the graph gets it as the wire carries it, in float32. So what
the evidence counts is all that lies between a user's table and the served answer.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from sklearn.metrics import r2_score

from export.exported import Exported
from export.tabular.columns import Rows, as_feed, as_original
from export.tabular.source import Estimator
from shoal.machine import available_cpus
from shoal.progress import Silent

BATCH_SIZES = (1, 7, 256)
INVARIANCE_ROWS = 64
SPEED_BATCH = 256
SPEED_ROUNDS = 5
PRECISION = "fp32"


@dataclass(frozen=True)
class Tolerance:
    """What an export must reach.

    A row that rounding to float32 puts on the other side of a split changes the vote of one tree: so single
    rows may differ by more than rounding, and the mean may not.
    """

    min_agreement: float = 0.99
    max_abs_diff: float = 0.05
    mean_abs_diff: float = 1e-3
    max_invariance: float = 1e-5
    max_metric_loss: float = 0.005


TOLERANCE = Tolerance()


@dataclass(frozen=True)
class TabularEvidence:
    """The measured figures of one version.

    A difference is between two scores, or between two predictions of a regressor divided by the largest
    prediction of the original.

    Attributes:
        precision: always `fp32`.
        size_bytes: of the ONNX file.
        rows: how many rows were compared.
        rows_from: `held-out`, `eval-data` or `synthetic`.
        agreement: share of rows whose first label is the original's; of a regressor, share of rows whose
            prediction differs by at most 1e-4.
        max_abs_diff, mean_abs_diff: over rows, of a row's largest difference to the original.
        rounding_diff: how far the original's own answers move at most when rows are rounded to float32: the
            part of `max_abs_diff` that is the wire's.
        batch_invariance: largest difference between a row's answer alone and inside a batch.
        latency_ms, reference_latency_ms: median of one row, milliseconds, in process.
        throughput, reference_throughput: rows per second at 256 rows, in process.
        metric: `accuracy` or `r2`; empty where the true labels are not known.
        value, reference_value: of the metric, exported and original.
        cases: [batch size, rows] pairs that were compared.
        cpus: threads the speed was measured with.
    """

    precision: str
    size_bytes: int
    rows: int
    rows_from: str
    agreement: float
    max_abs_diff: float
    mean_abs_diff: float
    rounding_diff: float
    batch_invariance: float
    latency_ms: float
    throughput: float
    reference_latency_ms: float
    reference_throughput: float
    metric: str = ""
    value: float | None = None
    reference_value: float | None = None
    cases: tuple[tuple[int, int], ...] = ()
    cpus: int = field(default_factory=available_cpus)

    @property
    def failures(self) -> list[str]:
        """What misses the tolerance, as figures; empty: proven. A NaN misses."""
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
        return [text for passed, text in checks if not passed]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, with the verdict."""
        cases = [list(case) for case in self.cases]
        return asdict(self) | {"cases": cases, "failures": self.failures, "proven": not self.failures}


@dataclass(frozen=True)
class _Answer:
    """Labels [rows, k] (none from a regressor) and scores [rows, k], or predictions [rows, outputs]."""

    labels: NDArray | None
    scores: NDArray[np.float32]


def measure(
    estimator: Estimator, exported: Exported, rows: Rows, *, progress: Silent | None = None
) -> TabularEvidence:
    """Compare an export with its original, and time both in turn.

    Args:
        rows: from `export.tabular.sample.rows_for`; with labels the metric is computed too.
    """
    progress = progress or Silent()
    answer = _open(estimator, exported)
    expected = estimator.predict(rows)
    # A regressor's numbers have a unit, so they are compared with the largest of them.
    scale = 1.0 if estimator.classes else float(np.abs(expected).max()) or 1.0
    differences = np.zeros(len(rows))
    agreement: list[float] = []
    with progress.step("Compare with the original", total=len(BATCH_SIZES)) as advance:
        for batch in BATCH_SIZES:
            got = _in_batches(answer, rows, batch)
            difference = _differences(estimator.classes, got, expected) / scale
            differences = np.maximum(differences, difference)
            agreement.append(_agreement(estimator.classes, got, expected, difference))
            advance()
    rounding = np.abs(estimator.predict(_rounded(rows)) - expected).max() / scale
    few = rows.take(slice(INVARIANCE_ROWS))
    with progress.step("Compare each row alone and in a batch"):
        apart = np.abs(_in_batches(answer, few, 1).scores - answer(few).scores).max() / scale
    speeds = _speeds(estimator, exported, rows, progress)
    metric, value, reference_value = _metric(estimator.classes, answer(rows), expected, rows.labels)
    return TabularEvidence(
        precision=PRECISION,
        size_bytes=exported.path.stat().st_size,
        rows=len(rows),
        rows_from=rows.origin,
        agreement=min(agreement),
        max_abs_diff=float(differences.max()),
        mean_abs_diff=float(differences.mean()),
        rounding_diff=float(rounding),
        batch_invariance=float(apart),
        latency_ms=1e3 * speeds["exported"][0],
        throughput=SPEED_BATCH / speeds["exported"][1],
        reference_latency_ms=1e3 * speeds["original"][0],
        reference_throughput=SPEED_BATCH / speeds["original"][1],
        metric=metric,
        value=value,
        reference_value=reference_value,
        cases=tuple((batch, len(rows)) for batch in BATCH_SIZES),
    )


def _session(exported: Exported) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cpus()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(exported.path), options, providers=["CPUExecutionProvider"])


def _open(estimator: Estimator, exported: Exported) -> Callable[[Rows], _Answer]:
    session = _session(exported)

    def answer(rows: Rows) -> _Answer:
        made = session.run(None, as_feed(estimator, rows))
        return _Answer(made[0], made[1]) if estimator.classes else _Answer(None, made[0])

    return answer


def _rounded(rows: Rows) -> Rows:
    """Rows with their numbers as a float32 holds them."""
    values = {
        name: column if column.dtype == object else column.astype(np.float32).astype(np.float64)
        for name, column in rows.values.items()
    }
    return Rows(values, rows.origin, rows.labels)


def _in_batches(answer: Callable[[Rows], _Answer], rows: Rows, batch: int) -> _Answer:
    made = [answer(rows.take(slice(start, start + batch))) for start in range(0, len(rows), batch)]
    labels = [part.labels for part in made if part.labels is not None]
    return _Answer(np.concatenate(labels) if labels else None, np.concatenate([part.scores for part in made]))


def _differences(
    classes: tuple[str, ...], got: _Answer, expected: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The largest difference of each row [rows]: of each label to the original's score for it, and of each
    rank to the original's score there, so that a label that is left out shows too.
    """
    if got.labels is None:
        return np.abs(got.scores - expected).max(axis=1)
    index = {name: position for position, name in enumerate(classes)}
    positions = np.array([[index[str(name)] for name in row] for row in got.labels])
    same_label = np.abs(np.take_along_axis(expected, positions, axis=1) - got.scores)
    same_rank = np.abs(np.sort(expected, axis=1)[:, ::-1][:, : got.scores.shape[1]] - got.scores)
    return np.maximum(same_label, same_rank).max(axis=1)


def _agreement(
    classes: tuple[str, ...], got: _Answer, expected: NDArray[np.float64], difference: NDArray[np.float64]
) -> float:
    if got.labels is None:
        return float((difference <= 1e-4).mean())
    return float((got.labels[:, 0] == _first(classes, expected)).mean())


def _first(classes: tuple[str, ...], scores: NDArray[np.float64]) -> NDArray:
    return np.array(classes, dtype=object)[scores.argmax(axis=1)]


def _metric(
    classes: tuple[str, ...], got: _Answer, expected: NDArray[np.float64], truth: NDArray | None
) -> tuple[str, float | None, float | None]:
    """Name of the metric, the export's value and the original's."""
    if truth is None:
        return "", None, None
    if got.labels is None:
        return "r2", float(r2_score(truth, got.scores)), float(r2_score(truth, expected))
    right = float((got.labels[:, 0] == truth).mean())
    return "accuracy", right, float((_first(classes, expected) == truth).mean())


def _speeds(
    estimator: Estimator, exported: Exported, rows: Rows, progress: Silent
) -> dict[str, tuple[float, float]]:
    """Median seconds of one row and of 256 rows; both models in turn, so that they compare."""
    session = _session(exported)
    predict = estimator.model.predict_proba if estimator.classes else estimator.model.predict
    full = rows.take(np.arange(SPEED_BATCH) % len(rows))
    seconds: dict[str, tuple[list[float], list[float]]] = {"exported": ([], []), "original": ([], [])}
    cases = []
    for position, (some, repeats) in enumerate([(rows.take(slice(1)), 8), (full, 3)]):
        feed, table = as_feed(estimator, some), as_original(estimator, some)
        cases.append((position, repeats, feed, table))
        session.run(None, feed)
        predict(table)
    with progress.step("Measure speed", total=SPEED_ROUNDS) as advance:
        for _ in range(SPEED_ROUNDS):
            for position, repeats, feed, table in cases:
                for _ in range(repeats):
                    start = time.perf_counter()
                    session.run(None, feed)
                    seconds["exported"][position].append(time.perf_counter() - start)
                for _ in range(repeats):
                    start = time.perf_counter()
                    predict(table)
                    seconds["original"][position].append(time.perf_counter() - start)
            advance()
    return {
        name: (statistics.median(alone), statistics.median(batched))
        for name, (alone, batched) in seconds.items()
    }
