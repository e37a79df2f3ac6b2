"""Where an estimator over tables comes from: a skops file, a booster's own format, a pickle, an example.

Nothing heavy is imported before an estimator is asked for: `is_estimator` looks at the name alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shoal.errors import MissingDependency, UsageError
from shoal.manifest import sha256

if TYPE_CHECKING:
    from export.tabular.columns import Column, Rows

EXAMPLE = "example:"
EXAMPLES = ("forest",)
_PICKLES = (".joblib", ".pkl", ".pickle")
_KINDS = {
    ".skops": "skops",
    ".ubj": "xgboost",
    ".json": "xgboost",
    ".txt": "lightgbm",
    **dict.fromkeys(_PICKLES, "pickle"),
}
_PACKAGES = {"xgboost": ("xgboost-cpu", "xgboost"), "lightgbm": ("lightgbm",)}


@dataclass(frozen=True)
class Estimator:
    """A fitted classifier or regressor, with its preprocessing.

    Attributes:
        model: has `predict`, and `predict_proba` where `classes` is not empty.
        columns: what a row consists of, in the estimator's order.
        named: whether each column is an input of its own; else all are one input `features`.
        classes: names of the classes, in the order of `predict_proba`; empty for a regressor.
        id: what the user asked for.
        kind: `skops`, `pickle`, `xgboost`, `lightgbm` or `example`.
        revision: version of the library that the estimator belongs to.
        sha256: name -> SHA-256 of the file, or of an example's trees.
        held_out: rows with labels that an example was not trained on.
    """

    model: Any
    columns: tuple[Column, ...]
    named: bool
    classes: tuple[str, ...]
    id: str
    kind: str
    revision: str
    sha256: Mapping[str, str]
    held_out: Rows | None = None

    def describe(self) -> dict[str, Any]:
        """For the manifest, in the form of `export.source.Checkpoint.describe`."""
        return {"id": self.id, "kind": self.kind, "revision": self.revision, "sha256": dict(self.sha256)}

    def predict(self, rows: Rows) -> NDArray[np.float64]:
        """What the original says of rows.

        Returns:
            Probabilities [rows, classes], or predictions [rows, outputs] of a regressor; float64.
        """
        from export.tabular.columns import as_original  # noqa: PLC0415

        call = self.model.predict_proba if self.classes else self.model.predict
        answer = np.asarray(call(as_original(self, rows)), dtype=np.float64)
        return answer if answer.ndim == 2 else answer[:, None]


def is_estimator(source: str) -> bool:
    """Whether a source names an estimator over tables, by its suffix or the prefix `example:`."""
    return source.startswith(EXAMPLE) or Path(source).suffix.lower() in _KINDS


def find_estimator(source: str, *, trust_pickle: bool = False) -> Estimator:
    """Load an estimator and find out what its rows look like.

    Args:
        source: `example:forest`; or a file `*.skops`, `*.ubj` / `*.json` (XGBoost), `*.txt` (LightGBM);
            or, with `trust_pickle`, `*.joblib`, `*.pkl`, `*.pickle`.
        trust_pickle: accept files whose loading runs code that is in them: pickles, and skops files
            with types that are not known to be harmless.

    Raises:
        UsageError: there is no such file or example, or it may not be loaded without `trust_pickle`.
        ExportError: it cannot be read, is not fitted, is of another version, or is of a kind that has no
            answer we serve.
        MissingDependency: the extra `tabular` is not installed.
    """
    try:
        from export.tabular import columns, example, loading  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingDependency(error.name or "scikit-learn", extra="tabular") from error
    if source.startswith(EXAMPLE):
        return example.find(source)
    path = Path(source).expanduser()
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        hint = f"a file that ends in {', '.join(_KINDS)}, or {EXAMPLE}{EXAMPLES[0]}"
        raise UsageError(f"{source} is not an estimator", hint=hint)
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    if kind == "pickle" and not trust_pickle:
        raise UsageError(
            f"loading {path.name} runs whatever code is in it",
            hint="if you trust who wrote it: --trust-pickle; else save it with skops.io.dump as *.skops",
        )
    try:
        model = loading.load(path, kind, trust=trust_pickle)
        classes = loading.classes_of(model)
        found, named = columns.columns_of(model)
    except ModuleNotFoundError as error:  # xgboost or lightgbm, imported when a file needs it
        raise MissingDependency(error.name or kind, extra="tabular") from error
    return Estimator(model, found, named, classes, source, kind, _revision(model), {path.name: sha256(path)})


def _revision(model: Any) -> str:
    """The version of the package that the estimator's class belongs to, of those installed."""
    package = type(model).__module__.partition(".")[0]
    package = "lightgbm" if package == "export" else package  # the adapter of a native LightGBM file
    for name in _PACKAGES.get(package, ("scikit-learn",)):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""
