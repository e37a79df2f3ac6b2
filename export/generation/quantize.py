"""Smaller and faster decoders, in which an answer never depends on who shares the batch.

Both forms start from the fp32 graph of `to_onnx`:

- **int8**: activations uint8 with one scale a row, weights int8 with one scale a column, multiplied as
  integers; `export.quantize` says why a scale must not look at another row. Behind a norm each channel
  is divided by a factor that the weights take over (SmoothQuant, Xiao et al. 2023, arXiv:2211.10438); it
  is folded into the norm's own weight and costs nothing. Where that cannot help, behind attention and
  gates and before the vocabulary, rows are cut into parts with a scale each. Products whose input has
  single channels far beyond the rest (two of thirty behind a gate in SmolLM2) stay as they are.
- **int4**: weights of 4 bits in blocks of 16 with a zero point each, activations quantized block by
  block inside the product (ONNX Runtime's MatMulNBits); what hurts most has 8 bits instead.

int8 weights use 7 of their 8 bits. On a CPU without VNNI the integer product adds pairs of 16-bit
numbers with saturation: full range gives wrong sums there, and a model that is good where it was
measured and bad where it is served (perplexity 31.0 instead of 25.9 on an AVX2 machine).

In both the table of token vectors is int8 with one scale a token.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
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
from export.quantize import WEIGHT_MAX
from shoal.machine import available_cpus
from shoal.progress import Silent

# Weights that share one scale. In blocks of 32 the 4-bit product of one row adds in another order than that
# of several, on AVX2: answers alone and in a batch differ.
INT4_BLOCK, INT8_BLOCK = 16, 32
FLOOR = 1e-9  # keeps a row of zeros from dividing by zero
MIGRATION = 0.5  # SmoothQuant's alpha: how much of the difficulty moves from activations to weights
OUTLIERS = 200.0  # largest over median channel magnitude beyond which a row has no common scale
# Into how many parts rows are cut: before the vocabulary, behind a gate, behind attention.
HEAD_PARTS, GATE_PARTS, ATTENTION_PARTS = 4, 6, 3
TOKEN_MAX = 127
NORMS = ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization")

Products = dict[str, list[onnx.NodeProto]]


def quantize_int8(
    exported: Exported, path: Path, calibration: Sequence[Sequence[int]], progress: Silent
) -> Exported:
    """Quantize the token vectors and the products with a constant matrix; see the module.

    Args:
        calibration: token ids of sample text, each a window of its own.
    """
    model = onnx.load(exported.path)
    graph = Graph(model)
    groups: Products = defaultdict(list)
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in graph.constants:
            groups[node.input[0]].append(node)
    magnitudes = _observe(exported.path, list(groups), calibration, progress)
    with progress.step("Quantize to int8"):
        _quantize_embedding(graph)  # first: smoothing changes the projection it may be tied to
        for activation, products in groups.items():
            magnitude = magnitudes[activation]
            norm = _norm_before(graph, activation)
            parts = 1
            if products[0].output[0] == LOGITS:
                parts = _parts(len(magnitude), HEAD_PARTS)
            elif norm is not None:
                _smooth(graph, norm, products, magnitude)
            elif magnitude.max() > OUTLIERS * np.median(magnitude):
                continue
            else:
                behind = graph.producer[activation].op_type
                most = ATTENTION_PARTS if behind == "GroupQueryAttention" else GATE_PARTS
                parts = _parts(len(magnitude), most)
            _quantize_group(graph, activation, products, parts)
        save(graph.finish(), path)
    return Exported.read(path)


def quantize_int4(exported: Exported, path: Path, progress: Silent) -> Exported:
    """Quantize the token vectors, and the weights of every product; see the module."""
    with progress.step("Quantize to int4"):
        model = onnx.load(exported.path)
        graph = Graph(model)
        _quantize_embedding(graph)
        model = graph.finish()
        products = [node.name for node in model.graph.node if node.op_type == "MatMul"]
        sensitive = _sensitive(model)
        quantizer_of = _weight_quantizer()
        plan = ((4, INT4_BLOCK, set(products) - sensitive), (8, INT8_BLOCK, sensitive))
        for bits, block, chosen in plan:
            quantizer = quantizer_of(
                model,
                bits=bits,
                block_size=block,
                is_symmetric=False,
                accuracy_level=4,
                nodes_to_exclude=sorted(set(products) - chosen),
            )
            quantizer.process()
            model = quantizer.model.model
        save(model, path)
    return Exported.read(path)


def _weight_quantizer() -> Any:
    """ONNX Runtime's `MatMulNBitsQuantizer`, whose import would make every library of the process log."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    from onnxruntime.quantization import matmul_nbits_quantizer  # noqa: PLC0415

    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger(matmul_nbits_quantizer.__name__).setLevel(logging.WARNING)
    return matmul_nbits_quantizer.MatMulNBitsQuantizer


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
    return (
        behind_gates
        | {
            made.name
            for node in model.graph.node
            if node.op_type == "GroupQueryAttention"
            for name in node.input[:3]
            if (made := _product_behind(makers, name)) is not None
        }
        | {made.name for made in [_product_behind(makers, LOGITS)] if made is not None}
    )


def _product_behind(makers: dict[str, onnx.NodeProto], name: str) -> onnx.NodeProto | None:
    """The product that a value is, but for a bias, a norm or a cap put on it."""
    while name in makers and makers[name].op_type != "MatMul":
        name = next((value for value in makers[name].input if value in makers), "")
    return makers.get(name)


def _observe(
    path: Path, names: Sequence[str], calibration: Sequence[Sequence[int]], progress: Silent
) -> dict[str, NDArray[np.float32]]:
    """The largest magnitude of each channel of the named activations, on sample text."""
    model = onnx.load(path)
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    observed = path.with_name("observed.onnx")
    save(model, observed)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cpus()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(observed), options, providers=["CPUExecutionProvider"])
    observed.unlink()
    caches = [value for value in session.get_inputs() if value.name.startswith("past_key_values.")]
    empty = {v.name: np.zeros((1, v.shape[1], 0, v.shape[3]), np.float32) for v in caches}
    seen: dict[str, NDArray[np.float32]] = {}
    with progress.step("Calibrate int8 on sample text", total=len(calibration)) as advance:
        for window in calibration:
            feed = empty | {
                INPUT_IDS: np.array([window], np.int64),
                PAST_LENGTHS: np.array([len(window) - 1], np.int32),
                TOTAL_LENGTH: np.array(len(window), np.int32),
                LOGIT_ROWS: np.arange(len(window), dtype=np.int64),
            }
            for name, value in zip(names, session.run(list(names), feed), strict=True):
                largest = np.abs(value).reshape(-1, value.shape[-1]).max(axis=0)
                seen[name] = np.maximum(seen[name], largest) if name in seen else largest
            advance()
    return seen


def _norm_before(graph: Graph, activation: str) -> onnx.NodeProto | None:
    """The norm whose output, perhaps reshaped or picked from, an activation is."""
    node = graph.producer.get(activation)
    while node is not None and node.op_type in ("Gather", "Reshape"):
        node = graph.producer.get(node.input[0])
    return node if node is not None and node.op_type in NORMS else None


def _smooth(
    graph: Graph, norm: onnx.NodeProto, products: Sequence[onnx.NodeProto], seen: NDArray[np.float32]
) -> None:
    """Divide a norm's channels by SmoothQuant's factors, and multiply the weights behind it by them."""
    by_weights = np.max([np.abs(graph.constants[node.input[1]]).max(axis=1) for node in products], axis=0)
    factors = np.maximum(seen, 1e-5) ** MIGRATION / np.maximum(by_weights, 1e-5) ** (1 - MIGRATION)
    factors = (factors / np.exp(np.log(factors).mean())).astype(np.float32)
    gamma = norm.input[-1]
    graph.replace(gamma, graph.constants[gamma] / factors)
    for node in products:
        graph.replace(node.input[1], graph.constants[node.input[1]] * factors[:, None])


def _quantize_group(graph: Graph, activation: str, products: Sequence[onnx.NodeProto], parts: int) -> None:
    """Quantize the products that read one activation: it is quantized once for all of them.

    Args:
        parts: into how many the rows, and the weights' columns, are cut, each with a scale of its own.
    """
    prefix = f"{activation}/int8"
    rows = activation
    if parts > 1:
        length = graph.constants[products[0].input[1]].shape[0] // parts
        lead = [0] if products[0].output[0] == LOGITS else [0, 0]  # rows that are sampled, or [batch, tokens]
        shape = graph.constant(f"int8/shape_{len(lead)}_{parts}_{length}", np.array([*lead, parts, length]))
        rows = graph.add("Reshape", [activation, shape], f"{prefix}/parts")
    absolute = graph.add("Abs", [rows], f"{prefix}/absolute")
    last = graph.constant("int8/last_axis", np.array([-1], np.int64))
    largest = graph.add("ReduceMax", [absolute, last], f"{prefix}/largest", keepdims=1)
    floor = graph.constant("int8/floor", np.float32(FLOOR))
    magnitude = graph.add("Max", [largest, floor], f"{prefix}/magnitude")
    normalized = graph.add("Div", [rows, magnitude], f"{prefix}/normalized")
    scale = graph.constant("int8/row_scale", np.float32(1 / 127))
    zero = graph.constant("int8/zero_point", np.uint8(128))
    codes = graph.add("QuantizeLinear", [normalized, scale, zero], f"{prefix}/codes")
    pairs = [(codes, magnitude)]
    if parts > 1:
        pairs = [(f"{codes}/{number}", f"{magnitude}/{number}") for number in range(parts)]
        graph.add_many("Split", [codes], [pair[0] for pair in pairs], axis=-2, num_outputs=parts)
        graph.add_many("Split", [magnitude], [pair[1] for pair in pairs], axis=-2, num_outputs=parts)
    for node in products:
        graph.drop(node)
        scaled = []
        for number, weight in enumerate(np.split(graph.constants[node.input[1]], parts)):
            name = f"{node.input[1]}/{number}"
            columns = _scales(weight, 0, WEIGHT_MAX)
            operands = [
                pairs[number][0],
                graph.constant(f"{name}/int8", np.rint(weight / columns).astype(np.int8)),
                scale,
                graph.constant(f"{name}/columns", columns),
                zero,
                graph.constant(f"int8/zeros_{weight.shape[1]}", np.zeros(weight.shape[1], np.int8)),
            ]
            product = graph.add("MatMulIntegerToFloat", operands, f"{name}/product", domain=CONTRIB)
            output = node.output[0] if parts == 1 else f"{name}/scaled"
            scaled.append(graph.add("Mul", [product, pairs[number][1]], output))
        if parts > 1:
            total = graph.add("Sum", scaled, f"{node.input[1]}/sum")
            axis = graph.constant("int8/part_axis", np.array([-2], np.int64))
            graph.add("Squeeze", [total, axis], node.output[0])


def _quantize_embedding(graph: Graph) -> None:
    """The table of token vectors as int8, one scale a token; a tied table is found behind its Transpose."""
    nodes = graph.model.graph.node
    (gather,) = (node for node in nodes if node.op_type == "Gather" and INPUT_IDS in node.input)
    tied = graph.producer.get(gather.input[0])
    table = graph.constants[gather.input[0]] if tied is None else graph.constants[tied.input[0]].T
    scales = _scales(table, 1, TOKEN_MAX)[:, None]
    graph.drop(gather)
    codes = graph.constant("int8/tokens", np.rint(table / scales).astype(np.int8))
    row = graph.add("Gather", [codes, INPUT_IDS], "int8/token")
    factor = graph.add("Gather", [graph.constant("int8/token_scales", scales), INPUT_IDS], "int8/token_scale")
    cast = graph.add("Cast", [row], "int8/token_cast", to=TensorProto.FLOAT)
    graph.add("Mul", [cast, factor], gather.output[0])


def _parts(channels: int, most: int) -> int:
    """The largest number of equal parts, at most `most`."""
    return next(parts for parts in range(most, 0, -1) if channels % parts == 0)


def _scales(weight: NDArray[np.float32], axis: int, most: int) -> NDArray[np.float32]:
    """Symmetric scales over an axis."""
    largest = np.abs(weight).max(axis=axis) / most
    return np.maximum(largest, np.finfo(np.float32).tiny).astype(np.float32)
