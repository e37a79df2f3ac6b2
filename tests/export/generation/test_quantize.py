"""What keeps int8 close to the original: the rotation, the rounding, and rows that hold nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.exported import Exported
from export.generation.quantize import quantize_int8
from export.graph import CONTRIB, Graph
from export.quantization.rotate import rotate
from export.quantization.rounding import round_with_gram
from shoal.progress import Silent

VOCABULARY, WIDTH, GATE, HEADS, SHARED, HEAD = 50, 48, 96, 6, 2, 16


def _constant(name: str, value: NDArray) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(value.astype(np.float32), name)


def _decoder(path: Path) -> Path:
    """One layer, as `to_onnx` leaves it: tied token vectors, packed queries, keys and values, a gate."""
    chance = np.random.default_rng(0)
    sizes = {
        "table": (WIDTH, VOCABULARY),
        "qkv": (WIDTH, (HEADS + 2 * SHARED) * HEAD),
        "out": (HEADS * HEAD, WIDTH),
        "gate": (WIDTH, GATE),
        "up": (WIDTH, GATE),
        "down": (GATE, WIDTH),
    }
    weights = {name: chance.normal(size=size) / size[0] ** 0.5 for name, size in sizes.items()}
    weights["table"][:3] *= 30  # channels far larger than the rest, as trained models have them
    weights |= {f"gamma{number}": chance.uniform(0.5, 2, WIDTH) for number in range(3)}
    weights |= {"cos": np.ones((64, HEAD // 2)), "sin": np.zeros((64, HEAD // 2))}
    norm, skip = "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"
    cache = ["past_key_values.0.key", "past_key_values.0.value"]
    node = helper.make_node
    nodes = [
        node("Transpose", ["table"], ["vectors"]),
        node("Gather", ["vectors", "input_ids"], ["x"]),
        node(norm, ["x", "gamma0"], ["n0"], epsilon=1e-5, axis=-1),
        node("MatMul", ["n0", "qkv"], ["packed"]),
        node(
            "GroupQueryAttention",
            ["packed", "", "", *cache, "past_lengths", "total_length", "cos", "sin"],
            ["attended", "present.0.key", "present.0.value"],
            domain=CONTRIB,
            num_heads=HEADS,
            kv_num_heads=SHARED,
            do_rotary=1,
        ),
        node("MatMul", ["attended", "out"], ["a"]),
        node(skip, ["x", "a", "gamma1"], ["n1", "", "", "x1"], domain=CONTRIB, epsilon=1e-5),
        node("MatMul", ["n1", "gate"], ["g"]),
        node("MatMul", ["n1", "up"], ["u"]),
        node("Sigmoid", ["g"], ["s"]),
        node("Mul", ["g", "s"], ["silu"]),
        node("Mul", ["silu", "u"], ["h"]),
        node("MatMul", ["h", "down"], ["d"]),
        node(skip, ["x1", "d", "gamma2"], ["n2"], domain=CONTRIB, epsilon=1e-5),
        node("Reshape", ["n2", "flat"], ["positions"]),
        node("Gather", ["positions", "logit_rows"], ["sampled"], axis=0),
        node("MatMul", ["sampled", "table"], ["logits"]),
    ]
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "t"]),
        helper.make_tensor_value_info("past_lengths", TensorProto.INT32, ["b"]),
        helper.make_tensor_value_info("total_length", TensorProto.INT32, []),
        helper.make_tensor_value_info("logit_rows", TensorProto.INT64, ["r"]),
        *(helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", SHARED, "p", HEAD]) for n in cache),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["r", VOCABULARY])]
    constants = [_constant(name, value) for name, value in weights.items()]
    constants.append(onnx.numpy_helper.from_array(np.array([-1, WIDTH]), "flat"))
    graph = helper.make_graph(nodes, "decoder", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def _logits(path: Path, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    rows, length = ids.shape
    empty = np.zeros((rows, SHARED, 0, HEAD), np.float32)
    (logits,) = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
        ["logits"],
        {
            "input_ids": ids,
            "past_lengths": np.full(rows, length - 1, np.int32),
            "total_length": np.array(length, np.int32),
            "logit_rows": np.arange(ids.size),
            "past_key_values.0.key": empty,
            "past_key_values.0.value": empty,
        },
    )
    return np.asarray(logits)


IDS = np.random.default_rng(1).integers(VOCABULARY, size=(4, 16))


def test_a_rotation_changes_the_weights_and_not_the_answer(tmp_path: Path) -> None:
    path = _decoder(tmp_path / "plain.onnx")
    graph = Graph(onnx.load(path))
    before = graph.constants["qkv"]
    assert rotate(graph, "input_ids")
    graph.save(tmp_path / "rotated.onnx")
    np.testing.assert_allclose(_logits(tmp_path / "rotated.onnx", IDS), _logits(path, IDS), atol=2e-3)
    rotated = Graph(onnx.load(tmp_path / "rotated.onnx")).constants
    assert rotated["rotated/qkv"].shape == before.shape
    assert not np.allclose(rotated["rotated/qkv"], before)
    table = np.abs(rotated["rotated/tokens"]).max(axis=0)
    assert table.max() < 3 * np.median(table), "no channel is far larger than the rest"


def test_a_stream_that_something_else_reads_is_left_as_it_is(tmp_path: Path) -> None:
    model = onnx.load(_decoder(tmp_path / "plain.onnx"))
    model.graph.node.append(helper.make_node("Tanh", ["x1"], ["capped"]))
    before = model.SerializeToString()
    assert not rotate(Graph(model), "input_ids")
    assert model.SerializeToString() == before


def test_int8_is_close_and_a_row_is_alone(tmp_path: Path) -> None:
    path = _decoder(tmp_path / "plain.onnx")
    exported = Exported(path, (), (), 21, 10)
    quantized = quantize_int8(exported, tmp_path / "int8.onnx", IDS.tolist(), Silent()).path
    kinds = [node.op_type for node in onnx.load(quantized).graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 5, "gate and up are one product"
    assert "MatMul" not in kinds
    expected, together = _logits(path, IDS), _logits(quantized, IDS)
    assert np.corrcoef(expected.ravel(), together.ravel())[0, 1] > 0.999
    alone = np.concatenate([_logits(quantized, row[None]) for row in IDS])
    np.testing.assert_array_equal(alone, together)


def test_a_row_of_zeros_gives_zeros(tmp_path: Path) -> None:
    model = onnx.load(_decoder(tmp_path / "plain.onnx"))
    (table,) = (entry for entry in model.graph.initializer if entry.name == "table")
    values = onnx.numpy_helper.to_array(table).copy()
    values[:, 7] = 0  # a token whose vector is zero: nothing to divide by
    table.CopyFrom(_constant("table", values))
    onnx.save(model, tmp_path / "plain.onnx")
    exported = Exported(tmp_path / "plain.onnx", (), (), 21, 10)
    quantized = quantize_int8(exported, tmp_path / "int8.onnx", IDS.tolist(), Silent()).path
    logits = _logits(quantized, np.array([[7, 7], [7, 3]]))
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(logits[:2], 0, atol=1e-5)


@pytest.mark.parametrize("rank", [20, 200])
def test_rounding_with_a_gram_matrix_beats_the_nearest(rank: int) -> None:
    chance = np.random.default_rng(2)
    activations = (chance.normal(size=(400, rank)) @ chance.normal(size=(rank, 200))).astype(np.float32)
    weight = chance.normal(size=(200, 30)).astype(np.float32)
    columns = np.abs(weight).max(axis=0) / 7
    nearest = np.rint(weight / columns)
    chosen = round_with_gram(weight, columns, 7, activations.T @ activations)
    assert np.abs(chosen).max() <= 7
    error = [np.square(activations @ (weight - codes * columns)).mean() for codes in (chosen, nearest)]
    assert error[0] < 0.6 * error[1]


def test_rounding_without_a_sample_is_to_the_nearest() -> None:
    weight = np.random.default_rng(3).normal(size=(9, 4)).astype(np.float32)
    columns = np.abs(weight).max(axis=0) / 63
    codes = round_with_gram(weight, columns, 63, np.zeros((9, 9), np.float32))
    np.testing.assert_array_equal(codes, np.rint(weight / columns))
