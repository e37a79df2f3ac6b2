"""From what a user names to an estimator that is loaded and checked."""

from __future__ import annotations

from pathlib import Path

from export.tabular import example, files, loading
from export.tabular.estimator import Estimator, make
from export.tabular.original import Original
from export.tabular.source import EXAMPLE, EXAMPLES, KINDS
from shoal.errors import UsageError
from shoal.hashes import sha256


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
    """
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
    reference = Original.load(path, trust=trust_pickle)
    return make(model, reference, source, kind, {path.name: sha256(path)})
