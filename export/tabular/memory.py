"""What the fitted parts of an estimator remember of the columns of its table.

The estimator is walked as its rows pass through it, whatever it is made of: a column is followed for as long
as it is handed on as it is. Encoders remember categories, imputers what they fill in, scalers centre and
spread, trees their thresholds; a vectorizer tells that a column holds texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer
from sklearn.feature_selection import SelectorMixin
from sklearn.impute import SimpleImputer
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    RobustScaler,
    StandardScaler,
)
from sklearn.utils import check_array

from export.tabular.columns import (
    CATEGORY,
    DOCUMENT,
    TEXT,
    Column,
    count_of,
    first_part,
    inner,
    names_of,
    selections,
    steps,
    wire_names,
)
from shoal.errors import ExportError
from shoal.wire import FEATURES

# The largest whole number up to which float64 holds every one.
_EXACT = 2**53
Origins = list[Column | None]
_SCALERS = (StandardScaler, RobustScaler, MinMaxScaler, MaxAbsScaler)


def columns_of(model: Any) -> tuple[tuple[Column, ...], bool]:
    """The columns of an estimator's table, and whether each is an input of its own. One that nobody reads is
    no input.

    Raises:
        ExportError: it reads texts from a table without column names, or numbers that no float64 holds.
    """
    begins = first_part(model)
    names, count = names_of(model), count_of(model)
    if count is None:
        if not isinstance(begins, CountVectorizer | HashingVectorizer):
            raise ExportError(
                f"{type(begins).__name__} does not say how many columns it reads",
                hint="fit the pipeline on a data frame or an array of numbers",
            )
        names, count = [TEXT], 1
    columns = [Column(name) for name in names or [f"x{index}" for index in range(count)]]
    read: set[int] = set()
    _follow(model, list(columns), read)
    for column in columns:
        _settle(column)
    text = any(column.kind != "number" for column in columns)
    if text and names is None:
        raise ExportError(
            "the pipeline reads strings by the number of their column",
            hint="fit it on a data frame, so that columns have names",
        )
    if not text and (names is None or not isinstance(begins, ColumnTransformer)):
        for column in columns:
            column.input = FEATURES
        return tuple(columns), False
    wanted = [column for column in columns if id(column) in read]
    for column, wire in zip(wanted, wire_names([c.name for c in wanted]), strict=True):
        column.input = wire
    return tuple(columns), True


def _settle(column: Column) -> None:
    """What its categories say of a column."""
    values = [value for value in column.known if value is not None and value == value]  # noqa: PLR0124
    absent = {"None" if value is None else "NaN" for value in column.known if value is None or value != value}  # noqa: PLR0124
    if len(absent) > 1:
        raise ExportError(
            f"column {column.name!r} tells None from NaN, and the wire has one missing value",
            hint="replace one of them by a word and fit again",
        )
    if column.texts and column.kind != DOCUMENT:
        column.kind = CATEGORY
        if "" in column.texts and len(values) < len(column.known):
            raise ExportError(
                f"column {column.name!r} tells the empty string from a missing value, and the wire does not",
                hint="replace the empty strings by a word and fit again",
            )
        return
    column.boolean = bool(values) and all(isinstance(value, bool | np.bool_) for value in values)
    column.whole = bool(values) and all(isinstance(value, int | np.integer) for value in values)
    if column.whole and any(abs(int(value)) > _EXACT for value in values):
        raise ExportError(
            f"column {column.name!r} has categories beyond 2^53, where float64 no longer tells numbers apart",
            hint="make the column text (astype(str)) and fit again",
        )


def _follow(part: Any, columns: Origins, read: set[int]) -> Origins | None:
    """Note what a part remembers of columns, and say which columns its outputs are; None: not to be told.

    Args:
        columns: what the part reads: columns of the table as they are, None for anything made of them.
        read: ids of the columns that somebody reads, filled in.
    """
    if isinstance(part, Pipeline):
        return _through(steps(part), columns, read)
    if isinstance(part, ColumnTransformer):
        return _side_by_side(
            [(step, [columns[index] for index in indices]) for step, indices in selections(part)], read
        )
    if isinstance(part, FeatureUnion):
        parts = [step for _, step in part.transformer_list if step != "drop"]
        return _side_by_side([(step, columns) for step in parts], read)
    inside = _inside(part, columns)
    if not inside or getattr(part, "passthrough", False):
        read.update(id(column) for column in columns if column is not None)
    if isinstance(part, str):  # passthrough
        return columns
    if isinstance(part, CountVectorizer | HashingVectorizer):
        for column in columns:
            if column is not None:
                column.kind = DOCUMENT
                column.known += list(getattr(part, "vocabulary_", ()))
        return None
    for entry, chosen in inside:
        _follow(entry, chosen, read)
    return _noted(part, columns)


def _through(parts: Sequence[Any], columns: Origins, read: set[int]) -> Origins | None:
    found: Origins | None = columns
    for step in parts:
        if found is None:
            return None
        found = _follow(step, found, read)
    return found


def _side_by_side(parts: Sequence[tuple[Any, Origins]], read: set[int]) -> Origins | None:
    outputs = [_follow(step, chosen, read) for step, chosen in parts if chosen]
    if any(found is None for found in outputs):
        return None
    return [column for found in outputs for column in found or ()]


def _inside(part: Any, columns: Origins) -> list[tuple[Any, Origins]]:
    """The estimators inside another with the columns that each reads."""
    if getattr(part, "_preprocessor", None) is not None:  # of histogram boosting, for its categories
        return [(part._preprocessor, columns)]
    chosen = getattr(part, "estimators_features_", None)
    found = [entry for entry in inner(part) if not isinstance(entry, str)]
    if chosen is not None:
        return [(e, [columns[i] for i in picked]) for e, picked in zip(found, chosen, strict=True)]
    return [(entry, columns) for entry in found if count_of(entry) in (None, len(columns))]


def _noted(part: Any, columns: Origins) -> Origins | None:
    if isinstance(part, SimpleImputer):
        return _imputed(part, columns)
    if isinstance(part, SelectorMixin):
        return [columns[index] for index in part.get_support(indices=True)]
    if isinstance(part, FunctionTransformer):
        function = part.func.func if isinstance(part.func, partial) else part.func
        return columns if function in (None, check_array) else [None] * len(columns)
    if hasattr(part, "categories_"):
        for column, values in zip(columns, part.categories_, strict=False):
            if column is not None:
                column.known += list(np.asarray(values).tolist())
                column.missing = None if any(value is None for value in values) else column.missing
                column.boxed |= np.asarray(values).dtype == object
    elif isinstance(part, _SCALERS):
        _scale(part, columns)
    else:
        _split(part, columns)
    return _derived(part)


def _derived(part: Any) -> Origins | None:
    """New columns, as many as a part makes, where it says how many."""
    try:
        return [None] * len(part.get_feature_names_out())
    except (AttributeError, ValueError):
        return None


def _imputed(part: SimpleImputer, columns: Origins) -> Origins:
    kept: Origins = []
    for column, fill in zip(columns, part.statistics_, strict=True):
        empty = fill is None or fill != fill  # noqa: PLR0124 - NaN
        if column is not None and isinstance(fill, str):
            column.known.append(fill)
            column.missing = None if part.missing_values is None else column.missing
            if isinstance(part.missing_values, str):
                column.known.append(part.missing_values)
        if not empty or part.keep_empty_features:
            kept.append(column)
    indicated = 0 if part.indicator_ is None else len(part.indicator_.features_)
    return [*kept, *([None] * indicated)]


def _scale(part: Any, columns: Origins) -> None:
    """Centre and spread of each column that a scaler has seen."""
    count = len(columns)
    zeros, ones = np.zeros(count), np.ones(count)
    if isinstance(part, MinMaxScaler):
        centre, spread = (part.data_min_ + part.data_max_) / 2, part.data_range_ / 4
    elif isinstance(part, MaxAbsScaler):
        centre, spread = zeros, part.max_abs_ / 2
    else:
        middle = part.mean_ if isinstance(part, StandardScaler) else part.center_
        centre = zeros if middle is None else middle
        spread = ones if part.scale_ is None else part.scale_
    for column, middle, width in zip(columns, centre, spread, strict=True):
        if column is not None:
            column.centre, column.spread = float(middle), float(width) or 1.0


def _split(part: Any, columns: Origins) -> None:
    """Note where a tree, or a booster, splits each column; and its categories."""
    trees = getattr(part, "tree_", None)
    if trees is not None:
        inside = trees.children_left >= 0
        _add_thresholds(columns, trees.feature[inside], trees.threshold[inside])
    for predictors in getattr(part, "_predictors", ()):
        for predictor in predictors:
            if isinstance(predictor, TreePredictor) and part._preprocessor is None:
                nodes = predictor.nodes[predictor.nodes["is_leaf"] == 0]
                _add_thresholds(columns, nodes["feature_idx"], nodes["num_threshold"])
    kind = type(part).__module__.partition(".")[0]
    if kind == "lightgbm":
        _lightgbm(part, columns)
    elif kind == "xgboost":
        _xgboost(part, columns)


def _add_thresholds(columns: Origins, features: NDArray, thresholds: NDArray) -> None:
    for index in np.unique(features):
        column = columns[int(index)]
        if column is not None:
            values = np.unique(np.asarray(thresholds[features == index], dtype=np.float64))
            column.thresholds.append(values[np.isfinite(values)])


def _lightgbm(part: Any, columns: Origins) -> None:
    booster = getattr(part, "booster_", part)
    text = booster.model_to_string()
    lines = {
        name: re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)
        for name in ("split_feature", "threshold", "decision_type")
    }
    for tree in zip(*lines.values(), strict=True):
        features, thresholds, kinds = (np.array(line.split(), dtype=np.float64) for line in tree)
        numeric = kinds.astype(int) % 2 == 0
        _add_thresholds(columns, features[numeric].astype(int), thresholds[numeric])
    known = booster.dump_model(num_iteration=1)["feature_infos"]
    names = booster.feature_name()
    categorical = [names.index(name) for name, info in known.items() if info.get("values")]
    for feature in categorical:
        _add_codes(columns, feature, int(max(known[names[feature]]["values"])) + 1, ())
    labels = booster.pandas_categorical or []
    if len(categorical) == len(labels):  # a column of one category alone is left out of the model
        for feature, values in zip(categorical, labels, strict=True):
            _add_codes(columns, feature, len(values), tuple(values))


def _xgboost(part: Any, columns: Origins) -> None:
    booster = part.get_booster() if hasattr(part, "get_booster") else part
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]["gradient_booster"]
    model = learner.get("gbtree", learner).get("model", {})
    for tree in model.get("trees", ()):
        numeric = (np.array(tree["left_children"]) >= 0) & (np.array(tree["split_type"]) == 0)
        features = np.array(tree["split_indices"])
        _add_thresholds(columns, features[numeric], np.array(tree["split_conditions"])[numeric])
        for node, start, size in zip(
            tree["categories_nodes"], tree["categories_segments"], tree["categories_sizes"], strict=True
        ):
            _add_codes(columns, int(features[node]), max(tree["categories"][start : start + size]) + 1, ())
    for feature, encoded in enumerate(model.get("cats", {}).get("enc", ())):
        labels = _xgboost_labels(encoded)
        if labels:
            _add_codes(columns, feature, len(labels), labels)


def _xgboost_labels(encoded: dict[str, Any]) -> tuple[Any, ...]:
    values, offsets = encoded.get("values", ()), encoded.get("offsets")
    if offsets is None:
        return tuple(values)
    text = bytes(value % 256 for value in values)
    return tuple(text[a:b].decode() for a, b in pairwise(offsets))


def _add_codes(columns: Origins, feature: int, count: int, labels: tuple[Any, ...]) -> None:
    """Categories that are numbered from 0."""
    column = columns[feature]
    if column is not None:
        column.known += [float(code) for code in range(count)]
        column.labels = labels or column.labels
