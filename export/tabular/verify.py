"""Evidence for an estimator: how its answers agree with the original's, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from sklearn.metrics import r2_score

from export.raw.evidence import RawEvidence
from export.raw.served import Caller
from export.speed import Timed, median_seconds
from export.tabular.agreement import Served, compare, in_batches
from export.tabular.asking import differences
from export.tabular.evidence import TabularEvidence
from export.tabular.original import Answers
from export.tabular.sample import Sample
from serving.models.rows import BadRow
from serving.onnxruntime.sessions import measured_session
from shoal.machine import available_cpus
from shoal.progress import Silent

BATCH_SIZES = (1, 7, 256)
INVARIANCE_ROWS = 64
SPEED_BATCH = 256
SPEED_ROUNDS = 5


def measure(served: Served, sample: Sample, *, progress: Silent | None = None) -> TabularEvidence:
    """Compare what is served with the original, and time both in turn.

    Args:
        sample: rows and what the original says of them.
    """
    progress = progress or Silent()
    rows, answer = sample.rows, served.opened()
    with progress.step("Compare with the original"):
        found = compare(answer, served, sample, BATCH_SIZES)
    few = rows.take(slice(INVARIANCE_ROWS))
    with progress.step("Compare each row alone and in a batch"):
        alone, together = (in_batches(answer, few, batch) for batch in (1, INVARIANCE_ROWS))
        invariance = float(differences(alone, together, sample.scale).max())
    refused = _refused(served, sample)
    speeds = _speeds(served, sample, progress)
    metric, value, reference_value = _metric(sample, found.got, served.estimator.classes)
    return TabularEvidence(
        size_bytes=served.exported.path.stat().st_size,
        rows=len(rows),
        rows_from=rows.origin,
        own_rows=sample.own,
        numbers=served.numbers,
        agreement=1.0 - float(found.wrong.mean()),
        max_abs_diff=float(found.apart.max()),
        mean_abs_diff=float(found.apart.mean()),
        rounding_diff=sample.rounding,
        on_edge=int(found.edge.sum()),
        refused=refused[0],
        not_refused=refused[1],
        blur=served.blur,
        batch_invariance=invariance,
        latency_ms=1e3 * speeds["exported"][1],
        throughput=SPEED_BATCH / speeds["exported"][SPEED_BATCH],
        reference_latency_ms=1e3 * speeds["original"][1],
        reference_throughput=SPEED_BATCH / speeds["original"][SPEED_BATCH],
        metric=metric,
        value=value,
        reference_value=reference_value,
        examples=found.sentences,
        cases=tuple((batch, len(rows)) for batch in BATCH_SIZES),
        raw=found.raw(served.estimator.call, sample),
    )


def measure_wire(served: Served, sample: Sample, caller: Caller, model: str, batch: int) -> RawEvidence:
    """Compare what a server answers with what the original says.

    Args:
        caller: has the model.
        model: its name there.
        batch: how many rows a request has.
    """
    found = compare(served.over(caller, model), served, sample, (batch,))
    return found.raw(served.estimator.call, sample)


def _refused(served: Served, sample: Sample) -> tuple[int, int]:
    """How many of the rows that the original refuses are refused here, and how many are not."""
    if sample.refused is None:
        return 0, 0
    count = 0
    for place in range(len(sample.refused)):
        try:
            served.feed(sample.refused.take(np.array([place])))
        except BadRow:
            count += 1
    return count, len(sample.refused) - count


def _metric(sample: Sample, got: Answers, classes: tuple[str, ...]) -> tuple[str, float | None, float | None]:
    """Name of the metric, the export's value and the original's, on the rows that are not made."""
    if sample.truth is None:
        return "", None, None
    own = np.arange(sample.own)
    mine, theirs = got.take(own), sample.expected.take(own)
    if not classes:
        return "r2", float(r2_score(sample.truth, mine.scores)), float(r2_score(sample.truth, theirs.scores))
    right = np.mean(mine.labels[:, 0] == sample.truth)  # type: ignore[index]
    return "accuracy", float(right), float(np.mean(theirs.labels == sample.truth))


def _speeds(served: Served, sample: Sample, progress: Silent) -> dict[str, dict[int, float]]:
    """Median seconds of one row and of 256 rows; both models in turn, so that they compare."""
    session = measured_session(served.exported.path, threads=available_cpus())
    original, rows = served.estimator.original, sample.rows
    calls: dict[str, dict[int, Timed]] = {"exported": {}, "original": {}}
    for count, repeats in ((1, 8), (SPEED_BATCH, 3)):
        some = rows.take(np.arange(count) % len(rows))
        tables = [raw for _, raw in served.estimator.shape.of(some)]
        calls["exported"][count] = (partial(session.run, None, served.feed(some)), repeats)
        calls["original"][count] = (partial(_scores, original, tables), repeats)
    return median_seconds(calls, SPEED_ROUNDS, progress)


def _scores(original: Any, tables: Sequence[Any]) -> None:
    for table in tables:
        original.scores(table)
