"""A file is what its suffix says, whole, and its library survives reading it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from shoal.errors import ExportError, first_line


def check_file(path: Path, kind: str) -> None:
    """Whether a file is what its suffix says, and its library survives reading it.

    Boosters are read in a process of its own first: of a file that is cut off or damaged, XGBoost and
    LightGBM may follow numbers out of their own memory, and would take this process with them.

    Raises:
        ExportError: it is empty, cut off, damaged, or another kind of file.
    """
    _check_content(path, kind)
    if kind == "lightgbm":
        _check_text(path)
    elif path.suffix.lower() == ".json":
        _check_json(path)
    if kind not in _TRIALS:
        return
    trial = subprocess.run(
        [sys.executable, "-c", _TRIALS[kind], str(path)], capture_output=True, text=True, check=False
    )
    if trial.returncode:
        said = trial.stdout.strip().splitlines()
        reason = said[-1] if trial.returncode > 0 and said else f"{kind} crashes while it reads it"
        raise unreadable(path, kind, _cleaned(reason))


_TRY = """
import sys
try:
    {read}
except Exception as error:
    print((str(error).strip() or type(error).__name__).splitlines()[0])
    sys.exit(3)
"""
_TRIALS = {
    "xgboost": _TRY.format(
        read="import numpy, xgboost; made = xgboost.Booster(model_file=sys.argv[1]);"
        " made.predict(xgboost.DMatrix(numpy.zeros((1, made.num_features()))), validate_features=False)"
    ),
    "lightgbm": _TRY.format(
        read="import numpy, lightgbm; text = open(sys.argv[1], encoding='utf-8').read();"
        " made = lightgbm.Booster(model_str=text); made.predict(numpy.zeros((1, made.num_feature())))"
    ),
}


def _check_text(path: Path) -> None:
    """Whether LightGBM's text has an end: of one that is cut off, it reads what is left, or crashes."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise unreadable(path, "lightgbm", f"it is no text: {error.reason}") from error
    rest = text.partition("\nend of parameters")[2].strip()
    parameters = "\nparameters:" not in text or "\nend of parameters" in text
    whole = not rest or rest.startswith("pandas_categorical:")
    if "\nend of trees" not in text or not parameters or not whole:
        reason = "it has no end" if text.startswith("tree\n") else "it has no trees"
        raise unreadable(path, "lightgbm", reason)


def _check_json(path: Path) -> None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise unreadable(path, "xgboost", f"it is no JSON: {said_by(error)}") from error
    if not isinstance(found, dict) or "learner" not in found:
        raise unreadable(path, "xgboost", 'it has no "learner", which every model of XGBoost has')


def unreadable(path: Path, kind: str, reason: str) -> ExportError:
    """What to raise of a file that cannot be read, and why."""
    return ExportError(
        f"{path.name} cannot be read as {kind}: {reason}",
        hint="it is cut off, damaged or something else: save it again, and copy the whole file",
    )


_OBJECT_WITH = rb'(?s)\s*\{\s*(?=").*'
# By suffix, what writes such a file, and how it begins.
_BEGINNINGS = {
    ".skops": ("skops", rb"PK\x03\x04"),
    ".pkl": ("pickle", rb"\x80[\x02-\x05]"),
    ".txt": ("lightgbm", rb"tree\n"),
    ".json": ("xgboost", _OBJECT_WITH + rb'"(learner|version)"'),
    ".ubj": ("xgboost", rb"\{L"),
}


def _check_content(path: Path, kind: str) -> None:
    """Whether a file is what its suffix says, by how it begins.

    Raises:
        ExportError: it is empty, or another kind of file.
    """
    with path.open("rb") as file:
        start = file.read(4096)
    if not start:
        raise ExportError(f"{path.name} cannot be read as {kind}: the file is empty", hint="save it again")
    if re.match(_OBJECT_WITH + rb'"max_feature_idx"', start):
        raise ExportError(
            f"{path.name} is a dump of a LightGBM model, which LightGBM cannot load",
            hint="booster.save_model('model.txt')",
        )
    begins = ((found, suffix) for suffix, (found, pattern) in _BEGINNINGS.items() if re.match(pattern, start))
    found, suffix = next(begins, ("", ""))
    if found and (found != kind or (kind == "xgboost" and suffix != path.suffix.lower())):
        raise ExportError(
            f"{path.name} cannot be read as {kind}: it holds what {found} writes",
            hint=f"if you trust where it is from, rename it to {path.stem}{suffix}",
        )


def said_by(error: Exception) -> str:
    """The first line of what a library says."""
    return _cleaned(first_line(error))


def _cleaned(line: str) -> str:
    """A line of a library's error, without the place in its sources."""
    return re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", line)[:200]
