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
    if (
        "\nend of trees" not in text
        or not parameters
        or (rest and not rest.startswith("pandas_categorical:"))
    ):
        raise unreadable(
            path, "lightgbm", "it has no end" if text.startswith("tree\n") else "it has no trees"
        )


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


def _check_content(path: Path, kind: str) -> None:
    """Whether a file is what its suffix says, by how it begins.

    Raises:
        ExportError: it is empty, or another kind of file.
    """
    with path.open("rb") as file:
        start = file.read(4096)
    if not start:
        raise ExportError(f"{path.name} cannot be read as {kind}: the file is empty", hint="save it again")
    is_json = bool(re.match(rb'\s*\{\s*"', start))
    found, suffix = "", ""
    if start.startswith(b"PK\x03\x04"):
        found, suffix = "skops", ".skops"
    elif re.match(rb"\x80[\x02-\x05]", start):
        found, suffix = "pickle", ".pkl"
    elif start.startswith(b"tree\n"):
        found, suffix = "lightgbm", ".txt"
    elif is_json and b'"max_feature_idx"' in start:
        raise ExportError(
            f"{path.name} is a dump of a LightGBM model, which LightGBM cannot load",
            hint="booster.save_model('model.txt')",
        )
    elif is_json and (b'"learner"' in start or b'"version"' in start):
        found, suffix = "xgboost", ".json"
    elif start.startswith(b"{L"):
        found, suffix = "xgboost", ".ubj"
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
