"""Rows to measure with, and what the original makes of them: which it refuses, and whether float32 is enough.

Rows are made from what the estimator remembers: categories, centre and spread, thresholds. They hold every
value that hurts: zeros of both signs, NaN, infinity, what is just beside a threshold or on it, numbers beyond
what float32 or float64 hold, broken and negative and unknown categories, texts with accents, emoji, nothing.
The original is asked of each alone; what it refuses is what the server will refuse. The rows of a user, where
there are some, are measured with too, and give the metric.

Nothing here looks at what was exported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.tabular import edges, limits, values
from export.tabular.asking import Asker, differences, scale_of
from export.tabular.columns import CATEGORY, Column, Rows, joined
from export.tabular.estimator import Estimator
from export.tabular.original import Answers
from serving.models.rows import Check
from shoal.errors import ExportError, UsageError

MOST_ALONE = 1024  # rows with one value that is not ordinary
# The original's own answer moves by more than this where float32 is not enough.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Sample:
    """Rows, and what the original says of them.

    Attributes:
        rows: those that it answers, the user's own first.
        own: how many of them are the user's own, or an example's held-out ones.
        truth: what these should be answered: names of classes, or numbers [own, outputs].
        expected: its answers.
        rounded: its answers to the same rows with their numbers as float32.
        scale: how large its predictions are; see `asking.scale_of`.
        refused: rows with a value that it refuses, one each.
        checks: what each column may hold, of those that do not take everything.
        notes: what cannot be sent as the original tells it apart.
    """

    rows: Rows
    own: int
    truth: NDArray | None
    expected: Answers
    rounded: Answers
    scale: NDArray[np.float64]
    refused: Rows | None
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()

    @property
    def rounding(self) -> float:
        """How far the original's answer moves at most when a row is rounded to float32."""
        return float(differences(self.rounded, self.expected, self.scale).max())


def sample(estimator: Estimator, own: Rows | None = None, *, seed: int = 0) -> Sample:
    """Make rows and ask the original; the same estimator, rows and seed give the same sample.

    Args:
        own: rows of the user; without them those that an example was not trained on, or none.

    Raises:
        UsageError: the original refuses a row of the user's own.
        ExportError: it refuses every row that is made up.
    """
    chance = np.random.default_rng(seed)
    ask, columns = Asker(estimator), estimator.columns
    own = own or estimator.held_out
    if own is not None:
        try:
            ask(own)
        except Exception as error:  # each library raises what it likes
            raise UsageError(f"the original refuses the evaluation data: {_said(error)}") from error
    base = _base(estimator, ask, own, chance)
    alone, places = values.alone(columns, base, chance)
    accepted = ask.accepted(alone)
    checks = limits.checks(columns, ask, base, places, accepted)
    pools = values.pools(columns, places, accepted)
    jumps = edges.edges(columns, ask, base, chance)
    for name, column in jumps.values.items():
        pools[name] = np.concatenate([pools[name], column])
    taken = np.flatnonzero(accepted & [values.compared(value) for _, value in places])
    if len(taken) > MOST_ALONE:
        taken = np.sort(chance.choice(taken, MOST_ALONE, replace=False))
    made = joined(joined(joined(base, alone.take(taken)), jumps), values.mixed(columns, base, pools, chance))
    made = made.take(ask.accepted(made))
    rows = made if own is None else joined(own, made)
    expected = ask(rows)
    count = 0 if own is None else len(own)
    return Sample(
        rows,
        count,
        None if own is None else own.labels,
        expected,
        _rounded(ask, rows, expected),
        scale_of(expected.take(np.arange(count + len(base)))),
        None if accepted.all() else alone.take(~accepted),
        checks,
        _notes(columns, ask, base),
    )


def _notes(columns: Sequence[Column], ask: Asker, base: Rows) -> tuple[str, ...]:
    """Columns in which the original tells an empty text from a missing value: on the wire they are one."""
    made = []
    for column in columns:
        if column.kind != CATEGORY or "" in column.texts:
            continue
        pair = base.take(np.array([0, 0]))
        pair.values[column.name][:] = [None, ""]
        if ask.accepted(pair).all():
            found = ask(pair)
            if not np.array_equal(found.scores[0], found.scores[1], equal_nan=True):
                made.append(f"column {column.name!r}: an empty text is read as a missing value")
    return tuple(made)


def _base(estimator: Estimator, ask: Asker, own: Rows | None, chance: np.random.Generator) -> Rows:
    """Ordinary rows that the original takes."""
    if own is not None:
        chosen = chance.choice(len(own), min(values.BASES, len(own)), replace=False)
        return Rows(own.take(chosen).values, "synthetic")
    reason = ""
    for shift in (values.as_it_is, np.abs, values.between_0_and_1):
        made = {column.name: values.ordinary(column, chance, shift) for column in estimator.columns}
        rows = Rows(made, "synthetic")
        kept = ask.accepted(rows)
        if kept.any():
            return rows.take(np.resize(np.flatnonzero(kept), values.BASES))
        try:
            ask(rows.take(slice(1)))
        except Exception as error:  # noqa: BLE001 - each library raises what it likes
            reason = _said(error)
    raise ExportError(
        f"the original refuses every row that is made up to compare it with: {reason}",
        hint="--eval-data with rows that it takes, if there are such",
    )


def _rounded(ask: Asker, rows: Rows, expected: Answers) -> Answers:
    """Answers to rows as float32 holds them; a row that is refused then gets no number at all.

    Args:
        expected: the answers to the rows as they are.
    """
    with np.errstate(over="ignore"):  # to infinity
        made = {
            name: column if column.dtype == object else column.astype(np.float32).astype(np.float64)
            for name, column in rows.values.items()
        }
    near = Rows(made, rows.origin)
    kept = ask.accepted(near)
    found = ask(near.take(kept)) if kept.any() else expected.take(kept)
    return Answers.gathered([(kept, found)], len(rows))


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
