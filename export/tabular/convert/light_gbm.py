"""LightGBM as it decides itself: `Tree::NumericalDecision` and `Tree::CategoricalDecision` of its `tree.h`.

Every number is a float64. What is missing depends on the split: NaN, or zero too, or nothing, and then NaN is
read as zero. A category is the number without its fraction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import lightgbm
import numpy as np

from export.tabular.convert.graph import Graph, Table, Unsupported, matrix, width
from export.tabular.convert.registry import Context, classifier, decides, regressor
from export.tabular.convert.trees import Features, Split, Tree, ensemble
from shoal.errors import ExportError

_NOTHING, _ZERO = 0, 1  # what is missing in a split
_EXPONENTIAL = ("poisson", "gamma", "tweedie")
_LOGISTIC = ("cross_entropy", "xentropy")


@classifier(lightgbm.LGBMClassifier, lightgbm.Booster)
def _classifier(context: Context, model: Any, table: Table) -> str:
    made = _answer(context, model, table)
    several = getattr(model, "booster_", model).num_model_per_iteration() > 1
    return made if several else context.graph.both(made)


@regressor(lightgbm.LGBMRegressor, lightgbm.LGBMRanker, lightgbm.Booster)
def _answer(context: Context, model: Any, table: Table) -> str:
    """What `Booster.predict` answers, [batch, outputs]."""
    return _transformed(context.graph, *_raw(context, model, table))


@decides(lightgbm.LGBMClassifier)
def _decision(context: Context, model: lightgbm.LGBMClassifier, table: Table) -> str:
    return _raw(context, model, table)[0]


def _raw(context: Context, model: Any, table: Table) -> tuple[str, str]:
    """Raw scores [batch, outputs], and the objective in the model's own words, such as `binary sigmoid:1`."""
    graph = context.graph
    # Not `dump_model`, whose numbers lack the last digits.
    header, trees = parsed(getattr(model, "booster_", model).model_to_string())
    outputs, columns = int(header["num_tree_per_iteration"]), int(header["max_feature_idx"]) + 1
    if columns != width(table):
        raise ExportError(f"the model reads {columns} columns and gets {width(table)}")
    if not trees:
        raise Unsupported("the LightGBM model has no trees", hint="fit it for at least one iteration")
    rows = matrix(graph, table)
    # LightGBM drops what is this close to zero before it looks at a row.
    tiny = graph.op("LessOrEqual", graph.op("Abs", rows), np.float64(np.float32(1e-35)))
    features = Features(graph, graph.where(tiny, 0.0, rows), columns)
    linear = columns if any(tree.get("is_linear") == ["1"] for tree in trees) else 0
    made = [_tree(tree, features, index % outputs, linear) for index, tree in enumerate(trees)]
    if linear:
        raw = _linear(graph, features, made, outputs, columns)
    else:
        raw = ensemble(graph, features.matrix(), made, outputs)
    if "average_output" in header:
        raw = graph.op("Div", raw, float(len(trees) // outputs))
    return raw, header.get("objective", "")


Fields = dict[str, list[str]]


def parsed(text: str) -> tuple[dict[str, str], list[Fields]]:
    """A model in LightGBM's own format: its head, and the lines of each tree as lists of words."""
    head, *rest = text.partition("\nend of trees")[0].split("\nTree=")
    header = dict(line.partition("=")[::2] for line in head.splitlines())
    trees = [
        {name: value.split() for name, _, value in (line.partition("=") for line in part.splitlines()[1:])}
        for part in rest
    ]
    return header, trees


def _transformed(graph: Graph, raw: str, objective: str) -> str:
    """Raw scores -> answers."""
    name, *settings = objective.split(" ") if objective else [""]
    facts = dict(setting.partition(":")[::2] for setting in settings)
    made = raw
    if name in ("binary", "multiclassova"):
        made = graph.op("Sigmoid", graph.op("Mul", raw, float(facts.get("sigmoid", 1.0))))
    elif name in ("multiclass", "softmax"):
        made = graph.op("Softmax", raw, axis=1)
    elif name in _LOGISTIC:
        made = graph.op("Sigmoid", raw)
    elif name in ("cross_entropy_lambda", "xentlambda"):
        # log(1 + e^x), which ONNX Runtime's Softplus has for float32 alone.
        small = graph.op("Exp", graph.op("Neg", graph.op("Abs", raw)))
        rest = graph.op("Log", graph.op("Add", small, 1.0))
        made = graph.op("Add", graph.op("Max", raw, 0.0), rest)
    elif name in _EXPONENTIAL:
        made = graph.op("Exp", raw)
    elif "sqrt" in facts:
        made = graph.op("Mul", graph.op("Sign", raw), graph.op("Mul", raw, raw))
    return made


class _Node(NamedTuple):
    """A node as `Tree` has it; a leaf has no children."""

    value: Sequence[float]
    feature: int = 0
    threshold: float = 0.0
    missing_left: bool = False
    left: int = -1
    right: int = -1


def _tree(tree: Fields, features: Features, output: int, columns: int) -> Tree:
    """One tree of a parsed model.

    Args:
        columns: of a model with linear leaves, how many columns their weights are of; else 0.
    """
    outputs_each = _width(columns)
    leaves = len(tree["leaf_value"])
    inner = leaves - 1
    split, threshold, kind, left, right = (
        [float(word) for word in tree.get(name, [])[:inner]]
        for name in ("split_feature", "threshold", "decision_type", "left_child", "right_child")
    )
    nodes = [_Node([0.0] * outputs_each)] * (inner + leaves)
    for node in range(inner):
        # A leaf is numbered from -1 downwards; here leaves come after all inner nodes.
        sides = [int(side) if side >= 0 else inner - 1 - int(side) for side in (left[node], right[node])]
        decision = _split(tree, int(split[node]), threshold[node], int(kind[node]), features)
        nodes[node] = _Node(nodes[node].value, *decision, *sides)
    for leaf in range(leaves):
        _fill(nodes, inner + leaf, tree, leaf, columns)
    made = dict(zip(_Node._fields, map(np.array, zip(*nodes, strict=True)), strict=True))
    return Tree(**made, outputs=tuple(range(output * outputs_each, (output + 1) * outputs_each)))


def _width(columns: int) -> int:
    """Numbers in a leaf: its value, or weights above zero, weights below zero, and a constant."""
    return 2 * columns + 1


def _split(
    tree: Fields, column: int, threshold: float, kind: int, features: Features
) -> tuple[int, float, bool]:
    """Column, threshold, and whether NaN goes left; by the bits of LightGBM's `decision_type`."""
    categorical, default_left, missing = kind & 1, bool(kind & 2), kind >> 2 & 3
    if categorical:
        bounds = [int(word) for word in tree["cat_boundaries"]]
        words = [
            int(word) for word in tree["cat_threshold"][bounds[int(threshold)] : bounds[int(threshold) + 1]]
        ]
        left = frozenset(n for n in range(32 * len(words)) if words[n // 32] >> (n % 32) & 1)
        split = Split(left, named_left=True, negative_left=False, missing_left=False)
        return features.goes_left(column, split), 1.0, False
    if missing == _NOTHING:  # and NaN is read as zero
        return column, threshold, threshold >= 0.0
    return (features.zero_as_missing(column) if missing == _ZERO else column), threshold, default_left


def _fill(nodes: list[_Node], place: int, tree: Fields, leaf: int, columns: int) -> None:
    """A leaf's value; a linear one's weights and constant, and its value where one of its columns is NaN."""
    value = [*([0.0] * 2 * columns), float(tree["leaf_value"][leaf])]
    if columns and tree.get("is_linear") == ["1"]:
        counts = [int(word) for word in tree["num_features"]]
        start = sum(counts[:leaf])
        read = [int(word) for word in tree["leaf_features"][start : start + counts[leaf]]]
        weights = [float(word) for word in tree["leaf_coeff"][start : start + counts[leaf]]]
        for column in read:  # any number is at most infinity, and NaN is not
            nodes[place] = _Node(value, column, float("inf"), False, left=len(nodes), right=len(nodes) + 1)
            place = len(nodes)
            nodes += [_Node(value), _Node(value)]
        value = [*([0.0] * 2 * columns), float(tree["leaf_const"][leaf])]
        for column, weight in zip(read, weights, strict=True):
            value[column if weight > 0.0 else columns + column] = weight
    nodes[place] = _Node(value)


def _linear(graph: Graph, features: Features, trees: list[Tree], outputs: int, columns: int) -> str:
    """The weights of all leaves that a row falls into, summed, times the row, plus their constants.

    Weights above and below zero are summed apart: of an infinite number they make infinities that cancel each
    other to NaN, as they do in LightGBM.
    """
    each = _width(columns)
    found = ensemble(graph, features.matrix(), trees, outputs * each)
    row = graph.pick(features.table, range(columns))
    rows = graph.op("Concat", row, row, axis=1)
    made = []
    for output in range(outputs):
        weights = graph.pick(found, range(output * each, (output + 1) * each - 1))
        constant = graph.pick(found, [(output + 1) * each - 1])
        unused = graph.op("Equal", weights, 0.0)  # NaN and infinity do not count there
        product = graph.where(unused, 0.0, graph.op("Mul", weights, rows))
        made.append(graph.op("Add", graph.total(product), constant))
    return graph.op("Concat", *made, axis=1) if outputs > 1 else made[0]
