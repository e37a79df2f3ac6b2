"""Where the original's answer jumps, found by asking it alone: thresholds that no part remembers as such."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from export.tabular.asking import Asker
from export.tabular.columns import NUMBER, Column, Rows
from export.tabular.limits import number, ordered
from export.tabular.values import beside

MOST_COLUMNS = 32  # in which jumps are looked for
STRETCHES = 8  # of a column
PARTS = 16  # into which a stretch is cut that holds a jump
JUMP = 1e-5  # of scores, or of predictions relative to their size
# A column, a row, and two places among the float64 numbers between which the column goes.
Stretch = tuple[Column, int, int, int]


def edges(columns: tuple[Column, ...], ask: Asker, base: Rows, chance: np.random.Generator) -> Rows:
    """Rows on both sides of jumps, with the neighbours of each side among float64 and float32.

    A jump is looked for in single columns of rows that the original takes, where it has no thresholds that
    are known already.
    """
    open_ones = [c for c in columns if c.kind == NUMBER and not c.thresholds and not c.numbers]
    stretches: list[Stretch] = []
    for index in chance.permutation(len(open_ones))[:MOST_COLUMNS]:
        column, row = open_ones[index], int(chance.integers(len(base)))
        values = np.unique(base.values[column.name])
        values = values[np.isfinite(values)][:: max(1, len(values) // STRETCHES)]
        stretches += [(column, row, ordered(a), ordered(b)) for a, b in pairwise(values)]
    found = [
        (column, row, value)
        for column, row, low, high in _narrowed(ask, base, stretches)
        for value in beside([number(low), number(high)])
    ]
    made = base.take(np.array([row for _, row, _ in found], dtype=int))
    for place, (column, _, value) in enumerate(found):
        made.values[column.name][place] = value
    return made


def _narrowed(ask: Asker, base: Rows, stretches: list[Stretch]) -> list[Stretch]:
    """Narrow each stretch to the part over which the answer changes most, until its ends are neighbours;
    where the change gets small on the way there is no jump."""
    while stretches:
        points = [
            np.unique([low + (high - low) * step // PARTS for step in range(PARTS + 1)]).tolist()
            for _, _, low, high in stretches
        ]
        sizes = [len(p) for p in points]
        ends = np.cumsum(sizes)
        made = base.take(np.repeat([row for _, row, _, _ in stretches], sizes))
        for (column, _, _, _), p, end in zip(stretches, points, ends, strict=True):
            made.values[column.name][end - len(p) : end] = [number(point) for point in p]
        try:
            scores = ask(made).scores
        except Exception:  # noqa: BLE001 - a number between two that are taken may itself be refused
            return []
        size = float(np.nanmedian(np.abs(scores))) or 1.0
        narrowed: list[Stretch] = []
        for (column, row, _, _), p, part in zip(stretches, points, np.split(scores, ends[:-1]), strict=True):
            jumps = np.abs(np.diff(part, axis=0)).max(axis=1)
            if jumps.max() > JUMP * size:
                first = int(jumps.argmax())
                narrowed.append((column, row, p[first], p[first + 1]))
        stretches = narrowed
        if all(high - low <= 1 for _, _, low, high in stretches):
            return stretches
    return []
