"""XGBoost as it decides itself: `common::Decision` and `predictor::GetNextNode` of its sources, version 3.

Every number is a float32, and a row goes left where it is less than the split. The categories that a split
names go right; all others, negative ones too, go left. NaN goes where each split says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xgboost
from numpy.typing import NDArray
from onnx import TensorProto

from export.tabular.convert.graph import Dense, Graph, Table, Unsupported, held, matrix, width
from export.tabular.convert.registry import Context, classifier, regressor
from export.tabular.convert.trees import Features, Split, Tree, ensemble, reachable
from shoal.errors import ExportError

_ONE_BY_ONE = 256  # columns of gblinear that are added one by one
_LOGISTIC = ("binary:logistic", "reg:logistic")
_EXPONENTIAL = ("count:poisson", "reg:gamma", "reg:tweedie", "survival:cox", "survival:aft")
_SOFTMAX = ("multi:softprob", "multi:softmax")
_PLAIN = (
    "binary:logitraw",
    "reg:squarederror",
    "reg:linear",
    "reg:squaredlogerror",
    "reg:pseudohubererror",
    "reg:absoluteerror",
    "reg:quantileerror",
    "reg:expectileerror",
    "rank:pairwise",
    "rank:ndcg",
    "rank:map",
)


@classifier(xgboost.XGBClassifier, xgboost.Booster)
def _classifier(context: Context, model: Any, table: Table) -> str:
    made, outputs = _answer(context, model, table)
    return made if outputs > 1 else context.graph.both(made)


@regressor(xgboost.XGBModel, xgboost.Booster)
def _regressor(context: Context, model: Any, table: Table) -> str:
    return _answer(context, model, table)[0]


def _without(graph: Graph, missing: float, table: Table) -> Table:
    """A table in which a number that an estimator takes for missing is NaN."""
    rows = graph.cast(matrix(graph, table), TensorProto.FLOAT)
    stands_for = graph.constant(missing, np.float32)
    rows = graph.where(graph.op("Equal", rows, stands_for), graph.constant(np.nan, np.float32), rows)
    return (Dense(graph.cast(rows, TensorProto.DOUBLE), width(table), held=held(table)),)


def _answer(context: Context, model: Any, table: Table) -> tuple[str, int]:
    """What a booster, alone or inside an estimator, answers [batch, outputs], and how many outputs."""
    graph, rounds = context.graph, None
    if isinstance(model, xgboost.XGBModel):
        if model.missing is not None and not np.isnan(model.missing):
            table = _without(graph, model.missing, table)
        model = model.get_booster()
        best = model.attr("best_iteration")  # where it stopped early
        rounds = None if best is None else int(best) + 1
    learner = json.loads(bytes(model.save_raw("json")))["learner"]
    facts, objective = learner["learner_model_param"], learner["objective"]["name"]
    columns = int(facts["num_feature"])
    if columns != width(table):
        raise ExportError(f"the model reads {columns} columns and gets {width(table)}")
    outputs = max(1, int(facts["num_class"]), int(facts["num_target"]))
    base = _margins(np.array(json.loads(facts["base_score"]), dtype=np.float64).ravel(), objective)
    if len(base) == 1:
        base = np.repeat(base, outputs)
    # Whatever the table holds, XGBoost takes it as float32.
    rows = graph.cast(graph.cast(matrix(graph, table), TensorProto.FLOAT), TensorProto.DOUBLE)
    if held(table):  # what a sparse matrix does not hold is missing
        rows = graph.where(graph.op("Equal", rows, 0.0), float("nan"), rows)
    booster = learner["gradient_booster"]
    outputs = len(base) if objective == "reg:quantileerror" else outputs
    if booster["name"] == "gblinear":
        # It adds where boosting began for the first output to all of them.
        weights = np.array(booster["model"]["weights"], dtype=np.float32).reshape(columns + 1, -1)
        raw = _weighted(graph, rows, weights, np.float32(base[0]))
    else:
        raw = _summed(graph, rows, booster, columns, outputs, rounds)
        raw = graph.op("Add", raw, base)
    return _transformed(graph, raw, objective), outputs


def _margins(base: NDArray[np.float64], objective: str) -> NDArray[np.float64]:
    """Turn the start of boosting from what the file says into what is added to the leaves."""
    if objective in _LOGISTIC:
        return np.asarray(-np.log(1.0 / base - 1.0))
    return np.asarray(np.log(base)) if objective in _EXPONENTIAL else base


def _transformed(graph: Graph, raw: str, objective: str) -> str:
    if objective in _LOGISTIC:
        return graph.op("Sigmoid", raw)
    if objective in _SOFTMAX:
        return graph.op("Softmax", raw, axis=1)
    if objective in _EXPONENTIAL:
        return graph.op("Exp", raw)
    if objective == "binary:hinge":
        return graph.cast(graph.op("Greater", raw, 0.0), TensorProto.DOUBLE)
    if objective not in _PLAIN:
        raise Unsupported(
            f"the XGBoost objective {objective} is not known here", hint=f"known: {', '.join(_PLAIN)}"
        )
    return raw


def _weighted(graph: Graph, rows: str, weights: NDArray[np.float32], base: np.float32) -> str:
    """gblinear: columns are added one after the other in float32, as XGBoost does, since large ones that
    cancel each other would leave another rest in float64. A missing number adds nothing; the last row of the
    weights is the intercept."""
    total = graph.constant(weights[-1:] + base, np.float32)
    filled = graph.cast(graph.where(graph.op("IsNaN", rows), 0.0, rows), TensorProto.FLOAT)
    if len(weights) > _ONE_BY_ONE:
        return graph.cast(
            graph.op("Add", graph.op("MatMul", filled, graph.constant(weights[:-1], np.float32)), total),
            TensorProto.DOUBLE,
        )
    for column, weight in enumerate(weights[:-1]):
        product = graph.op("Mul", graph.pick(filled, [column]), graph.constant(weight[None], np.float32))
        total = graph.op("Add", total, product)
    return graph.cast(total, TensorProto.DOUBLE)


def _summed(
    graph: Graph, rows: str, booster: Mapping[str, Any], columns: int, outputs: int, rounds: int | None
) -> str:
    model = booster["gbtree"]["model"] if booster["name"] == "dart" else booster["model"]
    trees = model["trees"]
    if rounds is not None:
        trees = trees[: model["iteration_indptr"][min(rounds, len(model["iteration_indptr"]) - 1)]]
    if not trees:
        raise Unsupported("the XGBoost model has no trees", hint="fit it for at least one round")
    weights = booster.get("weight_drop", [1.0] * len(trees))
    features = Features(graph, rows, columns, truncates=False)
    made = [
        _tree(tree, features, output, weight)
        for tree, output, weight in zip(trees, model["tree_info"], weights, strict=False)
    ]
    return ensemble(graph, features.matrix(), made, outputs)


def _tree(tree: Mapping[str, Any], features: Features, output: int, weight: float) -> Tree:
    left, right = (np.array(tree[f"{side}_children"], dtype=np.int64) for side in ("left", "right"))
    column = np.array(tree["split_indices"], dtype=np.int64)
    split = np.array(tree["split_conditions"], dtype=np.float32).astype(np.float64)
    missing_left = np.array(tree["default_left"], dtype=bool)
    size = int(tree["tree_param"]["size_leaf_vector"])
    if size > 1:  # leaves lie in a table of their own, and a leaf's right child is its place in it
        leaves = np.array(tree["leaf_weights"], dtype=np.float64).reshape(-1, size)
        value = leaves[np.where(left < 0, right, 0)]
        outputs = tuple(range(size))
    else:
        value, outputs = split[:, None], (output,)
    threshold = np.nextafter(split, -np.inf)  # less than a number is at most the one below it
    starts = dict(zip(tree["categories_nodes"], tree["categories_segments"], strict=True))
    sizes = dict(zip(tree["categories_nodes"], tree["categories_sizes"], strict=True))
    for node, start in starts.items():
        named = frozenset(tree["categories"][start : start + sizes[node]])
        choice = Split(named, named_left=False, negative_left=True, missing_left=bool(missing_left[node]))
        column[node], threshold[node] = features.goes_left(int(column[node]), choice), 1.0
    return reachable(Tree(column, threshold, left, right, missing_left, value * weight, outputs))
