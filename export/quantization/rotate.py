"""Turns the residual stream of a decoder by a random orthogonal matrix; what it computes stays the same.

Trained decoders keep a few channels of the stream far larger than the rest, and one scale for a row of
8-bit numbers then leaves little for the others. After a rotation every channel holds a bit of every
other: rows look Gaussian, and a row's largest value is some three times its mean magnitude. The matrix
is multiplied into the weights that read and write the stream, so it costs nothing at run time (QuaRot,
Ashkboos et al. 2024, arXiv:2404.00456, its first rotation; RMSNorm without a weight commutes with it).
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from export.graph import Graph

NORMS = ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization")
SEED = 0


def rotate(graph: Graph, tokens: str) -> bool:
    """Rotate in place.

    Args:
        graph: from `export.generation.to_onnx`, fp32.
        tokens: name of the input with token ids.

    Returns:
        False, and nothing is changed, where the stream is touched by anything but RMSNorms, products that
        read it behind them and products that write it (Gemma, whose blocks end in norms).
    """
    (gather,) = (node for node in graph.model.graph.node if node.op_type == "Gather" and tokens in node.input)
    norms = _norms_of_stream(graph, gather.output[0])
    if norms is None:
        return False
    readers = {norm.input[-1]: _readers(graph, norm) for norm in norms}
    writers = [graph.maker(norm.input[1]) for norm in norms if len(norm.input) > 2]
    if any(found is None for found in readers.values()) or not all(graph.is_product(w) for w in writers):
        return False
    table = graph.table(gather)
    matrix = _orthogonal(table.shape[1])
    # The head gets weights of its own: it takes over the last norm's weight, which the table must not.
    gather.input[0] = graph.constant("rotated/tokens", (table @ matrix).astype(np.float32))
    for gamma, products in readers.items():
        for node in products or []:
            weight = graph.constants[node.input[1]]
            turned = matrix.T @ (graph.constants[gamma][:, None] * weight)
            node.input[1] = graph.constant(f"rotated/{node.input[1]}", turned.astype(np.float32))
        graph.replace(gamma, np.ones_like(graph.constants[gamma]))
    for node in writers:
        turned = graph.constants[node.input[1]] @ matrix
        node.input[1] = graph.constant(f"rotated/{node.input[1]}", turned.astype(np.float32))
    return True


def _orthogonal(width: int) -> NDArray[np.float64]:
    """A random rotation [width, width], the same every time."""
    gaussian = np.random.default_rng(SEED).normal(size=(width, width))
    return np.linalg.qr(gaussian)[0].astype(np.float64)


def _norms_of_stream(graph: Graph, start: str) -> list[onnx.NodeProto] | None:
    """The norms that read the stream, from the token vectors on; None where anything else does."""
    norms: list[onnx.NodeProto] = []
    pending = [start]
    while pending:
        for node in graph.consumers[pending.pop()]:
            if node.op_type not in NORMS:
                return None
            norms.append(node)
            pending += [name for name in node.output[3:4] if name]
    return norms


def _readers(graph: Graph, norm: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """The products that read a norm, perhaps reshaped or picked from; None where anything else does."""
    products: list[onnx.NodeProto] = []
    pending = [norm.output[0]]
    while pending:
        for node in graph.consumers[pending.pop()]:
            if graph.is_product(node):
                products.append(node)
            elif node.op_type in ("Reshape", "Gather"):
                pending.append(node.output[0])
            else:
                return None
    return products
