"""What sources of estimators over tables are called: skops files, boosters' formats, pickles, examples.

Names alone are looked at here, so that nothing heavy is imported before an estimator is asked for.
"""

from __future__ import annotations

from pathlib import Path

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


def is_estimator(source: str) -> bool:
    """Whether a source names an estimator over tables, by its suffix or the prefix `example:`."""
    return source.startswith(EXAMPLE) or Path(source).suffix.lower() in KINDS
