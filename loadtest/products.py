"""The least time that a decoder's matrix products take on this machine: the limit of its steps and prompts.

Each product with an 8-bit weight in the graph is timed by itself, by ONNX Runtime's own kernel, with the same
shape, and with as many rows as a step or a prompt has; also where OpenVINO runs the graph. What a whole run
takes beyond their sum goes to attention, to what stands between the products, and to memory that they do not
find in the CPU's caches.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from serving.onnxruntime.options import session_options
from shoal.machine import available_cpus

_PRODUCT = "MatMulIntegerToFloat"
_BIG = 64 << 20  # bytes: more than the caches of a CPU hold


def shapes_of(path: Path) -> Counter[tuple[int, int]]:
    """How often the graph multiplies by an 8-bit weight [inner, outer]."""
    graph = onnx.load(str(path), load_external_data=False).graph
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer if len(tensor.dims) == 2}
    found: Counter[tuple[int, int]] = Counter()
    for node in graph.node:
        if node.op_type == _PRODUCT and node.input[1] in weights:
            inner, outer = weights[node.input[1]]
            found[inner, outer] += 1
        elif node.op_type == "DequantizeLinear" and node.input[0] in weights:  # in OpenVINO's graph
            outer, inner = weights[node.input[0]]
            found[inner, outer] += 1
    return found


def milliseconds(path: Path, rows: Sequence[int], *, sampled: int = 0, times: int = 15) -> dict[int, float]:
    """Sum of the products' times, by how many rows they have.

    Args:
        path: an int8 graph.
        sampled: rows of the product before the vocabulary, the widest; 0: all.
        times: of each, the median counts.
    """
    shapes = shapes_of(path)
    widest = max(shapes, key=lambda shape: shape[1])
    taken = {}
    for count in rows:
        total = 0.0
        for shape, often in shapes.items():
            here = min(count, sampled) if sampled and shape == widest else count
            total += often * _median(_product(shape), here, shape[0], times)
        taken[count] = 1e3 * total
    return taken


def bandwidth(times: int = 9) -> float:
    """Bytes a second that products of one row read of a weight which no cache holds."""
    inner = 4096
    shape = (inner, _BIG // inner)
    return _BIG / _median(_product(shape), 1, inner, times)


def _product(shape: tuple[int, int]) -> onnxruntime.InferenceSession:
    """A graph of one product of 8-bit rows and an 8-bit weight, to fp32."""
    inner, outer = shape
    constants = {
        "weight": np.random.default_rng(0).integers(-64, 64, shape, np.int8),
        "row_scale": np.float32(0.01),
        "scale": np.full(outer, 0.01, np.float32),
        "zero_point": np.uint8(128),
        "zeros": np.zeros(outer, np.int8),
    }
    node = helper.make_node(
        _PRODUCT,
        ["rows", "weight", "row_scale", "scale", "zero_point", "zeros"],
        ["made"],
        domain="com.microsoft",
    )
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("rows", TensorProto.UINT8, [None, inner])],
        [helper.make_tensor_value_info("made", TensorProto.FLOAT, [None, outer])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(available_cpus()), providers=["CPUExecutionProvider"]
    )


def _median(session: Any, rows: int, inner: int, times: int) -> float:
    given = {"rows": np.full((rows, inner), 130, np.uint8)}
    session.run(None, given)
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        session.run(None, given)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
