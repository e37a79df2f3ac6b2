"""What a row of an estimator consists of: its columns, as its fitted parts remember them.

An estimator that reads numbers has one input `features` [batch, columns]. One that reads text, or begins with
a ColumnTransformer over a data frame, has one input [batch, 1] for each column, under the column's name. A
missing value is NaN in a column of numbers and the empty string in one of categories.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import FeatureUnion, Pipeline

from shoal.errors import ExportError
from shoal.wire import wire_name

TEXT = "text"  # what a pipeline over a list of texts reads
# Kinds of columns.
NUMBER, CATEGORY, DOCUMENT = "number", "category", "document"
# Where estimators keep those that read the same table; a search keeps the one it answers with.
_INNER = ("best_estimator_", "estimators_", "calibrated_classifiers_", "regressor_", "estimator_")


@dataclass
class Column:
    """One column of a table, and what the estimator remembers of it.

    Attributes:
        name: as the estimator knows it.
        input: its name on the wire: `features` where all are one input; empty: nobody reads it.
        kind: `NUMBER`; `CATEGORY`, text of which some values are known; `DOCUMENT`, any text.
        known: the categories that encoders know and the values that imputers fill in: str or float.
        missing: what stands for a missing text in the original: NaN or None.
        labels: of a column of a booster that was trained on a pandas categorical, what its codes stand for.
        whole, boolean, boxed: whether the original saw integers, booleans, or Python's own objects in it.
        thresholds: where trees split it.
        centre, spread: as scalers remember them.
    """

    name: str
    input: str = ""
    kind: str = NUMBER
    known: list[Any] = field(default_factory=list)
    missing: float | None = float("nan")
    labels: tuple[Any, ...] = ()
    whole: bool = False
    boolean: bool = False
    boxed: bool = False
    thresholds: list[NDArray[np.float64]] = field(default_factory=list)
    centre: float = 0.0
    spread: float = 1.0

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts that something is known of, each once."""
        return tuple(dict.fromkeys(value for value in self.known if isinstance(value, str)))

    @property
    def numbers(self) -> tuple[float, ...]:
        """The numbers among the known categories."""
        found = (value for value in self.known if not isinstance(value, str) and value is not None)
        return tuple(dict.fromkeys(float(value) for value in found if value == value))  # noqa: PLR0124


@dataclass(frozen=True)
class Rows:
    """Rows of a table.

    Attributes:
        values: column name -> [rows], float64, or str objects for columns of text (None: missing).
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

    def row(self, index: int) -> dict[str, Any]:
        """One row as plain values."""
        return {name: column[index] for name, column in self.values.items()}


def joined(first: Rows, second: Rows) -> Rows:
    """The rows of both, without labels."""
    values = {name: np.concatenate([column, second.values[name]]) for name, column in first.values.items()}
    return Rows(values, first.origin)


def names_of(model: Any) -> list[str] | None:
    """Names of the columns that an estimator was fitted on; None: they have none."""
    names = getattr(model, "feature_names_in_", None)
    if hasattr(model, "feature_name") and hasattr(model, "num_feature"):  # LightGBM's booster
        names = model.feature_name()
    elif names is None and hasattr(model, "num_boosted_rounds"):  # XGBoost's
        names = model.feature_names
    if names is None:
        names = next((found for entry in inner(model) if (found := names_of(entry)) is not None), None)
    return None if names is None else [str(name) for name in names]


def count_of(model: Any) -> int | None:
    """How many columns an estimator was fitted on; None: it does not say, as it is with lists of texts."""
    for method in ("num_feature", "num_features"):  # of boosters of LightGBM and XGBoost
        if hasattr(model, method):
            return int(getattr(model, method)())
    count = getattr(model, "n_features_in_", None)
    if count is None:
        return next((found for entry in inner(model) if (found := count_of(entry)) is not None), None)
    return int(count)


def inner(model: Any) -> Iterator[Any]:
    """The fitted estimators inside another that read the same table."""
    for name in _INNER:
        value = vars(model).get(name) if hasattr(model, "__dict__") else None
        if value is None:
            continue
        several = value.ravel() if isinstance(value, np.ndarray) else value
        for entry in several if name.endswith("s_") else [value]:
            # A calibrated classifier holds the estimator that reads the table.
            yield entry.estimator if name == "calibrated_classifiers_" else entry
        return
    if type(model).__name__ == "FrozenEstimator":
        yield model.estimator


def first_part(model: Any) -> Any:
    """What an estimator's table meets first."""
    parts: Iterable[Any] = inner(model)
    if isinstance(model, Pipeline):
        parts = steps(model)
    elif isinstance(model, FeatureUnion):
        parts = [step for _, step in model.transformer_list]
    return next((first_part(part) for part in parts if not isinstance(part, str)), model)


def steps(model: Pipeline) -> list[Any]:
    """The steps of a pipeline that do something."""
    return [step for _, step in model.steps if step is not None and not isinstance(step, str)]


def selections(transformer: ColumnTransformer) -> Iterator[tuple[Any, list[int]]]:
    """Each fitted part of a ColumnTransformer with the indices of the columns it reads; `passthrough` is a
    str."""
    names = list(getattr(transformer, "feature_names_in_", ()))
    every = np.arange(transformer.n_features_in_)
    for _, part, chosen in transformer.transformers_:
        if isinstance(part, str) and part == "drop":
            continue
        asked = [chosen] if isinstance(chosen, str) else chosen
        if isinstance(asked, slice) and isinstance(asked.start or asked.stop, str):  # both ends included
            stop = None if asked.stop is None else names.index(asked.stop) + 1
            asked = slice(None if asked.start is None else names.index(asked.start), stop)
        elif not isinstance(asked, slice | int) and len(asked) and all(isinstance(n, str) for n in asked):
            asked = [names.index(name) for name in asked]
        yield part, [int(index) for index in np.atleast_1d(every[asked])]


def wire_names(names: list[str]) -> list[str]:
    """What the inputs of columns are called, see `shoal.wire`.

    Raises:
        ExportError: two columns would be one input.
    """
    made: dict[str, str] = {}  # input -> column
    for name in names:
        wire = wire_name(name)
        if wire in made:
            raise ExportError(
                f"columns {made[wire]!r} and {name!r} would both be the input {wire!r}",
                hint="rename one of them and fit again",
            )
        made[wire] = name
    return list(made)
