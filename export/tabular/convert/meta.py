"""Estimators that are made of others: pipelines, unions, votes, stacks, chains, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    BaggingRegressor,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.feature_selection import RFE
from sklearn.isotonic import IsotonicRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputRegressor, RegressorChain
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.semi_supervised import SelfTrainingClassifier

from export.tabular.columns import selections, steps
from export.tabular.convert.graph import Dense, Graph, Table, Unsupported, as_held, held, take, width
from export.tabular.convert.linear import shares
from export.tabular.convert.preprocessing import SCALERS, function, scaled
from export.tabular.convert.registry import Context, classifier, decides, delegates, regressor, transformer


@transformer(Pipeline)
def _pipeline(context: Context, part: Pipeline, table: Table) -> Table:
    for step in steps(part):
        table = context.transform(step, table)
    return table


@delegates(Pipeline)
def _last_step(context: Context, model: Pipeline, table: Table) -> tuple[Any, Table]:
    *before, last = steps(model)
    for step in before:
        table = context.transform(step, table)
    return last, table


@transformer(ColumnTransformer)
def _columns(context: Context, part: ColumnTransformer, table: Table) -> Table:
    made: Table = ()
    for step, indices in selections(part):
        if indices:
            chosen = take(context.graph, table, indices)
            made += chosen if isinstance(step, str) else context.transform(step, chosen)
    return as_held(made, part.sparse_output_)


@transformer(FeatureUnion)
def _union(context: Context, part: FeatureUnion, table: Table) -> Table:
    made: Table = ()
    for name, step in part.transformer_list:
        if step == "drop":
            continue
        found = table if step == "passthrough" else context.transform(step, table)
        weight = (part.transformer_weights or {}).get(name, 1.0)
        if weight != 1.0:
            found = (Dense(context.graph.linear(found, weight * np.eye(width(found)), 0.0), width(found)),)
        made += found
    return as_held(made, held(made))


def _mean(graph: Graph, each: Sequence[str], weights: Sequence[float] | None = None) -> str:
    """The weighted mean of tensors of one shape."""
    if weights is not None:
        each = [graph.op("Mul", one, float(w)) for one, w in zip(each, weights, strict=True)]
    total = sum(weights) if weights is not None else len(each)
    return graph.op("Div", graph.op("Sum", *each), float(total))


@delegates(RFE)
def _of_selected(context: Context, model: RFE, table: Table) -> tuple[Any, Table]:
    return model.estimator_, context.transform(model, table)


@delegates(SelfTrainingClassifier)
def _self_trained(context: Context, model: SelfTrainingClassifier, table: Table) -> tuple[Any, Table]:
    return model.estimator_, table


@classifier(VotingClassifier)
def _vote(context: Context, model: VotingClassifier, table: Table) -> str:
    each = [context.scores(entry, table) for entry in model.estimators_]
    return _mean(context.graph, each, model._weights_not_none)


@regressor(VotingRegressor)
def _mean_of_regressors(context: Context, model: VotingRegressor, table: Table) -> str:
    each = [context.values(entry, table) for entry in model.estimators_]
    return _mean(context.graph, each, model._weights_not_none)


@classifier(BaggingClassifier)
def _bagging(context: Context, model: BaggingClassifier, table: Table) -> str:
    graph, each = context.graph, []
    for entry, columns in zip(model.estimators_, model.estimators_features_, strict=True):
        if not hasattr(entry, "predict_proba"):
            raise Unsupported(
                f"BaggingClassifier lets {type(entry).__name__} vote, which has no probabilities",
                hint="use an estimator that has predict_proba",
            )
        found = context.scores(entry, take(graph, table, columns))
        if len(entry.classes_) != len(model.classes_):  # a sample of the rows may lack a class
            spread = np.zeros((len(entry.classes_), len(model.classes_)))
            spread[np.arange(len(entry.classes_)), entry.classes_.astype(int)] = 1.0
            found = graph.op("MatMul", found, spread)
        each.append(found)
    return _mean(graph, each)


@regressor(BaggingRegressor)
def _bagging_regressor(context: Context, model: BaggingRegressor, table: Table) -> str:
    pairs = zip(model.estimators_, model.estimators_features_, strict=True)
    return _mean(
        context.graph,
        [context.values(entry, take(context.graph, table, columns)) for entry, columns in pairs],
    )


@decides(AdaBoostClassifier)
def _boosted_decision(context: Context, model: AdaBoostClassifier, table: Table) -> str:
    """Each estimator votes for its first class; a vote counts against the others (Zhu et al. 2009, SAMME)."""
    graph, classes, each = context.graph, len(model.classes_), []
    for entry, weight in zip(model.estimators_, model.estimator_weights_, strict=False):
        place = graph.op("ArgMax", context.scores(entry, table), axis=1, keepdims=1)
        own = np.searchsorted(model.classes_, entry.classes_)
        votes = np.full((len(own), classes), -weight / (classes - 1))
        votes[np.arange(len(own)), own] = weight
        flat = graph.op("Squeeze", place, graph.constant([1], np.int64))
        each.append(graph.op("Gather", votes, flat, axis=0))
    total = float(model.estimator_weights_.sum())
    made = graph.op("Div", graph.op("Sum", *each), total)
    if classes > 2:
        return made
    return graph.op("Sub", graph.pick(made, [1]), graph.pick(made, [0]))


@classifier(AdaBoostClassifier)
def _boosted(context: Context, model: AdaBoostClassifier, table: Table) -> str:
    graph, made = context.graph, _boosted_decision(context, model, table)
    classes = len(model.classes_)
    if classes == 2:
        halves = [graph.op("Mul", made, side) for side in (-0.5, 0.5)]
        return graph.op("Softmax", graph.op("Concat", *halves, axis=1), axis=1)
    return graph.op("Softmax", graph.op("Div", made, classes - 1.0), axis=1)


@delegates(StackingClassifier, StackingRegressor)
def _stack(context: Context, model: Any, table: Table) -> tuple[Any, Table]:
    graph = context.graph
    made: Table = ()
    estimators = [entry for entry in model.estimators_ if entry != "drop"]
    for entry, method in zip(estimators, model.stack_method_, strict=True):
        count = len(getattr(model, "classes_", ())) or 1
        if method == "predict_proba":
            found = context.scores(entry, table)
            if count == 2:
                found, count = graph.pick(found, [1]), 1
        elif method == "decision_function":
            found = context.decision(entry, table)
            count = 1 if count == 2 else count
        elif hasattr(model, "classes_"):
            raise Unsupported(
                f"StackingClassifier reads the labels of {type(entry).__name__}",
                hint="stack_method='predict_proba'",
            )
        else:
            found = context.values(entry, table)
        made += (Dense(found, count),)
    return model.final_estimator_, made + table if model.passthrough else made


@classifier(OneVsRestClassifier)
def _one_against_rest(context: Context, model: OneVsRestClassifier, table: Table) -> str:
    graph, each = context.graph, []
    for entry in model.estimators_:
        if hasattr(entry, "y_"):  # sklearn's predictor of a class that was always, or never, there
            raise Unsupported(
                "OneVsRestClassifier saw one class only in training", hint="fit it on more rows"
            )
        each.append(graph.pick(context.scores(entry, table), [1]))
    if len(each) == 1:
        return graph.both(each[0])
    return shares(graph, graph.op("Concat", *each, axis=1), of_none=0.0)


@regressor(MultiOutputRegressor)
def _several(context: Context, model: MultiOutputRegressor, table: Table) -> str:
    each = [context.values(entry, table) for entry in model.estimators_]
    return context.graph.op("Concat", *each, axis=1)


@regressor(RegressorChain)
def _chain(context: Context, model: RegressorChain, table: Table) -> str:
    """Each regressor reads what those before it said."""
    made: list[str] = []
    for entry in model.estimators_:
        made.append(context.values(entry, table + tuple(Dense(name, 1) for name in made)))
    joined = context.graph.op("Concat", *made, axis=1)
    return context.graph.pick(joined, np.argsort(model.order_).tolist())


@regressor(TransformedTargetRegressor)
def _transformed_target(context: Context, model: TransformedTargetRegressor, table: Table) -> str:
    graph, back = context.graph, model.transformer_
    outputs = getattr(back, "n_features_in_", 1)
    found: Table = (Dense(context.values(model.regressor_, table), outputs),)
    if isinstance(back, FunctionTransformer):
        (block,) = function(graph, found, back.inverse_func, back.inv_kw_args)
    elif isinstance(back, SCALERS):
        (block,) = scaled(graph, found, back, back=True)
    else:
        raise Unsupported(
            f"TransformedTargetRegressor(transformer={type(back).__name__}) cannot be undone in a graph",
            hint="use a scaler, or func and inverse_func of numpy such as np.log1p and np.expm1",
        )
    return str(block.name)  # type: ignore[union-attr]


@classifier(CalibratedClassifierCV)
def _calibrated(context: Context, model: CalibratedClassifierCV, table: Table) -> str:
    each = [_calibrated_once(context, entry, table) for entry in model.calibrated_classifiers_]
    return _mean(context.graph, each)


def _calibrated_once(context: Context, model: Any, table: Table) -> str:
    graph, classes = context.graph, len(model.classes)
    if hasattr(model.estimator, "decision_function"):
        raw = context.decision(model.estimator, table)
    else:
        raw = context.scores(model.estimator, table)
        raw = graph.pick(raw, [1]) if classes == 2 else raw
    if model.method == "temperature":
        return _cooled(graph, model, raw, classes)
    own = np.searchsorted(model.classes, model.estimator.classes_)
    columns: dict[int, str] = {}
    for position, calibrator in enumerate(model.calibrators):
        one = raw if classes == 2 else graph.pick(raw, [position])
        columns[1 if classes == 2 else int(own[position])] = _calibrator(graph, calibrator, one)
    if classes == 2:
        return graph.both(columns[1])
    none = graph.op("Mul", graph.pick(raw, [0]), 0.0)
    joined = graph.op("Concat", *(columns.get(place, none) for place in range(classes)), axis=1)
    return shares(graph, joined)


def _cooled(graph: Graph, model: Any, raw: str, classes: int) -> str:
    if classes > 2 and not hasattr(model.estimator, "decision_function"):
        raw = graph.op("Log", graph.op("Add", raw, 1e-12))
    elif classes == 2 and hasattr(model.estimator, "decision_function"):
        raw = graph.op("Concat", graph.op("Neg", raw), raw, axis=1)
    elif classes == 2:
        raw = graph.op("Log", graph.op("Add", graph.both(raw), 1e-12))
    warmth = graph.constant(float(model.calibrators[0].beta_))
    return graph.op("Softmax", graph.op("Mul", raw, warmth), axis=1)


def _calibrator(graph: Graph, calibrator: Any, value: str) -> str:
    """A calibrated probability [batch, 1]: a logistic curve, or straight lines between points."""
    if not isinstance(calibrator, IsotonicRegression):
        weighted = graph.op("Mul", value, -float(calibrator.a_))
        return graph.op("Sigmoid", graph.op("Sub", weighted, float(calibrator.b_)))
    x = np.asarray(calibrator.X_thresholds_, dtype=np.float64)
    y = np.asarray(calibrator.y_thresholds_, dtype=np.float64)
    if len(x) == 1:
        return graph.op("Add", graph.op("Mul", value, 0.0), y[0])
    inside = graph.op("Clip", value, x[0], x[-1])
    passed = graph.op("Greater", inside, x[None, 1:-1])
    place = graph.total(graph.cast(passed, TensorProto.INT64), whole=True)
    low, slope, start = (
        graph.op("Gather", numbers, place) for numbers in (x[:-1], np.diff(y) / np.diff(x), y[:-1])
    )
    return graph.op("Add", graph.op("Mul", graph.op("Sub", inside, low), slope), start)
