"""Reads a graph of `export.generation.to_openvino` into OpenVINO.

OpenVINO does not read its paged attention from a file: it makes it from other operators as it loads a model.
So the file holds an operator of ours, and this puts OpenVINO's in its place.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as ops
from openvino.frontend.onnx import ConversionExtension
from openvino.op import _PagedAttentionExtension as PagedAttention

DOMAIN, ATTENTION = "shoal", "PagedAttention"
POSITIONS, PAST, BEGINS = "positions", "past_lens", "subsequence_begins"
PAGES, PAGE_BEGINS, CONTEXT = "block_indices", "block_indices_begins", "max_context_len"
KEYS, VALUES = "key_cache.", "value_cache."
LEAST_GROUP, LARGEST_GROUP = 16, 256


def read_graph(core: openvino.Core, path: Path) -> openvino.Model:
    """The model of a file, ready to be compiled.

    Raises:
        RuntimeError: it cannot be read; OpenVINO's message says why.
    """
    core.add_extension(ConversionExtension(ATTENTION, DOMAIN, _attention))
    model = core.read_model(path)
    for parameter in model.get_parameters():
        if parameter.get_friendly_name().startswith((KEYS, VALUES)):
            # The plugin sets both by the precision that it keeps the cache in.
            parameter.set_element_type(openvino.Type.dynamic)
            parameter.set_partial_shape(openvino.PartialShape.dynamic(4))
    model.validate_nodes_and_infer_types()
    return model


def group_size(model: openvino.Model) -> int:
    """How many channels of an activation share a scale: few are closer, and many are faster.

    The largest multiple of 16, up to 256, that divides the channels of every product. 0: there is none, and
    activations stay in fp32.
    """
    channels = [
        node.input(1).get_partial_shape()[1 if node.get_attributes()["transpose_b"] else 0].get_length()
        for node in model.get_ops()
        if node.get_type_name() == "MatMul"
    ]
    common = math.gcd(*channels)
    sizes = range(LEAST_GROUP, LARGEST_GROUP + 1, LEAST_GROUP)
    return max((size for size in sizes if common and common % size == 0), default=0)


def _attention(node: Any) -> list[Any]:
    """OpenVINO's attention over pages, without its means to evict, to rotate or to score what is kept."""
    inputs = [node.get_input(index) for index in range(node.get_input_size())]
    query, key, value, keys, values, past, begins, pages, page_begins, context = inputs
    number, numbers = _constant(0, np.int32), _constant([], np.int32)
    floats, octets = _constant([], np.float32), _constant([], np.uint8)
    scale = _constant(node.get_attribute("scale"), np.float32)
    window = _constant(node.get_attribute("sliding_window"), np.int32)
    sinks = _constant(np.zeros((0, 0, 0, 0)), np.float32)
    made = PagedAttention(
        [
            *(query, key, value, keys, values, past, begins, pages, page_begins),
            *(scale, window, floats, context),
            *(numbers, numbers, numbers, floats),  # the window of scores; rotation of what is kept
            *(floats, number, number, sinks),  # sparse attention; sinks
            *(number, numbers, numbers, numbers, numbers, octets, numbers),  # eviction; types of tokens
        ]
    )
    heads, width = node.get_attribute("kv_num_heads"), node.get_attribute("head_size")
    about = {"num_k_heads": heads, "k_head_size": width, "num_v_heads": heads, "v_head_size": width}
    for name, number_of in about.items():
        made.get_rt_info()[name] = number_of
    return [made.output(0)]


def _constant(value: Any, kind: Any) -> Any:
    return ops.constant(np.array(value, kind)).output(0)
