"""The Python-based backend `onnxruntime`: options, auto-completion, accelerators, on the real server."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil
import pytest

from clients import GrpcClient
from serving.embedded import running, start
from serving.onnxruntime.options import BadConfig, Options
from serving.onnxruntime.sessions import open_session, run_together
from serving.ports import Ports
from shoal.errors import ServerError
from shoal.machine import available_cpus, gpus

FEED = {"input_ids": np.full((2, 8), 2000), "attention_mask": np.ones((2, 8), np.int64)}


def _config(**parameters: str) -> dict[str, Any]:
    return {"parameters": {key: {"string_value": value} for key, value in parameters.items()}}


@pytest.fixture
def encoder(repository: Path, tmp_path: Path) -> Path:
    """A repository with the INT8 network alone, without a manifest and with an empty config."""
    folder = tmp_path / "models" / "minilm_encoder"
    (folder / "1").mkdir(parents=True)
    shutil.copy(repository / "minilm_encoder" / "2" / "model.onnx", folder / "1")
    (folder / "config.pbtxt").write_text('backend: "onnxruntime"\n')
    return folder


def test_documented_options_reach_the_session() -> None:
    config = _config(
        intra_op_thread_count="1", inter_op_thread_count="3", execution_mode="1", enable_mem_arena="0"
    )
    config["optimization"] = {"graph": {"level": 1}}
    options = Options.from_config(config).session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 3)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    assert options.enable_cpu_mem_arena is False
    assert options.enable_mem_pattern is True


@pytest.mark.parametrize("instances", [1, 2, 64])
def test_instances_share_the_cpus(instances: int) -> None:
    options = Options.from_config({"instance_group": [{"count": instances}]}).session_options()
    assert options.intra_op_num_threads == max(1, available_cpus() // instances)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (_config(intra_op_threads="2"), "unknown parameter intra_op_threads; known: intra_op_thread_count"),
        (_config(intra_op_thread_count="many"), "intra_op_thread_count is 'many'"),
        (_config(execution_mode="2"), "execution_mode is '2', it must be 0 to 1"),
        ({"optimization": {"graph": {"level": 7}}}, "level 7 is unknown"),
        (
            {
                "optimization": {
                    "execution_accelerators": {"cpu_execution_accelerator": [{"name": "openvno"}]}
                }
            },
            "unknown cpu execution accelerator openvno; known: openvino",
        ),
    ],
)
def test_what_it_does_not_know_is_refused_by_name(config: dict[str, Any], said: str) -> None:
    with pytest.raises(BadConfig, match=said):
        Options.from_config(config)


def test_an_unknown_parameter_stops_the_server_with_its_name(encoder: Path) -> None:
    (encoder / "config.pbtxt").write_text(
        'backend: "onnxruntime"\nparameters { key: "threads" value { string_value: "2" } }\n'
    )
    with pytest.raises(ServerError, match="unknown parameter threads; known: intra_op_thread_count"):
        start(encoder.parent, Ports(0, 0, 0))


def test_a_gpu_instance_without_a_gpu_runtime_says_what_is_missing(repository: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(BadConfig, match=r"needs CUDAExecutionProvider.*install onnxruntime-gpu"):
        open_session(repository / "minilm_encoder" / "1" / "model.onnx", Options.from_config({}), gpu=0)


@pytest.mark.gpu
@pytest.mark.skipif(not gpus(), reason="needs an NVIDIA GPU, and onnxruntime-gpu")
def test_a_gpu_instance_agrees_with_the_cpu(repository: Path) -> None:
    path = repository / "minilm_encoder" / "1" / "model.onnx"
    on_cpu, on_gpu = (open_session(path, Options.from_config({}), gpu=gpu) for gpu in (None, 0))
    assert on_gpu.get_providers()[0] == "CUDAExecutionProvider"
    expected, got = (session.run(None, FEED)[0] for session in (on_cpu, on_gpu))
    assert (expected * got).sum(axis=1).min() > 0.999


def test_requests_joined_and_split_keep_their_order(repository: Path) -> None:
    session = open_session(repository / "minilm_encoder" / "1" / "model.onnx", Options.from_config({}))
    chance = np.random.default_rng(0)
    requests = [
        {"input_ids": chance.integers(1000, 20000, (rows, 8)), "attention_mask": np.ones((rows, 8), np.int64)}
        for rows in (1, 3, 2)
    ]
    together = run_together(session, ["embedding"], requests)
    for request, (embedding,) in zip(requests, together, strict=True):
        np.testing.assert_allclose(embedding, session.run(None, request)[0], atol=1e-5)


def test_an_empty_config_is_completed_from_the_graph(encoder: Path) -> None:
    with running(encoder.parent) as server:
        with urllib.request.urlopen(f"http://{server.http}/v2/models/minilm_encoder/config") as reply:
            config = json.load(reply)
        with GrpcClient(server.grpc) as client:
            assert client.infer("minilm_encoder", FEED)["embedding"].shape == (2, 384)
    assert [(i["name"], i["data_type"], i["dims"]) for i in config["input"]] == [
        ("input_ids", "TYPE_INT64", [-1]),
        ("attention_mask", "TYPE_INT64", [-1]),
    ]
    assert [(o["name"], o["data_type"], o["dims"]) for o in config["output"]] == [
        ("embedding", "TYPE_FP32", [384])
    ]
    assert config["max_batch_size"] == 4
    assert "dynamic_batching" in config


def test_each_instance_of_a_group_is_a_process(encoder: Path) -> None:
    (encoder / "config.pbtxt").write_text('backend: "onnxruntime"\ninstance_group { count: 2 }\n')
    with running(encoder.parent) as server, GrpcClient(server.grpc) as client:
        assert len(psutil.Process(server.pid).children()) == 2
        assert client.infer("minilm_encoder", FEED)["embedding"].shape == (2, 384)


def test_openvino_on_the_real_server(encoder: Path, repository: Path) -> None:
    pytest.importorskip("onnxruntime_ep_openvino", reason="needs the extra openvino")
    shutil.copy(repository / "minilm_encoder" / "1" / "model.onnx", encoder / "1")
    (encoder / "config.pbtxt").write_text(
        'backend: "onnxruntime"\n'
        'optimization { execution_accelerators { cpu_execution_accelerator { name: "openvino" } } }\n'
    )
    if not _is_intel():
        with pytest.raises(ServerError, match="openvino takes Intel CPUs only, and this one is by"):
            start(encoder.parent, Ports(0, 0, 0))
        return
    expected = open_session(encoder / "1" / "model.onnx", Options.from_config({})).run(None, FEED)[0]
    with running(encoder.parent) as server, GrpcClient(server.grpc) as client:
        (stub,) = psutil.Process(server.pid).children()
        assert any("openvino" in Path(m.path).name for m in stub.memory_maps())
        got = client.infer("minilm_encoder", FEED)["embedding"]
    assert (got * expected).sum(axis=1).min() > 0.999


def _is_intel() -> bool:
    """OpenVINO's plug-in offers nothing on a CPU by another maker, though OpenVINO itself runs there."""
    return any(device.device.vendor_id == 0x8086 for device in onnxruntime.get_ep_devices())
