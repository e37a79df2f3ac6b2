"""Rows to measure with, and what the original makes of them: which it refuses, and whether float32 is enough.

Rows are made from what the estimator remembers: categories, centre and spread, thresholds. They hold every
value that hurts: zeros of both signs, NaN, infinity, what is just beside a threshold or on it, numbers beyond
what float32 or float64 hold, broken and negative and unknown categories, texts with accents, emoji, nothing.
The original is asked of each alone; what it refuses is what the server will refuse. The rows of a user, where
there are some, are measured with too, and give the metric.

Nothing here looks at what was exported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.tabular.columns import CATEGORY, DOCUMENT, NUMBER, Column, Rows, joined
from export.tabular.original import Answers
from export.tabular.source import Estimator
from serving.models.rows import Check
from shoal.errors import ExportError, UsageError

BASES = 64  # ordinary rows
MIXED = 512  # rows of ordinary and of other values together
MOST_ALONE = 1024  # rows with one value that is not ordinary
PARTS = 16  # into which a stretch is cut that holds a jump
# The original's own answer moves by more than this where float32 is not enough.
ROUNDING = 1e-5
_LARGEST = float(np.finfo(np.float32).max)
NUMBERS = (
    0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.7, 3.0, -7.0, 1e-36, -1e-36, 2.0**24 + 1, 2.0**31, 2.0**53 + 2,
    1e10, -1e10, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
TEXTS = ("no such category", "1", "1.0", " 1", "nan", "True", "None", "é", "日本")
DOCUMENTS = (
    "", " ", "a", "A b C", "Crème BRÛLÉE, naïve café!", "ＦＵＬＬ　width", "İstanbul STRASSE Straße ΣΊΣΥΦΟΣ",
    "😀 ok 👍🏽", "don't stop-me_now", "3.14 1,000 42nd ½ ² ٣", "tab\tnew\nline\r\nend", "a" * 300,
    "e\u0301 combined", "日本語 テキスト", "word " * 200, "<b>tag</b> &amp; http://x.y/z?q=1", "\u00a0nbsp\u200bzero",
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """Rows, and what the original says of them.

    Attributes:
        rows: those that it answers, the user's own first.
        own: how many of them are the user's own, or an example's held-out ones.
        truth: what these should be answered: names of classes, or numbers [own, outputs].
        expected: its answers.
        rounded: its answers to the same rows with their numbers as float32.
        refused: rows with a value that it refuses, one each.
        checks: what each column may hold, of those that do not take everything.
    """

    rows: Rows
    own: int
    truth: NDArray | None
    expected: Answers
    rounded: Answers
    refused: Rows | None
    checks: tuple[Check, ...]

    def rounding(self, regression: bool) -> float:
        """How far the original's answer moves at most when a row is rounded to float32."""
        return float(differences(self.rounded, self.expected, regression=regression).max())


def differences(got: Answers, expected: Answers, *, regression: bool) -> NDArray[np.float64]:
    """The largest difference of each row [rows]: of probabilities; of predictions relative to their size."""
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(got.scores - expected.scores)
        # A prediction that float32 does not hold arrives as infinity.
        near = expected.scores.astype(np.float32)
    same = (got.scores == near) | (np.isnan(got.scores) & np.isnan(expected.scores))
    apart = np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))
    if regression:
        sizes = np.abs(expected.scores)
        finite = np.where(np.isfinite(sizes), sizes, np.nan)
        typical = np.nan_to_num(np.nanmedian(finite, axis=0)) if np.isfinite(sizes).any() else 1.0
        apart = apart / np.maximum(np.where(np.isfinite(sizes), sizes, 1.0), np.where(typical, typical, 1.0))
    return np.asarray(apart.max(axis=1))


class Asker:
    """Asks the original of rows, in the form in which its users have them."""

    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator

    def __call__(self, rows: Rows) -> Answers:
        """Its answers.

        Raises:
            Exception: it refuses one of the rows; whatever its library raises.
        """
        parts = [
            (places, self._estimator.original.answers(raw))
            for places, raw in self._estimator.shape.of(rows)
        ]
        order = np.argsort(np.concatenate([places for places, _ in parts]))
        scores = np.concatenate([found.scores for _, found in parts])[order]
        labels = [found.labels for _, found in parts if found.labels is not None]
        return Answers(np.concatenate(labels)[order] if labels else None, scores)

    def accepted(self, rows: Rows) -> NDArray[np.bool_]:
        """Which rows it answers [rows]: halves of what it refuses are tried until single rows are left."""
        found = np.zeros(len(rows), dtype=bool)
        pending = [np.arange(len(rows))] if len(rows) else []
        while pending:
            places = pending.pop()
            try:
                for _, raw in self._estimator.shape.of(rows.take(places)):
                    self._estimator.original.scores(raw)
            except Exception:  # noqa: BLE001 - each library raises what it likes
                if len(places) > 1:
                    pending += np.array_split(places, 2)
            else:
                found[places] = True
        return found


def sample(estimator: Estimator, own: Rows | None = None, *, seed: int = 0) -> Sample:
    """Make rows and ask the original; the same estimator, rows and seed give the same sample.

    Args:
        own: rows of the user; without them those that an example was not trained on, or none.

    Raises:
        UsageError: the original refuses a row of the user's own.
        ExportError: it refuses every row that is made up.
    """
    chance = np.random.default_rng(seed)
    ask = Asker(estimator)
    own = own or estimator.held_out
    if own is not None:
        try:
            ask(own)
        except Exception as error:  # each library raises what it likes
            raise UsageError(
                f"the original refuses the evaluation data: {' '.join(str(error).split())[:200]}"
            ) from error
    base = _base(estimator, ask, own, chance)
    alone, places = _alone(estimator.columns, base, chance)
    accepted = ask.accepted(alone)
    pools = _pools(estimator.columns, alone, places, accepted)
    checks = _checks(estimator.columns, ask, base, alone, places, accepted)
    edges = _edges(estimator, ask, base, chance)
    for name, column in edges.values.items():
        pools[name] = np.concatenate([pools[name], column])
    # What float32 does not hold at all is asked of, and not compared.
    held = np.array([isinstance(v, str) or v is None or not _LARGEST <= abs(v) < np.inf for _, v in places])
    taken = np.flatnonzero(accepted & held)
    if len(taken) > MOST_ALONE:
        taken = np.sort(chance.choice(taken, MOST_ALONE, replace=False))
    made = joined(joined(joined(base, alone.take(taken)), edges), _mixed(estimator.columns, base, pools, chance))
    made = made.take(ask.accepted(made))
    rows = made if own is None else joined(own, made)
    refused = alone.take(~accepted) if not accepted.all() else None
    return Sample(
        Rows(rows.values, "synthetic" if own is None else own.origin),
        0 if own is None else len(own),
        None if own is None else own.labels,
        ask(rows),
        _rounded(ask, rows),
        refused,
        checks,
    )


def _rounded(ask: Asker, rows: Rows) -> Answers:
    """Answers to rows as float32 holds them; a row that is refused then gets no number at all."""
    with np.errstate(over="ignore"):  # to infinity
        values = {
            name: column if column.dtype == object else column.astype(np.float32).astype(np.float64)
            for name, column in rows.values.items()
        }
    near = Rows(values, rows.origin)
    kept = ask.accepted(near)
    found = ask(near.take(kept))
    scores = np.full((len(rows), found.scores.shape[1]), np.nan)
    scores[kept] = found.scores
    labels = None
    if found.labels is not None:
        labels = np.full(len(rows), "", dtype=object)
        labels[kept] = found.labels
    return Answers(labels, scores)


def _base(estimator: Estimator, ask: Asker, own: Rows | None, chance: np.random.Generator) -> Rows:
    """Ordinary rows that the original takes."""
    if own is not None:
        chosen = chance.choice(len(own), min(BASES, len(own)), replace=False)
        return Rows({name: column[chosen] for name, column in own.values.items()}, "synthetic")
    reason = ""
    for shift in (_as_it_is, np.abs, _between_0_and_1):
        values = {column.name: _ordinary(column, chance, shift) for column in estimator.columns}
        rows = Rows(values, "synthetic")
        kept = ask.accepted(rows)
        if kept.any():
            return rows.take(np.resize(np.flatnonzero(kept), BASES))
        try:
            ask(rows.take(slice(1)))
        except Exception as error:  # noqa: BLE001 - each library raises what it likes
            reason = " ".join(str(error).split())[:200]
    raise ExportError(
        f"the original refuses every row that is made up to compare it with: {reason}",
        hint="--eval-data with rows that it takes",
    )


def _as_it_is(values: NDArray) -> NDArray:
    return values


def _between_0_and_1(values: NDArray) -> NDArray:
    return np.asarray(1.0 / (1.0 + np.exp(-values)))


def _ordinary(
    column: Column, chance: np.random.Generator, shift: Callable[[NDArray], NDArray]
) -> NDArray:
    """[BASES] values like those that the estimator was trained on, as far as it remembers."""
    if column.kind == DOCUMENT:
        words = list(column.texts) or ["fish", "swim", "in", "shoals", "and", "birds", "fly"]
        made = [" ".join(chance.choice(words, chance.integers(1, 12))) for _ in range(BASES)]
        return np.array(made, dtype=object)
    if column.kind == CATEGORY:
        return np.array(chance.choice(column.texts, BASES).tolist(), dtype=object)
    if column.numbers:
        return chance.choice(column.numbers, BASES)
    thresholds = _thresholds(column)
    if len(thresholds):
        low, high = thresholds[0], thresholds[-1]
        margin = 0.1 * max(high - low, abs(high), 1e-6)
        return shift(chance.uniform(low - margin, high + margin, BASES))
    return shift(chance.normal(column.centre, column.spread, BASES))


def _thresholds(column: Column) -> NDArray[np.float64]:
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


def _special(column: Column, chance: np.random.Generator) -> list[Any]:
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
    found = list(NUMBERS) + [_LARGEST, -_LARGEST, 1e39, -1e39]
    if column.numbers:
        known = np.array(column.numbers)
        around = [known[:50] + 0.5, known[:5] - 0.5, [known.max() + 1, known.min() - 1, known.max() + 0.9]]
        found += [*column.numbers, *np.concatenate(around).tolist()]
    thresholds = _thresholds(column)
    some = chance.choice(thresholds, min(12, len(thresholds)), replace=False) if len(thresholds) else []
    found += beside(some).tolist()
    return list({np.float64(value).tobytes(): value for value in found}.values())


def _alone(
    columns: Sequence[Column], base: Rows, chance: np.random.Generator
) -> tuple[Rows, list[tuple[Column, Any]]]:
    """Ordinary rows, each with one special value; and which."""
    places = [(column, value) for column in columns for value in _special(column, chance)]
    places.sort(key=lambda place: _rank(place[1]))  # what is refused together is found together
    index = np.arange(len(places)) % len(base)
    values = {name: column[index].copy() for name, column in base.values.items()}
    for row, (column, value) in enumerate(places):
        values[column.name][row] = value
    return Rows(values, "synthetic"), places


def _rank(value: Any) -> int:
    if value is None or isinstance(value, str):
        return 0
    return 3 if not np.isfinite(value) else 2 if abs(value) >= _LARGEST else int(value != np.floor(value))


def _pools(
    columns: Sequence[Column], alone: Rows, places: list[tuple[Column, Any]], accepted: NDArray[np.bool_]
) -> dict[str, NDArray]:
    """The special values of each column that the original takes, but for the largest."""
    pools: dict[str, list[Any]] = {column.name: [] for column in columns}
    for row, (column, value) in enumerate(places):
        if accepted[row] and not (column.kind == NUMBER and abs(value) >= _LARGEST and np.isfinite(value)):
            pools[column.name].append(value)
    return {
        column.name: _values(column, [*pools[column.name], *beside(_thresholds(column)).tolist()])
        for column in columns
    }


def _values(column: Column, values: Sequence[Any]) -> NDArray:
    made = np.empty(len(values), dtype=np.float64 if column.kind == NUMBER else object)
    made[:] = values
    return made


def _mixed(
    columns: Sequence[Column], base: Rows, pools: Mapping[str, NDArray], chance: np.random.Generator
) -> Rows:
    """Rows of ordinary values with others among them, ever more of these."""
    share = np.linspace(0.1, 0.9, MIXED)
    values = {}
    for column in columns:
        made = base.values[column.name][chance.integers(len(base), size=MIXED)]
        pool = pools[column.name]
        if len(pool):
            special = chance.random(MIXED) < share
            made = made.copy()
            made[special] = pool[chance.integers(len(pool), size=int(special.sum()))]
        values[column.name] = made
    return Rows(values, "synthetic")


def _checks(
    columns: Sequence[Column],
    ask: Asker,
    base: Rows,
    alone: Rows,
    places: list[tuple[Column, Any]],
    accepted: NDArray[np.bool_],
) -> tuple[Check, ...]:
    """What the original takes of each column."""
    by_column: dict[str, list[tuple[Any, bool]]] = {column.name: [] for column in columns}
    for (column, value), taken in zip(places, accepted, strict=True):
        by_column[column.name].append((value, bool(taken)))
    made = []
    for place, column in enumerate(columns):
        if column.kind != DOCUMENT:
            asked = by_column[column.name]
            check = _text_check(column, asked) if column.kind == CATEGORY else _number_check(column, ask, base, asked)
            named = column.input != "features"
            made.append(Check(column.name, column.input, 0 if named else place, **check))
    return tuple(check for check in made if not check.takes_all)


def _text_check(column: Column, asked: list[tuple[Any, bool]]) -> dict[str, Any]:
    known = set(column.texts)
    missing = all(taken for value, taken in asked if value is None)  # also where that was not asked
    if all(taken for value, taken in asked if value is not None and value not in known):
        return {"missing": missing}
    return {"missing": missing, "known": tuple(value for value, taken in asked if taken and value is not None)}


def _number_check(
    column: Column, ask: Asker, base: Rows, asked: list[tuple[float, bool]]
) -> dict[str, Any]:
    taken = {np.float64(value).tobytes(): answer for value, answer in asked}

    def takes(value: float) -> bool:
        return taken[np.float64(value).tobytes()]

    made: dict[str, Any] = {
        "missing": takes(float("nan")),
        "infinite": takes(float("inf")),
        "minus_infinite": takes(float("-inf")),
    }
    strangers = [
        answer for value, answer in asked if np.isfinite(value) and value not in set(column.numbers)
    ]
    if column.numbers and not any(strangers):
        return {**made, "known": tuple(value for value in column.numbers if takes(value))}
    finite = [(value, answer) for value, answer in asked if np.isfinite(value)]
    good = [value for value, answer in finite if answer]
    bad = [value for value, answer in finite if not answer]
    for name, beyond in (("least", [v for v in bad if v < min(good)]), ("most", [v for v in bad if v > max(good)])):
        if beyond:
            nearest = max(beyond) if name == "least" else min(beyond)
            inside = min(good) if name == "least" else max(good)
            made[name] = _bound(column, ask, base, inside, nearest)
    return made


def _bound(column: Column, ask: Asker, base: Rows, inside: float, outside: float) -> float:
    """The last number that the original takes between one that it takes and one that it does not."""
    if abs(inside) == _LARGEST:
        return inside
    low, high = _ordered(inside), _ordered(outside)
    while abs(high - low) > 1:
        middle = (low + high) // 2
        values = {name: values[:1].copy() for name, values in base.values.items()}
        values[column.name][0] = _number(middle)
        if ask.accepted(Rows(values, "synthetic")).all():
            low = middle
        else:
            high = middle
    return _number(low)


def _ordered(value: float) -> int:
    """Float64 numbers as integers of the same order, neighbours 1 apart."""
    bits = int(np.float64(value).view(np.int64))
    return bits if bits >= 0 else -(2**63) - bits


def _number(ordered: int) -> float:
    bits = ordered if ordered >= 0 else -(2**63) - ordered
    return float(np.int64(bits).view(np.float64))


def _edges(estimator: Estimator, ask: Asker, base: Rows, chance: np.random.Generator) -> Rows:
    """Rows where the original's answer jumps as one number changes, for columns whose thresholds nobody
    remembers: both sides of each jump and their neighbours."""
    columns = [c for c in estimator.columns if c.kind == NUMBER and not c.thresholds and not c.numbers]
    chosen = [columns[index] for index in chance.permutation(len(columns))[:32]]
    segments: list[tuple[Column, int, int, int]] = []
    for column in chosen:
        values = np.unique(base.values[column.name])
        values = values[np.isfinite(values)][:: max(1, len(values) // 8)]
        row = int(chance.integers(len(base)))
        segments += [
            (column, row, _ordered(a), _ordered(b)) for a, b in zip(values, values[1:], strict=False)
        ]
    found = [
        (column, row, value)
        for column, row, low, high in _narrowed(ask, base, segments)
        for value in beside([_number(low), _number(high)])
    ]
    index = np.array([row for _, row, _ in found], dtype=int)
    edges = {name: values[index].copy() for name, values in base.values.items()}
    for place, (column, _, value) in enumerate(found):
        edges[column.name][place] = value
    return Rows(edges, "synthetic")


def _narrowed(
    ask: Asker, base: Rows, segments: list[tuple[Column, int, int, int]]
) -> list[tuple[Column, int, int, int]]:
    """Narrow each segment to the part over which the answer changes most, until its ends are neighbours; where
    the change gets small on the way there is no jump."""
    while segments:
        points = [
            np.unique([low + (high - low) * step // PARTS for step in range(PARTS + 1)]).tolist()
            for _, _, low, high in segments
        ]
        index = np.array([row for (_, row, _, _), p in zip(segments, points, strict=True) for _ in p])
        values = {name: column[index].copy() for name, column in base.values.items()}
        place = 0
        for (column, _, _, _), p in zip(segments, points, strict=True):
            values[column.name][place : place + len(p)] = [_number(number) for number in p]
            place += len(p)
        try:
            scores = ask(Rows(values, "synthetic")).scores
        except Exception:  # noqa: BLE001 - a number between two that are taken may itself be refused
            return []
        size = np.nanmedian(np.abs(scores)) or 1.0
        narrowed, place = [], 0
        for (column, row, _, _), p in zip(segments, points, strict=True):
            jumps = np.abs(np.diff(scores[place : place + len(p)], axis=0)).max(axis=1)
            place += len(p)
            if jumps.max() > ROUNDING * size:
                first = int(jumps.argmax())
                narrowed.append((column, row, p[first], p[first + 1]))
        segments = narrowed
        if all(high - low <= 1 for _, _, low, high in segments):
            return segments
    return []
