"""INT8 in which an answer never depends on who shares the batch.

Plain dynamic quantization takes one activation scale for the whole batch, so that a text's vector
changes with its neighbours. Here every matrix product gets a scale of one of two kinds, and neither
looks at another row:

- **Static, smoothed**: where the activations come out of a LayerNormalization or an attention. Their
  range hardly moves between texts. Behind a LayerNormalization single channels hold values far larger
  than the rest, so each channel is divided by a factor that the weights take over (SmoothQuant, Xiao et
  al. 2023, arXiv:2211.10438); it is folded into a second LayerNormalization's gamma and beta.
- **Row-wise**: everywhere else, above all behind the activation function of the feed-forward block,
  where one static scale for all tokens costs the most: `m = max|x|` of each row, `x / m` quantized with
  the constant scale 1/127, the product multiplied by `m`.

The table of word vectors, half of a small encoder, is int8 with one scale a word.

In the dynamic form every scale is row-wise, and SmoothQuant's factors stay: more accurate, and slower.

Weights are symmetric int8 of 7 bits with one scale a column; activations uint8, because ONNX Runtime's
fast CPU kernels (VNNI, AMX) take unsigned activations by signed weights. docs/int8.md has the figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.exported import Exported
from export.graph import CONTRIB, Graph
from serving.onnxruntime.sessions import measured_session
from serving.parameters import IDS
from shoal.errors import ExportError
from shoal.machine import available_cpus
from shoal.progress import Silent

FLOOR = 1e-9  # keeps a row of zeros from dividing by zero
TOKEN_MAX = 127
GELU_MINIMUM = 0.17  # GELU is never below -0.16997, so a row's maximum bounds its magnitude from there on
# 7 of 8 bits: on a CPU without VNNI the integer product adds pairs of 16-bit numbers with saturation, and a
# network of full range is good where it was measured and wrong where it is served.
WEIGHT_MAX = 63
LARGE_TABLE = 1 << 20  # values; a smaller table saves too little for the two operators more
MIGRATION = 0.5  # SmoothQuant's alpha: how much of the difficulty moves from activations to weights

Feed = Mapping[str, NDArray]


@dataclass(frozen=True)
class Range:
    """Smallest and largest value seen in each channel."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @property
    def magnitude(self) -> NDArray[np.float32]:
        return np.maximum(np.maximum(-self.low, self.high), 1e-5)


def quantize_int8(
    fused: Exported,
    path: Path,
    calibration: Sequence[Feed],
    progress: Silent | None = None,
    *,
    dynamic: bool = False,
) -> Exported:
    """Quantize every product with a constant matrix, and the table of word vectors; see the module for how.

    Args:
        fused: from `optimize.fuse_around_matmuls`.
        path: where the result is written.
        calibration: inputs of the graph by name; int64 [..., tokens] of a text's, with an `attention_mask`.
        dynamic: no scale comes from `calibration`, which serves to smooth alone.

    Raises:
        ExportError: there is nothing to quantize, as in a network of convolutions.
    """
    total = len(calibration)
    graph = quantized(fused.path, calibration, progress or Silent(), total=total, dynamic=dynamic)
    for gather in token_gathers(graph):
        if graph.table(gather).size >= LARGE_TABLE:
            quantize_table(graph, gather)
    graph.save(path)
    return Exported.read(path)


def quantized(
    path: Path, calibration: Iterable[Feed], progress: Silent, *, total: int, dynamic: bool
) -> Graph:
    """A graph whose products are quantized, still to be finished; arguments as those of `quantize_int8`.

    Args:
        total: how many feeds there are in `calibration`.
    """
    graph = Graph(onnx.load(path))
    groups = graph.products()
    if not groups:
        raise ExportError("the graph has no product with a constant matrix", hint="--precision fp32")
    ranges = observe_ranges(path, list(groups), calibration, progress, total=total)
    for activation, products in groups.items():
        _quantize_group(graph, activation, products, ranges[activation], dynamic)
    graph.keep_residual_sums_apart()
    return graph


def token_gathers(graph: Graph) -> list[onnx.NodeProto]:
    """The nodes that take vectors from a table by the token ids, or by a view of them."""

    def made_from(name: str) -> str:
        node = graph.maker(name)
        return made_from(node.input[0]) if node.op_type in ("Cast", "Reshape") else name

    nodes = (node for node in graph.model.graph.node if node.op_type == "Gather")
    return [node for node in nodes if made_from(node.input[1]) == IDS]


def quantize_table(graph: Graph, gather: onnx.NodeProto) -> None:
    """Quantize a table of token vectors, in place: int8 with one scale a token.

    Args:
        gather: the node that takes vectors from the table.
    """
    table = graph.table(gather)
    scales = symmetric_scales(table, 1, TOKEN_MAX)[:, None]
    ids = gather.input[1]
    graph.drop(gather)
    codes = graph.constant("int8/tokens", np.rint(table / scales).astype(np.int8))
    row = graph.add("Gather", [codes, ids], "int8/token")
    factor = graph.add("Gather", [graph.constant("int8/token_scales", scales), ids], "int8/token_scale")
    cast = graph.add("Cast", [row], "int8/token_cast", to=TensorProto.FLOAT)
    graph.add("Mul", [cast, factor], gather.output[0])


def symmetric_scales(weight: NDArray[np.float32], axis: int, most: int) -> NDArray[np.float32]:
    """What integers in [-most, most] are multiplied by to stand for a matrix: its scales over an axis."""
    largest = np.abs(weight).max(axis=axis) / most
    return np.maximum(largest, np.finfo(np.float32).tiny).astype(np.float32)


def observe_ranges(
    path: Path, names: Sequence[str], calibration: Iterable[Feed], progress: Silent, *, total: int
) -> dict[str, Range]:
    """Run the fp32 graph on real text and keep each channel's range, padding left out.

    Args:
        total: how many feeds there are in `calibration`.
    """
    seen: dict[str, Range] = {}
    with progress.step("Calibrate INT8 on sample text", total=total) as advance:
        for activations in observe(path, names, calibration):
            for name, rows in activations.items():
                low, high = rows.min(axis=0), rows.max(axis=0)
                if before := seen.get(name):
                    low, high = np.minimum(low, before.low), np.maximum(high, before.high)
                seen[name] = Range(low, high)
            advance()
    return seen


def observe(
    path: Path, names: Sequence[str], calibration: Iterable[Feed]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Values of the fp32 graph for one feed after another, as [rows, channels], padding left out."""
    model = onnx.load(path, load_external_data=False)
    model.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
    observed = path.with_name(f"observed-{path.name}")  # beside the weights, where those are in a second file
    onnx.save(model, observed)
    session = measured_session(observed, threads=available_cpus())
    observed.unlink()
    for feed in calibration:
        values = session.run(list(names), dict(feed))
        mask = feed.get("attention_mask")
        yield {name: _real_rows(value, mask) for name, value in zip(names, values, strict=True)}


def _real_rows(value: NDArray[np.float32], mask: NDArray[np.int64] | None) -> NDArray[np.float32]:
    """Activations [..., channels] as rows; those of padding left out where they are of tokens."""
    if mask is not None and value.shape[:-1] == (mask.size // mask.shape[-1], mask.shape[-1]):
        return value[mask.reshape(value.shape[:-1]).astype(bool)]
    return value.reshape(-1, value.shape[-1])


def _quantize_group(
    graph: Graph, activation: str, products: list[onnx.NodeProto], seen: Range, dynamic: bool
) -> None:
    """Quantize the products that read one activation: it is quantized once for all of them."""
    producer = graph.maker(activation)
    weights = [graph.constants[node.input[1]] for node in products]
    prefix = f"{activation}/int8"
    quantized, row_maximum = activation, None
    if producer.op_type == "LayerNormalization":
        quantized, factors = smooth(graph, producer, weights, seen, prefix)
        weights = [weight * factors[:, None] for weight in weights]
        seen = Range(seen.low / factors, seen.high / factors)
    steady = ("LayerNormalization", "MultiHeadAttention")
    if producer.op_type in steady and not dynamic:
        scale = graph.constant(f"{prefix}/scale", np.float32(seen.magnitude.max() / 127))
    else:
        bounded = producer.op_type == "Gelu"
        quantized, row_maximum = normalize_rows(graph, quantized, prefix, bounded)
        scale = graph.constant("int8/row_scale", np.float32(1 / 127))
    zero = graph.constant("int8/zero_point", np.uint8(128))
    codes = graph.add("QuantizeLinear", [quantized, scale, zero], f"{prefix}/codes")
    for index, (node, weight) in enumerate(zip(products, weights, strict=True)):
        bias, output = graph.take_bias(node)
        name = f"{prefix}/{index}"
        columns = symmetric_scales(weight, 0, WEIGHT_MAX)
        operands = [
            codes,
            graph.constant(f"{name}/weight", np.rint(weight / columns).astype(np.int8)),
            scale,
            graph.constant(f"{name}/columns", columns),
            zero,
            graph.constant(f"{name}/zero_points", np.zeros(weight.shape[1], np.int8)),
        ]
        if row_maximum is None:
            if bias is not None:
                operands.append(graph.constant(f"{name}/bias", bias))
            graph.add("MatMulIntegerToFloat", operands, output, domain=CONTRIB)
            continue
        product = graph.add("MatMulIntegerToFloat", operands, f"{name}/product", domain=CONTRIB)
        scaled = graph.add("Mul", [product, row_maximum], output if bias is None else f"{name}/scaled")
        if bias is not None:
            # Three dimensions keep ONNX Runtime from fusing this into BiasGelu, which is slower than both.
            graph.add("Add", [scaled, graph.constant(f"{name}/bias", bias.reshape(1, 1, -1))], output)


def smooth(
    graph: Graph,
    norm: onnx.NodeProto,
    weights: Sequence[NDArray[np.float32]],
    seen: Range,
    prefix: str,
) -> tuple[str, NDArray[np.float32]]:
    """A second LayerNormalization whose channels are divided by SmoothQuant's factors.

    The first one stays, for the residual path. Returns the new output and the factors [channels].
    """
    by_weights = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    factors = smoothing_factors(seen.magnitude, by_weights, MIGRATION)
    inputs = [norm.input[0]]
    for name, role in zip(norm.input[1:], ("gamma", "beta"), strict=False):
        inputs.append(graph.constant(f"{prefix}/{role}", graph.constants[name] / factors))
    attributes = {a.name: helper.get_attribute_value(a) for a in norm.attribute}
    return graph.add(norm.op_type, inputs, f"{prefix}/smoothed", domain=norm.domain, **attributes), factors


def smoothing_factors(
    magnitude: NDArray[np.float32], by_weights: NDArray[np.float32], migration: float
) -> NDArray[np.float32]:
    """SmoothQuant's factors of channels, whose geometric mean is 1: float32 [channels].

    Args:
        magnitude: of each channel on sample input.
        by_weights: the largest weight that each channel is multiplied with.
        migration: how much of the difficulty moves from activations to weights.
    """
    factors = np.maximum(magnitude, 1e-5) ** migration / np.maximum(by_weights, 1e-5) ** (1 - migration)
    return (factors / np.exp(np.log(factors).mean())).astype(np.float32)


def normalize_rows(graph: Graph, activation: str, prefix: str, bounded: bool) -> tuple[str, str]:
    """Divide each row by its largest magnitude. Returns the rows, within [-1, 1], and the magnitudes.

    Args:
        bounded: the values are those of a GELU, so the largest value tells the magnitude.
    """
    candidates = [graph.reduce("ReduceMax", activation, f"{prefix}/highest")]
    if bounded:
        candidates.append(graph.constant("int8/gelu_minimum", np.float32(GELU_MINIMUM)))
    else:
        lowest = graph.reduce("ReduceMin", activation, f"{prefix}/lowest")
        candidates.append(graph.add("Neg", [lowest], f"{prefix}/negated"))
        candidates.append(graph.constant("int8/floor", np.float32(FLOOR)))
    magnitude = graph.add("Max", candidates, f"{prefix}/magnitude")
    return graph.add("Div", [activation, magnitude], f"{prefix}/normalized"), magnitude
