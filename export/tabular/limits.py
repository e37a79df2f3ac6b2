"""What the original refuses, column by column: the server refuses the same, before the network is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.tabular.asking import Asker
from export.tabular.columns import CATEGORY, DOCUMENT, Column, Rows
from export.tabular.values import LARGEST
from serving.models.rows import Check
from shoal.wire import FEATURES


def checks(
    columns: Sequence[Column],
    ask: Asker,
    base: Rows,
    places: Sequence[tuple[Column, Any]],
    accepted: NDArray[np.bool_],
) -> tuple[Check, ...]:
    """What each column may hold, of those that do not take everything.

    Args:
        base: rows that the original takes.
        places: values that it was asked of, each alone in such a row.
        accepted: which of them it takes.
    """
    by_column: dict[str, list[tuple[Any, bool]]] = {column.name: [] for column in columns}
    for (column, value), taken in zip(places, accepted, strict=True):
        by_column[column.name].append((value, bool(taken)))
    made = []
    for place, column in enumerate(columns):
        if column.kind == DOCUMENT:
            continue
        asked = by_column[column.name]
        found = _of_texts(column, asked) if column.kind == CATEGORY else _of_numbers(column, ask, base, asked)
        made.append(Check(column.name, column.input, place if column.input == FEATURES else 0, **found))
    return tuple(check for check in made if not check.takes_all)


def _of_texts(column: Column, asked: Sequence[tuple[Any, bool]]) -> dict[str, Any]:
    known = set(column.texts)
    missing = all(taken for value, taken in asked if value is None)  # also where that was not asked
    if all(taken for value, taken in asked if value is not None and value not in known):
        return {"missing": missing}
    return {
        "missing": missing,
        "known": tuple(value for value, taken in asked if taken and value is not None),
    }


def _of_numbers(
    column: Column, ask: Asker, base: Rows, asked: Sequence[tuple[float, bool]]
) -> dict[str, Any]:
    taken = {np.float64(value).tobytes(): answer for value, answer in asked}

    def takes(value: float) -> bool:
        return taken[np.float64(value).tobytes()]

    made: dict[str, Any] = {
        "missing": takes(float("nan")),
        "infinite": takes(float("inf")),
        "minus_infinite": takes(float("-inf")),
    }
    finite = [(value, answer) for value, answer in asked if np.isfinite(value)]
    if column.numbers and not any(answer for value, answer in finite if value not in set(column.numbers)):
        return {**made, "known": tuple(value for value in column.numbers if takes(value))}
    good = [value for value, answer in finite if answer]
    if not good:  # it takes what ordinary rows hold, and nobody can tell what else
        return made
    below = [value for value, answer in finite if not answer and value < min(good)]
    above = [value for value, answer in finite if not answer and value > max(good)]
    if below:
        made["least"] = _bound(column, ask, base, min(good), max(below))
    if above:
        made["most"] = _bound(column, ask, base, max(good), min(above))
    return made


def _bound(column: Column, ask: Asker, base: Rows, inside: float, outside: float) -> float:
    """The last number that the original takes between one that it takes and one that it does not."""
    if abs(inside) == LARGEST:  # what follows is infinite as a float32
        return inside
    low, high = ordered(inside), ordered(outside)
    row = base.take(np.array([0]))
    while abs(high - low) > 1:
        middle = (low + high) // 2
        row.values[column.name][0] = number(middle)
        if ask.accepted(row).all():
            low = middle
        else:
            high = middle
    return number(low)


def ordered(value: float) -> int:
    """Float64 numbers as integers of the same order, neighbours 1 apart."""
    bits = int(np.float64(value).view(np.int64))
    return bits if bits >= 0 else -(2**63) - bits


def number(place: int) -> float:
    """The number of a place among them."""
    bits = place if place >= 0 else -(2**63) - place
    return float(np.int64(bits).view(np.float64))
