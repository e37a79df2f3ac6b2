"""Read an estimator from a file, and refuse what must not be run or cannot be served.

skops reads a file without running code of it, but its list of trusted types leaves out trees, because
their arrays hold indices that scikit-learn follows without a check. Here trees are accepted and their
indices checked before anything is predicted.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import skops.io
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, is_classifier, is_regressor
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.ensemble._forest import BaseForest
from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor
from sklearn.exceptions import InconsistentVersionWarning, NotFittedError
from sklearn.tree._tree import Tree
from sklearn.utils.validation import check_is_fitted

from shoal.errors import ExportError, UsageError

# Beyond what skops trusts by itself. Exact names: a prefix such as `numpy.` would let in functions that
# run text as code.
_HARMLESS = {
    "collections.OrderedDict",
    "lightgbm.basic.Booster",
    "lightgbm.sklearn.LGBMClassifier",
    "lightgbm.sklearn.LGBMRegressor",
    "numpy.dtype",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
    "xgboost.core.Booster",
    "xgboost.sklearn.XGBClassifier",
    "xgboost.sklearn.XGBRegressor",
}
_ENSEMBLES = (
    BaseForest,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
_XGBOOST_CLASSIFIERS = ("binary:logistic", "multi:softprob", "multi:softmax")
_XGBOOST_REGRESSORS = ("reg:", "count:poisson")
_LIGHTGBM_CLASSIFIERS = ("binary", "multiclass")
_LIGHTGBM_REGRESSORS = ("regression", "regression_l1", "huber", "poisson", "quantile", "gamma", "tweedie")


class _NativeLightGBM(BaseEstimator):
    """What skl2onnx and onnxmltools need to know of a LightGBM model read from its own format."""

    def __init__(self, booster: Any) -> None:
        self.booster = booster
        self.booster_ = booster
        self.n_features_in_ = booster.num_feature()
        averaged = booster.dump_model(num_iteration=1).get("average_output", False)
        self.boosting_type = "rf" if averaged else "gbdt"
        self.feature_names_in_ = np.array(booster.feature_name(), dtype=object)

    def predict(self, rows: Any) -> Any:
        return self.booster.predict(rows)


class NativeLightGBMClassifier(ClassifierMixin, _NativeLightGBM):
    """A LightGBM file keeps no names of classes: they are the numbers from 0."""

    def __init__(self, booster: Any) -> None:
        super().__init__(booster)
        self.classes_ = np.arange(max(2, booster.num_model_per_iteration()))

    def predict_proba(self, rows: Any) -> Any:
        made = self.booster.predict(rows)
        return made if made.ndim == 2 else np.column_stack([1 - made, made])


class NativeLightGBMRegressor(RegressorMixin, _NativeLightGBM):
    """A regressor from a LightGBM file."""


def load(path: Path, kind: str, *, trust: bool) -> Any:
    """Read a fitted estimator.

    Args:
        kind: `skops`, `pickle`, `xgboost` or `lightgbm`.
        trust: whether code of the file may run.

    Raises:
        UsageError: the file holds types that are not known to be harmless, and `trust` is not given.
        ExportError: it cannot be read, holds no fitted estimator, or is of another scikit-learn.
    """
    readers = {"pickle": joblib.load, "xgboost": _xgboost, "lightgbm": _lightgbm}
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
    except (UsageError, ExportError, ModuleNotFoundError):
        raise
    except Exception as error:  # each format raises what it likes when a file is damaged
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(f"{path.name} cannot be read as {kind}: {reason[:200]}") from error
    if kind != "lightgbm":  # which knows no other than fitted models, and has an adapter here
        _check_fitted(model, path)
        _check_trees(model, path)
    return model


def classes_of(model: Any) -> tuple[str, ...]:
    """Names of a classifier's classes; empty for a regressor.

    Raises:
        ExportError: it is neither, has no probabilities, or answers with several labels at once.
    """
    name = type(model).__name__
    if is_regressor(model):
        return ()
    if not is_classifier(model):
        raise ExportError(f"{name} is neither a classifier nor a regressor", hint="nothing else is served")
    if not hasattr(model, "predict_proba"):
        raise ExportError(f"{name} has no probabilities", hint="wrap it in CalibratedClassifierCV")
    if isinstance(model.classes_, list) or getattr(model, "multilabel_", False):
        raise ExportError(f"{name} gives several labels to a row, which is not supported")
    classes = tuple(str(value) for value in model.classes_)
    if len(set(classes)) != len(classes):
        raise ExportError(f"two classes have one name as text: {', '.join(classes)}")
    return classes


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
    import xgboost  # noqa: PLC0415 - installed with the extra, needed for its files only

    booster = xgboost.Booster(model_file=path)
    objective = json.loads(booster.save_config())["learner"]["objective"]["name"]
    if objective in _XGBOOST_CLASSIFIERS:
        model: Any = xgboost.XGBClassifier()
    elif objective.startswith(_XGBOOST_REGRESSORS):
        model = xgboost.XGBRegressor()
    else:
        raise ExportError(f"{path.name} has the objective {objective}, which is not supported")
    model.load_model(path)
    return model


def _lightgbm(path: Path) -> Any:
    import lightgbm  # noqa: PLC0415 - installed with the extra, needed for its files only

    # Given a file name, LightGBM would print to standard error what is wrong before it raises.
    booster = lightgbm.Booster(model_str=path.read_text(encoding="utf-8"))
    objective = booster.dump_model(num_iteration=1).get("objective", "").split(" ")[0]
    if objective in _LIGHTGBM_CLASSIFIERS:
        return NativeLightGBMClassifier(booster)
    if objective in _LIGHTGBM_REGRESSORS:
        return NativeLightGBMRegressor(booster)
    raise ExportError(f"{path.name} has the objective {objective or '(none)'}, which is not supported")


def _check_fitted(model: Any, path: Path) -> None:
    if not isinstance(model, BaseEstimator):
        raise ExportError(f"{path.name} holds a {type(model).__name__}, not an estimator")
    if not hasattr(model, "predict"):
        raise ExportError(f"{type(model).__name__} cannot predict", hint="save the whole pipeline")
    try:
        check_is_fitted(model)
    except NotFittedError as error:
        raise ExportError(f"{type(model).__name__} in {path.name} is not fitted") from error


def _check_trees(model: Any, path: Path) -> None:
    """Every child and every feature that a tree names exists.

    scikit-learn follows these indices unchecked, so a forged file could crash the process, or worse.
    """
    pending: list[tuple[Any, int, bool]] = [(model, 0, False)]
    seen: set[int] = set()
    while pending:
        # `columns`: how many the tree gets; inside an ensemble the ensemble's, which is what is checked.
        value, columns, fixed = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tree):
            nodes = value.__getstate__()["nodes"]
            inner = nodes["left_child"] != -1
            sound = _sound(inner, (nodes["left_child"], nodes["right_child"]), nodes["feature"], columns)
        elif isinstance(value, TreePredictor):
            nodes = value.nodes
            inner = nodes["is_leaf"] == 0
            if np.any(nodes["is_categorical"]):
                raise ExportError(
                    "splits on categories inside HistGradientBoosting cannot be converted",
                    hint="encode the categories with OneHotEncoder or OrdinalEncoder before it",
                )
            sound = _sound(inner, (nodes["left"], nodes["right"]), nodes["feature_idx"], columns)
        else:
            if isinstance(value, BaseEstimator) and not fixed:
                columns = int(getattr(value, "n_features_in_", columns))
                fixed = isinstance(value, _ENSEMBLES)
            pending += [(part, columns, fixed) for part in _inside(value)]
            continue
        if not sound:
            raise ExportError(f"{path.name} holds a tree that points outside of itself", hint="it is damaged")


def _sound(inner: NDArray, children: tuple[NDArray, NDArray], features: NDArray, columns: int) -> bool:
    """Children come after their parent, in both kinds of tree; so walking down also ends."""
    order, count = np.flatnonzero(inner), len(inner)
    below = all(bool(np.all((side[inner] > order) & (side[inner] < count))) for side in children)
    return below and bool(np.all((features[inner] >= 0) & (features[inner] < columns)))


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, np.ndarray):
        return list(value.ravel()) if value.dtype == object else []
    if isinstance(value, BaseEstimator):
        return list(vars(value).values())
    return []
