"""The end of a graph that names things: scores in the order of classes to labels, the likeliest first.

Plain ONNX: TopK and a gather over a table of strings, so that no process stands between a network and its
answer. What TensorRT cannot hold (strings) is in these last nodes alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LABEL, SCORE = "label", "score"


def name_classes(model: onnx.ModelProto, labels: Sequence[str], *, top: int) -> None:
    """Add the outputs `label` STRING and `score` FLOAT, [rows, top], to a graph, in place.

    They are its `probabilities` [rows, classes], sorted.

    Args:
        labels: of the classes, in their order.
        top: how many a row, at most as many as there are.
    """
    top = min(top, len(labels))
    table = numpy_helper.from_array(np.array([label.encode() for label in labels], object), "labels/names")
    model.graph.initializer.extend([helper.make_tensor("labels/top", TensorProto.INT64, [1], [top]), table])
    _sort(model, top)
    model.graph.node.append(helper.make_node("Gather", ["labels/names", "labels/order"], [LABEL], axis=0))
    _output(model, TensorProto.STRING, LABEL, top)


def order_candidates(model: onnx.ModelProto, candidates: str, *, along: str, sorted_along: str) -> None:
    """Zero-shot: sort an input `candidates` STRING [rows, labels] by `probabilities`, likeliest first.

    Adds the outputs `label` and `score`, and the output `along` in the same order as `sorted_along`.
    """
    graph = model.graph
    graph.input.append(helper.make_tensor_value_info(candidates, TensorProto.STRING, ["rows", "sequences"]))
    graph.node.append(helper.make_node("Shape", [candidates], ["labels/top"], start=1))
    _sort(model, "sequences")
    for name, output, kind in (
        (candidates, LABEL, TensorProto.STRING),
        (along, sorted_along, TensorProto.FLOAT),
    ):
        graph.node.append(helper.make_node("GatherElements", [name, "labels/order"], [output], axis=1))
        _output(model, kind, output, "sequences")


def _sort(model: onnx.ModelProto, size: int | str) -> None:
    inputs, outputs = ["probabilities", "labels/top"], [SCORE, "labels/order"]
    model.graph.node.append(helper.make_node("TopK", inputs, outputs, axis=-1, largest=1, sorted=1))
    _output(model, TensorProto.FLOAT, SCORE, size)


def _output(model: onnx.ModelProto, kind: int, name: str, size: int | str) -> None:
    model.graph.output.append(helper.make_tensor_value_info(name, kind, ["rows", size]))
