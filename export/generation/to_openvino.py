"""A decoder's fp32 graph to the one that OpenVINO runs: attention over pages of a cache, weights of 8 bits.

OpenVINO's CPU plugin multiplies 8-bit weights with activations that it quantizes itself, in groups of
channels of one token each, and its paged attention takes any mix of prompts and single tokens in one run. No
operator of ONNX stands for that attention, so the graph holds it as `PagedAttention` in a domain of its own,
which `serving.generation.openvino_graph` reads. All else is standard ONNX: the rotary embedding, which ONNX
Runtime's attention does by itself, is written out, in the form that OpenVINO fuses. As for ONNX Runtime, the
residual stream is rotated first (`rotate`), which keeps outliers out of the activations.

The graph's sequences are rows of one token: `input_ids` is [tokens, 1], all sequences' tokens in a line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.exported import Exported
from export.generation.quantize import quantize_embedding
from export.generation.to_onnx import INPUT_IDS, LOGIT_ROWS, save
from export.graph import Graph
from export.quantization.rotate import rotate
from serving.generation.openvino_graph import (
    ATTENTION,
    BEGINS,
    CONTEXT,
    DOMAIN,
    KEYS,
    PAGE_BEGINS,
    PAGES,
    PAST,
    POSITIONS,
    VALUES,
)
from shoal.errors import ExportError
from shoal.progress import Silent

# Attributes of ONNX Runtime's attention that OpenVINO's can do, and values of others that change nothing.
_KNOWN = {"num_heads", "kv_num_heads", "scale", "do_rotary", "local_window_size"}
_NOTHING = {"softcap": 0.0, "rotary_interleaved": 0, "smooth_softmax": 0, "qk_output": 0}
_NAMES = {"softcap": "a cap on attention scores", "rotary_interleaved": "rotation of neighbouring channels"}
# Inputs of ONNX Runtime's attention.
_PAST_KEY, _COSINES, _SINES, _MOST = 3, 7, 8, 9
_OUTPUTS = 3


def to_openvino(exported: Exported, path: Path, progress: Silent) -> Exported:
    """Write the graph; see the module.

    Args:
        exported: from `to_onnx`, in fp32.
        path: the file to write.

    Raises:
        ExportError: the model's attention has something that OpenVINO's has not; the message names it.
    """
    with progress.step("Build the graph for OpenVINO, in int8"):
        graph = Graph(onnx.load(exported.path))
        rotate(graph, INPUT_IDS)
        graph = Graph(graph.finish())
        _write_attention(graph)
        quantize_embedding(graph)
        for products in graph.products().values():
            for product in products:
                _quantize(graph, product)
        save(graph.finish(), path)
    return Exported.read(path)


def _write_attention(graph: Graph) -> None:
    """Give the graph OpenVINO's inputs, and its attention in the place of ONNX Runtime's."""
    nodes = [node for node in graph.model.graph.node if node.op_type == "GroupQueryAttention"]
    inputs = graph.model.graph.input
    widths = {
        value.name: value.type.tensor_type.shape.dim[3].dim_value
        for value in inputs
        if value.name.startswith("past_key_values.")
    }
    kept = [value for value in inputs if value.name in (INPUT_IDS, LOGIT_ROWS)]
    del inputs[:]
    inputs.extend(kept)
    shapes: dict[str, list[str]] = {
        POSITIONS: ["tokens"],
        PAST: ["sequences"],
        BEGINS: ["bounds"],
        PAGES: ["pages"],
        PAGE_BEGINS: ["bounds"],
        CONTEXT: [],
    }
    for name, dims in shapes.items():
        inputs.append(helper.make_tensor_value_info(name, TensorProto.INT32, dims))
    for node in nodes:
        for cache in _attend(graph, node, widths[node.input[_PAST_KEY]]):
            # OpenVINO sets the type and the shape for the CPU that it runs on.
            inputs.append(helper.make_tensor_value_info(cache, TensorProto.UINT8, [None] * 4))
    del graph.model.graph.output[1:]
    graph.model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def _attend(graph: Graph, node: onnx.NodeProto, width: int) -> tuple[str, str]:
    """Put the paged attention in the place of a node. Returns the names of its caches."""
    values: dict[str, Any] = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    strange = [
        _NAMES.get(name, name)
        for name, value in values.items()
        if name not in _KNOWN and _NOTHING.get(name, object()) != value
    ]
    strange += ["inputs beside the rotation's"] if any(node.input[_MOST:]) else []
    strange += ["more outputs than keys and values"] if any(node.output[_OUTPUTS:]) else []
    if strange:
        raise ExportError(f"OpenVINO cannot run the model's attention: it has {' and '.join(strange)}")
    heads, groups = values["num_heads"], values["kv_num_heads"]
    layer, (output, *_) = node.input[_PAST_KEY].split(".")[1], node.output
    caches = f"{KEYS}{layer}", f"{VALUES}{layer}"
    parts = list(node.input[:3])
    if not parts[1]:  # one product makes all three
        sizes = graph.constant(f"{output}/sizes", np.array([heads, groups, groups], np.int64) * width)
        parts = graph.add_many("Split", [parts[0], sizes], [f"{output}/{n}" for n in "qkv"], axis=-1)
    query, key, value = parts
    if values.get("do_rotary"):
        tables = node.input[_COSINES], node.input[_SINES]
        query = _rotated(graph, query, f"{output}/rotated_q", tables, heads, width)
        key = _rotated(graph, key, f"{output}/rotated_k", tables, groups, width)
    flat = [
        graph.add("Reshape", [name, _shape(graph, -1, count * width)], f"{output}/flat_{part}")
        for part, name, count in (("q", query, heads), ("k", key, groups), ("v", value, groups))
    ]
    window = values.get("local_window_size", -1)
    graph.drop(node)
    attended = graph.add(
        ATTENTION,
        [*flat, *caches, PAST, BEGINS, PAGES, PAGE_BEGINS, CONTEXT],
        f"{output}/paged",
        domain=DOMAIN,
        kv_num_heads=groups,
        head_size=width,
        scale=float(values.get("scale") or width**-0.5),
        sliding_window=max(0, window),
    )
    # The name that readers know.
    graph.add("Reshape", [attended, _shape(graph, -1, 1, heads * width)], output)
    return caches


def _rotated(graph: Graph, value: str, name: str, tables: tuple[str, str], heads: int, width: int) -> str:
    """Rotary embedding (Su et al. 2021, arXiv:2104.09864), the two halves of a head's channels as pairs."""
    if tables[0] not in graph.constants:
        raise ExportError("OpenVINO cannot run the model's attention: its rotation depends on the input")
    cosines, sines = (_at_positions(graph, table) for table in tables)
    half = graph.constants[tables[0]].shape[-1]
    apart = graph.add("Reshape", [value, _shape(graph, -1, 1, heads, width)], f"{name}/heads")
    turned = graph.add("Transpose", [apart], f"{name}/turned", perm=[0, 2, 1, 3])
    rest = []
    if 2 * half < width:
        rest = [_slice(graph, turned, f"{name}/rest", 2 * half, width)]
        turned = _slice(graph, turned, f"{name}/part", 0, 2 * half)
    first = _slice(graph, turned, f"{name}/first", 0, half)
    second = _slice(graph, turned, f"{name}/second", half, 2 * half)
    minus = graph.constant("shoal/minus", np.array(-1, np.float32))
    negative = graph.add("Mul", [second, minus], f"{name}/negative")
    swapped = graph.add("Concat", [negative, first], f"{name}/swapped", axis=-1)
    straight = graph.add("Mul", [turned, cosines], f"{name}/straight")
    crossed = graph.add("Mul", [swapped, sines], f"{name}/crossed")
    rotated = graph.add("Add", [straight, crossed], f"{name}/sum")
    if rest:
        rotated = graph.add("Concat", [rotated, *rest], f"{name}/whole", axis=-1)
    return graph.add("Transpose", [rotated], f"{name}/back", perm=[0, 2, 1, 3])


def _at_positions(graph: Graph, table: str) -> str:
    """Rows of a table [positions, channels / 2] for all tokens, as [tokens, 1, 1, channels]; made once."""
    name = f"{table}/at_positions"
    if name not in graph.made:
        rows = graph.add("Gather", [table, POSITIONS], f"{table}/rows", axis=0)
        both = graph.add("Concat", [rows, rows], f"{table}/both", axis=-1)
        axes = graph.constant("shoal/middle_axes", np.array([1, 2], np.int64))
        graph.add("Unsqueeze", [both, axes], name)
    return name


def _slice(graph: Graph, value: str, name: str, start: int, stop: int) -> str:
    bounds = [graph.constant(f"shoal/at_{place}", np.array([place], np.int64)) for place in (start, stop)]
    return graph.add("Slice", [value, *bounds, graph.constant("shoal/at_3", np.array([3], np.int64))], name)


def _shape(graph: Graph, *dims: int) -> str:
    name = f"shoal/shape_{'_'.join(map(str, dims))}"
    return graph.constant(name, np.array(dims, np.int64))


def _quantize(graph: Graph, product: onnx.NodeProto) -> None:
    """Let a product read weights of 8 bits, with a scale and a zero point a column."""
    weight = product.input[1]
    name = f"{weight}/int8"
    if name not in graph.made:
        codes, scales, zeros = quantized(graph.constants[weight].T)
        inputs = [
            graph.constant(f"{name}/codes", codes),
            graph.constant(f"{name}/scales", scales),
            graph.constant(f"{name}/zeros", zeros),
        ]
        plain = graph.add("DequantizeLinear", inputs, f"{name}/plain", axis=0)
        graph.add("Transpose", [plain], name, perm=[1, 0])
    product.input[1] = name


def quantized(
    weights: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Weights [columns, channels] as codes of 8 bits, with scales and zero points [columns]."""
    low, high = np.minimum(weights.min(axis=1), 0), np.maximum(weights.max(axis=1), 0)
    scales = ((high - low) / 255).astype(np.float32)
    scales[scales == 0] = 1
    zeros = np.rint(-low / scales)
    codes = np.rint(weights / scales[:, None]) + zeros[:, None]
    return codes.clip(0, 255).astype(np.uint8), scales, zeros.clip(0, 255).astype(np.uint8)
