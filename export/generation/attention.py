"""What the model builder gets wrong of an architecture's attention, put right by the checkpoint's own config.

Known in onnxruntime-genai 0.15.2, each found by comparing a tiny random model with transformers:

- SmolLM3 cannot be built: its layers without rotary embedding ask for an input that is not there. It is built
  as the Llama that it is otherwise, and those layers lose their rotation afterwards.
- Gemma 2's sliding windows are on the odd layers, not on the even ones as in transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
from onnx import helper
from transformers import AutoConfig

from shoal.errors import ExportError

# Architectures that are built as others.
_BUILT_AS = {"SmolLM3ForCausalLM": "LlamaForCausalLM"}
# Inputs of GroupQueryAttention.
_PAST_KEY, _COSINES, _SINES = 3, 7, 8
# What its kernels need of the rotation's width, halved.
_ROTARY_STEP = 8


def load_config(checkpoint: Path) -> Any:
    """The checkpoint's config as transformers completes it."""
    return AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)


def for_builder(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint as the builder can read it: itself, or links to its files with another config.

    Args:
        folder: where the links go, if any.
    """
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    architectures = [_BUILT_AS.get(name, name) for name in config["architectures"]]
    if architectures == config["architectures"]:
        return checkpoint
    folder.mkdir()
    for file in checkpoint.iterdir():
        if file.is_file() and file.name != "config.json":
            (folder / file.name).symlink_to(file.resolve())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": architectures}))
    return folder


def correct_attention(model: onnx.ModelProto, config: Any) -> None:
    """Give each layer of the builder's graph the window and the rotation of its config, in place.

    Args:
        config: `layer_types`, `sliding_window` and `no_rope_layers` are read, where it has them.

    Raises:
        ExportError: ONNX Runtime has no kernel for the width of the rotation.
    """
    kinds = getattr(config, "layer_types", None)
    rotates = getattr(config, "no_rope_layers", None)  # 1: it does
    widths = {weight.name: weight.dims[-1] for weight in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "GroupQueryAttention":
            continue
        layer = int(node.input[_PAST_KEY].split(".")[1])
        if kinds:
            sliding = kinds[layer] == "sliding_attention"
            _set(node, "local_window_size", config.sliding_window if sliding else -1)
        if rotates and not rotates[layer]:
            _set(node, "do_rotary", 0)
            node.input[_COSINES] = node.input[_SINES] = ""
        elif len(node.input) > _COSINES and widths.get(node.input[_COSINES], 0) % _ROTARY_STEP:
            width = 2 * widths[node.input[_COSINES]]
            raise ExportError(
                f"a rotary embedding of {width} channels cannot be run, only multiples of {2 * _ROTARY_STEP}"
            )


def _set(node: onnx.NodeProto, name: str, value: int) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
