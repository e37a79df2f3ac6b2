"""KNNImputer: what is missing becomes the mean of the nearest rows of the training table."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from sklearn.impute import KNNImputer

from export.tabular.convert.graph import Dense, Graph, Table, Unsupported, dense, numbers, width
from export.tabular.convert.preprocessing import indicated, missing
from export.tabular.convert.registry import Context, transformer

MOST_ROWS = 20_000  # 256 rows against them take 40 MB


@transformer(KNNImputer)
def _imputer(context: Context, part: KNNImputer, table: Table) -> Table:
    graph, fitted = context.graph, np.asarray(part._fit_X, dtype=np.float64)
    if len(fitted) > MOST_ROWS or callable(part.weights):
        raise Unsupported(
            f"KNNImputer keeps its whole training table, here of {len(fitted)} rows",
            hint=f"fit it on at most {MOST_ROWS}, or use SimpleImputer",
        )
    context.doubts.append(
        "which of several equally near rows KNNImputer takes is left to chance; SimpleImputer does without"
    )
    block, there = numbers(dense(graph, table)), ~part._mask_fit_X
    absent = missing(graph, block, part.missing_values)
    apart = _distances(graph, block.name, absent, fitted, there)
    made = []
    for column in range(width(table)):
        if not there[:, column].any():
            if part.keep_empty_features:
                one = graph.pick(block.name, [column])
                made.append(graph.where(graph.pick(absent, [column]), 0.0, one))
            continue
        guess = _guess(graph, apart, fitted[:, column], there[:, column], part)
        made.append(graph.where(graph.pick(absent, [column]), guess, graph.pick(block.name, [column])))
    result: Table = (Dense(graph.op("Concat", *made, axis=1), len(made)),)
    if part.indicator_ is not None:
        result += indicated(graph, part.indicator_, block)
    return result


def _distances(graph: Graph, rows: str, absent: str, fitted: NDArray, there: NDArray[np.bool_]) -> str:
    """`nan_euclidean_distances` [batch, fitted rows]; infinity where two rows share no column."""
    known = np.where(there, fitted, 0.0)
    filled = graph.where(absent, 0.0, rows)
    present = graph.cast(graph.op("Not", absent), TensorProto.DOUBLE)
    squares = graph.op("MatMul", graph.op("Mul", filled, filled), there.T.astype(float))
    product = graph.op("MatMul", filled, -2.0 * known.T)
    others = graph.op("MatMul", present, (known**2).T)
    total = graph.op("Max", graph.op("Sum", squares, product, others), 0.0)
    shared = graph.op("MatMul", present, there.T.astype(float))
    none = graph.op("Equal", shared, 0.0)
    columns = graph.constant(float(fitted.shape[1]))
    share = graph.op("Div", columns, graph.where(none, 1.0, shared))
    return graph.where(none, float("inf"), graph.op("Sqrt", graph.op("Mul", total, share)))


def _guess(graph: Graph, apart: str, column: NDArray, there: NDArray[np.bool_], part: KNNImputer) -> str:
    """The mean [batch, 1] of a column over the nearest rows that have it."""
    givers = np.flatnonzero(there)
    count = graph.constant([min(part.n_neighbors, len(givers))], np.int64)
    near, places = graph.ops(
        "TopK", graph.pick(apart, givers.tolist()), count, count=2, axis=1, largest=0, sorted=1
    )
    found = graph.op("Gather", column[givers], places)
    weight = graph.cast(graph.op("Not", graph.op("IsInf", near)), TensorProto.DOUBLE)
    if part.weights == "distance":
        same = graph.op("Equal", near, 0.0)
        same_any = graph.op("Greater", graph.total(graph.cast(same, TensorProto.DOUBLE)), 0.0)
        inverse = graph.op("Reciprocal", graph.where(same, 1.0, near))
        weight = graph.where(same_any, graph.cast(same, TensorProto.DOUBLE), graph.op("Mul", weight, inverse))
    total = graph.total(weight)
    nobody = graph.op("Equal", total, 0.0)
    mean = graph.op("Div", graph.total(graph.op("Mul", weight, found)), graph.where(nobody, 1.0, total))
    return graph.where(nobody, float(column[givers].mean()), mean)
