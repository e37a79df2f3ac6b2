"""A decoder checkpoint to one ONNX graph that serves prefill, decode and the check of a guess alike.

ONNX Runtime GenAI's model builder knows dozens of architectures and writes each as a graph around one
fused attention (GroupQueryAttention: rotary embedding, KV cache, grouped heads). Two things are changed
for serving, and nothing else:

- `past_lengths` int32 [batch] and `total_length` int32 [] go straight to the attention. The builder
  derives both from a mask [batch, tokens] that would have to be built anew for every token.
- `logit_rows` int64 [n] picks the positions whose logits are wanted, out of [batch * tokens]: the
  projection to the vocabulary, a fifth of a small model, is paid only for rows that are sampled.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from export.exported import Exported
from export.generation.attention import correct_attention, for_builder, load_config
from export.graph import Graph
from serving.generation.runner import mover_of
from shoal.errors import ExportError

INPUT_IDS, PAST_LENGTHS, TOTAL_LENGTH, LOGIT_ROWS = "input_ids", "past_lengths", "total_length", "logit_rows"
LOGITS = "logits"
# Protobuf ends at 2 GiB; what comes near it keeps its weights in a second file.
MAX_SINGLE_FILE = 1 << 30
# What the builder calls each precision that it makes itself, and the execution provider it is for.
BUILDS = {"fp32": ("fp32", "cpu"), "fp16": ("fp16", "cuda"), "int4-fp16": ("int4", "cuda")}


def to_onnx(checkpoint: Path, path: Path, precision: str = "fp32") -> Exported:
    """Build the graph: in fp32, which the CPU's other precisions are made from, or for a GPU.

    Args:
        checkpoint: a Hugging Face folder with safetensors.
        path: the ONNX file to write; a GPU's graph gets a second one that moves its cache.
        precision: one of `BUILDS`.

    Raises:
        ExportError: the builder does not know the architecture, or failed, or no kernel runs its graph.
    """
    made = path.parent / f"{path.stem}-builder"
    kind, provider = BUILDS[precision]
    source = for_builder(checkpoint, path.parent / f"{path.stem}-source")
    command = [
        *(sys.executable, str(_builder()), "-i", str(source), "-o", str(made), "-p", kind),
        *("-e", provider, "-c", str(made / "cache"), "--extra_options", "hf_token=false"),
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # A process of its own: the builder imports its parts as top-level modules and prints as it goes.
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else "(silent)"
        if reason.startswith("NotImplementedError"):
            (architecture, *_) = load_config(checkpoint).architectures
            reason = f"it does not know the architecture {architecture}"
        raise ExportError(f"the model builder cannot export {checkpoint}: {reason}")
    model = onnx.load(made / "model.onnx")
    settings = json.loads((made / "genai_config.json").read_text())
    correct_attention(model, load_config(checkpoint))
    for_serving(model, settings["model"]["decoder"]["head_size"])
    shutil.rmtree(made)
    if source != checkpoint:
        shutil.rmtree(source)
    save(model, path)
    if provider == "cuda":
        save_mover(model, mover_of(path))
    return Exported.read(path)


def save_mover(model: onnx.ModelProto, path: Path) -> None:
    """A graph that copies as many [tokens, width] arrays as the decoder's cache has layers times heads.

    Raises:
        OSError: the file cannot be written.
    """
    caches = [value for value in model.graph.input if value.name.startswith("past_key_values.")]
    kind = caches[0].type.tensor_type
    heads, width = kind.shape.dim[1].dim_value, kind.shape.dim[3].dim_value
    numbers = range(len(caches) * heads)
    values = {
        side: [
            helper.make_tensor_value_info(f"{side}_{n}", kind.elem_type, ["tokens", width]) for n in numbers
        ]
        for side in ("from", "to")
    }
    nodes = [helper.make_node("Identity", [f"from_{n}"], [f"to_{n}"]) for n in numbers]
    graph = helper.make_graph(nodes, "moves", values["from"], values["to"])
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def _builder() -> Path:
    spec = find_spec("onnxruntime_genai")
    assert spec is not None and spec.origin is not None  # noqa: S101 - the extra brings it
    return Path(spec.origin).parent / "models" / "builder.py"


def for_serving(model: onnx.ModelProto, head_size: int) -> None:
    """Change the builder's graph in place; see the module.

    Args:
        head_size: of keys and values, which the builder leaves free.

    Raises:
        ExportError: the graph has no attention over a KV cache, or more inputs than a decoder needs.
    """
    graph = Graph(model)
    attentions = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    if not attentions:
        raise ExportError("the model has no grouped-query attention, which generation is built on")
    for node in attentions:
        node.input[5], node.input[6] = PAST_LENGTHS, TOTAL_LENGTH
    head = graph.producer[LOGITS]
    while head.op_type not in ("MatMul", "MatMulNBits"):  # a cap on the logits, or a cast, may follow it
        head = graph.producer[head.input[0]]
    hidden = head.input[0]
    last = next(node for node in model.graph.node if hidden in node.output)
    width = len(graph.constants[last.input[-1]])  # of the final norm's weight
    shape = graph.constant("shoal/flat", np.array([-1, width], np.int64))
    flat = graph.add("Reshape", [hidden, shape], "shoal/positions")
    head.input[0] = graph.add("Gather", [flat, LOGIT_ROWS], "shoal/sampled", axis=0)
    vocabulary = model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    element = model.graph.output[0].type.tensor_type.elem_type
    del model.graph.output[0]
    model.graph.output.insert(0, helper.make_tensor_value_info(LOGITS, element, ["rows", vocabulary]))
    mask = next(index for index, value in enumerate(model.graph.input) if value.name == "attention_mask")
    del model.graph.input[mask]
    integer32, integer64 = onnx.TensorProto.INT32, onnx.TensorProto.INT64
    model.graph.input.insert(1, helper.make_tensor_value_info(PAST_LENGTHS, integer32, ["batch_size"]))
    model.graph.input.insert(2, helper.make_tensor_value_info(TOTAL_LENGTH, integer32, []))
    model.graph.input.insert(3, helper.make_tensor_value_info(LOGIT_ROWS, integer64, ["rows"]))
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.shape.dim[3].dim_value = head_size
    del model.graph.value_info[:]  # the shapes behind the gather have changed
    graph.finish()
    known = {INPUT_IDS, PAST_LENGTHS, TOTAL_LENGTH, LOGIT_ROWS}
    strange = [v.name for v in model.graph.input if v.name not in known and "past_key_values" not in v.name]
    if strange:
        raise ExportError(f"the graph wants inputs that generation does not know: {', '.join(strange)}")


def save(model: onnx.ModelProto, path: Path) -> None:
    """One file, or a second one for the weights where they are too many for it."""
    external = sum(len(weight.raw_data) for weight in model.graph.initializer) > MAX_SINGLE_FILE
    onnx.save_model(
        model, path, save_as_external_data=external, location=f"{path.name}.data" if external else None
    )
