"""Smaller and faster decoders, in which an answer never depends on who shares the batch.

Both forms start from the fp32 graph of `to_onnx`:

- **int8**: activations uint8 with one scale a row, weights int8 with one scale a column, multiplied as
  integers; `export.quantization.int8` says why a scale must not look at another row. Four things, none of
  which costs a step anything, keep it close to the original: the residual stream is rotated (`rotate`);
  behind attention and gates, channels are divided by factors that the products before take over (SmoothQuant,
  Xiao et al. 2023, arXiv:2211.10438); weights are rounded so that errors cancel (`rounding`); and both
  are chosen on text that the model itself has written, beside documentation.
- **int4**: weights of 4 bits in blocks of 16 with a zero point each, activations quantized block by
  block inside the product (ONNX Runtime's MatMulNBits); what hurts most has 8 bits instead.

int8 weights use 7 of their 8 bits. On a CPU without VNNI the integer product adds pairs of 16-bit
numbers with saturation: full range gives wrong sums there, and a model that is good where it was
measured and bad where it is served (perplexity 31.0 instead of 25.9 on an AVX2 machine).

In both the table of token vectors is int8 with one scale a token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.exported import Exported
from export.generation.to_onnx import (
    INPUT_IDS,
    LOGIT_ROWS,
    LOGITS,
    PAST_LENGTHS,
    TOTAL_LENGTH,
    save,
)
from export.graph import CONTRIB, Graph
from export.quantization.int4 import quantize_weights
from export.quantization.int8 import (
    WEIGHT_MAX,
    quantize_table,
    smoothing_factors,
    symmetric_scales,
    token_gathers,
)
from export.quantization.rotate import rotate
from export.quantization.rounding import round_with_gram
from serving.onnxruntime.sessions import measured_session
from shoal.machine import available_cpus
from shoal.progress import Silent

MIGRATION = 0.3  # SmoothQuant's alpha: how much of the difficulty moves from activations to weights
GRAM_BYTES = 2 << 30  # of sample statistics that are held at once


@dataclass
class _Seen:
    """What one activation is on sample text: each channel's largest magnitude, and the sum of x xT."""

    magnitude: NDArray[np.float32]
    gram: NDArray[np.float32]

    def add(self, rows: NDArray[np.float32]) -> None:
        np.maximum(self.magnitude, np.abs(rows).max(axis=0), out=self.magnitude)
        self.gram += rows.T @ rows


def quantize_int8(
    exported: Exported, path: Path, calibration: Sequence[Sequence[int]], progress: Silent
) -> Exported:
    """Quantize the token vectors and the products with a constant matrix; see the module.

    Args:
        calibration: token ids of sample text, each a window of its own.
    """
    graph = Graph(onnx.load(exported.path))
    rotate(graph, INPUT_IDS)
    with TemporaryDirectory(dir=path.parent) as scratch:
        graph, session = _opened(graph.finish(), Path(scratch) / "rotated.onnx")
    groups = graph.products()
    quantize_embedding(graph)
    widths = {name: len(graph.constants[products[0].input[1]]) for name, products in groups.items()}
    parts = _within(GRAM_BYTES, widths)
    steps = len(parts) * len(calibration) + len(groups)
    with progress.step("Quantize to int8, on sample text", total=steps) as advance:
        # The last layers first: a factor changes the product before, which is not yet quantized then.
        for names in reversed(parts):
            seen = _observe(session, names, widths, calibration, advance)
            for name in reversed(names):
                found = seen.pop(name)
                _smooth(graph, name, groups[name], found)
                _quantize_group(graph, name, groups[name], found.gram)
                advance()
        save(graph.finish(), path)
    return Exported.read(path)


def quantize_int4(exported: Exported, path: Path, progress: Silent) -> Exported:
    """Quantize the token vectors, and the weights of every product; see the module."""
    with progress.step("Quantize to int4"):
        graph = Graph(onnx.load(exported.path))
        quantize_embedding(graph)
        model = graph.finish()
        products = [node.name for node in model.graph.node if node.op_type == "MatMul"]
        model = quantize_weights(model, products, _sensitive(model))
        save(model, path)
    return Exported.read(path)


def _sensitive(model: onnx.ModelProto) -> set[str]:
    """Products that hurt most in 4 bits. In SmolLM2-135M, alone: those that make queries, keys and values
    raise perplexity by 9 %, those behind a feed-forward gate by 8 %, each of the others by 1 to 3 %; the
    projection to the vocabulary has no equal in any answer.
    """
    makers = {name: node for node in model.graph.node for name in node.output if name}
    behind_gates = {
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[0] in makers and makers[node.input[0]].op_type == "Mul"
    }
    attentions = (node for node in model.graph.node if node.op_type == "GroupQueryAttention")
    read = [LOGITS, *(name for node in attentions for name in node.input[:3])]
    made = (_product_behind(makers, name) for name in read)
    return behind_gates | {node.name for node in made if node is not None}


def _product_behind(makers: dict[str, onnx.NodeProto], name: str) -> onnx.NodeProto | None:
    """The product that a value is, but for a bias, a norm or a cap put on it."""
    while name in makers and makers[name].op_type != "MatMul":
        name = next((value for value in makers[name].input if value in makers), "")
    return makers.get(name)


def _within(size: int, widths: Mapping[str, int]) -> list[list[str]]:
    """Activations in their order, cut into parts whose Gram matrices fit `size` bytes together."""
    parts: list[list[str]] = [[]]
    used = 0
    for name, width in widths.items():
        needed = 4 * width * width
        if parts[-1] and used + needed > size:
            parts.append([])
            used = 0
        parts[-1].append(name)
        used += needed
    return parts


def _opened(model: onnx.ModelProto, path: Path) -> tuple[Graph, onnxruntime.InferenceSession]:
    """A graph, and a session that also gives what its products read.

    Args:
        path: a file to write, needed no more afterwards.
    """
    outputs = len(model.graph.output)
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in Graph(model).products()
    )
    save(model, path)
    session = measured_session(path, threads=available_cpus())
    model = onnx.load(path)  # again: weights that were saved apart are no longer in it
    del model.graph.output[outputs:]
    return Graph(model), session


def _observe(
    session: onnxruntime.InferenceSession,
    names: Sequence[str],
    widths: Mapping[str, int],
    calibration: Sequence[Sequence[int]],
    advance: Callable[[], Any],
) -> dict[str, _Seen]:
    """What the named activations are on sample text."""
    caches = [value for value in session.get_inputs() if value.name.startswith("past_key_values.")]
    empty = {v.name: np.zeros((1, v.shape[1], 0, v.shape[3]), np.float32) for v in caches}
    seen = {
        name: _Seen(np.zeros(widths[name], np.float32), np.zeros((widths[name], widths[name]), np.float32))
        for name in names
    }
    for window in calibration:
        feed = empty | {
            INPUT_IDS: np.array([window], np.int64),
            PAST_LENGTHS: np.array([len(window) - 1], np.int32),
            TOTAL_LENGTH: np.array(len(window), np.int32),
            LOGIT_ROWS: np.arange(len(window), dtype=np.int64),
        }
        for name, value in zip(names, session.run(list(names), feed), strict=True):
            seen[name].add(value.reshape(-1, value.shape[-1]))
        advance()
    return seen


def _smooth(graph: Graph, activation: str, products: Sequence[onnx.NodeProto], seen: _Seen) -> None:
    """Divide an activation's channels by SmoothQuant's factors, where a product before can do it.

    Behind a gate that is the product the gate is multiplied with; behind attention the one that makes the
    values, whose heads are each read by several of the attention's.
    """
    found = _linear_before(graph, activation)
    if found is None or len(products) > 1:
        return
    before, first, sharing, head = found
    weight = graph.constants[products[0].input[1]]
    heads = (-1, sharing, head)
    magnitude, by_weights = (
        values.reshape(heads).max(axis=1).ravel() for values in (seen.magnitude, np.abs(weight).max(axis=1))
    )
    factors = smoothing_factors(magnitude, by_weights, MIGRATION)
    maker = graph.constants[before.input[1]].copy()
    maker[:, first:] /= factors
    graph.replace(before.input[1], maker)
    spread = np.repeat(factors.reshape(-1, 1, head), sharing, axis=1).ravel()
    graph.replace(products[0].input[1], weight * spread[:, None])
    seen.gram /= np.outer(spread, spread)


def _linear_before(graph: Graph, activation: str) -> tuple[onnx.NodeProto, int, int, int] | None:
    """The product whose columns, from one on, an activation's channels are proportional to.

    Returns:
        The product, its first such column, how many heads share one of its heads, and a head's width;
        None where there is no such product.
    """
    node = graph.maker(activation)
    if node.op_type == "Mul":
        for name in node.input:
            before = graph.maker(name)
            if graph.is_product(before) and len(graph.consumers[name]) == 1:
                return before, 0, 1, graph.constants[before.input[1]].shape[1]
    if node.op_type == "GroupQueryAttention":
        numbers = {attribute.name: attribute.i for attribute in node.attribute}
        heads, shared = numbers["num_heads"], numbers["kv_num_heads"]
        before = graph.maker(node.input[2] or node.input[0])
        if graph.is_product(before):
            columns = graph.constants[before.input[1]].shape[1]
            # Queries, keys and values in one product, or values alone.
            head = columns // shared if node.input[2] else columns // (heads + 2 * shared)
            return before, columns - shared * head, heads // shared, head
    return None


def _quantize_group(
    graph: Graph, activation: str, products: Sequence[onnx.NodeProto], gram: NDArray[np.float32]
) -> None:
    """Quantize the products that read one activation, as one product.

    A row of zeros is divided by its magnitude, zero; what that gives is multiplied by zero in the end.
    """
    prefix = f"{activation}/int8"
    absolute = graph.add("Abs", [activation], f"{prefix}/absolute")
    last = graph.constant("int8/last_axis", np.array([-1], np.int64))
    magnitude = graph.add("ReduceMax", [absolute, last], f"{prefix}/magnitude", keepdims=1)
    normalized = graph.add("Div", [activation, magnitude], f"{prefix}/normalized")
    scale = graph.constant("int8/row_scale", np.float32(1 / 127))
    zero = graph.constant("int8/zero_point", np.uint8(128))
    codes = graph.add("QuantizeLinear", [normalized, scale, zero], f"{prefix}/codes")
    weights = [graph.constants[node.input[1]] for node in products]
    weight = np.concatenate(weights, axis=1)
    columns = symmetric_scales(weight, 0, WEIGHT_MAX)
    operands = [
        codes,
        graph.constant(f"{prefix}/weight", round_with_gram(weight, columns, WEIGHT_MAX, gram)),
        scale,
        graph.constant(f"{prefix}/columns", columns),
        zero,
        graph.constant(f"int8/zeros_{len(columns)}", np.zeros(len(columns), np.int8)),
    ]
    product = graph.add("MatMulIntegerToFloat", operands, f"{prefix}/product", domain=CONTRIB)
    outputs = [node.output[0] for node in products]
    for node in products:
        graph.drop(node)
    alone = len(products) == 1
    scaled = graph.add("Mul", [product, magnitude], outputs[0] if alone else f"{prefix}/scaled")
    if alone:
        return
    sizes = graph.constant(f"{prefix}/sizes", np.array([w.shape[1] for w in weights], np.int64))
    graph.add_many("Split", [scaled, sizes], outputs, axis=-1)


def quantize_embedding(graph: Graph) -> None:
    """The table of token vectors."""
    (gather,) = token_gathers(graph)
    quantize_table(graph, gather)
