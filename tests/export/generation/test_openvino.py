"""What OpenVINO runs is what ONNX Runtime runs of the same checkpoint, whatever its attention is."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from export.exported import Exported
from export.generation import build, choosing, to_openvino
from export.generation.choosing import Comparison
from export.generation.recipe import GenerationRecipe
from export.generation.to_onnx import to_onnx
from serving.generation import paged_runner
from serving.generation.paged_runner import PagedRunner
from serving.generation.runner import DecoderRunner
from shoal.errors import ExportError, UsageError
from shoal.evidence import serving_lines
from shoal.progress import Silent
from tests import tiny

IDS = [int(token) for token in np.random.default_rng(0).integers(5, 90, 100)]
_slow = partial(pytest.param, marks=pytest.mark.matrix)
ARCHITECTURES = [
    _slow("LlamaForCausalLM", {}),
    _slow("Qwen2ForCausalLM", {}),  # biases
    _slow("Qwen3ForCausalLM", {"head_dim": 16}),  # normalized queries and keys
    _slow("MistralForCausalLM", {"sliding_window": 32}),
    ("PhiForCausalLM", {"num_attention_heads": 2}),  # half of the channels are rotated
    _slow("GemmaForCausalLM", {"head_dim": 16}),
    _slow("Gemma3ForCausalLM", {"head_dim": 16, "sliding_window": 32}),
    _slow("SmolLM3ForCausalLM", {"num_hidden_layers": 4}),  # a layer without rotation
    _slow("GraniteForCausalLM", {}),
]


@pytest.mark.parametrize(("architecture", "config"), ARCHITECTURES)
def test_its_attention_is_that_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, config: dict[str, Any]
) -> None:
    plain, exact = _both(tmp_path, monkeypatch, architecture, config)
    assert _distance(exact, plain) < 0.001
    # The measure sees a window: with all tokens the answers are others.
    if "sliding_window" in config:
        (tmp_path / "full").mkdir()
        full, _ = _both(tmp_path / "full", monkeypatch, architecture, config | {"sliding_window": 1000})
        assert _distance(full, plain) > 0.1


def _both(
    folder: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, config: dict[str, Any]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits of ONNX Runtime and of OpenVINO, both in fp32."""
    graph = to_onnx(tiny.make_decoder(folder / "checkpoint", architecture, **config), folder / "model.onnx")
    with monkeypatch.context() as patch:
        patch.setattr(to_openvino, "_quantize", lambda graph, product: None)
        patch.setattr(to_openvino, "quantize_embedding", lambda graph: None)
        made = to_openvino.to_openvino(graph, folder / "openvino.onnx", Silent())
    onnxruntime = DecoderRunner(graph.path, rows=1, max_length=128)
    with monkeypatch.context() as patch:
        patch.setattr(paged_runner, "CACHE", {"KV_CACHE_PRECISION": "f32"})
        openvino = PagedRunner(made.path, rows=1, max_length=128)
    everywhere = range(len(IDS))
    return onnxruntime.prefill(0, IDS, 0, everywhere), openvino.prefill(0, IDS, 0, everywhere)


def _distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Relative to how far the values are spread, at the worst place."""
    return float(np.abs(one - other).max(axis=1).max() / other.std())


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("softcap", 30.0, "a cap on attention scores"),  # Gemma 2
        ("smooth_softmax", 1, "smooth_softmax"),
        ("k_quant_type", "PER_TENSOR", "k_quant_type"),
    ],
)
def test_what_is_not_known_of_an_attention_is_refused(
    tiny_repository: Path, tmp_path: Path, name: str, value: float | str, said: str
) -> None:
    model = onnx.load(tiny_repository / "tiny" / "1" / "model.onnx")
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            kept = [entry for entry in node.attribute if entry.name != name]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute(name, value)])
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=f"it has {said}"):
        to_openvino.to_openvino(Exported.read(tmp_path / "model.onnx"), tmp_path / "o.onnx", Silent())


@pytest.mark.parametrize("error", [RuntimeError("no kernel"), ValueError("dynamic")])
def test_what_openvino_cannot_load_is_run_by_the_other(
    tiny_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(path: Path) -> None:
        raise error

    plain = Exported.read(tiny_repository / "tiny" / "1" / "model.onnx")
    monkeypatch.setattr(build, "_try", refuse)
    monkeypatch.setattr(build, "_calibration", lambda *_: [IDS[:40], IDS[40:80]])
    told: list[str] = []
    progress = Silent()
    monkeypatch.setattr(progress, "note", told.append)
    recipe = GenerationRecipe(precisions=("int8",))
    graph, compared = build._int8(recipe, SimpleNamespace(), tmp_path, plain, progress)  # type: ignore[arg-type]
    assert graph.path.name == "model.onnx" and compared is None
    assert told == [f"ONNX Runtime runs int8: OpenVINO cannot run the graph: {error}"]
    recipe = GenerationRecipe(precisions=("int8",), engine="openvino")
    with pytest.raises(ExportError, match=f"OpenVINO cannot run the graph: {error}"):
        build._int8(recipe, SimpleNamespace(), tmp_path, plain, progress)  # type: ignore[arg-type]


def test_a_library_whose_answers_depend_on_company_is_refused(
    tiny_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "difference", lambda runner: 0.2)
    with pytest.raises(ExportError, match="depend on what runs beside them on this CPU"):
        build._try(tiny_repository / "tiny" / "1" / "model.onnx")


def test_weights_of_8_bits_are_half_a_step_away_at_most() -> None:
    weights = np.random.default_rng(0).normal(size=(7, 33)).astype(np.float32)
    weights[0], weights[1, 0] = 0, 90  # nothing at all, and one that is far from all others
    codes, scales, zeros = to_openvino.quantized(weights)
    back = (codes.astype(np.float32) - zeros[:, None]) * scales[:, None]
    assert codes.dtype == zeros.dtype == np.uint8 and not back[0].any()
    assert (np.abs(back - weights) <= 0.501 * scales[:, None]).all()


BUSY = (
    "int8: ONNX Runtime; OpenVINO was not judged, since others took 0.9 of 2 CPUs:"
    " export again on a quiet machine"
)


@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        ({}, "openvino"),
        ({"faster": 1.04}, "onnxruntime"),
        ({"rise": 0.021}, "onnxruntime"),
        ({"rise": float("nan")}, "onnxruntime"),
        ({"invariance": 0.75}, "onnxruntime"),
        ({"others": 0.21}, "onnxruntime"),  # nothing can be said while others run
    ],
)
def test_the_faster_library_is_chosen_if_it_is_close_enough(changes: dict[str, float], chosen: str) -> None:
    figures = {"faster": 1.06, "rise": 0.01, "invariance": 1.0, "others": 0.1, "cpus": 2} | changes
    assert Comparison(**figures).chosen == chosen  # type: ignore[arg-type]


def test_what_was_compared_is_told() -> None:
    for changes, said in (
        ({}, "int8: OpenVINO, 1.06 times as fast as ONNX Runtime here"),
        (
            {"others": 0.9},
            BUSY,
        ),
        (
            {"rise": 0.031},
            "int8: ONNX Runtime; OpenVINO was 1.06 times as fast, perplexity rises by 3.1%, and 100% of the"
            " answers are the same alone and in a batch",
        ),
    ):
        figures = {"faster": 1.06, "rise": 0.01, "invariance": 1.0, "others": 0.1, "cpus": 2} | changes
        serving = json.loads(json.dumps(Comparison(**figures).to_dict()))  # type: ignore[arg-type]
        assert serving_lines([{"precision": "int8", "serving": serving}]) == [said]


def test_both_libraries_are_asked_the_same(tiny_repository: Path, tmp_path: Path) -> None:
    plain = Exported.read(tiny_repository / "tiny" / "1" / "model.onnx")
    other = to_openvino.to_openvino(plain, tmp_path / "openvino.onnx", Silent())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "CONTEXT", 30)
        patch.setattr(choosing, "PROMPTS", (8, 30))
        found = choosing.compare(
            plain, {"onnxruntime": plain, "openvino": other}, [IDS[:40], IDS[40:70]], Silent()
        )
    assert found.faster > 0 and abs(found.rise) < 0.2 and found.invariance == 1


def test_openvino_runs_int8_only() -> None:
    with pytest.raises(UsageError, match="OpenVINO runs int8 only"):
        GenerationRecipe(engine="openvino", precisions=("fp32",))
