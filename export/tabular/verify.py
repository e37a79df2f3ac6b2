"""Evidence for an estimator: what is served against what the original says, row by row.

The original gets a row as its users have it. What is served gets it as a client sends it, through the checks
and the counting of terms before the network, and the network itself. So what the evidence counts is all that
lies between a user's table and the served answer.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import r2_score

from export.exported import Exported
from export.tabular.asking import Asker, differences
from export.tabular.columns import NUMBER, Rows
from export.tabular.evidence import PRECISION, TOLERANCE, TabularEvidence
from export.tabular.original import Answers
from export.tabular.sample import Sample
from export.tabular.source import Estimator
from export.tabular.to_onnx import on_the_wire, open_session
from serving.models.rows import BadRow, Reader
from shoal.machine import available_cpus
from shoal.progress import Silent

BATCH_SIZES = (1, 7, 256)
INVARIANCE_ROWS = 64
SPEED_BATCH = 256
SPEED_ROUNDS = 5
EXAMPLES = 3  # rows that a refusal shows
# Two scores closer than this are equal: a float32 tells no more of them apart.
TIE = 1e-6


@dataclass(frozen=True)
class Served:
    """What is served, in this process: the reader before the network, and the network.

    Attributes:
        numbers: `FLOAT` or `DOUBLE`: as what the wire carries numbers.
        blur: see `export.tabular.to_onnx.Network`.
    """

    estimator: Estimator
    exported: Exported
    reader: Reader
    numbers: str
    blur: float = 0.0

    def opened(self) -> Callable[[Rows], Answers]:
        """A function that answers rows; the scores of labels are [rows, k], in the order of the labels.

        Raises:
            BadRow: by the function, of a row that is refused.
        """
        session = open_session(self.exported.path, available_cpus())

        def answer(rows: Rows) -> Answers:
            made = session.run(None, self.feed(rows))
            if self.estimator.classes:
                return Answers(made[0], made[1].astype(np.float64))
            return Answers(None, made[0].astype(np.float64))

        return answer

    def feed(self, rows: Rows) -> dict[str, NDArray]:
        """The network's inputs.

        Raises:
            BadRow: a row is refused.
        """
        sent = on_the_wire(self.estimator.columns, self.estimator.named, rows, self.numbers)
        return {name: _decoded(array) for name, array in self.reader.read(sent).items()}


def _decoded(array: NDArray) -> NDArray:
    """Bytes as text, which is how ONNX Runtime takes it from Python."""
    if array.dtype != object:
        return array
    return np.array([text.decode() for text in array.ravel()], dtype=object).reshape(array.shape)


def measure(served: Served, sample: Sample, *, progress: Silent | None = None) -> TabularEvidence:
    """Compare what is served with the original, and time both in turn.

    Args:
        sample: rows and what the original says of them.
    """
    progress = progress or Silent()
    estimator, rows = served.estimator, sample.rows
    classes = estimator.classes
    answer = served.opened()
    apart = np.zeros(len(rows))
    wrong = np.zeros(len(rows), dtype=bool)
    with progress.step("Compare with the original", total=len(BATCH_SIZES)) as advance:
        for batch in BATCH_SIZES:
            got = _in_batches(answer, rows, batch)
            differs = _apart(classes, got, sample.expected, sample.scale)
            apart = np.maximum(apart, differs)
            wrong |= _wrong(classes, got, sample.expected, differs)
            advance()
    edge = _on_edge(served, sample, got, wrong | (apart > TOLERANCE.max_abs_diff))
    apart, wrong = np.where(edge, 0.0, apart), wrong & ~edge
    few = rows.take(slice(INVARIANCE_ROWS))
    with progress.step("Compare each row alone and in a batch"):
        alone, together = _in_batches(answer, few, 1), answer(few)
        invariance = float(differences(alone, together, sample.scale).max())
    refused = _refused(served, sample)
    speeds = _speeds(served, sample, progress)
    metric, value, reference_value = _metric(sample, got, classes)
    worst = [place for place in np.argsort(-(apart + wrong)) if wrong[place] or apart[place] > TIE]
    return TabularEvidence(
        precision=PRECISION,
        size_bytes=served.exported.path.stat().st_size,
        rows=len(rows),
        rows_from=rows.origin,
        own_rows=sample.own,
        numbers=served.numbers,
        agreement=1.0 - float(wrong.mean()),
        max_abs_diff=float(apart.max()),
        mean_abs_diff=float(apart.mean()),
        rounding_diff=sample.rounding,
        on_edge=int(edge.sum()),
        refused=refused[0],
        not_refused=refused[1],
        blur=served.blur,
        batch_invariance=invariance,
        latency_ms=1e3 * speeds["exported"][0],
        throughput=SPEED_BATCH / speeds["exported"][1],
        reference_latency_ms=1e3 * speeds["original"][0],
        reference_throughput=SPEED_BATCH / speeds["original"][1],
        metric=metric,
        value=value,
        reference_value=reference_value,
        examples=tuple(
            _in_words(
                classes, rows.row(place), got.take(np.array([place])), sample.expected.take(np.array([place]))
            )
            for place in worst[:EXAMPLES]
        ),
        cases=tuple((batch, len(rows)) for batch in BATCH_SIZES),
    )


def _in_batches(answer: Callable[[Rows], Answers], rows: Rows, batch: int) -> Answers:
    made = [answer(rows.take(slice(start, start + batch))) for start in range(0, len(rows), batch)]
    labels = [part.labels for part in made if part.labels is not None]
    return Answers(np.concatenate(labels) if labels else None, np.concatenate([part.scores for part in made]))


def _apart(
    classes: tuple[str, ...], got: Answers, expected: Answers, scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The largest difference of each row [rows]: of each label to the original's score for it, and of each
    rank to the original's score there, so that a label that is left out shows too.
    """
    if got.labels is None:
        return differences(got, expected, scale)
    index = {name: position for position, name in enumerate(classes)}
    positions = np.array([[index[str(name)] for name in row] for row in got.labels])
    same_label = np.abs(np.take_along_axis(expected.scores, positions, axis=1) - got.scores)
    ranked = np.sort(expected.scores, axis=1)[:, ::-1][:, : got.scores.shape[1]]
    apart = np.maximum(same_label, np.abs(ranked - got.scores)).max(axis=1)
    nothing = np.isnan(expected.scores).any(axis=1) & np.isnan(got.scores).any(axis=1)
    return np.asarray(np.where(nothing, 0.0, np.where(np.isnan(apart), np.inf, apart)))


def _wrong(
    classes: tuple[str, ...], got: Answers, expected: Answers, apart: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Rows whose label is not the original's, unless the original gives both the same score."""
    if got.labels is None:
        return np.asarray(apart > 1e-4)
    first = got.labels[:, 0]
    index = {name: position for position, name in enumerate(classes)}
    own = np.array([index[str(name)] for name in first])
    theirs = np.array([index[str(name)] for name in expected.labels])  # type: ignore[union-attr]
    every = np.arange(len(first))
    tie = np.abs(expected.scores[every, own] - expected.scores[every, theirs]) <= TIE
    nothing = np.isnan(expected.scores).any(axis=1)  # of which no label is the largest
    return np.asarray((own != theirs) & ~tie & ~nothing)


def _on_edge(served: Served, sample: Sample, got: Answers, differs: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of rows that differ, those whose answer the original gives to a row that is the same but for the last
    bits of its numbers."""
    found = np.zeros(len(differs), dtype=bool)
    places = np.flatnonzero(differs)
    numeric = [c.name for c in served.estimator.columns if c.kind == NUMBER]
    if not len(places) or not numeric or not served.blur:
        return found
    ask = Asker(served.estimator)
    changes = [numeric, *([name] for name in numeric)]
    for side in (1.0 + served.blur, 1.0 - served.blur):
        for changed in changes:
            rows = sample.rows.take(places)
            values = {
                name: column * side if name in changed else column for name, column in rows.values.items()
            }
            near = Rows(values, rows.origin)
            if not ask.accepted(near).all():
                continue
            mine, theirs = got.take(places), ask(near)
            apart = _apart(served.estimator.classes, mine, theirs, sample.scale)
            wrong = _wrong(served.estimator.classes, mine, theirs, apart)
            found[places] |= ~wrong & (apart <= TOLERANCE.max_abs_diff)
    return found


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


def _in_words(classes: tuple[str, ...], row: Mapping[str, Any], got: Answers, expected: Answers) -> str:
    shown = ", ".join(f"{name}={_value(value)}" for name, value in list(row.items())[:8])
    more = f" and {len(row) - 8} more columns" if len(row) > 8 else ""
    if got.labels is None:
        answers = [" ".join(f"{number:.6g}" for number in side.scores[0][:4]) for side in (expected, got)]
    else:
        label = str(expected.labels[0])  # type: ignore[index]
        theirs = expected.scores[0][classes.index(label)]
        answers = [f"{label} {theirs:.4f}", f"{got.labels[0][0]} {got.scores[0][0]:.4f}"]
    return f"for {shown}{more} the original says {answers[0]} and the graph {answers[1]}"


def _value(value: Any) -> str:
    if value is None:
        return "(missing)"
    return repr(value)[:60] if isinstance(value, str) else f"{float(value)!r}"


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


def _speeds(served: Served, sample: Sample, progress: Silent) -> dict[str, tuple[float, float]]:
    """Median seconds of one row and of 256 rows; both models in turn, so that they compare."""
    session = open_session(served.exported.path, available_cpus())
    original, rows = served.estimator.original, sample.rows
    full = rows.take(np.arange(SPEED_BATCH) % len(rows))
    seconds: dict[str, tuple[list[float], list[float]]] = {"exported": ([], []), "original": ([], [])}
    cases = []
    for position, (some, repeats) in enumerate([(rows.take(slice(1)), 8), (full, 3)]):
        feed, tables = served.feed(some), [raw for _, raw in served.estimator.shape.of(some)]
        cases.append((position, repeats, feed, tables))
        session.run(None, feed)
    with progress.step("Measure speed", total=SPEED_ROUNDS) as advance:
        for _ in range(SPEED_ROUNDS):
            for position, repeats, feed, tables in cases:
                for _ in range(repeats):
                    start = time.perf_counter()
                    session.run(None, feed)
                    seconds["exported"][position].append(time.perf_counter() - start)
                for _ in range(repeats):
                    start = time.perf_counter()
                    for table in tables:
                        original.scores(table)
                    seconds["original"][position].append(time.perf_counter() - start)
            advance()
    return {
        name: (statistics.median(alone), statistics.median(batched))
        for name, (alone, batched) in seconds.items()
    }
