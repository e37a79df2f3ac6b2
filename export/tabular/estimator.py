"""An estimator over tables with what is known of it, ready to be exported and to be compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from export.tabular.columns import DOCUMENT, Column, Rows, names_of
from export.tabular.memory import columns_of
from export.tabular.original import Original, Shape

_PACKAGES = {"xgboost": ("xgboost-cpu", "xgboost"), "lightgbm": ("lightgbm",)}


@dataclass(frozen=True)
class Estimator:
    """A fitted classifier or regressor, with its preprocessing.

    Attributes:
        model: a booster, or has `predict`, and `predict_proba` where `classes` is not empty.
        table: every column of its table, in the estimator's order.
        named: whether each column is an input of its own; else all are one input `features`.
        classes: names of the classes, in the order of the probabilities; empty where it predicts numbers.
        original: the same estimator, loaded once more: what is exported is measured against it.
        shape: what a table of its users looks like.
        id: what the user asked for.
        kind: `skops`, `pickle`, `xgboost`, `lightgbm` or `example`.
        library, revision: the package that the estimator belongs to, and its version.
        sha256: name -> SHA-256 of the file, or of an example's trees.
        held_out: rows with labels that an example was not trained on.
    """

    model: Any
    table: tuple[Column, ...]
    named: bool
    classes: tuple[str, ...]
    original: Original
    shape: Shape
    id: str
    kind: str
    library: str
    revision: str
    sha256: Mapping[str, str]
    held_out: Rows | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns that somebody reads."""
        return tuple(column for column in self.table if column.input)

    @property
    def call(self) -> str:
        """What answers for the original, with the version of its library."""
        return f"{self.library} {self.revision}: {self.original.call}"

    def describe(self) -> dict[str, Any]:
        """Describe it for the manifest, in the form of `export.checkpoint.source.Checkpoint.describe`."""
        return {"id": self.id, "kind": self.kind, "revision": self.revision, "sha256": dict(self.sha256)}


def make(model: Any, original: Original, source: str, kind: str, hashes: Mapping[str, str]) -> Estimator:
    """An estimator that is loaded already.

    Raises:
        ExportError: its table has columns that cannot be served.
    """
    table, named = columns_of(model)
    lists = named and names_of(model) is None and table[0].kind == DOCUMENT
    framed = named or (names_of(model) is not None and kind not in ("xgboost", "lightgbm"))
    shape, library = Shape(table, framed, lists), _library(model)
    return Estimator(model, table, named, original.classes, original, shape, source, kind, *library, hashes)


def _library(model: Any) -> tuple[str, str]:
    """The package that the estimator's class belongs to, and its version, of those installed."""
    package = type(model).__module__.partition(".")[0]
    for name in _PACKAGES.get(package, ("scikit-learn",)):
        try:
            return package, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return package, ""
