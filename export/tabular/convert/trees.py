"""Trees as one node of ONNX, decided in float64.

A tree of any library becomes a `Tree`: at each inner node a row goes left where its number is at most the
threshold. What else a library knows becomes a column of its own, made of the column that the tree reads:
zero as missing, or a table of the categories that go left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from export.tabular.convert.graph import ML, Graph


@dataclass(frozen=True)
class Tree:
    """Nodes of one tree, the root first.

    Attributes:
        feature: [nodes] column that is compared; unused in a leaf.
        threshold: [nodes] float64: left where the value is at most this.
        left, right: [nodes] children; -1 in a leaf.
        missing_left: [nodes] whether NaN goes left.
        value: [nodes, outputs] float64, used in leaves.
        outputs: which outputs the columns of `value` add to; empty: from the first on.
    """

    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    missing_left: NDArray[np.bool_]
    value: NDArray[np.float64]
    outputs: tuple[int, ...] = ()


def ensemble(graph: Graph, features: str, trees: Sequence[Tree], outputs: int) -> str:
    """The sum of the leaves that each row falls into, DOUBLE [batch, outputs]; summed in float64, handed on
    as float32.

    Args:
        features: DOUBLE [batch, columns].
    """
    sizes = [len(tree.left) for tree in trees]
    number = np.repeat(np.arange(len(trees)), sizes)
    node = np.concatenate([np.arange(size) for size in sizes])
    feature, threshold, left, right, missing_left = (
        np.concatenate([getattr(tree, name) for tree in trees])
        for name in ("feature", "threshold", "left", "right", "missing_left")
    )
    leaf = left < 0
    # ONNX calls 0 the child of a leaf.
    children = [np.where(leaf, 0, side).tolist() for side in (left, right)]
    parts = []
    for index, tree in enumerate(trees):
        place = np.flatnonzero(tree.left < 0)
        added = tree.value[place]
        kept = added != 0.0
        kept[:, 0] = True  # what adds nothing need not be there, but each leaf needs one
        row, column = np.nonzero(kept)
        outputs_of = np.array(tree.outputs or range(added.shape[1]))
        parts.append((np.full(len(row), index), place[row], outputs_of[column], added[kept]))
    owners, nodes, ids, weights = map(np.concatenate, zip(*parts, strict=True))
    found = graph.op(
        "TreeEnsembleRegressor",
        features,
        domain=ML,
        n_targets=outputs,
        nodes_treeids=number.tolist(),
        nodes_nodeids=node.tolist(),
        nodes_featureids=np.where(leaf, 0, feature).tolist(),
        nodes_values_as_tensor=numpy_helper.from_array(np.where(leaf, 0.0, threshold), "thresholds"),
        nodes_modes=np.where(leaf, "LEAF", "BRANCH_LEQ").tolist(),
        nodes_truenodeids=children[0],
        nodes_falsenodeids=children[1],
        nodes_missing_value_tracks_true=missing_left.astype(np.int64).tolist(),
        target_treeids=owners.tolist(),
        target_nodeids=nodes.tolist(),
        target_ids=ids.tolist(),
        target_weights_as_tensor=numpy_helper.from_array(weights, "leaves"),
    )
    return graph.cast(found, TensorProto.DOUBLE)


@dataclass(frozen=True)
class Split:
    """A split on categories.

    Attributes:
        named: the categories that it names.
        named_left: whether these go left; every other whole number from 0 on goes to the other side.
        negative_left: whether a negative number goes left.
        missing_left: whether NaN does.
    """

    named: frozenset[int]
    named_left: bool
    negative_left: bool
    missing_left: bool


class Features:
    """The columns that trees read: those of a table, and those made of them for single splits.

    Args:
        table: DOUBLE [batch, width].
        truncates: whether a number is made whole before it is called negative: then -0.5 is category 0.
    """

    def __init__(self, graph: Graph, table: str, width: int, *, truncates: bool = True) -> None:
        self._graph, self.table, self._width, self._truncates = graph, table, width, truncates
        self._made: dict[tuple[int, Split | None], int] = {}

    def zero_as_missing(self, column: int) -> int:
        """The column with LightGBM's zeros (at most 1e-35 from 0) as NaN."""
        return self._add(column, None)

    def goes_left(self, column: int, split: Split) -> int:
        """1 where a row's category goes left, else 2: to be compared with 1."""
        return self._add(column, split)

    def _add(self, column: int, split: Split | None) -> int:
        return self._made.setdefault((column, split), self._width + len(self._made))

    def matrix(self) -> str:
        """All columns, DOUBLE [batch, ...]."""
        if not self._made:
            return self.table
        zeros = [(column, split) for column, split in self._made if split is None]
        splits: dict[int, list[Split]] = {}
        for column, split in self._made:
            if split is not None:
                splits.setdefault(column, []).append(split)
        parts = [self.table, *(self._without_zero(column) for column, _ in zeros)]
        parts += [self._looked_up(column, found) for column, found in splits.items()]
        joined = [*zeros, *((column, split) for column, found in splits.items() for split in found)]
        place = {entry: self._width + position for position, entry in enumerate(joined)}
        order = [place[entry] for entry in self._made]
        return self._graph.pick(self._graph.op("Concat", *parts, axis=1), [*range(self._width), *order])

    def _without_zero(self, column: int) -> str:
        graph = self._graph
        value = graph.pick(self.table, [column])
        # 1e-35 as a float32, which is what LightGBM compares with.
        tiny = graph.constant(np.float64(np.float32(1e-35)))
        zero = graph.op("LessOrEqual", graph.op("Abs", value), tiny)
        return graph.where(zero, float("nan"), value)

    def _looked_up(self, column: int, splits: Sequence[Split]) -> str:
        """Each split's answer for a row's category, by a table with a row for each category, and one each
        for others, negative numbers and NaN."""
        graph = self._graph
        most = max((max(split.named, default=-1) for split in splits), default=-1) + 1
        table = np.empty((most + 3, len(splits)))
        for position, split in enumerate(splits):
            table[:, position] = 2.0 if split.named_left else 1.0
            table[list(split.named), position] = 1.0 if split.named_left else 2.0
            table[most + 1, position] = 1.0 if split.negative_left else 2.0
            table[most + 2, position] = 1.0 if split.missing_left else 2.0
        value = graph.pick(self.table, [column])
        whole = graph.op("Mul", graph.op("Sign", value), graph.op("Floor", graph.op("Abs", value)))
        negative = graph.op("Less", whole if self._truncates else value, 0.0)
        place = graph.op("Min", whole, float(most))
        # An integer of 32 bits holds no more: LightGBM makes it the smallest one.
        if self._truncates:
            large = graph.op("GreaterOrEqual", whole, 2.0**31)
            negative = graph.op("Or", negative, large)
        place = graph.where(negative, float(most + 1), place)
        place = graph.where(graph.op("IsNaN", value), float(most + 2), place)
        index = graph.cast(place, TensorProto.INT64)
        found = graph.op("Gather", table, index, axis=0)  # [batch, 1, splits]
        return graph.op("Squeeze", found, graph.constant([1], np.int64))


def reachable(tree: Tree) -> Tree:
    """A tree without the nodes that pruning left behind, which ONNX would take for the roots of others."""
    found, seen = [0], {0: 0}
    for node in found:
        if tree.left[node] >= 0:
            for child in (int(tree.left[node]), int(tree.right[node])):
                seen[child] = len(found)
                found.append(child)
    if len(found) == len(tree.left):
        return tree
    left, right = (
        np.array([seen[int(side[node])] if tree.left[node] >= 0 else -1 for node in found])
        for side in (tree.left, tree.right)
    )
    rest = (tree.missing_left[found], tree.value[found], tree.outputs)
    return Tree(tree.feature[found], tree.threshold[found], left, right, *rest)
