"""Read an estimator from a file by its own library, and refuse what must not be run or cannot be served.

skops reads a file without running code of it, but its list of trusted types leaves out trees, because
their arrays hold indices that scikit-learn follows without a check. Here trees are accepted and their
indices checked before anything is predicted: `export.tabular.checks`.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import skops.io
import xgboost
from sklearn.exceptions import InconsistentVersionWarning

from export.tabular.checks import check_estimator, check_trees
from export.tabular.files import said_by, unreadable
from export.tabular.source import KINDS
from shoal.errors import ExportError, UsageError

# Beyond what skops trusts by itself. Exact names: a prefix such as `numpy.` would let in functions that
# run text as code.
_HARMLESS = {
    "collections.OrderedDict",
    "lightgbm.basic.Booster",
    "lightgbm.sklearn.LGBMClassifier",
    "lightgbm.sklearn.LGBMRanker",
    "lightgbm.sklearn.LGBMRegressor",
    "numpy.dtype",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
    "xgboost.core.Booster",
    "xgboost.sklearn.XGBClassifier",
    "xgboost.sklearn.XGBRanker",
    "xgboost.sklearn.XGBRegressor",
    "xgboost.sklearn.XGBRFClassifier",
    "xgboost.sklearn.XGBRFRegressor",
}


# LightGBM would print its warnings to standard output, where `--json` has its document.
lightgbm.register_logger(logging.getLogger("shoal.lightgbm"))
logging.getLogger("shoal.lightgbm").addHandler(logging.NullHandler())
logging.getLogger("shoal.lightgbm").propagate = False


def kind_of(path: Path) -> str:
    """`skops`, `pickle`, `xgboost` or `lightgbm`, by the suffix; of another suffix ""."""
    return KINDS.get(path.suffix.lower(), "")


def load(path: Path, kind: str, *, trust: bool) -> Any:
    """Read a fitted estimator, or a booster where its file says nothing of an estimator.

    Args:
        kind: `skops`, `pickle`, `xgboost` or `lightgbm`.
        trust: whether code of the file may run.

    Raises:
        UsageError: the file holds types that are not known to be harmless, and `trust` is not given.
        ExportError: it cannot be read, holds no fitted estimator, or is of another scikit-learn.
    """
    readers: dict[str, Callable[[Path], Any]] = {
        "pickle": joblib.load,
        "xgboost": _xgboost,
        "lightgbm": _lightgbm,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", InconsistentVersionWarning)
            model = _skops(path, trust=trust) if kind == "skops" else readers[kind](path)
    except InconsistentVersionWarning as error:
        raise ExportError(
            f"{path.name} was saved with scikit-learn {error.original_sklearn_version}, "
            f"here is {error.current_sklearn_version}",
            hint=f"pip install scikit-learn=={error.original_sklearn_version}, or fit it again",
        ) from error
    except (UsageError, ExportError):
        raise
    except ModuleNotFoundError as error:
        raise ExportError(
            f"{path.name} needs the Python module {error.name}, which is not installed here",
            hint="install the package that it comes from, or save the estimator without what needs it",
        ) from error
    except AttributeError as error:  # a function or class that the file names, and nothing here defines
        raise ExportError(
            f"{path.name} needs code that is not here: {said_by(error)}",
            hint="put it into a module that can be imported here and save again",
        ) from error
    except Exception as error:  # each format raises what it likes when a file is damaged
        raise unreadable(path, kind, said_by(error)) from error
    check_estimator(model, path)
    check_trees(model, path)
    return model


def _skops(path: Path, *, trust: bool) -> Any:
    unknown = sorted(skops.io.get_untrusted_types(file=path))
    foreign = [name for name in unknown if name not in _HARMLESS]
    if foreign and not trust:
        raise UsageError(
            f"{path.name} holds types that are not known to be harmless: {', '.join(foreign)}",
            hint="if you trust who wrote it: --trust-pickle",
        )
    return skops.io.load(path, trusted=unknown)


def _xgboost(path: Path) -> Any:
    """Load a file as what saved it: an estimator of XGBoost says so in its file."""
    booster = xgboost.Booster(model_file=path)
    said = json.loads(booster.attr("scikit_learn") or "{}").get("_estimator_type")
    kinds = {
        "classifier": xgboost.XGBClassifier,
        "regressor": xgboost.XGBRegressor,
        "ranker": xgboost.XGBRanker,
    }
    if said not in kinds:
        return booster
    model = kinds[said]()
    model.load_model(path)
    return model


def _lightgbm(path: Path) -> Any:
    return lightgbm.Booster(model_str=path.read_text(encoding="utf-8"))
