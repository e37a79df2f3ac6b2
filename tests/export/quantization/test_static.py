"""INT8 by Q/DQ on a small graph: what hurts is found, named and left out; the rest is 7 bits a column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.exported import Exported
from export.quantization.static import METHODS, Judged, quantize_static
from shoal.errors import ExportError

WIDTH = 16
PLANTED = "planted"


def _graph(path: Path, outlier: float = 1.0) -> Exported:
    """Embedding -> LayerNormalization -> three products, each added to what it read; the last is `PLANTED`.

    Args:
        outlier: what one channel of the planted product's activation is multiplied with, and its row of the
            matrix divided by: the same function, but a range that hides all other channels.
    """
    chance = np.random.default_rng(0)
    spread = np.ones(WIDTH, np.float32)
    spread[3] = outlier
    constants = {
        "table": chance.standard_normal((50, WIDTH)).astype(np.float32),
        "gamma": np.linspace(0.5, 2.0, WIDTH, dtype=np.float32),
        "beta": np.zeros(WIDTH, np.float32),
        "spread": spread,
    }
    for name in ("first", "second", "third"):
        constants[name] = chance.standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5
    constants["third"] /= spread[:, None]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("LayerNormalization", ["embedded", "gamma", "beta"], ["normed"], axis=-1),
        helper.make_node("MatMul", ["normed", "first"], ["one"], name="one"),
        helper.make_node("Add", ["one", "embedded"], ["sum"]),
        helper.make_node("MatMul", ["sum", "second"], ["two"]),  # without a name, as graphs may have it
        helper.make_node("Mul", ["two", "spread"], ["uneven"]),
        helper.make_node("MatMul", ["uneven", "third"], ["three"], name=PLANTED),
        helper.make_node("Add", ["three", "sum"], ["answer"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [
            helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "t"])
            for n in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["b", "t", WIDTH])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return Exported.read(path)


def _feed(ids: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


CALIBRATION = [_feed(np.arange(50).reshape(5, 10)), _feed(np.arange(30).reshape(3, 10))]


def _run(path: Path, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    answer: NDArray[np.float32] = onnxruntime.InferenceSession(str(path)).run(None, _feed(ids))[0]
    return answer


def _judge(original: Path, tolerance: float) -> Callable[[Path], Judged]:
    """Squared error on other input, relative to the answers."""
    ids = np.random.default_rng(1).integers(0, 50, (8, 12))
    expected = _run(original, ids)

    def judge(path: Path) -> Judged:
        error = float(((_run(path, ids) - expected) ** 2).sum() / (expected**2).sum())
        return Judged(error, () if error <= tolerance else (f"error {error:.2g} > {tolerance:g}",))

    return judge


def _quantize(
    folder: Path, *, outlier: float = 1.0, tolerance: float = 1e-3, calibration: Sequence[Any] = CALIBRATION
) -> tuple[Path, Path, dict[str, Any]]:
    original = _graph(folder / "fp32.onnx", outlier).path
    judge = _judge(original, tolerance)
    made, notes = quantize_static(Exported.read(original), folder / "int8.onnx", calibration, judge)
    return original, made.path, notes


def _weights(path: Path) -> dict[str, NDArray[Any]]:
    return {
        entry.name: numpy_helper.to_array(entry)
        for entry in onnx.load(path).graph.initializer
        if entry.data_type == TensorProto.INT8 and len(entry.dims) == 2
    }


def test_every_product_is_quantized_in_standard_operators(tmp_path: Path) -> None:
    original, made, notes = _quantize(tmp_path)
    model = onnx.load(made)
    onnx.checker.check_model(model)
    assert {node.domain for node in model.graph.node} == {""}
    producers = {name: node.op_type for node in model.graph.node for name in node.output}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert len(products) == 3
    assert {producers[name] for node in products for name in node.input} == {"DequantizeLinear"}
    assert notes["excluded"] == [] and notes["failures"] == []
    assert notes["calibration"] in METHODS and set(notes["errors"]) == set(METHODS)
    assert notes["errors"][notes["calibration"]] == min(notes["errors"].values()) < 1e-3
    ids = np.arange(20).reshape(2, 10)
    assert np.abs(_run(made, ids) - _run(original, ids)).max() < 0.2


def test_weights_are_seven_bits_with_a_scale_a_column(tmp_path: Path) -> None:
    _, made, _ = _quantize(tmp_path)
    weights = _weights(made)
    assert len(weights) == 3
    for weight in weights.values():
        assert (np.abs(weight.astype(int)).max(axis=0) == 64).all()  # each column uses the whole range
    model = onnx.load(made)
    sizes = {entry.name: list(entry.dims) for entry in model.graph.initializer}
    scales = [
        n.input[1] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in weights
    ]
    assert [sizes[name] for name in scales] == [[WIDTH]] * 3


def test_what_hurts_is_found_and_named(tmp_path: Path) -> None:
    original, made, notes = _quantize(tmp_path, outlier=300.0)
    (excluded,) = notes["excluded"]
    assert excluded["node"] == PLANTED
    assert excluded["share_of_error"] > 0.9
    assert excluded["error_left"] < 1e-3 < notes["errors"][notes["calibration"]]
    assert notes["failures"] == []
    model = onnx.load(made)
    (planted,) = (node for node in model.graph.node if node.name == PLANTED)
    constants = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    assert planted.input[0] == "uneven"
    assert constants[planted.input[1]].dtype == np.float32
    assert len(_weights(made)) == 2  # the planted one's 8-bit copy is gone
    ids = np.arange(20).reshape(2, 10)
    assert np.abs(_run(made, ids) - _run(original, ids)).max() < 0.2


def test_what_cannot_be_reached_is_told(tmp_path: Path) -> None:
    _, _, notes = _quantize(tmp_path, tolerance=1e-12)
    assert len(notes["excluded"]) == 1  # a quarter of the products, and one at least
    assert len(notes["failures"]) == 1 and notes["failures"][0].endswith("> 1e-12")


def test_never_sees_its_neighbours(tmp_path: Path) -> None:
    _, made, _ = _quantize(tmp_path)
    ids = np.random.default_rng(2).integers(0, 50, (9, 7))
    together = _run(made, ids)
    for index in range(len(ids)):
        np.testing.assert_array_equal(_run(made, ids[index : index + 1])[0], together[index])


def test_padding_is_no_calibration(tmp_path: Path) -> None:
    """Whatever stands behind a text's end, the ranges are those of its tokens."""
    ids = np.arange(40).reshape(4, 10)
    mask = np.ones_like(ids)
    mask[:, 6:] = 0
    made = []
    for name, padding in (("a", 41), ("b", 49)):
        (tmp_path / name).mkdir()
        padded = np.where(mask, ids, padding)
        feeds = [{"input_ids": padded, "attention_mask": mask}]
        made.append(_quantize(tmp_path / name, calibration=feeds)[1].read_bytes())
    assert made[0] == made[1]


def test_no_calibration_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="takes its ranges from sample input, and there is none") as error:
        _quantize(tmp_path, calibration=[])
    assert error.value.hint == "fp32 and int4 need none"


def test_a_graph_without_products_is_an_error(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "none", [value], [answer])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "relu.onnx",
    )
    exported = Exported.read(tmp_path / "relu.onnx")
    feeds: list[Any] = [{"x": np.zeros((1, 4), np.float32)}]
    with pytest.raises(ExportError, match="no product with a constant matrix"):
        quantize_static(exported, tmp_path / "int8.onnx", feeds, lambda path: Judged(0.0, ()))
