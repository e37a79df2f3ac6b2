"""Encoders of categories, each as a table with a row for each category: what the encoder makes of it itself.

The encoder is asked, so that dropped, rare, unknown and missing categories are where it puts them.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from onnx import TensorProto
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, TargetEncoder

from export.tabular.convert.graph import Dense, Graph, Sparse, Table, apart, dense
from export.tabular.convert.registry import Context, transformer

UNKNOWN_TEXT = "\0 no such category"


@transformer(OneHotEncoder)
def _one_hot(context: Context, part: OneHotEncoder, table: Table) -> Table:
    graph, places = context.graph, []
    total = int(sum(part._n_features_outs))
    starts = np.cumsum([0, *part._n_features_outs])
    for index, column in enumerate(apart(graph, dense(graph, table))):
        made = _asked(part, index, starts[index], starts[index + 1])
        place = np.full(len(made), total)
        rows, columns = made.nonzero()  # one entry of a row, or none
        place[rows] = starts[index] + columns
        row = _row(graph, column, column.vocabulary(0), part.categories_[index])
        places.append(graph.op("Gather", graph.constant(place, np.int64), row))
    indices = graph.op("Concat", *places, axis=1)
    there = graph.op("Less", indices, graph.constant(total, np.int64))
    return (Sparse(indices, graph.cast(there, TensorProto.DOUBLE), total, part.sparse_output),)


@transformer(OrdinalEncoder, TargetEncoder)
def _numbered(context: Context, part: Any, table: Table) -> Table:
    graph, made = context.graph, []
    several = getattr(part, "target_type_", "") == "multiclass"
    each = len(part.classes_) if several else 1
    for index, column in enumerate(apart(graph, dense(graph, table))):
        rows = _asked(part, index, index * each, (index + 1) * each)
        row = _row(graph, column, column.vocabulary(0), part.categories_[index])
        flat = graph.op("Squeeze", row, graph.constant([1], np.int64))
        made.append(Dense(graph.op("Gather", rows, flat, axis=0), each))
    return tuple(made)


def _asked(part: Any, index: int, start: int, end: int) -> NDArray[np.float64]:
    """What an encoder makes of each category of a column, of an unknown one and of a missing value, in its
    outputs from `start` to `end`: [categories + 2, outputs]. What it refuses is 0.
    """
    categories = list(part.categories_[index])
    texts = any(isinstance(value, str) for value in categories)
    known = [float(value) for value in categories if not texts and value == value and value is not None]  # noqa: PLR0124
    stranger = UNKNOWN_TEXT if texts else float(np.floor(max(known, default=0.0)) + 0.5)
    found = [_made(part, index, [value])[:, start:end] for value in (stranger, np.nan)]
    if np.isnan(found[1]).all() and None in categories:
        found[1] = _made(part, index, [None])[:, start:end]
    return np.vstack([_made(part, index, categories)[:, start:end], *found])


def _made(part: Any, index: int, values: list[Any]) -> NDArray[np.float64]:
    """Rows of which all columns but one hold their first category."""
    columns = {}
    for position, categories in enumerate(part.categories_):
        filled = values if position == index else [categories[0]] * len(values)
        columns[position] = pd.Series(filled, dtype=object if categories.dtype == object else None)
    frame = pd.DataFrame(columns)
    names = getattr(part, "feature_names_in_", None)
    if names is not None:
        frame.columns = list(names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = part.transform(frame)
        except ValueError:  # refused, and so the front refuses it too
            return np.zeros((len(values), len(part.get_feature_names_out())))
    made = made.toarray() if hasattr(made, "toarray") else made
    return np.asarray(made, dtype=np.float64)


def _row(graph: Graph, column: Dense, vocabulary: tuple[str, ...] | None, categories: NDArray) -> str:
    """Which of an encoder's categories a column holds, INT64 [batch, 1]: their count where it holds none of
    them, and one more where it is missing."""
    count = len(categories)
    missing = next((n for n, v in enumerate(categories) if v is None or v != v), count + 1)  # noqa: PLR0124
    absent = graph.op("IsNaN", column.name)
    if vocabulary is None:
        values = [float("nan") if v is None else float(v) for v in categories]
        same = graph.op("Equal", column.name, np.array([values]))
        numbered = graph.op("Mul", graph.cast(same, TensorProto.DOUBLE), [np.arange(count) - float(count)])
        place = graph.op("Add", graph.total(numbered, whole=True), float(count))
        return graph.cast(graph.where(absent, float(missing), place), TensorProto.INT64)
    places = {str(value): number for number, value in enumerate(categories) if isinstance(value, str)}
    # The last entry is for what is in nobody's vocabulary, numbered -1.
    table = [*(places.get(text, count) for text in vocabulary), count]
    code = graph.cast(graph.where(absent, 0.0, column.name), TensorProto.INT64)
    found = graph.op("Gather", graph.constant(table, np.int64), code)
    return graph.op("Where", absent, graph.constant(missing, np.int64), found)
