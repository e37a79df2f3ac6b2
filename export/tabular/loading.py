"""Read an estimator from a file by its own library, and refuse what must not be run or cannot be served.

skops reads a file without running code of it, but its list of trusted types leaves out trees, because
their arrays hold indices that scikit-learn follows without a check. Here trees are accepted and their
indices checked before anything is predicted: `export.tabular.checks`.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import skops.io
import xgboost
from sklearn.base import is_classifier, is_regressor
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.neural_network import MLPClassifier

from export.tabular.checks import check_estimator, check_trees
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
_XGBOOST_CLASSES = ("binary:logistic", "multi:softprob", "multi:softmax", "binary:hinge")
_LIGHTGBM_CLASSES = ("binary", "multiclass", "multiclassova")


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
    _check_content(path, kind)
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
    except Exception as error:  # each format raises what it likes when a file is damaged
        raise ExportError(f"{path.name} cannot be read as {kind}: {_reason(error)}") from error
    check_estimator(model, path)
    check_trees(model, path)
    return model


def classes_of(model: Any) -> tuple[str, ...]:
    """Names of a classifier's classes; empty where it predicts numbers.

    Raises:
        ExportError: it does neither, has no probabilities, or answers with several labels at once.
    """
    if isinstance(model, lightgbm.Booster):
        objective = (model.dump_model(num_iteration=1).get("objective") or "").split(" ")[0]
        found = objective in _LIGHTGBM_CLASSES
        return tuple(map(str, range(max(2, model.num_model_per_iteration())))) if found else ()
    if isinstance(model, xgboost.Booster):
        return _classes_of_booster(model)
    name = type(model).__name__
    ranks = isinstance(model, lightgbm.LGBMRanker | xgboost.XGBRanker)
    if ranks or is_regressor(model):
        return ()
    if not is_classifier(model):
        raise ExportError(
            f"{name} is neither a classifier nor a regressor",
            hint="nothing else is served: save an estimator that has predict and learnt from a target",
        )
    _check_answer(model)
    names = tuple(str(value) for value in model.classes_)
    if len(set(names)) != len(names):
        raise ExportError(
            f"two classes have one name as text: {', '.join(names)}", hint="rename one of them and fit again"
        )
    return names


def _final(model: Any) -> Any:
    """The estimator at the end of pipelines and searches."""
    while True:
        if hasattr(model, "best_estimator_"):
            model = model.best_estimator_
        elif hasattr(model, "steps"):
            model = model.steps[-1][1]
        else:
            return model


def _check_answer(model: Any) -> None:
    """Whether a row gets one class, with probabilities.

    Raises:
        ExportError: it does not.
    """
    final = _final(model)
    name = type(final).__name__
    several = isinstance(getattr(model, "classes_", ()), list) or getattr(final, "multilabel_", False)
    if isinstance(final, xgboost.XGBClassifier):
        learner = json.loads(final.get_booster().save_config())["learner"]
        several = int(learner["learner_model_param"]["num_target"]) > 1
        if learner["objective"]["name"] == "binary:logitraw":
            raise ExportError(
                f"{name} with binary:logitraw has no probabilities",
                hint="fit it with binary:logistic, which grows the same trees",
            )
    elif isinstance(final, MLPClassifier):
        several = final.n_outputs_ > 1 and final.out_activation_ == "logistic"
    if several:
        raise ExportError(
            f"{name} gives several labels to a row, which is not supported",
            hint="fit and export an estimator for each label",
        )
    if hasattr(final, "best_threshold_") or name == "FixedThresholdClassifier":
        raise ExportError(
            f"{name} chooses its label by a threshold, and what is served by the largest probability",
            hint="export its estimator_, and compare the score with the threshold where you call it",
        )
    if not hasattr(model, "predict_proba"):
        hint = "wrap it in CalibratedClassifierCV and fit again"
        raise ExportError(
            f"{name} has no probabilities", hint="fit it with voting='soft'" if hasattr(final, "voting") else hint
        )


def _classes_of_booster(model: xgboost.Booster) -> tuple[str, ...]:
    learner = json.loads(model.save_config())["learner"]
    objective, facts = learner["objective"]["name"], learner["learner_model_param"]
    if objective not in _XGBOOST_CLASSES:
        return ()
    if int(facts["num_target"]) > 1:
        raise ExportError(
            "the XGBoost model gives several labels to a row, which is not supported",
            hint="train and export a model for each label",
        )
    return tuple(map(str, range(max(2, int(facts["num_class"])))))


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
    """As what saved it: an estimator of XGBoost says so in its file."""
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
    # Given a file name, LightGBM would print to standard error what is wrong before it raises.
    text = path.read_text(encoding="utf-8")
    if "\nend of trees" not in text:  # LightGBM itself reads what is left of a file, or crashes
        raise ValueError("it ends in the middle of its trees")
    return lightgbm.Booster(model_str=text)


def _check_content(path: Path, kind: str) -> None:
    """Whether a file is what its suffix says, by how it begins.

    Raises:
        ExportError: it is empty, or another kind of file.
    """
    with path.open("rb") as file:
        start = file.read(4096)
    if not start:
        raise ExportError(f"{path.name} cannot be read as {kind}: the file is empty")
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
    if found and found != kind:
        raise ExportError(
            f"{path.name} cannot be read as {kind}: it holds what {found} writes",
            hint=f"if you trust where it is from, rename it to {path.stem}{suffix}",
        )


def _reason(error: Exception) -> str:
    """The first line of what a library says, without the place in its sources."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", line)[:200]
