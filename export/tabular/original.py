"""The original, called as its users call it: rows as they have them in, its library's own answers out.

It is loaded from its file by its library alone, and shares nothing with what is exported: this is what an
export is measured against.

    original = Original.load(Path("shop.pkl"), trust=True)
    original.answers(frame)  # labels and probabilities, or predictions
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import xgboost
from numpy.typing import NDArray
from scipy.special import softmax

from export.tabular.classes import classes_of
from export.tabular.columns import CATEGORY, DOCUMENT, Column, Rows
from export.tabular.loading import kind_of, load


@dataclass(frozen=True)
class Answers:
    """What an estimator says of rows.

    Attributes:
        labels: [rows] the class it chooses, as text; None from a regressor.
        scores: [rows, classes] probabilities, or [rows, outputs] predictions; float64.
    """

    labels: NDArray | None
    scores: NDArray[np.float64]

    def take(self, index: NDArray) -> Answers:
        """Those of some of the rows."""
        return Answers(None if self.labels is None else self.labels[index], self.scores[index])

    @classmethod
    def gathered(cls, parts: Sequence[tuple[NDArray, Answers]], count: int) -> Answers:
        """Answers to parts of `count` rows, each with the places of its rows, as answers to all of them.

        A row of no part has the label "" and NaN for scores.
        """
        _, first = parts[0]
        scores = np.full((count, *first.scores.shape[1:]), np.nan)
        labels = None if first.labels is None else np.full((count, *first.labels.shape[1:]), "", object)
        for places, found in parts:
            scores[places] = found.scores
            if labels is not None:
                labels[places] = found.labels
        return cls(labels, scores)


@dataclass(frozen=True)
class Original:
    """A fitted estimator as its library loads it.

    Attributes:
        model: an estimator with `predict`, or a booster of LightGBM or XGBoost.
        classes: names of its classes, in the order of its probabilities; empty: it predicts numbers.
    """

    model: Any
    classes: tuple[str, ...]

    @classmethod
    def load(cls, path: Path, *, trust: bool = False) -> Original:
        """Read a file.

        Args:
            trust: whether code of the file may run.

        Raises:
            UsageError, ExportError: see `export.tabular.loading.load`.
        """
        model = load(path, kind_of(path), trust=trust)
        return cls(model, classes_of(model))

    @property
    def call(self) -> str:
        """What is called, for people."""
        if isinstance(self.model, lightgbm.Booster | xgboost.Booster):
            return "Booster.predict"
        name = type(self.model).__name__
        return f"{name}.predict, {name}.predict_proba" if self.classes else f"{name}.predict"

    def answers(self, rows: Any) -> Answers:
        """What the original says.

        Args:
            rows: a data frame, an array [rows, columns], or a list of texts.

        Raises:
            Exception: whatever its library raises of rows that it refuses.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as of unknown categories, which are its business
            if isinstance(self.model, lightgbm.Booster):
                return self._of_booster(self.model.predict(rows))
            if isinstance(self.model, xgboost.Booster):
                return self._of_xgboost(self.model, rows)
            made = self.model.predict(rows)
            if not self.classes:
                return Answers(None, _columns(made))
            labels = [str(label) for label in np.asarray(made).ravel().tolist()]
            return Answers(np.array(labels, dtype=object), _columns(self.model.predict_proba(rows)))

    def scores(self, rows: Any) -> Any:
        """The probabilities or predictions alone, as its library gives them.

        Raises:
            Exception: see `answers`.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if isinstance(self.model, xgboost.Booster):
                return self._of_xgboost(self.model, rows)
            if self.classes and not isinstance(self.model, lightgbm.Booster):
                return self.model.predict_proba(rows)
            return self.model.predict(rows)

    def _of_booster(self, made: NDArray) -> Answers:
        """Probabilities of the second of two classes [rows], or of each."""
        found = _columns(made)
        if not self.classes:
            return Answers(None, found)
        scores = np.column_stack([1.0 - found, found]) if found.shape[1] == 1 else found
        return Answers(np.array(self.classes, dtype=object)[scores.argmax(axis=1)], scores)

    def _of_xgboost(self, model: xgboost.Booster, rows: Any) -> Answers:
        if isinstance(rows, pd.DataFrame):
            data = xgboost.DMatrix(rows, enable_categorical=True)
        else:
            data = xgboost.DMatrix(rows, feature_names=model.feature_names)
        made = model.predict(data)
        if not self.classes or made.ndim > 1 or len(self.classes) == 2:
            return self._of_booster(made)
        # multi:softmax answers with classes alone.
        scores = softmax(_columns(model.predict(data, output_margin=True)), axis=1)
        return Answers(np.array(self.classes, dtype=object)[made.astype(int)], scores)


def _columns(made: Any) -> NDArray[np.float64]:
    found = np.asarray(made, dtype=np.float64)
    return found if found.ndim == 2 else found.reshape(len(found), -1)


@dataclass(frozen=True)
class Shape:
    """What a table looks like that an original's users have.

    Attributes:
        columns: all of it, in order.
        frame: whether it is a data frame.
        lists: whether it is a list of texts.
    """

    columns: Sequence[Column]
    frame: bool
    lists: bool

    def of(self, rows: Rows) -> list[tuple[NDArray[np.int64], Any]]:
        """Rows as their users have them, each part with the places of its rows.

        A booster of pandas categoricals gets a data frame of those rows whose codes stand for something, and
        an array of the others.
        """
        every = np.arange(len(rows))
        if self.lists:
            return [(every, list(rows.values[self.columns[0].name]))]
        if not any(column.labels for column in self.columns):
            return [(every, self._frame(rows) if self.frame else self._array(rows))]
        named = np.ones(len(rows), dtype=bool)
        for column in self.columns:
            if column.labels:
                codes = rows.values[column.name]
                named &= np.isnan(codes) | np.isin(codes, np.arange(len(column.labels)))
        parts: list[tuple[NDArray[np.bool_], Callable[[Rows], Any]]]
        parts = [(named, self._frame), (~named, self._array)]
        return [(every[mask], make(rows.take(every[mask]))) for mask, make in parts if mask.any()]

    def _array(self, rows: Rows) -> NDArray[np.float64]:
        return np.column_stack([rows.values[column.name] for column in self.columns])

    def _frame(self, rows: Rows) -> pd.DataFrame:
        return pd.DataFrame({column.name: _series(column, rows) for column in self.columns})


def _series(column: Column, rows: Rows) -> Any:
    """A column with the type that it has in its users' tables."""
    if column.name not in rows.values:  # it is there, and nobody reads it
        return np.zeros(len(rows))
    values = rows.values[column.name]
    if column.kind == DOCUMENT:
        return pd.Series(values, dtype=object)
    if column.kind == CATEGORY:
        missing = np.array([value is None for value in values])
        return pd.Series(np.where(missing, np.array(column.missing, dtype=object), values), dtype=object)
    if column.labels:
        codes = np.where(np.isnan(values), -1, values).astype(int)
        return pd.Categorical.from_codes(codes, list(column.labels))
    return _boxed(column, values) if column.boxed else _typed(column, values)


def _boxed(column: Column, values: NDArray[np.float64]) -> Any:
    """Numbers as Python's own objects, of the kinds that the original saw."""
    made: list[Any] = []
    for value in values.tolist():
        whole = np.isfinite(value) and value == int(value)
        made.append(bool(value) if column.boolean and value in (0, 1) else int(value) if whole else value)
    return pd.Series(made, dtype=object)


def _typed(column: Column, values: NDArray[np.float64]) -> NDArray:
    """Numbers as booleans or integers, where the original saw these and they still are."""
    if column.boolean and np.isin(values, (0.0, 1.0)).all():
        return values.astype(bool)
    if column.whole and np.all(np.abs(values) < 2**53) and np.all(values == np.floor(values)):
        return values.astype(np.int64)
    return values
