"""A loaded file holds a fitted estimator that can be served, and no tree of it points outside of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import xgboost
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.ensemble._forest import BaseForest
from sklearn.ensemble._gb import BaseGradientBoosting
from sklearn.ensemble._hist_gradient_boosting.gradient_boosting import BaseHistGradientBoosting
from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.pipeline import Pipeline
from sklearn.tree._tree import Tree
from sklearn.utils.validation import check_is_fitted

from shoal.errors import ExportError

_ENSEMBLES = (BaseForest, BaseGradientBoosting, BaseHistGradientBoosting)


def check_estimator(model: Any, path: Path) -> None:
    """Whether it is a fitted estimator that predicts.

    Raises:
        ExportError: it is not.
    """
    if isinstance(model, lightgbm.Booster | xgboost.Booster):
        return
    name = type(model).__name__
    if not isinstance(model, BaseEstimator):
        found = f"the class {model.__name__}" if isinstance(model, type) else f"a {name}"
        raise ExportError(
            f"{path.name} holds {found}, not an estimator",
            hint="save the fitted estimator or pipeline itself",
        )
    try:
        _check_fitted(model)
    except NotFittedError as error:
        raise ExportError(f"{name} in {path.name} is not fitted", hint="call fit, then save it") from error
    if not hasattr(model, "predict"):
        raise ExportError(
            f"{name} in {path.name} only transforms and cannot predict",
            hint="save the pipeline that ends in an estimator",
        )


def _check_fitted(model: Any) -> None:
    """Check that a model is fitted, and each step of a pipeline: scikit-learn looks at the last only."""
    if isinstance(model, Pipeline):
        for _, step in model.steps:
            if step is not None and not isinstance(step, str):
                _check_fitted(step)
    elif not isinstance(model, HashingVectorizer):  # which learns nothing
        check_is_fitted(model)


def check_trees(model: Any, path: Path) -> None:
    """Whether every child, feature and set of categories that a tree names exists.

    scikit-learn follows these indices unchecked, so a forged file could crash the process, or worse.

    Raises:
        ExportError: one does not.
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
            sets = nodes["bitset_idx"][inner & (nodes["is_categorical"] != 0)]
            sound = bool(np.all(sets < len(value.raw_left_cat_bitsets)))
            sound &= _sound(inner, (nodes["left"], nodes["right"]), nodes["feature_idx"], columns)
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
    if isinstance(value, BaseEstimator) or type(value).__module__.startswith("sklearn."):
        return list(getattr(value, "__dict__", {}).values())
    return []
