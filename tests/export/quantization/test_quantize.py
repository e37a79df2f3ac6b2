"""INT8 on a small graph of each kind of product: close to the original, and blind to the neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.exported import Exported
from export.graph import Graph
from export.quantization import int8
from export.quantization.int8 import quantize_int8
from shoal.errors import ExportError

WIDTH = 16


def _graph(path: Path) -> Exported:
    """Embedding -> LayerNormalization -> product + bias -> Gelu -> product, and a product of a plain Add."""
    chance = np.random.default_rng(0)
    constants = {
        "table": chance.standard_normal((50, WIDTH)).astype(np.float32),
        "gamma": np.linspace(0.1, 4.0, WIDTH, dtype=np.float32),
        "beta": np.zeros(WIDTH, np.float32),
        "up": chance.standard_normal((WIDTH, 32)).astype(np.float32),
        "bias": chance.standard_normal(32).astype(np.float32),
        "down": chance.standard_normal((32, WIDTH)).astype(np.float32),
        "last": chance.standard_normal((WIDTH, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("LayerNormalization", ["embedded", "gamma", "beta"], ["normed"], axis=-1),
        helper.make_node("MatMul", ["normed", "up"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["biased"]),
        helper.make_node("Gelu", ["biased"], ["activated"], domain="com.microsoft"),
        helper.make_node("MatMul", ["activated", "down"], ["shrunk"]),
        helper.make_node("Add", ["shrunk", "normed"], ["residual"]),
        helper.make_node("MatMul", ["residual", "last"], ["answer"]),
    ]
    int64, float32 = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(n, int64, ["b", "t"]) for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("answer", float32, ["b", "t", 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return Exported.read(path)


def _feed(ids: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


@pytest.fixture(scope="module", params=[False, True], ids=["int8", "int8-dynamic"])
def sessions(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[onnxruntime.InferenceSession, ...]:
    folder = tmp_path_factory.mktemp("quantize")
    exported = _graph(folder / "fp32.onnx")
    calibration = [_feed(np.arange(50).reshape(5, 10))]
    quantized = quantize_int8(exported, folder / "int8.onnx", calibration, dynamic=request.param)
    return tuple(onnxruntime.InferenceSession(str(e.path)) for e in (exported, quantized))


def test_every_product_is_int8(tmp_path: Path) -> None:
    exported = _graph(tmp_path / "fp32.onnx")
    quantized = quantize_int8(exported, tmp_path / "int8.onnx", [_feed(np.arange(50).reshape(5, 10))])
    kinds = [node.op_type for node in onnx.load(quantized.path).graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 3
    assert "MatMul" not in kinds


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_large_table_of_vectors_is_int8_and_a_small_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dynamic: bool
) -> None:
    exported = _graph(tmp_path / "fp32.onnx")
    ids = np.arange(50).reshape(5, 10)

    def made(least: int) -> tuple[list[onnx.TensorProto], NDArray[np.float32]]:
        monkeypatch.setattr(int8, "LARGE_TABLE", least)
        path = quantize_int8(exported, tmp_path / "int8.onnx", [_feed(ids)], dynamic=dynamic).path
        tables = [value for value in onnx.load(path).graph.initializer if list(value.dims) == [50, WIDTH]]
        return tables, onnxruntime.InferenceSession(str(path)).run(None, _feed(ids))[0]

    (small,), expected = made(50 * WIDTH + 1)
    (large,), got = made(50 * WIDTH)
    assert (small.data_type, large.data_type) == (onnx.TensorProto.FLOAT, onnx.TensorProto.INT8)
    assert 0 < np.abs(got - expected).max() / np.abs(expected).max() < 0.02
    rows = numpy_helper.to_array(large).astype(np.float32)
    table = numpy_helper.to_array(small)
    scales = np.abs(table).max(axis=1, keepdims=True) / 127  # of each word its own
    assert np.abs(rows * scales - table).max() <= scales.max() / 2 * 1.001


def test_dynamic_takes_every_scale_from_the_row(tmp_path: Path) -> None:
    exported = _graph(tmp_path / "fp32.onnx")
    feeds = [_feed(np.arange(50).reshape(5, 10))]
    made = [
        quantize_int8(exported, tmp_path / f"{dynamic}.onnx", feeds, dynamic=dynamic)
        for dynamic in (False, True)
    ]
    scales = [
        {node.input[1] for node in onnx.load(graph.path).graph.node if node.op_type == "QuantizeLinear"}
        for graph in made
    ]
    assert scales == [{"normed/int8/scale", "int8/row_scale"}, {"int8/row_scale"}]


def test_is_close(sessions: tuple[onnxruntime.InferenceSession, ...]) -> None:
    ids = np.random.default_rng(1).integers(0, 50, (8, 12))
    expected, got = (session.run(None, _feed(ids))[0] for session in sessions)
    assert np.abs(got - expected).max() / np.abs(expected).max() < 0.03


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 49), min_size=4, max_size=4), st.integers(0, 2**31), st.integers(1, 7))
def test_never_sees_its_neighbours(
    sessions: tuple[onnxruntime.InferenceSession, ...], row: list[int], seed: int, neighbours: int
) -> None:
    others = np.random.default_rng(seed).integers(0, 50, (neighbours, 4))
    alone = sessions[1].run(None, _feed(np.array([row])))[0][0]
    together = sessions[1].run(None, _feed(np.vstack([row, others])))[0][0]
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-5 * np.abs(alone).max())


def test_a_graph_without_products_is_refused(tmp_path: Path) -> None:
    exported = _graph(tmp_path / "fp32.onnx")
    model = onnx.load(exported.path)
    model.graph.output[0].name = "normed"  # ends before the first product
    del model.graph.node[2:]
    onnx.save(model, exported.path)
    with pytest.raises(ExportError, match="no product with a constant matrix .--precision fp32"):
        quantize_int8(exported, tmp_path / "int8.onnx", [_feed(np.arange(50).reshape(5, 10))])


def test_constants_of_nodes_and_values_read_in_branches_are_kept(tmp_path: Path) -> None:
    """As the tracer writes DeBERTa and ModernBERT."""
    exported = _graph(tmp_path / "fp32.onnx")
    model = onnx.load(exported.path)
    graph = model.graph
    beta = next(index for index, weight in enumerate(graph.initializer) if weight.name == "beta")
    constant = helper.make_node("Constant", [], ["beta"], value=graph.initializer[beta])
    del graph.initializer[beta]
    float32 = onnx.TensorProto.FLOAT
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("Add", [name, "residual"], [f"{name}_sum"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_sum", float32, None)],
        )
        for name in ("normed", "shrunk")
    }
    chosen = helper.make_node(
        "If",
        ["yes"],
        ["chosen"],
        then_branch=branches["normed_branch"],
        else_branch=branches["shrunk_branch"],
    )
    last = graph.node.pop()
    last.input[0] = "chosen"
    graph.node.insert(0, constant)
    graph.node.extend([chosen, last])
    graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    onnx.save(model, exported.path)
    feed = _feed(np.arange(50).reshape(5, 10))
    quantized = quantize_int8(exported, tmp_path / "int8.onnx", [feed])
    expected, got = (
        onnxruntime.InferenceSession(str(each.path)).run(None, feed)[0] for each in (exported, quantized)
    )
    assert np.abs(got - expected).max() / np.abs(expected).max() < 0.03


def test_nodes_are_put_behind_what_they_read() -> None:
    float32 = onnx.TensorProto.FLOAT
    nodes = [helper.make_node("Neg", ["b"], ["c"]), helper.make_node("Neg", ["a"], ["b"])]
    values = [helper.make_tensor_value_info(name, float32, [1]) for name in ("a", "c")]
    made = Graph(helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:]))).finish()
    assert [node.output[0] for node in made.graph.node] == ["b", "c"]
