"""scikit-learn's trees, forests and boosting, as they decide: all but histogram boosting on float32 rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.tree import (
    DecisionTreeClassifier,
    DecisionTreeRegressor,
    ExtraTreeClassifier,
    ExtraTreeRegressor,
)

from export.tabular.convert.graph import Graph, Table, Unsupported, matrix, width
from export.tabular.convert.registry import Context, classifier, decides, regressor
from export.tabular.convert.trees import Features, Split, Tree, ensemble


@classifier(DecisionTreeClassifier, ExtraTreeClassifier)
def _tree_classifier(context: Context, model: Any, table: Table) -> str:
    value = _classes_by_node(model)
    return _trees(context.graph, [model], table, [value], value.shape[1])


@regressor(DecisionTreeRegressor, ExtraTreeRegressor)
def _tree_regressor(context: Context, model: Any, table: Table) -> str:
    return _trees(context.graph, [model], table, [model.tree_.value[:, :, 0]], model.n_outputs_)


@classifier(RandomForestClassifier, ExtraTreesClassifier)
def _forest_classifier(context: Context, model: Any, table: Table) -> str:
    """Votes are summed before they are divided, so that even ones stay even."""
    values = [_classes_by_node(tree) for tree in model.estimators_]
    votes = _trees(context.graph, model.estimators_, table, values, len(model.classes_))
    return context.graph.op("Div", votes, context.graph.constant(float(len(values))))


@regressor(RandomForestRegressor, ExtraTreesRegressor)
def _forest_regressor(context: Context, model: Any, table: Table) -> str:
    values = [tree.tree_.value[:, :, 0] for tree in model.estimators_]
    total = _trees(context.graph, model.estimators_, table, values, model.n_outputs_)
    return context.graph.op("Div", total, context.graph.constant(float(len(values))))


def _classes_by_node(model: Any) -> NDArray[np.float64]:
    """Shares of the classes [nodes, classes]."""
    value = model.tree_.value[:, 0, :]
    return np.asarray(value / value.sum(axis=1, keepdims=True))


def float32_rows(graph: Graph, table: Table) -> str:
    """The rows as scikit-learn's trees read them: rounded to float32."""
    return graph.cast(graph.cast(matrix(graph, table), TensorProto.FLOAT), TensorProto.DOUBLE)


def _trees(graph: Graph, models: Sequence[Any], table: Table, values: Sequence[NDArray], outputs: int) -> str:
    made = [_tree(model.tree_, value) for model, value in zip(models, values, strict=True)]
    return ensemble(graph, float32_rows(graph, table), made, outputs)


def _tree(tree: Any, value: NDArray[np.float64], outputs: tuple[int, ...] = ()) -> Tree:
    """A tree of scikit-learn with its values [nodes, outputs]."""
    return Tree(
        np.maximum(tree.feature, 0),
        tree.threshold,
        np.asarray(tree.children_left, dtype=np.int64),
        np.asarray(tree.children_right, dtype=np.int64),
        np.asarray(tree.missing_go_to_left, dtype=bool),
        value,
        outputs,
    )


@classifier(GradientBoostingClassifier)
def _boosting_classifier(context: Context, model: GradientBoostingClassifier, table: Table) -> str:
    graph = context.graph
    raw = _boosted(context, model, table)
    if len(model.classes_) > 2:
        return graph.op("Softmax", raw, axis=1)
    if model.loss == "exponential":
        raw = graph.op("Mul", raw, graph.constant(2.0))
    return two_classes(graph, raw)


@regressor(GradientBoostingRegressor)
def _boosting_regressor(context: Context, model: GradientBoostingRegressor, table: Table) -> str:
    return _boosted(context, model, table)


def two_classes(graph: Graph, raw: str) -> str:
    """Log-odds [batch, 1] -> the probabilities of two classes."""
    return graph.op("Concat", *(graph.op("Sigmoid", side) for side in (graph.op("Neg", raw), raw)), axis=1)


@decides(GradientBoostingClassifier)
def _boosted(context: Context, model: Any, table: Table) -> str:
    graph = context.graph
    if not isinstance(model.init_, str | DummyClassifier | DummyRegressor):
        raise Unsupported(
            f"{type(model).__name__} begins with a {type(model.init_).__name__}", hint="fit it without init"
        )
    start = model._raw_predict_init(np.zeros((1, model.n_features_in_)))[0]
    rounds, outputs = model.estimators_.shape
    trees = [
        _tree(entry, entry.value[:, :, 0] * model.learning_rate, (output,))
        for index in range(rounds)
        for output, entry in enumerate(tree.tree_ for tree in model.estimators_[index])
    ]
    total = ensemble(graph, float32_rows(graph, table), trees, outputs)
    return graph.op("Add", total, graph.constant(start))


@classifier(HistGradientBoostingClassifier)
def _histogram_classifier(context: Context, model: HistGradientBoostingClassifier, table: Table) -> str:
    raw = _histogram(context, model, table)
    if len(model.classes_) > 2:
        return context.graph.op("Softmax", raw, axis=1)
    return two_classes(context.graph, raw)


@regressor(HistGradientBoostingRegressor)
def _histogram_regressor(context: Context, model: HistGradientBoostingRegressor, table: Table) -> str:
    raw = _histogram(context, model, table)
    return context.graph.op("Exp", raw) if model.loss in ("poisson", "gamma") else raw


@decides(HistGradientBoostingClassifier)
def _histogram(context: Context, model: Any, table: Table) -> str:
    graph = context.graph
    if model._preprocessor is not None:  # numbers its categories, and moves them to the front
        table = context.transform(model._preprocessor, table)
    features = Features(graph, matrix(graph, table), width(table))
    outputs = model.n_trees_per_iteration_
    trees = [
        _histogram_tree(predictor, features, output)
        for predictors in model._predictors
        for output, predictor in enumerate(predictors)
    ]
    total = ensemble(graph, features.matrix(), trees, outputs)
    return graph.op("Add", total, graph.constant(np.ravel(model._baseline_prediction)))


def _histogram_tree(predictor: Any, features: Features, output: int) -> Tree:
    nodes = predictor.nodes
    leaf = nodes["is_leaf"].astype(bool)
    column = nodes["feature_idx"].astype(np.int64)
    threshold = nodes["num_threshold"].astype(np.float64)
    missing_left = nodes["missing_go_to_left"].astype(bool)
    for node in np.flatnonzero(nodes["is_categorical"].astype(bool) & ~leaf):
        bits = predictor.raw_left_cat_bitsets[nodes["bitset_idx"][node]]
        known = [number for number in range(32 * len(bits)) if bits[number // 32] >> (number % 32) & 1]
        lost = bool(missing_left[node])
        # The encoder before it numbers every category that it knows, and makes NaN of any other.
        split = Split(frozenset(known), named_left=True, negative_left=lost, missing_left=lost)
        column[node], threshold[node] = features.goes_left(int(column[node]), split), 1.0
    left, right = (np.where(leaf, -1, nodes[side].astype(np.int64)) for side in ("left", "right"))
    value = nodes["value"][:, None].astype(np.float64)
    return Tree(column, threshold, left, right, missing_left, value, (output,))
