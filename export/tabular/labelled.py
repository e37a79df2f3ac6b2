"""Labelled rows of the user's own: a CSV with a header."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.tabular.columns import CATEGORY, DOCUMENT, Column, Rows
from export.tabular.estimator import Estimator
from shoal.errors import UsageError

LEAST = 10  # rows
_LABELS = ("label", "target")


def read_rows(path: Path, estimator: Estimator) -> Rows:
    """A CSV with a header. The column `label` or `target`, or else the last, holds the labels.

    Columns are found by name; if the estimator's columns have no names, by position. A column whose codes
    stand for categories holds either, all of one kind.

    Raises:
        UsageError: it cannot be read, a column is missing, a number is none, or a label is no class.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *lines = [line for line in csv.reader(file) if line]
        table = dict(zip(header, zip(*lines, strict=True), strict=True))
    except (OSError, ValueError, csv.Error) as error:
        hint = "a CSV with a header and as many values in each line"
        raise UsageError(f"evaluation data {path} cannot be read: {error}", hint=hint) from error
    if len(table) < len(header):
        raise UsageError(f"evaluation data {path} has two columns of one name")
    truth = next((name for name in _LABELS if name in table), header[-1])
    given = [name for name in header if name != truth]
    wanted = [column.name for column in estimator.columns]
    if not set(wanted) <= set(given):
        named = estimator.named or not all(name == f"x{index}" for index, name in enumerate(wanted))
        if named or len(given) != len(wanted):
            absent = ", ".join(sorted(set(wanted) - set(given))) if named else f"{len(wanted)} columns"
            raise UsageError(f"evaluation data {path} lacks {absent}", hint=f"{truth} holds the labels")
        table = {name: table[old] for name, old in zip(wanted, given, strict=True)} | {truth: table[truth]}
    if len(lines) < LEAST:
        raise UsageError(f"evaluation data {path} has {len(lines)} rows, at least {LEAST} are needed")
    values = {column.name: _parsed(column, table[column.name], path) for column in estimator.columns}
    if not estimator.classes:
        labels = _numbers(truth, table[truth], path)[:, None]
        return Rows(values, "eval-data", labels)
    return Rows(values, "eval-data", _class_names(table[truth], estimator.classes, path))


def _parsed(column: Column, cells: Sequence[str], path: Path) -> NDArray:
    if column.kind == DOCUMENT:
        return np.array(cells, dtype=object)
    if column.kind == CATEGORY:
        return np.array([cell or None for cell in cells], dtype=object)
    codes = {str(label): float(code) for code, label in enumerate(column.labels)}
    if codes and all(cell in codes or not cell.strip() for cell in cells):
        return np.array([codes.get(cell, np.nan) for cell in cells])
    if column.boolean:
        cells = [{"True": "1", "False": "0"}.get(cell, cell) for cell in cells]
    return _numbers(column.name, cells, path)


def _numbers(name: str, cells: Sequence[str], path: Path) -> NDArray[np.float64]:
    try:
        return np.array([float(cell) if cell.strip() else np.nan for cell in cells])
    except ValueError as error:
        raise UsageError(f"evaluation data {path}, column {name}: {error}") from error


def _class_names(cells: Sequence[str], classes: Sequence[str], path: Path) -> NDArray:
    """Labels as the classes are called; a whole number may be written with or without its `.0`."""
    known = {name: name for name in classes}
    known |= {name.removesuffix(".0"): name for name in classes if name.removesuffix(".0") not in known}
    known |= {f"{name}.0": name for name in classes if name.isdigit() and f"{name}.0" not in known}
    strange = sorted({cell for cell in cells if cell not in known})
    if strange:
        raise UsageError(
            f"evaluation data {path}: {strange[0]!r} is no class", hint=f"known: {', '.join(classes[:20])}"
        )
    return np.array([known[cell] for cell in cells], dtype=object)
