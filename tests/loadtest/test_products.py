"""Which matrix products of a decoder are timed by themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from loadtest import products


def test_each_product_with_a_weight_of_8_bits_counts(tmp_path: Path) -> None:
    shapes = {"narrow": (4, 8), "same": (4, 8), "wide": (8, 64)}
    nodes = [
        helper.make_node(
            "MatMulIntegerToFloat", ["rows", name, "scale", "scale"], [f"{name}_out"], domain="com.microsoft"
        )
        for name in shapes
    ]
    nodes.append(helper.make_node("MatMul", ["table", "table"], ["other"]))
    weights = [numpy_helper.from_array(np.zeros(shape, np.int8), name) for name, shape in shapes.items()]
    weights.append(numpy_helper.from_array(np.zeros((4, 4), np.float32), "table"))
    rows = helper.make_tensor_value_info("rows", TensorProto.UINT8, [None, 4])
    graph = helper.make_graph(nodes, "decoder", [rows], [], weights)
    onnx.save(helper.make_model(graph), str(tmp_path / "model.onnx"))
    assert products.shapes_of(tmp_path / "model.onnx") == {(4, 8): 2, (8, 64): 1}
    taken = products.milliseconds(tmp_path / "model.onnx", (1, 2), times=1)
    assert set(taken) == {1, 2} and all(value > 0 for value in taken.values())
