"""Where an estimator over tables comes from: a skops file, a booster's own format, a pickle, an example.

Nothing heavy is imported before an estimator is asked for: `is_estimator` looks at the name alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.errors import MissingDependency, UsageError
from shoal.hashes import sha256

if TYPE_CHECKING:
    from export.tabular.columns import Column, Rows
    from export.tabular.original import Original, Shape

EXAMPLE = "example:"
EXAMPLES = ("forest",)
# By suffix, what reads a file.
KINDS = {
    ".skops": "skops",
    ".ubj": "xgboost",
    ".json": "xgboost",
    ".txt": "lightgbm",
    ".joblib": "pickle",
    ".pkl": "pickle",
    ".pickle": "pickle",
}
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
        """For the manifest, in the form of `export.source.Checkpoint.describe`."""
        return {"id": self.id, "kind": self.kind, "revision": self.revision, "sha256": dict(self.sha256)}


def is_estimator(source: str) -> bool:
    """Whether a source names an estimator over tables, by its suffix or the prefix `example:`."""
    return source.startswith(EXAMPLE) or Path(source).suffix.lower() in KINDS


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
        from export.tabular import example, files, loading, original  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingDependency(error.name or "scikit-learn", extra="tabular") from error
    if source.startswith(EXAMPLE):
        return example.find(source)
    path = Path(source).expanduser()
    kind = loading.kind_of(path)
    if not kind:
        hint = f"a file that ends in {', '.join(KINDS)}, or {EXAMPLE}{EXAMPLES[0]}"
        raise UsageError(f"{source} is not an estimator", hint=hint)
    if path.is_dir():
        raise UsageError(
            f"{path} is a folder, not a file", hint=f"name the file in it that ends in {path.suffix}"
        )
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    if kind == "pickle" and not trust_pickle:
        raise UsageError(
            f"loading {path.name} runs whatever code is in it",
            hint="if you trust who wrote it: --trust-pickle; else save it with skops.io.dump as *.skops",
        )
    files.check_file(path, kind)
    model = loading.load(path, kind, trust=trust_pickle)
    reference = original.Original.load(path, trust=trust_pickle)
    return make(model, reference, source, kind, {path.name: sha256(path)})


def make(
    model: Any,
    original: Original,
    source: str,
    kind: str,
    hashes: Mapping[str, str],
    held_out: Rows | None = None,
) -> Estimator:
    """An estimator that is loaded already.

    Raises:
        ExportError: its table has columns that cannot be served.
    """
    from export.tabular.columns import DOCUMENT, names_of  # noqa: PLC0415
    from export.tabular.memory import columns_of  # noqa: PLC0415
    from export.tabular.original import Shape  # noqa: PLC0415

    table, named = columns_of(model)
    lists = named and names_of(model) is None and table[0].kind == DOCUMENT
    framed = named or (names_of(model) is not None and kind not in ("xgboost", "lightgbm"))
    shape = Shape(table, framed, lists)
    return Estimator(
        model,
        table,
        named,
        original.classes,
        original,
        shape,
        source,
        kind,
        *_library(model),
        hashes,
        held_out,
    )


def _library(model: Any) -> tuple[str, str]:
    """The package that the estimator's class belongs to, and its version, of those installed."""
    package = type(model).__module__.partition(".")[0]
    for name in _PACKAGES.get(package, ("scikit-learn",)):
        try:
            return package, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return package, ""
