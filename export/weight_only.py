"""Weights of 4 bits for encoders, through ONNX Runtime's `MatMulNBits`: for memory, where INT8 is for speed.

Weights stand in blocks that share a scale and a zero point. Those that make queries, keys and values have 8
bits: in MiniLM they cause a third of the error (1 - cosine), and this costs 1 MB of 57. Activations are
quantized to 8 bits block by block inside the product, within one row, so that a text's vector does not change
with its neighbours.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from export.exported import Exported
from export.generation.quantize import INT4_BLOCK, INT8_BLOCK, weight_quantizer
from export.graph import Graph


def quantize_int4(fused: Exported, path: Path) -> Exported:
    """Quantize the matrix of every product; all else, and the table of token vectors, stays fp32.

    Args:
        fused: from `optimize.fuse_around_matmuls`.
        path: where the result is written.
    """
    graph = Graph(onnx.load(fused.path))
    graph.keep_residual_sums_apart()
    for node in graph.model.graph.node:
        node.name = node.name or node.output[0]  # the quantizer knows nodes by name
    products = {node.name for nodes in graph.products().values() for node in nodes}
    attending = {
        graph.producer[name].name
        for node in graph.model.graph.node
        if node.op_type == "MultiHeadAttention"
        for name in node.input[:3]
        if name in graph.producer
    } & products
    model = graph.finish()
    # In blocks of 32 vectors lose a third more of their cosine.
    for bits, block, others in ((4, INT4_BLOCK, attending), (8, INT8_BLOCK, products - attending)):
        quantizer = weight_quantizer()(
            model,
            bits=bits,
            block_size=block,
            is_symmetric=False,
            accuracy_level=4,
            nodes_to_exclude=sorted(others),
        )
        quantizer.process()
        model = quantizer.model.model
    onnx.save(model, path)
    return Exported.read(path)
