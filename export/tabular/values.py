"""Values that hurt, for rows that an export is measured with: the worst that columns may hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.tabular.columns import CATEGORY, DOCUMENT, NUMBER, Column, Rows

BASES = 64  # ordinary rows
MIXED = 512  # rows of ordinary and of other values together
LARGEST = float(np.finfo(np.float32).max)
NUMBERS = (
    0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.7, 3.0, -7.0, 1e-36, -1e-36, 2.0**24 + 1, 2.0**31, 2.0**53 + 2,
    1e10, -1e10, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
# Asked of, to know what is refused, and not compared: float32 does not hold them, or nothing beyond.
OUTERMOST = (LARGEST, -LARGEST, 1e39, -1e39)
TEXTS = ("no such category", "1", "1.0", " 1", "nan", "True", "None", "é", "日本")
DOCUMENTS = (
    "", " ", "a", "A b C", "Crème BRÛLÉE, naïve café!", "ＦＵＬＬ　width", "İstanbul STRASSE Straße ΣΊ",
    "😀 ok 👍🏽", "don't stop-me_now", "3.14 1,000 42nd ½ ² ٣", "tab\tnew\nline\r\nend", "a" * 300,
    "<b>tag</b> &amp;", "e\u0301 combined", "日本語 テキスト", "word " * 200, "http://x.y/z?q=1",
    "\u00a0nbsp\u200bzero",
)  # fmt: skip
_WORDS = ("fish", "swim", "in", "shoals", "and", "birds", "fly")
_NEAR = 12  # thresholds of a column whose neighbours are asked of alone


def as_it_is(values: NDArray) -> NDArray:
    """Leave values as they are, for columns that take any number."""
    return values


def between_0_and_1(values: NDArray) -> NDArray:
    """Move values between 0 and 1, for columns that take shares only."""
    return np.asarray(1.0 / (1.0 + np.exp(-values)))


def ordinary(column: Column, chance: np.random.Generator, shift: Callable[[NDArray], NDArray]) -> NDArray:
    """[BASES] values like those that the estimator was trained on, as far as it remembers."""
    if column.kind == DOCUMENT:
        words = list(column.texts) or list(_WORDS)
        made = [" ".join(chance.choice(words, chance.integers(1, 12))) for _ in range(BASES)]
        return np.array(made, dtype=object)
    if column.kind == CATEGORY:
        return np.array(chance.choice(column.texts, BASES).tolist(), dtype=object)
    if column.numbers:
        return chance.choice(column.numbers, BASES)
    splits = thresholds(column)
    if len(splits):
        low, high = splits[0], splits[-1]
        margin = 0.1 * max(high - low, abs(high), 1e-6)
        return shift(chance.uniform(low - margin, high + margin, BASES))
    return shift(chance.normal(column.centre, column.spread, BASES))


def thresholds(column: Column) -> NDArray[np.float64]:
    """The thresholds at which trees split a column, sorted."""
    return np.unique(np.concatenate(column.thresholds)) if column.thresholds else np.empty(0)


def beside(values: Sequence[float] | NDArray) -> NDArray[np.float64]:
    """Numbers with their neighbours on both sides among float64 and among float32."""
    exact = np.asarray(values, dtype=np.float64)
    near = exact.astype(np.float32)
    made = [exact, near.astype(np.float64)]
    for end in (np.inf, -np.inf):
        made.append(np.nextafter(exact, end))
        made.append(np.nextafter(near, np.float32(end)).astype(np.float64))
    found = np.concatenate(made)
    return found[np.isfinite(found)]


def special(column: Column, chance: np.random.Generator) -> list[Any]:
    """Values of a column to ask of, each once."""
    if column.kind == DOCUMENT:
        words = list(column.texts[:200])
        more = [f"{word.upper()} {word.title()}!" for word in chance.permutation(words)[:20].tolist()]
        return [*DOCUMENTS, *more]
    if column.kind == CATEGORY:
        known = [*column.texts]
        more = [known[-1].upper() + "_", f" {known[-1]}", *TEXTS]
        # Where the empty text is known, the wire has nothing else for a missing one.
        return list(dict.fromkeys([*([] if "" in known else [None]), *known, *more]))
    found = [*NUMBERS, *OUTERMOST]
    if column.numbers:
        codes = np.array(column.numbers)
        around = np.array([codes.max() + 1, codes.min() - 1, codes.max() + 0.9])
        found += [*column.numbers, *np.concatenate([codes[:50] + 0.5, codes[:5] - 0.5, around]).tolist()]
    splits = thresholds(column)
    if len(splits):
        found += beside(chance.choice(splits, min(_NEAR, len(splits)), replace=False)).tolist()
    # Compared as bits: zero has two signs.
    return list({np.float64(value).tobytes(): value for value in found}.values())


def compared(value: Any) -> bool:
    """Whether rows with a value are compared, and not only asked of."""
    return isinstance(value, str) or value is None or not LARGEST <= abs(value) < np.inf


def alone(
    columns: Sequence[Column], base: Rows, chance: np.random.Generator
) -> tuple[Rows, list[tuple[Column, Any]]]:
    """Ordinary rows, each with one special value; and which."""
    places = [(column, value) for column in columns for value in special(column, chance)]
    places.sort(key=lambda place: _rank(place[1]))  # what is refused together is found together
    made = base.take(np.arange(len(places)) % len(base))
    for row, (column, value) in enumerate(places):
        made.values[column.name][row] = value
    return made, places


def _rank(value: Any) -> int:
    if value is None or isinstance(value, str):
        return 0
    return 3 if not np.isfinite(value) else 2 if abs(value) >= LARGEST else int(value != np.floor(value))


def pools(
    columns: Sequence[Column], places: Sequence[tuple[Column, Any]], accepted: NDArray[np.bool_]
) -> dict[str, NDArray]:
    """Column name -> the special values that the original takes, and all thresholds with their neighbours."""
    taken: dict[str, list[Any]] = {column.name: [] for column in columns}
    for (column, value), good in zip(places, accepted, strict=True):
        if good and compared(value):
            taken[column.name].append(value)
    made = {}
    for column in columns:
        values = [*taken[column.name], *beside(thresholds(column)).tolist()]
        made[column.name] = np.empty(len(values), dtype=np.float64 if column.kind == NUMBER else object)
        made[column.name][:] = values
    return made


def mixed(
    columns: Sequence[Column], base: Rows, special_values: Mapping[str, NDArray], chance: np.random.Generator
) -> Rows:
    """Rows of ordinary values with special ones among them, ever more of these."""
    share = np.linspace(0.1, 0.9, MIXED)
    values = {}
    for column in columns:
        made = base.values[column.name][chance.integers(len(base), size=MIXED)]
        pool = special_values[column.name]
        if len(pool):
            chosen = chance.random(MIXED) < share
            made = made.copy()
            made[chosen] = pool[chance.integers(len(pool), size=int(chosen.sum()))]
        values[column.name] = made
    return Rows(values, base.origin)
