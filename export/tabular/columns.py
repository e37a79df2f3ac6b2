"""What a row of an estimator consists of, on the wire and in the original.

An estimator that reads numbers has one input `features`, FLOAT [batch, columns]. A pipeline that begins
with a ColumnTransformer over a data frame has one input per column, FLOAT or STRING [batch, 1], under the
column's name. A missing value is NaN in a FLOAT and the empty string in a STRING.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import FeatureUnion, Pipeline

from export.tabular.source import Estimator
from shoal.errors import ExportError, MissingDependency

FEATURES = "features"
_TAKEN = {FEATURES, "label", "score", "prediction"}  # an input and an output cannot share a name


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: as the estimator knows it.
        input: its name on the wire, where it is an input of its own.
        dtype: `FLOAT` or `STRING`.
        missing: what stands for a missing string in the original: NaN or None; unused for numbers.
    """

    name: str
    input: str
    dtype: str = "FLOAT"
    missing: float | None = float("nan")


@dataclass(frozen=True)
class Rows:
    """Rows of a table.

    Attributes:
        values: column name -> [rows], float64, or str objects for STRING columns ("": missing).
        origin: where they come from, for the evidence: `held-out`, `eval-data` or `synthetic`.
        labels: [rows] names of the true classes (str objects), or true values (float64, [rows, outputs]).
    """

    values: Mapping[str, NDArray]
    origin: str
    labels: NDArray | None = None

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def take(self, index: slice | NDArray) -> Rows:
        """Some of the rows."""
        labels = None if self.labels is None else self.labels[index]
        return Rows({name: column[index] for name, column in self.values.items()}, self.origin, labels)


def as_feed(estimator: Estimator, rows: Rows) -> dict[str, NDArray]:
    """Rows as the inputs of the ONNX graph: float32 [rows, columns], or one [rows, 1] per column."""
    if not estimator.named:
        columns = [rows.values[column.name] for column in estimator.columns]
        return {FEATURES: np.column_stack(columns).astype(np.float32)}
    return {
        column.input: rows.values[column.name].astype(np.float32 if column.dtype == "FLOAT" else object)[
            :, None
        ]
        for column in estimator.columns
    }


def as_original(estimator: Estimator, rows: Rows) -> Any:
    """Rows as the original takes them: float64 [rows, columns], or a data frame."""
    if not estimator.named:
        return np.column_stack([rows.values[column.name] for column in estimator.columns])
    try:
        import pandas as pd  # noqa: PLC0415 - slow to import, needed for pipelines over data frames only
    except ModuleNotFoundError as error:
        raise MissingDependency("pandas", extra="tabular") from error
    made: dict[str, Any] = {}
    for column in estimator.columns:
        values = rows.values[column.name]
        if column.dtype == "STRING":
            values = np.where(values == "", np.array(column.missing, dtype=object), values)
            made[column.name] = pd.Series(values, dtype=object)
        else:
            made[column.name] = values
    return pd.DataFrame(made)


def columns_of(model: Any) -> tuple[tuple[Column, ...], bool]:
    """The columns that an estimator reads, and whether each is an input of its own.

    Raises:
        ExportError: it reads strings from a table without column names, or a column in two ways.
    """
    first = next(parts(model))
    names = getattr(model, "feature_names_in_", None)
    count = int(model.n_features_in_)
    if not isinstance(first, ColumnTransformer):
        listed = [str(name) for name in names] if names is not None else [f"x{i}" for i in range(count)]
        return tuple(Column(name, name) for name in listed), False
    kinds = dict(sorted(_selected(first).items()))
    if names is None:
        if any(dtype == "STRING" for dtype, _ in kinds.values()):
            raise ExportError(
                "the pipeline reads strings by the number of their column",
                hint="fit it on a data frame, so that columns have names",
            )
        return tuple(Column(f"x{i}", f"x{i}") for i in range(count)), False
    inputs = _wire_names([str(names[index]) for index in kinds])
    found = [
        Column(str(names[index]), inputs[str(names[index])], dtype, missing)
        for index, (dtype, missing) in kinds.items()
    ]
    return tuple(found), True


def parts(model: Any) -> Iterator[Any]:
    """The steps of a pipeline in order, pipelines inside it opened; of anything else, itself."""
    if isinstance(model, Pipeline):
        for _, step in model.steps:
            if step is not None and step != "passthrough":
                yield from parts(step)
    else:
        yield model


def everything(model: Any) -> Iterator[Any]:
    """All steps, those inside of ColumnTransformers and FeatureUnions too."""
    for part in parts(model):
        yield part
        inner: list[Any] = []
        if isinstance(part, ColumnTransformer):
            inner = [entry[1] for entry in part.transformers_]
        elif isinstance(part, FeatureUnion):
            inner = [entry[1] for entry in part.transformer_list]
        for transformer in inner:
            if not isinstance(transformer, str):
                yield from everything(transformer)


def selections(transformer: ColumnTransformer) -> Iterator[tuple[Any, list[int]]]:
    """Each fitted part of a ColumnTransformer with the indices of the columns it reads."""
    names = list(getattr(transformer, "feature_names_in_", ()))
    every = np.arange(transformer.n_features_in_)
    for _, part, chosen in transformer.transformers_:
        if isinstance(part, str) and part == "drop":
            continue
        asked = [chosen] if isinstance(chosen, str) else chosen
        if isinstance(asked, slice) and isinstance(asked.start or asked.stop, str):  # both ends included
            stop = None if asked.stop is None else names.index(asked.stop) + 1
            asked = slice(None if asked.start is None else names.index(asked.start), stop)
        elif not isinstance(asked, slice) and len(asked) and all(isinstance(name, str) for name in asked):
            asked = [names.index(name) for name in asked]
        yield part, [int(index) for index in np.atleast_1d(every[asked])]


def _selected(transformer: ColumnTransformer) -> dict[int, tuple[str, float | None]]:
    """Column index -> what it holds, and what is a missing string in it."""
    kinds: dict[int, tuple[str, float | None]] = {}
    for part, indices in selections(transformer):
        for index, kind in zip(indices, _kinds(part, len(indices)), strict=True):
            if kinds.setdefault(index, kind)[0] != kind[0]:
                raise ExportError(f"column {index} is read as a number and as a string")
    return kinds


def _kinds(part: Any, count: int) -> list[tuple[str, float | None]]:
    """What a part of a ColumnTransformer expects in each column, as seen in what it learnt."""
    missing: float | None = float("nan")
    learnt: list[NDArray] = []
    for step in parts(part):
        if isinstance(step, SimpleImputer):
            missing = None if step.missing_values is None else missing
            learnt = learnt or [np.asarray([value], dtype=object) for value in step.statistics_]
        elif hasattr(step, "categories_"):
            learnt = learnt or list(step.categories_)
    if len(learnt) != count:  # nothing learnt that tells, so numbers
        return [("FLOAT", missing)] * count
    return [
        ("STRING" if any(isinstance(value, str) for value in values) else "FLOAT", missing)
        for values in learnt
    ]


def _wire_names(names: list[str]) -> dict[str, str]:
    """Column name -> input name: letters, digits, `_`, `-` and `.`, which no protocol or shell minds."""
    made: dict[str, str] = {}
    for name in names:
        wire = re.sub(r"[^A-Za-z0-9_.-]", "_", name) or "_"
        wire = f"{wire}_" if wire in _TAKEN else wire
        if wire in made.values():
            other = next(known for known, value in made.items() if value == wire)
            raise ExportError(f"columns {other!r} and {name!r} would both be the input {wire!r}")
        made[name] = wire
    return made
