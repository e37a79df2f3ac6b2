"""Estimators as they would be served, for tests: in process, from rows as their users have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from export.tabular.agreement import Served
from export.tabular.classes import classes_of
from export.tabular.columns import CATEGORY, DOCUMENT, Rows
from export.tabular.estimator import Estimator, make
from export.tabular.evidence import TabularEvidence
from export.tabular.original import Original
from export.tabular.sample import ROUNDING, Sample, sample
from export.tabular.to_onnx import DOUBLE, FLOAT, to_onnx
from export.tabular.verify import measure
from serving.models.rows import Reader

SPECIAL = (0.0, -0.0, 1e-36, -1e-36, 0.5, -0.5, 1.9, -2.0, 7.0, 100.0, 2.0**24 + 1, 2.0**31, 1e10, np.nan)


def estimator_of(model: Any) -> Estimator:
    """A fitted model as if it had been read from a file."""
    return make(model, Original(model, classes_of(model)), "model", "pickle", {})


def as_rows(estimator: Estimator, table: Any) -> Rows:
    """A user's table in Shoal's own form."""
    if isinstance(table, list):
        return Rows({estimator.columns[0].name: np.array(table, dtype=object)}, "synthetic")
    values = {}
    for place, column in enumerate(estimator.table):
        given = table[column.name] if isinstance(table, pd.DataFrame) else table[:, place]
        if column.kind in (CATEGORY, DOCUMENT):
            values[column.name] = np.array([None if pd.isna(v) else v for v in given], dtype=object)
        elif isinstance(getattr(given, "dtype", None), pd.CategoricalDtype):
            values[column.name] = np.where(given.cat.codes < 0, np.nan, given.cat.codes).astype(float)
        else:
            values[column.name] = np.asarray(given, dtype=np.float64)
    return Rows({column.name: values[column.name] for column in estimator.columns}, "synthetic")


def answers(model: Any, table: Any, folder: Path, numbers: str = DOUBLE) -> tuple[NDArray, NDArray]:
    """What would be served for a table: labels [rows] and probabilities [rows, classes] in the order of the
    classes, or (empty, predictions [rows, outputs]).
    """
    estimator = estimator_of(model)
    network = to_onnx(estimator, folder / "model.onnx", top_k=1000, numbers=numbers)
    served = Served(estimator, network.exported, Reader((), network.texts), numbers)
    found = served.opened()(as_rows(estimator, table))
    if found.labels is None:
        return np.empty(0), found.scores
    places = {name: place for place, name in enumerate(estimator.classes)}
    order = np.vectorize(places.__getitem__)(found.labels)
    scores = np.empty_like(found.scores)
    np.put_along_axis(scores, order, found.scores, axis=1)
    return found.labels[:, 0], scores


def hard(table: NDArray, seed: int = 0) -> NDArray:
    """Rows of a matrix, and copies of them with values that hurt in some places."""
    chance = np.random.default_rng(seed)
    made = table[chance.integers(len(table), size=600)].copy()
    chosen = chance.random(made.shape) < 0.4
    made[chosen] = chance.choice(SPECIAL, int(chosen.sum()))
    return np.concatenate([table, made])


@dataclass(frozen=True)
class Proof:
    """What an export would find and publish."""

    estimator: Estimator
    sample: Sample
    served: Served
    evidence: TabularEvidence


def proof(model: Any, folder: Path, own: Rows | None = None) -> Proof:
    """Sample, convert and measure, as an export does."""
    estimator = model if isinstance(model, Estimator) else estimator_of(model)
    found = sample(estimator, own)
    numbers = FLOAT if found.rounding <= ROUNDING else DOUBLE
    network = to_onnx(estimator, folder / "model.onnx", numbers=numbers)
    served = Served(estimator, network.exported, Reader(found.checks, network.texts), numbers, network.blur)
    return Proof(estimator, found, served, measure(served, found))


def frame(values: Mapping[str, Any]) -> pd.DataFrame:
    """A data frame whose texts are Python's own."""
    made = pd.DataFrame(values)
    return made.astype({name: object for name in made if made[name].dtype.kind in "OU"})
