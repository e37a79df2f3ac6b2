"""The user's labelled data: texts, and the answers they should have."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shoal.errors import UsageError

COLUMNS = ("text", "target")
LEAST = 10  # pairs
_DELIMITERS = {".tsv": "\t"}
_HINT = 'CSV or *.tsv with text,target as its first line, or *.jsonl: {"text": "...", "target": "..."}'

Pair = tuple[str, str]


def read_pairs(path: Path) -> list[Pair]:
    """Texts with their targets.

    Args:
        path: `*.jsonl`: JSON lines, each an object with `text` and `target`; any other name: CSV (`*.tsv`:
            separated by tabs) of text,target with that line at its top.

    Raises:
        UsageError: it cannot be read; the message names the line. Or it holds fewer than 10 pairs.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"evaluation data {path} cannot be read: {error.strerror}", hint=_HINT) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _bad(path, content.count(b"\n", 0, error.start) + 1, "it is not UTF-8") from error
    lines = _json_lines if path.suffix == ".jsonl" else _table
    pairs = []
    for line, pair in lines(path, text):
        for name, value in zip(COLUMNS, pair, strict=True):
            if not value.strip():
                raise _bad(path, line, f"its {name} is empty")
        pairs.append(pair)
    if len(pairs) < LEAST:
        raise UsageError(f"evaluation data {path} has {len(pairs)} pairs, at least {LEAST} are needed")
    return pairs


def chrf(found: Sequence[str], wanted: Sequence[str]) -> float:
    """chrF of a corpus, 0 to 100: the F-score of runs of characters (Popović 2015), by sacreBLEU.

    Args:
        found: answers.
        wanted: the target of each.
    """
    from sacrebleu import corpus_chrf  # noqa: PLC0415 - rarely needed

    return float(corpus_chrf(found, [wanted]).score)


def _bad(path: Path, line: int, reason: str) -> UsageError:
    return UsageError(f"evaluation data {path}, line {line}: {reason}", hint=_HINT)


def _json_lines(path: Path, content: str) -> Iterator[tuple[int, Pair]]:
    for line, text in enumerate(content.split("\n"), 1):
        if not text.strip():
            continue
        try:
            entry = json.loads(text)
        except ValueError as error:
            raise _bad(path, line, f"it is not JSON: {error}") from error
        found = [entry.get(name) for name in COLUMNS] if isinstance(entry, dict) else [None]
        if not all(isinstance(value, str) for value in found):
            raise _bad(path, line, "it is not an object with the texts text and target")
        yield line, (str(found[0]), str(found[1]))


def _table(path: Path, content: str) -> Iterator[tuple[int, Pair]]:
    delimiter = _DELIMITERS.get(path.suffix, ",")
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    rows = _rows(path, reader)
    line, names = next(rows, (1, []))
    if names != list(COLUMNS):
        raise _bad(path, line, f"it names other columns than {','.join(COLUMNS)}")
    for line, row in rows:
        if len(row) != len(COLUMNS):
            raise _bad(path, line, f"it has {len(row)} columns, not {len(COLUMNS)}")
        yield line, (row[0], row[1])


def _rows(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, each with the line it begins in."""
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise _bad(path, line, f"it is not CSV: {error}") from error
        if row is None:
            return
        if row:
            yield line, row
