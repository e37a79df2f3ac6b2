"""Answers to rows compared with the original's: of what will be served in this process, or of a server.

The original gets a row as its users have it. What is served gets it as a client sends it, through the checks
and the counting of terms before the network, and the network itself. So what is compared is all that lies
between a user's table and the served answer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.exported import Exported
from export.raw.evidence import RawEvidence, RawTolerance
from export.raw.served import Caller
from export.tabular.asking import Asker, differences
from export.tabular.columns import NUMBER, Rows
from export.tabular.estimator import Estimator
from export.tabular.evidence import LIMITS
from export.tabular.original import Answers
from export.tabular.sample import Sample
from export.tabular.to_onnx import on_the_wire
from serving.in_process import Refused
from serving.models.rows import BadRow, Reader
from serving.onnxruntime.sessions import measured_session
from shoal.errors import NotProven
from shoal.machine import available_cpus

Answer = Callable[[Rows], Answers]
# Two scores closer than this are equal: a float32 tells no more of them apart.
TIE = 1e-6
_EXAMPLES = 3  # rows that a refusal shows


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

    def opened(self) -> Answer:
        """A function that answers rows; the scores of labels are [rows, k], in the order of the labels.

        Raises:
            BadRow: by the function, of a row that is refused.
        """
        session = measured_session(self.exported.path, threads=available_cpus())
        return lambda rows: self._answers(session.run(None, self.feed(rows)))

    def over(self, caller: Caller, model: str) -> Answer:
        """The same function, of a server.

        Raises:
            Refused: by the function, of a row that is refused.
        """
        names = ("label", "score") if self.estimator.classes else ("prediction",)

        def answer(rows: Rows) -> Answers:
            made = caller.infer(model, self._sent(rows))
            return self._answers([_decoded(made[name]) for name in names])

        return answer

    def feed(self, rows: Rows) -> dict[str, NDArray]:
        """The network's inputs. All rows are read at once, which no request may ask for: nothing is limited.

        Raises:
            BadRow: a row is refused.
        """
        read = self.reader.read(self._sent(rows), max_text_bytes=sys.maxsize, max_request_terms=sys.maxsize)
        return {name: _decoded(array) for name, array in read.items()}

    def _sent(self, rows: Rows) -> dict[str, NDArray]:
        return on_the_wire(self.estimator.columns, self.estimator.named, rows, self.numbers)

    def _answers(self, made: Sequence[NDArray]) -> Answers:
        """The network's outputs: the labels, which a classifier has, and the scores."""
        return Answers(made[0] if self.estimator.classes else None, made[-1].astype(np.float64))


def _decoded(array: NDArray) -> NDArray:
    """Bytes as text, which is how ONNX Runtime takes it from Python."""
    if array.dtype != object:
        return array
    return np.array([text.decode() for text in array.ravel()], dtype=object).reshape(array.shape)


@dataclass(frozen=True)
class Compared:
    """What came of a comparison.

    Attributes:
        got: the answers.
        apart: [rows] how far an answer is from the original's at most.
        wrong: [rows] whether another label is chosen; of a regressor, whether they differ by more than 1e-4.
        edge: [rows] whether the original gives that answer to a row which differs in its last bits; such a
            row counts as answered alike.
        examples: rows that are answered otherwise, each with both answers, as words.
    """

    got: Answers
    apart: NDArray[np.float64]
    wrong: NDArray[np.bool_]
    edge: NDArray[np.bool_]
    examples: tuple[Mapping[str, Any], ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """The examples, a sentence each."""
        return tuple(
            f"for {row['input']} the original says {row['original']} and the graph {row['version']}"
            for row in self.examples
        )

    def raw(self, original: str, sample: Sample) -> RawEvidence:
        """As evidence of raw inputs.

        Args:
            original: the call that answered.
        """
        tolerance = RawTolerance(LIMITS["max_abs_diff"], LIMITS["agreement"])
        agrees = ~self.wrong & (self.apart <= tolerance.distance)
        finite = self.apart[np.isfinite(self.apart)]
        return RawEvidence(
            original=original,
            inputs=len(self.apart),
            agreement=float(agrees.mean()),
            largest=float(finite.max(initial=0.0)),
            tokens=None,
            failed=0 if sample.refused is None else len(sample.refused),
            refused=0,
            worst=None if agrees.all() else self.examples[0],
            tolerance=tolerance,
            notes=sample.notes,
        )


def compare(answer: Answer, served: Served, sample: Sample, batches: Sequence[int]) -> Compared:
    """Compare answers with the original's, in batches of several sizes."""
    rows, classes = sample.rows, served.estimator.classes
    apart = np.zeros(len(rows))
    wrong = np.zeros(len(rows), dtype=bool)
    for batch in batches:
        got = in_batches(answer, rows, batch)
        differs = _apart(classes, got, sample.expected, sample.scale)
        apart = np.maximum(apart, differs)
        wrong |= _wrong(classes, got, sample.expected, differs)
    edge = _on_edge(served, sample, got, wrong | (apart > LIMITS["max_abs_diff"]))
    apart, wrong = np.where(edge, 0.0, apart), wrong & ~edge
    worst = [place for place in np.argsort(-(apart + wrong)) if wrong[place] or apart[place] > TIE]
    examples = [
        _in_words(
            classes, rows.row(place), got.take(np.array([place])), sample.expected.take(np.array([place]))
        )
        for place in worst[:_EXAMPLES]
    ]
    return Compared(got, apart, wrong, edge, tuple(examples))


def in_batches(answer: Answer, rows: Rows, batch: int) -> Answers:
    """The answers to rows, so many at a time; a row that is refused has the label "" and NaN for scores.

    Raises:
        NotProven: every row is refused.
    """
    pending = [np.arange(start, min(start + batch, len(rows))) for start in range(0, len(rows), batch)]
    parts: list[tuple[NDArray, Answers]] = []
    reason = ""
    while pending:
        places = pending.pop()
        try:
            parts.append((places, answer(rows.take(places))))
        except (BadRow, Refused) as refused:
            reason = str(refused)
            if len(places) > 1:
                pending += np.array_split(places, 2)
    if not parts:
        raise NotProven(f"every row that the original answers is refused: {reason}")
    return Answers.gathered(parts, len(rows))


def _apart(
    classes: tuple[str, ...], got: Answers, expected: Answers, scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The largest difference of each row [rows]: of each label to the original's score for it, and of each
    rank to the original's score there, so that a label that is left out shows too.
    """
    if got.labels is None:
        return differences(got, expected, scale)
    theirs = np.take_along_axis(expected.scores, _places(classes, got.labels), axis=1)
    same_label = np.abs(theirs - got.scores)
    ranked = np.sort(expected.scores, axis=1)[:, ::-1][:, : got.scores.shape[1]]
    apart = np.maximum(same_label, np.abs(ranked - got.scores)).max(axis=1)
    nothing = np.isnan(expected.scores).any(axis=1) & np.isnan(got.scores).any(axis=1)
    return np.asarray(np.where(nothing, 0.0, np.where(np.isnan(apart), np.inf, apart)))


def _places(classes: tuple[str, ...], labels: Any) -> NDArray[np.int64]:
    """Where each label stands among the classes; that of a refused row at 0."""
    places = {"": 0} | {name: place for place, name in enumerate(classes)}
    return np.vectorize(places.__getitem__, otypes=[np.int64])(labels)


def _wrong(
    classes: tuple[str, ...], got: Answers, expected: Answers, apart: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Rows whose label is not the original's, unless the original gives both the same score."""
    if got.labels is None:
        return np.asarray(apart > 1e-4)
    own, theirs = _places(classes, got.labels[:, 0]), _places(classes, expected.labels)
    every = np.arange(len(own))
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
            found[places] |= ~wrong & (apart <= LIMITS["max_abs_diff"])
    return found


def _in_words(
    classes: tuple[str, ...], row: Mapping[str, Any], got: Answers, expected: Answers
) -> dict[str, Any]:
    shown = ", ".join(f"{name}={_value(value)}" for name, value in list(row.items())[:8])
    more = f" and {len(row) - 8} more columns" if len(row) > 8 else ""
    if got.labels is None:
        theirs, ours = (
            " ".join(f"{number:.6g}" for number in side.scores[0][:4]) for side in (expected, got)
        )
    else:
        label = str(expected.labels[0])  # type: ignore[index]
        theirs = f"{label} {expected.scores[0][classes.index(label)]:.4f}"
        ours = f"{got.labels[0][0]} {got.scores[0][0]:.4f}" if got.labels[0][0] else "refuses it"
    return {"input": f"{shown}{more}", "original": theirs, "version": ours, "cause": ""}


def _value(value: Any) -> str:
    if value is None:
        return "(missing)"
    return repr(value)[:60] if isinstance(value, str) else f"{float(value)!r}"
