"""Rows to measure with: the user's own, an example's held-out ones, or made from what the model learnt.

Made rows look like what the model was trained on as far as it remembers: categories from its encoders,
centre and spread from its scalers and imputers. Where trees read the inputs as they are, values lie close to
their thresholds on both sides: there a wrong threshold, a wrong side or a wrong comparison shows.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler
from sklearn.utils import get_tags

from export.exported import Exported
from export.tabular.columns import FEATURES, Column, Rows, parts, selections
from export.tabular.source import Estimator
from shoal.errors import UsageError

ROWS = 512
MISSING = 0.05  # share of the values, where the model takes missing ones
_LABELS = ("label", "target")
# Steps that hand a number on as it is.
_TRANSPARENT = ("Cast", "Identity", "Imputer")
# Beside a threshold, yet so far that rounding to float32 does not decide the side.
_STEP = 2.0**-16


def rows_for(estimator: Estimator, exported: Exported, eval_data: Path | None = None) -> Rows:
    """The rows to measure an export with; see the module.

    Raises:
        UsageError: `eval_data` cannot be read, or does not fit the estimator.
    """
    if eval_data is not None:
        return read_rows(eval_data, estimator)
    return estimator.held_out or synthesize(estimator, exported)


def read_rows(path: Path, estimator: Estimator) -> Rows:
    """A CSV with a header. The column `label` or `target`, or else the last, holds the labels.

    Columns are found by name; if the estimator's columns have no names, by position.

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
        named = estimator.named or hasattr(estimator.model, "feature_names_in_")
        if named or len(given) != len(wanted):
            absent = ", ".join(sorted(set(wanted) - set(given))) if named else f"{len(wanted)} columns"
            raise UsageError(f"evaluation data {path} lacks {absent}", hint=f"{truth} holds the labels")
        table = {name: table[old] for name, old in zip(wanted, given, strict=True)} | {truth: table[truth]}
    if len(lines) < 10:
        raise UsageError(f"evaluation data {path} has {len(lines)} rows, at least 10 are needed")
    values = {column.name: _parsed(column, table[column.name], path) for column in estimator.columns}
    if not estimator.classes:
        labels = _parsed(Column(truth, truth), table[truth], path)[:, None]
        return Rows(values, "eval-data", labels)
    return Rows(values, "eval-data", _class_names(table[truth], estimator.classes, path))


def _parsed(column: Column, cells: Sequence[str], path: Path) -> NDArray:
    if column.dtype == "STRING":
        return np.array(cells, dtype=object)
    try:
        return np.array([float(cell) if cell.strip() else np.nan for cell in cells])
    except ValueError as error:
        raise UsageError(f"evaluation data {path}, column {column.name}: {error}") from error


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


def synthesize(estimator: Estimator, exported: Exported, *, count: int = ROWS, seed: int = 0) -> Rows:
    """Make rows from what the model learnt; the same model and seed give the same rows."""
    chance = np.random.default_rng(seed)
    learnt = _learnt(estimator)
    thresholds = {} if estimator.named else _thresholds(exported.path)
    missing = _takes_missing(estimator.model)
    values: dict[str, NDArray] = {}
    for index, column in enumerate(estimator.columns):
        known = learnt.get(column.name, {})
        if "categories" in known:
            made = _of_categories(column, known["categories"], chance, count)
        elif index in thresholds:
            made = _around(thresholds[index], chance, count)
        else:
            made = chance.normal(known.get("centre", 0.0), known.get("spread", 1.0), count)
        if known.get("missing", missing):
            made[chance.random(count) < MISSING] = "" if column.dtype == "STRING" else np.nan
        values[column.name] = made
    return Rows(values, "synthetic")


def _takes_missing(model: Any) -> bool:
    """Whether NaN passes every step up to one that fills it in; a pipeline does not say so itself."""
    for part in parts(model):
        if isinstance(part, ColumnTransformer) or not get_tags(part).input_tags.allow_nan:
            return False
        if isinstance(part, SimpleImputer):
            return True
    return True


def _of_categories(column: Column, categories: NDArray, chance: np.random.Generator, count: int) -> NDArray:
    kept = [value for value in categories if value is not None and value == value]  # noqa: PLR0124
    chosen = chance.integers(len(kept), size=count)
    if column.dtype == "STRING":
        return np.array([str(kept[index]) for index in chosen], dtype=object)
    return np.array([float(kept[index]) for index in chosen])


def _around(thresholds: NDArray, chance: np.random.Generator, count: int) -> NDArray:
    """Half of the values close to a threshold, half anywhere between the outermost two and a bit beyond."""
    chosen = thresholds[chance.integers(len(thresholds), size=count)]
    side = chance.choice([-1.0, 1.0], size=count)
    near = chosen + side * np.maximum(np.abs(chosen), 1e-6) * _STEP
    low, high = thresholds[0], thresholds[-1]
    margin = 0.1 * max(high - low, abs(high), 1e-6)
    far = chance.uniform(low - margin, high + margin, count)
    return np.where(chance.random(count) < 0.5, near, far)


def _learnt(estimator: Estimator) -> dict[str, dict[str, Any]]:
    """Column name -> `categories`, `centre`, `spread`, `missing`, as the first steps remember them."""
    names = [column.name for column in estimator.columns]
    first = next(parts(estimator.model))
    if not isinstance(first, ColumnTransformer):
        return dict(zip(names, _remembered(list(parts(estimator.model)), len(names)), strict=True))
    order = list(getattr(first, "feature_names_in_", names))
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for part, indices in selections(first):
        for index, known in zip(indices, _remembered(list(parts(part)), len(indices)), strict=True):
            found[str(order[index])] = known | found[str(order[index])]
    return found


def _remembered(steps: list[Any], count: int) -> list[dict[str, Any]]:
    known: list[dict[str, Any]] = [{} for _ in range(count)]
    for step in steps:
        learnt: list[dict[str, Any]] = []
        if isinstance(step, SimpleImputer):
            learnt = [{"missing": True} for _ in step.statistics_]
        elif hasattr(step, "categories_"):
            learnt = [{"categories": values} for values in step.categories_]
        elif isinstance(step, StandardScaler | RobustScaler | MinMaxScaler | MaxAbsScaler):
            learnt = [{"centre": a, "spread": b} for a, b in zip(*_scale(step, count), strict=True)]
        if len(learnt) != count:
            break  # what comes now has other columns
        known = [new | old for new, old in zip(learnt, known, strict=True)]
    return known


def _scale(step: Any, count: int) -> tuple[NDArray, NDArray]:
    """Centre and spread of each column that a scaler has seen."""
    zeros, ones = np.zeros(count), np.ones(count)
    if isinstance(step, MinMaxScaler):
        return (step.data_min_ + step.data_max_) / 2, step.data_range_ / 4
    if isinstance(step, MaxAbsScaler):
        return zeros, step.max_abs_ / 2
    centre = step.mean_ if isinstance(step, StandardScaler) else step.center_
    return zeros if centre is None else centre, ones if step.scale_ is None else step.scale_


def _thresholds(path: Path) -> dict[int, NDArray]:
    """Column -> thresholds, sorted, of the trees that read the input `features` as it comes."""
    graph = onnx.load(path).graph
    producer = {name: node for node in graph.node for name in node.output}
    found: dict[int, set[float]] = defaultdict(set)
    for node in graph.node:
        source = node.input[0] if node.input else ""
        while source in producer and producer[source].op_type in _TRANSPARENT:
            source = producer[source].input[0]
        if not node.op_type.startswith("TreeEnsemble") or source != FEATURES:
            continue
        values = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        for mode, column, value in zip(
            values["nodes_modes"], values["nodes_featureids"], values["nodes_values"], strict=True
        ):
            if mode != b"LEAF" and np.isfinite(value):
                found[column].add(value)
    return {column: np.array(sorted(values)) for column, values in found.items()}
