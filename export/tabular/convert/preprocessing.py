"""Steps that turn columns of numbers into other columns of numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
from onnx import TensorProto
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_selection import SelectorMixin
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.preprocessing import (
    Binarizer,
    FunctionTransformer,
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    PolynomialFeatures,
    PowerTransformer,
    RobustScaler,
    StandardScaler,
)
from sklearn.utils import check_array

from export.tabular.convert.graph import (
    Dense,
    Graph,
    Sparse,
    Table,
    Unsupported,
    apart,
    dense,
    matrix,
    numbers,
    take,
    width,
)
from export.tabular.convert.registry import Context, transformer

SCALERS = (StandardScaler, RobustScaler, MaxAbsScaler, MinMaxScaler)
# The numpy functions that a FunctionTransformer may apply, as ONNX computes them.
_FUNCTIONS: dict[Any, Callable[[Graph, str], str]] = {
    np.log: lambda graph, value: graph.op("Log", value),
    np.log1p: lambda graph, value: graph.op("Log", graph.op("Add", value, 1.0)),
    np.log2: lambda graph, value: graph.op("Div", graph.op("Log", value), np.log(2.0)),
    np.log10: lambda graph, value: graph.op("Div", graph.op("Log", value), np.log(10.0)),
    np.exp: lambda graph, value: graph.op("Exp", value),
    np.expm1: lambda graph, value: graph.op("Sub", graph.op("Exp", value), 1.0),
    np.sqrt: lambda graph, value: graph.op("Sqrt", value),
    np.square: lambda graph, value: graph.op("Mul", value, value),
    np.abs: lambda graph, value: graph.op("Abs", value),
    np.fabs: lambda graph, value: graph.op("Abs", value),
    np.negative: lambda graph, value: graph.op("Neg", value),
    np.reciprocal: lambda graph, value: graph.op("Reciprocal", value),
    np.sign: lambda graph, value: graph.op("Sign", value),
    np.floor: lambda graph, value: graph.op("Floor", value),
    np.ceil: lambda graph, value: graph.op("Ceil", value),
    np.rint: lambda graph, value: graph.op("Round", value),
    np.tanh: lambda graph, value: graph.op("Tanh", value),
    np.sin: lambda graph, value: graph.op("Sin", value),
    np.cos: lambda graph, value: graph.op("Cos", value),
}


def function(graph: Graph, table: Table, applied: Any, arguments: Any = None) -> Table:
    """A function of numpy, applied to each number.

    Raises:
        Unsupported: it is another function, which is Python code that no graph holds.
    """
    inner = applied.func if isinstance(applied, partial) else applied
    if inner is None or (inner is check_array and not arguments):
        return table
    known = isinstance(inner, np.ufunc) and inner in _FUNCTIONS
    if isinstance(applied, partial) or arguments or not known:
        name = getattr(inner, "__name__", repr(inner))
        names = ", ".join(sorted({entry.__name__ for entry in _FUNCTIONS}))
        raise Unsupported(
            f"FunctionTransformer({name}) runs Python code, which no graph holds",
            hint=f"apply {name} to the table before, fit and save the rest; or use one of numpy: {names}",
        )
    return (Dense(_FUNCTIONS[inner](graph, matrix(graph, table)), width(table)),)


@transformer(FunctionTransformer)
def _function(context: Context, part: FunctionTransformer, table: Table) -> Table:
    return function(context.graph, table, part.func, part.kw_args)


@transformer(*SCALERS)
def _scaler(context: Context, part: Any, table: Table) -> Table:
    if isinstance(table[0], Sparse) and len(table) == 1 and isinstance(part, MaxAbsScaler | StandardScaler):
        return _scaled(context.graph, table[0], part)
    return scaled(context.graph, table, part, back=False)


def scaled(graph: Graph, table: Table, part: Any, *, back: bool) -> Table:
    """What a scaler makes of numbers.

    Args:
        back: undo it instead.
    """
    steps: list[tuple[str, Any]]
    if isinstance(part, StandardScaler):
        steps = [("Sub", part.mean_ if part.with_mean else None), ("Div", part.scale_)]
    elif isinstance(part, RobustScaler):
        steps = [("Sub", part.center_), ("Div", part.scale_)]
    elif isinstance(part, MaxAbsScaler):
        steps = [("Div", part.scale_)]
    else:
        steps = [("Mul", part.scale_), ("Add", part.min_)]
    if back:
        undone = {"Sub": "Add", "Add": "Sub", "Mul": "Div", "Div": "Mul"}
        steps = [(undone[op], constant) for op, constant in reversed(steps)]
    value = matrix(graph, table)
    for op, constant in steps:
        if constant is not None:
            value = graph.op(op, value, np.atleast_2d(constant))
    if getattr(part, "clip", False) and not back:
        low, high = part.feature_range if isinstance(part, MinMaxScaler) else (-1.0, 1.0)
        value = graph.op("Clip", value, float(low), float(high))
    return (Dense(value, width(table)),)


def _scaled(graph: Graph, block: Sparse, part: Any) -> Table:
    scale = np.ones(block.width) if part.scale_ is None else part.scale_
    each = graph.op("Gather", [*scale, 1.0], block.indices)
    return (Sparse(block.indices, graph.op("Div", block.values, each), block.width, block.held),)


@transformer(Normalizer)
def _normalizer(context: Context, part: Normalizer, table: Table) -> Table:
    graph = context.graph
    if len(table) == 1 and isinstance(table[0], Sparse):
        block = table[0]
        return (Sparse(block.indices, normed(graph, block.values, part.norm), block.width, block.held),)
    return (Dense(normed(graph, matrix(graph, table), part.norm), width(table)),)


def normed(graph: Graph, values: str, norm: str | None) -> str:
    """Rows [batch, n] of length one; a row of zeros stays what it is.

    Args:
        norm: `l1`, `l2`, `max`; None: nothing is done.
    """
    if norm is None:
        return values
    axis = graph.constant([1], np.int64)
    sizes = graph.op("Abs", values)
    if norm == "l2":
        length = graph.op("Sqrt", graph.op("ReduceSum", graph.op("Mul", values, values), axis))
    else:
        length = graph.op("ReduceSum" if norm == "l1" else "ReduceMax", sizes, axis)
    zero = graph.op("Equal", length, 0.0)
    return graph.op("Div", values, graph.where(zero, 1.0, length))


@transformer(Binarizer)
def _binarizer(context: Context, part: Binarizer, table: Table) -> Table:
    graph = context.graph
    above = graph.op("Greater", matrix(graph, table), float(part.threshold))
    return (Dense(graph.cast(above, TensorProto.DOUBLE), width(table)),)


@transformer(PowerTransformer)
def _power(context: Context, part: PowerTransformer, table: Table) -> Table:
    graph, made = context.graph, []
    for column, power in zip(apart(graph, numbers(dense(graph, table))), part.lambdas_, strict=True):
        value = column.name
        if part.method == "box-cox":
            made.append(_box_cox(graph, value, power))
            continue
        one = graph.constant(1.0)
        right = _box_cox(graph, graph.op("Add", graph.op("Max", value, 0.0), one), power)
        left = graph.op("Sub", one, graph.op("Min", value, 0.0))
        left = graph.op("Neg", _box_cox(graph, left, 2.0 - power))
        negative = graph.op("Less", value, 0.0)
        chosen = graph.where(negative, left, right)
        made.append(graph.where(graph.op("IsNaN", value), value, chosen))
    result: Table = (Dense(graph.op("Concat", *made, axis=1), len(made)),)
    return scaled(graph, result, part._scaler, back=False) if part.standardize else result


def _box_cox(graph: Graph, value: str, power: float) -> str:
    """Box and Cox 1964, doi:10.1111/j.2517-6161.1964.tb00553.x: (x^p - 1) / p, or log x where p is 0."""
    if abs(power) < np.spacing(1.0):
        return graph.op("Log", value)
    raised = graph.op("Pow", value, float(power))
    return graph.op("Div", graph.op("Sub", raised, 1.0), float(power))


@transformer(KBinsDiscretizer)
def _bins(context: Context, part: KBinsDiscretizer, table: Table) -> Table:
    graph, made = context.graph, []
    for column, edges in zip(apart(graph, numbers(dense(graph, table))), part.bin_edges_, strict=True):
        inner = np.asarray(edges, dtype=np.float64)[1:-1]
        if not len(inner):
            made.append(graph.op("Mul", column.name, 0.0))
            continue
        passed = graph.op("GreaterOrEqual", column.name, inner[None])
        made.append(graph.total(graph.cast(passed, TensorProto.DOUBLE), whole=True))
    result: Table = (Dense(graph.op("Concat", *made, axis=1), len(made)),)
    return result if part.encode == "ordinal" else context.transform(part._encoder, result)


@transformer(PolynomialFeatures)
def _polynomial(context: Context, part: PolynomialFeatures, table: Table) -> Table:
    """Each output is a product of columns: of as many factors as the degree, some of which are 1."""
    graph = context.graph
    powers = part.powers_
    columns = width(table)
    factors = np.full((int(powers.sum(axis=1).max(initial=1)), len(powers)), columns, dtype=np.int64)
    for output, exponents in enumerate(powers):
        chosen = np.repeat(np.arange(columns), exponents)
        factors[: len(chosen), output] = chosen
    rows = matrix(graph, table)
    ones = graph.op("Add", graph.op("Mul", graph.pick(rows, [0]), 0.0), 1.0)
    rows = graph.op("Concat", rows, ones, axis=1)
    value = graph.pick(rows, factors[-1].tolist())
    for chosen in factors[-2::-1]:  # the last factor first, as scikit-learn does
        value = graph.op("Mul", value, graph.pick(rows, chosen.tolist()))
    return (Dense(value, len(powers)),)


@transformer(SelectorMixin)
def _selector(context: Context, part: Any, table: Table) -> Table:
    return take(context.graph, table, part.get_support(indices=True))


@transformer(PCA)
def _components(context: Context, part: PCA, table: Table) -> Table:
    weights = part.components_.T
    if part.whiten:
        spread = np.sqrt(part.explained_variance_)
        weights = weights / np.maximum(spread, np.finfo(spread.dtype).eps)
    return (Dense(context.graph.linear(table, weights, -(part.mean_ @ weights)), weights.shape[1]),)


@transformer(TruncatedSVD)
def _svd(context: Context, part: TruncatedSVD, table: Table) -> Table:
    weights = part.components_.T
    return (Dense(context.graph.linear(table, weights, np.zeros(weights.shape[1])), weights.shape[1]),)


@transformer(SimpleImputer)
def _imputer(context: Context, part: SimpleImputer, table: Table) -> Table:
    graph = context.graph
    block = dense(graph, table)
    made: list[Dense] = []
    for position, (column, fill) in enumerate(zip(apart(graph, block), part.statistics_, strict=True)):
        known = block.vocabulary(position)
        empty = fill is None or fill != fill  # noqa: PLR0124 - NaN
        if empty and not part.keep_empty_features:
            continue
        number = float(known.index(str(fill))) if known is not None else float(0.0 if empty else fill)
        filled = graph.where(missing(graph, column, part.missing_values, known), number, column.name)
        made.append(Dense(filled, 1, (known,)))
    result: Table = tuple(made)
    if part.indicator_ is not None:
        result += indicated(graph, part.indicator_, block)
    return result


@transformer(MissingIndicator)
def _indicator(context: Context, part: MissingIndicator, table: Table) -> Table:
    return indicated(context.graph, part, dense(context.graph, table))


def indicated(graph: Graph, part: MissingIndicator, block: Dense) -> Table:
    """1 where a column lacks its value, for those columns that a MissingIndicator looks at."""
    columns, made = apart(graph, block), []
    for index in map(int, part.features_):
        absent = missing(graph, columns[index], part.missing_values, block.vocabulary(index))
        made.append(Dense(graph.cast(absent, TensorProto.DOUBLE), 1))
    return tuple(made)


def missing(graph: Graph, block: Dense, stands_for: Any, known: tuple[str, ...] | None = None) -> str:
    """Where a block holds what an imputer takes for missing, BOOL [batch, width].

    Args:
        known: the texts that its numbers stand for; None: for themselves.
    """
    if isinstance(stands_for, str):
        code = known.index(stands_for) if known and stands_for in known else -2
        return graph.op("Equal", block.name, float(code))
    if isinstance(stands_for, Real) and not np.isnan(float(stands_for)):
        return graph.op("Equal", block.name, float(stands_for))
    return graph.op("IsNaN", block.name)
