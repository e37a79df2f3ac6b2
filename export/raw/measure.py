"""Evidence from the raw input: ask the original once, then compare each version with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from export.originals.original import Failed, Original, Row
from export.raw.agreement import OTHER, Apart, Outputs
from export.raw.evidence import RawEvidence, RawTolerance
from export.raw.served import Caller, ask
from export.raw.tokens import Ids
from serving.in_process import Refused
from shoal.progress import Silent

Ask = Callable[[Caller, str, Row], Outputs | Refused]
_SHOWN = 60  # characters of an input or an answer in a message


class Tokens(Protocol):
    """How token ids are compared."""

    def read_rows(self) -> Sequence[Row]:
        """Further raw inputs that are read and not answered: reading costs little."""

    def expected(self, row: Row) -> Ids:
        """Token ids of each sequence of a row, by the library."""

    def served(self, caller: Caller, row: Row) -> Ids | None:
        """Token ids of each sequence of a row, as served; None: the row is refused."""

    def cause(self, row: Row) -> str:
        """Which setting makes the difference."""


@dataclass(frozen=True)
class OriginalAnswers:
    """What the original answers.

    Attributes:
        original: its library, version and call.
        rows: the raw inputs.
        answers: to each, or `Failed`.
        compare: of one answer with ours.
        tokens: None: the model reads none.
        notes: what cannot be compared, and why.
        ask: sends a raw input to a served model.
    """

    original: str
    rows: Sequence[Row]
    answers: Sequence[Any]
    compare: Callable[[Any, Outputs], Apart]
    tokens: Tokens | None = None
    notes: tuple[str, ...] = ()
    ask: Ask = ask


@dataclass(frozen=True)
class RawAnswers:
    """What the original answers, with what a version must reach; see `export.family.Answers`.

    Attributes:
        tolerance: by the precision of a version.
    """

    reference: OriginalAnswers
    tolerance: Callable[[str], RawTolerance]

    def compared(self, caller: Caller, model: str, precision: str) -> RawEvidence:
        """How the answers of a model agree with the original's."""
        return compare(self.reference, caller, model, self.tolerance(precision))


def ask_original(
    original: Original,
    rows: Sequence[Row],
    compare: Callable[[Any, Outputs], Apart],
    *,
    tokens: Tokens | None,
    progress: Silent,
    ask: Ask = ask,
) -> OriginalAnswers:
    """Have the original answer the raw inputs."""
    with progress.step(f"Ask {original.call} for raw inputs", total=len(rows)) as advance:
        answers = original.answers(rows, advance)
    return OriginalAnswers(original.name, rows, answers, compare, tokens, ask=ask)


def compare(reference: OriginalAnswers, caller: Caller, model: str, tolerance: RawTolerance) -> RawEvidence:
    """Compare the answers of a model with the original's.

    Args:
        caller: has the model and, where token ids are compared, its tokenizer.
        model: the name that users call.
    """
    answered: list[Row] = []
    agreed, failed, refused = 0, 0, 0
    largest = 0.0
    worst: tuple[float, dict[str, Any]] | None = None

    def remember(distance: float, row: Row, original: str, version: str, why: str = "") -> None:
        nonlocal worst
        if worst is None or distance > worst[0]:
            told = {"input": shown(row), "original": original, "version": version, "cause": why}
            worst = (distance, told)

    for row, expected in zip(reference.rows, reference.answers, strict=True):
        if isinstance(expected, Failed):
            failed += 1
            if not answered:
                remember(0.0, row, expected.reason, "")
            continue
        got = reference.ask(caller, model, row)
        if isinstance(got, Refused):
            refused += 1
            remember(0.0, row, shown(expected), f"the error {str(got)!r}")
            continue
        apart = reference.compare(expected, got)
        agrees = apart.chosen and (tolerance.choice or apart.distance <= tolerance.distance)
        agreed += agrees
        largest = max(largest, apart.distance if apart.distance != OTHER else 0.0)
        if not agrees:
            remember(1.0 + min(apart.distance, 1e6), row, shown(expected), shown(got))
        answered.append(row)
    tokens = reference.tokens if answered else None
    same = []
    for row, ids, ours in _read(tokens, caller, answered) if tokens else ():
        same.append(ids == ours)
        if ids != ours:
            remember(OTHER, row, shown(ids), shown(ours), tokens.cause(row) if tokens else "")
    return RawEvidence(
        original=reference.original,
        inputs=len(answered),
        agreement=agreed / max(1, len(answered)),
        largest=largest,
        tokens=float(np.mean(same)) if same else None,
        failed=failed,
        refused=refused,
        worst=worst[1] if worst else None,
        tolerance=tolerance,
        notes=reference.notes,
    )


def _read(tokens: Tokens, caller: Caller, answered: Sequence[Row]) -> Iterator[tuple[Row, Ids, Ids]]:
    """Token ids of what was answered and of what is only read: the library's and ours."""
    for row in (*answered, *tokens.read_rows()):
        try:
            expected = tokens.expected(row)
        except Exception:  # noqa: BLE001, S112 - what the library does not read has no ids to compare
            continue
        ours = tokens.served(caller, row)
        if ours is not None:
            yield row, expected, ours


def shown(value: Any) -> str:
    """An input or an answer in a few characters: of what is long, the beginning."""
    if isinstance(value, dict):
        if set(value) == {"text"} and len(value["text"]) == 1:
            return shown(value["text"][0])
        text = ", ".join(f"{name}: {_plain(entry)}" for name, entry in value.items())
    else:
        text = _plain(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _plain(value: Any) -> str:
    if isinstance(value, bytes):
        return f"a file of {len(value)} bytes"
    if isinstance(value, str):
        return repr(value[: _SHOWN + 1])
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    if isinstance(value, list | tuple | np.ndarray):
        few = [_plain(entry) for entry in list(value)[:4]]
        return f"({', '.join(few)}{', …' if len(value) > 4 else ''})" if len(value) != 1 else few[0]
    return str(value)
