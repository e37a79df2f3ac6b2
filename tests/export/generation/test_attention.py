"""What the model builder gets wrong, put right by the checkpoint's config."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from export.generation.attention import correct_attention, for_builder
from shoal.errors import ExportError


def _graph(rotary: int = 16) -> onnx.ModelProto:
    """Two layers of attention as the builder writes them."""
    nodes = [
        helper.make_node(
            "GroupQueryAttention",
            [
                *("q", "k", "v", f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"),
                *("past", "total", "cos", "sin"),
            ],
            [f"out{layer}"],
            domain="com.microsoft",
            do_rotary=1,
            local_window_size=-1,
        )
        for layer in range(2)
    ]
    caches = [
        numpy_helper.from_array(np.zeros((32, rotary // 2), np.float32), name) for name in ("cos", "sin")
    ]
    return helper.make_model(helper.make_graph(nodes, "g", [], [], caches))


def _attributes(model: onnx.ModelProto) -> list[dict[str, Any]]:
    return [{a.name: helper.get_attribute_value(a) for a in node.attribute} for node in model.graph.node]


def test_windows_and_rotation_are_those_of_the_config() -> None:
    model = _graph()
    kinds = ["sliding_attention", "full_attention"]
    correct_attention(model, SimpleNamespace(layer_types=kinds, sliding_window=64, no_rope_layers=[1, 0]))
    assert _attributes(model) == [
        {"do_rotary": 1, "local_window_size": 64},
        {"do_rotary": 0, "local_window_size": -1},
    ]
    assert [list(node.input[7:9]) for node in model.graph.node] == [["cos", "sin"], ["", ""]]


def test_a_config_that_says_nothing_changes_nothing() -> None:
    model = _graph()
    correct_attention(model, SimpleNamespace())
    assert model == _graph()


def test_a_rotation_that_no_kernel_runs_is_refused() -> None:
    with pytest.raises(ExportError, match="of 8 channels cannot be run, only multiples of 16"):
        correct_attention(_graph(rotary=8), SimpleNamespace())


def test_only_what_the_builder_cannot_read_is_renamed(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    config = checkpoint / "config.json"
    config.write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"]}))
    assert for_builder(checkpoint, tmp_path / "links") == checkpoint
    config.write_text(json.dumps({"architectures": ["SmolLM3ForCausalLM"], "vocab_size": 8}))
    links = for_builder(checkpoint, tmp_path / "links")
    assert json.loads((links / "config.json").read_text()) == {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 8,
    }
    assert (links / "model.safetensors").read_bytes() == b"weights"
    assert json.loads(config.read_text())["architectures"] == ["SmolLM3ForCausalLM"]
