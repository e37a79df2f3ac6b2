"""TensorRT engines: built for a GPU that is not there, by TensorRT-RTX, from a real checkpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.exported import Exported
from export.tensorrt.build import Plan, build_engine
from export.tensorrt.fingerprint import Fingerprint
from export.tensorrt.library import Library
from export.tensorrt.prepare import numeric_part, to_fp16
from export.tensorrt.shapes import Profile
from shoal.errors import ExportError, MissingDependency, UsageError
from shoal.hashes import sha256
from shoal.progress import Advance, Silent
from shoal.tensorrt import compute_capability
from tests.export.tensorrt.support import ONE, PROFILES, embed, rtx, tokens


@pytest.fixture(scope="module")
def plans(plain: Exported, half: Exported, folder: Path) -> dict[str, Plan]:
    return {
        name: build_engine(
            graph, folder / f"{name}.plan", PROFILES, compute_capabilities=("8.9",), flavour="tensorrt-rtx"
        )
        for name, graph in {"fp32": plain, "fp16": half}.items()
    }


def _classifier(path: Path, *, operator: str = "Softmax", domain: str = "") -> Exported:
    """Features [batch, 32] to the name of the best of three classes, and the scores."""
    weight = np.random.default_rng(0).standard_normal((32, 3)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["logits"]),
        helper.make_node(operator, ["logits"], ["score"], name="the scores", domain=domain),
        helper.make_node("ArgMax", ["logits"], ["best"], axis=-1),
        helper.make_node("Gather", ["names", "best"], ["label"]),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])],
        [
            helper.make_tensor_value_info("label", TensorProto.STRING, ["batch", 1]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 3]),
        ],
        [
            numpy_helper.from_array(weight, "weight"),
            helper.make_tensor("names", TensorProto.STRING, [3], [b"cod", b"eel", b"ray"]),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return Exported.read(path)


def _numeric(exported: Exported, path: Path) -> Exported:
    onnx.save(numeric_part(onnx.load(exported.path)).numeric, path)
    return Exported.read(path)


def test_fp16_is_close_and_keeps_its_outside(plain: Exported, half: Exported) -> None:
    assert (half.inputs, half.outputs) == (plain.inputs, plain.outputs)
    assert half.path.stat().st_size < 0.6 * plain.path.stat().st_size
    for shape in ((1, 7), (4, 64)):
        expected, got = (embed(graph.path, *tokens(*shape)) for graph in (plain, half))
        assert (expected * got).sum(axis=1).min() > 0.99999


def test_fp16_leaves_sums_in_fp32(half: Exported) -> None:
    graph = onnx.shape_inference.infer_shapes(onnx.load(half.path)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    of = {kind: {types[n.output[0]] for n in graph.node if n.op_type == kind} for kind in ("MatMul", "Erf")}
    assert of == {"MatMul": {TensorProto.FLOAT16}, "Erf": {TensorProto.FLOAT16}}
    for kind in ("Softmax", "LayerNormalization", "ReduceSum", "ReduceL2"):
        assert {types[node.output[0]] for node in graph.node if node.op_type == kind} == {TensorProto.FLOAT}


def test_fp16_of_nodes_without_names(tmp_path: Path) -> None:
    plain = _numeric(_classifier(tmp_path / "whole.onnx"), tmp_path / "plain.onnx")
    half = to_fp16(plain, tmp_path / "half.onnx")
    features = {"x": np.random.default_rng(1).standard_normal((5, 32)).astype(np.float32)}
    expected, got = (onnxruntime.InferenceSession(str(g.path)).run(None, features) for g in (plain, half))
    np.testing.assert_allclose(got[0], expected[0], atol=0.02)
    np.testing.assert_array_equal(got[1], expected[1])


def test_strings_are_cut_off_and_the_parts_agree(tmp_path: Path) -> None:
    model = onnx.load(_classifier(tmp_path / "whole.onnx").path)
    parts = numeric_part(model)
    assert parts.tail is not None
    assert [value.name for value in parts.numeric.graph.output] == ["score", "best"]
    features = {"x": np.random.default_rng(1).standard_normal((5, 32)).astype(np.float32)}
    label, score = onnxruntime.InferenceSession(model.SerializeToString()).run(["label", "score"], features)
    got, best = onnxruntime.InferenceSession(parts.numeric.SerializeToString()).run(None, features)
    named = onnxruntime.InferenceSession(parts.tail.SerializeToString()).run(None, {"best": best})[0]
    np.testing.assert_array_equal(got, score)
    assert named.tolist() == label.tolist()


def test_without_strings_nothing_is_cut(tmp_path: Path) -> None:
    model = onnx.load(_numeric(_classifier(tmp_path / "a.onnx"), tmp_path / "b.onnx").path)
    parts = numeric_part(model)
    assert parts.numeric is model
    assert parts.tail is None


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_real_encoder_becomes_an_engine(plans: dict[str, Plan], folder: Path, precision: str) -> None:
    plan = plans[precision]
    source = folder / {"fp32": "plain.onnx", "fp16": "fp16.onnx"}[precision]
    assert plan.fingerprint == Fingerprint(
        flavour="tensorrt-rtx",
        version=rtx.__version__,
        compute_capabilities=("8.9",),
        onnx_sha256=sha256(source),
        strongly_typed=True,
        profiles=PROFILES,
    )
    assert plan.size == plan.path.stat().st_size > 0.9 * source.stat().st_size
    assert not list(folder.glob(".*.tmp"))


def test_fp16_is_in_the_engine(plans: dict[str, Plan]) -> None:
    assert plans["fp16"].size < 0.7 * plans["fp32"].size


def test_the_fingerprint_survives_json(plans: dict[str, Plan]) -> None:
    fingerprint = plans["fp32"].fingerprint
    assert Fingerprint.from_dict(json.loads(json.dumps(fingerprint.to_dict()))) == fingerprint


@pytest.mark.skipif(compute_capability() is not None, reason="there is a GPU")
def test_without_a_gpu_an_engine_cannot_be_opened(plans: dict[str, Plan]) -> None:
    """Why no test here reads the profiles back out of an engine: the runtime asks for a driver first."""
    with pytest.raises(ExportError, match="cannot open the engine: .*CUDA") as error:
        Library("tensorrt-rtx").open(plans["fp32"].path.read_bytes())
    assert error.value.hint == "this takes an NVIDIA GPU and its driver; here is none"


def test_int8_by_quantize_and_dequantize(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).integers(-127, 127, (32, 16)).astype(np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["values"]),
        helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["matrix"]),
        helper.make_node("MatMul", ["values", "matrix"], ["y"]),
    ]
    constants = {"weight": weight, "scale": np.float32(0.05), "zero": np.int8(0)}
    graph = helper.make_graph(
        nodes,
        "int8",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "int8.onnx")
    exported = Exported.read(tmp_path / "int8.onnx")
    plan = build_engine(exported, tmp_path / "int8.plan", ONE, compute_capabilities=("8.9", "12.0"))
    assert plan.fingerprint.compute_capabilities == ("8.9", "12.0")
    assert plan.path.is_file()


def test_an_unknown_operator_is_named_in_one_line(tmp_path: Path) -> None:
    exported = _classifier(tmp_path / "bad.onnx", operator="QuickGelu", domain="com.microsoft")
    numeric = _numeric(exported, tmp_path / "numeric.onnx")
    with pytest.raises(ExportError, match=r"cannot take QuickGelu \(the scores\): ") as error:
        build_engine(numeric, tmp_path / "bad.plan", ONE, compute_capabilities=("8.9",))
    assert "\n" not in str(error.value)
    assert "plain graph, without operators of com.microsoft" in error.value.hint
    assert not (tmp_path / "bad.plan").exists()


def test_strings_are_refused_and_the_rest_is_built(tmp_path: Path) -> None:
    exported = _classifier(tmp_path / "whole.onnx")
    with pytest.raises(ExportError, match="without strings"):
        build_engine(exported, tmp_path / "whole.plan", ONE, compute_capabilities=("8.9",))
    numeric = _numeric(exported, tmp_path / "numeric.onnx")
    plan = build_engine(numeric, tmp_path / "numeric.plan", ONE, compute_capabilities=("8.9",))
    assert plan.path.is_file()


@pytest.mark.parametrize(
    ("profiles", "capability", "message"),
    [((), "8.9", "an engine needs a profile"), (ONE, "9.9", "does not build for compute capability 9.9")],
)
def test_what_cannot_be_asked(
    tmp_path: Path, profiles: tuple[Profile, ...], capability: str, message: str
) -> None:
    numeric = _numeric(_classifier(tmp_path / "whole.onnx"), tmp_path / "numeric.onnx")
    with pytest.raises(UsageError, match=message):
        build_engine(numeric, tmp_path / "bad.plan", profiles, compute_capabilities=(capability,))


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    exported = _classifier(tmp_path / "whole.onnx")
    exported.path.write_bytes(b"not a graph")
    with pytest.raises(ExportError, match="cannot take whole.onnx: .*Failed to parse"):
        build_engine(exported, tmp_path / "bad.plan", ONE, compute_capabilities=("8.9",))


class _Counted(Silent):
    """Counts what it is told, and is interrupted where it is told to be."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.count = 0
        self.interrupt_at = interrupt_at

    @contextmanager
    def step(self, description: str, total: int | None = None) -> Iterator[Advance]:
        assert total == 100

        def advance() -> None:
            self.count += 1
            if self.count == self.interrupt_at:
                raise KeyboardInterrupt

        yield advance


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    numeric = _numeric(_classifier(tmp_path / "whole.onnx"), tmp_path / "numeric.onnx")
    progress = _Counted()
    build_engine(numeric, tmp_path / "a.plan", ONE, compute_capabilities=("8.9",), progress=progress)
    assert progress.count == 100


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    numeric = _numeric(_classifier(tmp_path / "whole.onnx"), tmp_path / "numeric.onnx")
    progress = _Counted(interrupt_at=20)
    with pytest.raises(KeyboardInterrupt):
        build_engine(numeric, tmp_path / "a.plan", ONE, compute_capabilities=("8.9",), progress=progress)
    assert not list(tmp_path.glob("*.plan"))


@pytest.mark.skipif(compute_capability() is not None, reason="there is a GPU")
def test_tensorrt_comes_first_and_keeps_its_timing_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT-RTX under the name of `tensorrt`, which needs a GPU: the same calls, nothing measured."""
    monkeypatch.setitem(sys.modules, "tensorrt", rtx)
    assert Library().flavour == "tensorrt"
    numeric = _numeric(_classifier(tmp_path / "whole.onnx"), tmp_path / "numeric.onnx")
    cache = tmp_path / "timing.cache"
    for _ in range(2):  # the second reads what the first wrote
        plan = build_engine(
            numeric, tmp_path / "a.plan", ONE, compute_capabilities=("8.9",), timing_cache=cache
        )
        assert cache.stat().st_size > 0
    assert plan.fingerprint.flavour == "tensorrt"


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingDependency, match=r"TensorRT is not installed .*\.\[tensorrt-rtx\]"):
        Library()
    with pytest.raises(MissingDependency, match=r"tensorrt is not installed .*\.\[gpu\]"):
        Library("tensorrt")
