"""What an estimator answers with: the classes it tells apart, or numbers."""

from __future__ import annotations

import json
from typing import Any

import lightgbm
import xgboost
from sklearn.base import is_classifier, is_regressor
from sklearn.neural_network import MLPClassifier

from shoal.errors import ExportError

_XGBOOST_CLASSES = ("binary:logistic", "multi:softprob", "multi:softmax", "binary:hinge")
_LIGHTGBM_CLASSES = ("binary", "multiclass", "multiclassova")


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
    voters = getattr(final, "estimators_", ()) if hasattr(final, "voting") else ()
    silent = [type(_final(voter)).__name__ for voter in voters if not hasattr(voter, "predict_proba")]
    if not hasattr(model, "predict_proba") or silent:
        hint = "wrap it in CalibratedClassifierCV and fit again"
        if hasattr(final, "voting"):
            wrapped = f", {' and '.join(silent)} in CalibratedClassifierCV" if silent else ""
            hint = f"fit it with voting='soft'{wrapped}"
        raise ExportError(f"{name} has no probabilities", hint=hint)


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
