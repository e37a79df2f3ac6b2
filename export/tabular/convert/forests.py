"""scikit-learn's trees, forests and boosting, as they decide: all but histogram boosting on float32 rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.ensemble._forest import ForestClassifier, ForestRegressor
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from export.tabular.convert.graph import Graph, Table, Unsupported, matrix, width
from export.tabular.convert.registry import Context, classifier, decides, regressor
from export.tabular.convert.trees import Features, Split, Tree, ensemble


@classifier(DecisionTreeClassifier, ForestClassifier)
def _classifier(context: Context, model: Any, table: Table) -> str:
    return _grown(context.graph, model, table, _classes_by_node)


@regressor(DecisionTreeRegressor, ForestRegressor)
def _regressor(context: Context, model: Any, table: Table) -> str:
    return _grown(context.graph, model, table, lambda tree: tree.tree_.value[:, :, 0])


def _grown(graph: Graph, model: Any, table: Table, values: Callable[[Any], NDArray[np.float64]]) -> str:
    """A tree, or the mean of a forest: its votes are summed before they are divided, so that even ones stay
    even."""
    trees = [_tree(tree.tree_, values(tree)) for tree in getattr(model, "estimators_", [model])]
    total = ensemble(graph, float32_rows(graph, table), trees, trees[0].value.shape[1])
    return graph.op("Div", total, float(len(trees))) if hasattr(model, "estimators_") else total


def _classes_by_node(model: Any) -> NDArray[np.float64]:
    """Shares of the classes [nodes, classes]."""
    value = model.tree_.value[:, 0, :]
    return np.asarray(value / value.sum(axis=1, keepdims=True))


def float32_rows(graph: Graph, table: Table) -> str:
    """The rows as scikit-learn's trees read them: rounded to float32."""
    return graph.cast(graph.cast(matrix(graph, table), TensorProto.FLOAT), TensorProto.DOUBLE)


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
    raw = _boosted(context, model, table)
    if model.loss == "exponential":  # of two classes alone
        raw = context.graph.op("Mul", raw, 2.0)
    return context.graph.probabilities(raw, len(model.classes_))


@regressor(GradientBoostingRegressor)
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
    return graph.op("Add", total, start)


@classifier(HistGradientBoostingClassifier)
def _histogram_classifier(context: Context, model: HistGradientBoostingClassifier, table: Table) -> str:
    return context.graph.probabilities(_histogram(context, model, table), len(model.classes_))


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
    return graph.op("Add", total, np.ravel(model._baseline_prediction))


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
