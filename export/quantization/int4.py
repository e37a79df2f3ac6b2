"""Weights of 4 bits, through ONNX Runtime's `MatMulNBits`: for memory, where INT8 is for speed.

Weights stand in blocks that share a scale and a zero point. What hurts most has 8 bits instead: in an encoder
the products that make queries, keys and values, which in MiniLM cause a third of the error (1 - cosine) at
1 MB of 57. Activations are quantized to 8 bits block by block inside the product, within one row, so that an
answer does not change with its neighbours.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import onnx

from export.exported import Exported
from export.graph import Graph

# Weights that share one scale. In blocks of 32 the 4-bit product of one row adds in another order than that
# of several, on AVX2: answers alone and in a batch differ; and vectors lose a third more of their cosine.
INT4_BLOCK, INT8_BLOCK = 16, 32


def quantize_int4(fused: Exported, path: Path) -> Exported:
    """Quantize the matrix of every product of an encoder; all else, and the table of token vectors, stays
    fp32.

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
    }
    onnx.save(quantize_weights(graph.finish(), products, attending), path)
    return Exported.read(path)


def quantize_weights(
    model: onnx.ModelProto, products: Collection[str], sensitive: Collection[str]
) -> onnx.ModelProto:
    """Quantize the matrices of products to 4 bits, and those of some to 8.

    Args:
        products: names of the nodes.
        sensitive: those that get 8 bits; other names among them do not count.
    """
    eight = set(products).intersection(sensitive)
    for bits, block, others in ((4, INT4_BLOCK, eight), (8, INT8_BLOCK, set(products) - eight)):
        library = _quantizer()
        # ONNX Runtime 1.23, the last for Python 3.10, takes `bits` here and not in the quantizer.
        config = library.DefaultWeightOnlyQuantConfig(
            block_size=block, is_symmetric=False, accuracy_level=4, bits=bits
        )
        quantizer = library.MatMulNBitsQuantizer(model, nodes_to_exclude=sorted(others), algo_config=config)
        quantizer.process()
        model = quantizer.model.model
    return model


def _quantizer() -> Any:
    """The module of `MatMulNBitsQuantizer`; its import alone would make every library of the process log."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    from onnxruntime.quantization import matmul_nbits_quantizer  # noqa: PLC0415

    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger(matmul_nbits_quantizer.__name__).setLevel(logging.WARNING)
    return matmul_nbits_quantizer
