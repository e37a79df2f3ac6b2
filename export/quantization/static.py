"""INT8 in ONNX's own terms: QuantizeLinear and DequantizeLinear (Q/DQ) around every matrix product.

Any runtime that knows Q/DQ can run it; ONNX Runtime turns each product into one of integers as it loads the
graph. The quantizer and the calibration are ONNX Runtime's (`onnxruntime.quantization`):

- **Weights**: int8, symmetric, one scale a column, 7 of their 8 bits (`reduce_range`): on a CPU without
  VNNI, products of unsigned by signed bytes saturate with the full range.
- **Activations**: uint8, one range for all tokens, found on sample input. Three ways to choose it are tried:
  the least and the largest value seen (`minmax`), the range that keeps most of the histogram's information
  (`entropy`: Migacz 2017, "8-bit Inference with TensorRT"), and the range that leaves out a few values
  (`percentile`). The one with the least error in the network's output is kept.
- Behind a LayerNormalization channels are divided by SmoothQuant's factors first, as
  `export.quantization.int8` does.

Then, while the output is not within its tolerance, products are left in fp32: those whose own quantization
costs the output the most, found by leaving out one at a time. A product with a matrix of two dimensions is
quantized; Gemm (a classifier of a few columns) and Conv are not.

TensorRT reads Q/DQ, but takes only signed activations around zero (QInt8 with `ActivationSymmetric`) and no
operators of com.microsoft: this graph, made for a CPU, is not for it.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
from onnxruntime.quantization.calibrate import HistogramCollector, TensorData, TensorsData

from export.exported import Exported
from export.graph import Graph
from export.quantization.int8 import Feed, observe, observe_ranges, smooth
from shoal.errors import ExportError
from shoal.progress import Silent

# Of a histogram over [-m, m], and levels that `entropy` tries to fit. With 2048 and 256 its search takes a
# minute for MiniLM's 24 activations; its error falls from 0.020 to 0.010, and the others' is 0.006.
BINS, LEVELS = 512, 128
# Of the values, inside the range; at 99.99 MiniLM loses three times as much cosine.
PERCENTILE = 99.999
MOST_EXCLUDED = 0.25  # of the products: with more in fp32 nothing is left to gain

METHODS = ("minmax", "entropy", "percentile")
Limits = tuple[np.float32, np.float32]


@dataclass(frozen=True)
class Judged:
    """A graph's distance from the original on sample input.

    Attributes:
        error: what should be small, such as 1 less the mean cosine.
        failures: what misses the tolerance, as figures; empty: nothing.
    """

    error: float
    failures: tuple[str, ...]

    @property
    def rank(self) -> float:
        """The error, so that a NaN is the worst."""
        return math.inf if math.isnan(self.error) else self.error


Judge = Callable[[Path], Judged]


def quantize_static(
    fused: Exported, path: Path, calibration: Sequence[Feed], judge: Judge, progress: Silent | None = None
) -> tuple[Exported, dict[str, Any]]:
    """Quantize every product with a constant matrix but those that hurt; see the module for how.

    Args:
        fused: from `optimize.fuse_around_matmuls`.
        path: where the result is written.
        calibration: inputs of the graph by name; int64 [..., tokens] of a text's with an `attention_mask`,
            or pixels float32 [n, 3, height, width].
        judge: measures a graph on input that is not in `calibration`.

    Returns:
        The graph, and for its evidence: the calibration and the error of each that was tried; the products
        in fp32 in the order in which they were left out, each with the share of the error that its own
        quantization causes and the error that remains; what the sample still fails.

    Raises:
        ExportError: there is no calibration data, or no product.
    """
    if not calibration:
        raise ExportError(
            "int8-static takes its ranges from sample input, and there is none",
            hint="fp32 and int4 need none",
        )
    progress = progress or Silent()
    with TemporaryDirectory(dir=path.parent) as scratch:
        work = Path(scratch)
        base = _smoothed(fused.path, work / "base.onnx", calibration, progress)
        ranges = _calibrate(work / "base.onnx", list(base.products()), calibration, progress)
        with progress.step("Choose among calibrations", total=len(ranges)) as advance:
            for method, limits in ranges.items():
                _quantize(base, limits, work / f"{method}.onnx")
                advance()
            search = _Search(base, work, path, judge)
            method, judged = search.best([])
        errors = {name: entry.error for name, entry in judged.items()}
        notes: dict[str, Any] = {"calibration": method, "errors": errors, "excluded": []}
        notes["failures"] = list(judged[method].failures)
        if notes["failures"]:
            notes |= search.exclude(method, judged[method], progress)
    return Exported.read(path), notes


def _smoothed(path: Path, written: Path, calibration: Sequence[Feed], progress: Silent) -> Graph:
    """The same function in fp32, its activations easier to quantize, each product with a name of its own."""
    graph = Graph(onnx.load(path))
    groups = graph.products()
    if not groups:
        raise ExportError("int8-static: the graph has no product with a constant matrix to quantize")
    ranges = observe_ranges(path, list(groups), calibration, progress, total=len(calibration))
    for activation, products in groups.items():
        producer = graph.maker(activation)
        weights = [graph.constants[node.input[1]] for node in products]
        factors, source = None, activation
        if producer.op_type == "LayerNormalization":
            source, factors = smooth(graph, producer, weights, ranges[activation], f"{activation}/smooth")
        for index, (node, weight) in enumerate(zip(products, weights, strict=True)):
            node.name = node.name or node.output[0]
            if factors is not None:
                name = f"{activation}/smooth/{index}"
                node.input[:] = [source, graph.constant(name, weight * factors[:, None])]
    graph.keep_residual_sums_apart()
    graph.save(written)
    return Graph(onnx.load(written))


def _calibrate(
    path: Path, names: Sequence[str], calibration: Sequence[Feed], progress: Silent
) -> dict[str, dict[str, Limits]]:
    """Find each activation's range by each method, padding left out."""
    collector = HistogramCollector("entropy", False, BINS, LEVELS, PERCENTILE, "same")
    # ONNX Runtime prints while it works.
    with progress.step("Find ranges on sample input", total=len(calibration) + 1) as advance:
        for activations in observe(path, names, calibration):
            with contextlib.redirect_stdout(io.StringIO()):
                collector.collect({name: [rows] for name, rows in activations.items()})
            advance()
        with contextlib.redirect_stdout(io.StringIO()):
            entropy, percentile = collector.compute_entropy(), collector.compute_percentile()
        advance()
    seen = collector.get_histogram_dict()
    minmax = {name: seen[name][2:4] for name in names}
    return {
        method: {name: (found[name][0], found[name][1]) for name in names}
        for method, found in zip(METHODS, (minmax, entropy, percentile), strict=True)
    }


def _quantize(base: Graph, limits: Mapping[str, Limits], path: Path) -> None:
    """Q/DQ around every product, through ONNX Runtime's quantizer."""
    model = onnx.ModelProto()
    model.CopyFrom(base.model)
    # The quantizer skips what it knows no type of: shape inference stops at operators of com.microsoft.
    known = {value.name for value in model.graph.value_info}
    model.graph.value_info.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in limits if name not in known
    )
    data = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in limits.items()
    }
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=True,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=_names(base),
        nodes_to_exclude=[],
        op_types_to_quantize=["MatMul"],
        # An output that is rounded too costs accuracy, and time where the next operator wants floats.
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
    )
    quantizer.quantize_model()
    onnx.save(quantizer.model.model, path)


def _names(base: Graph) -> list[str]:
    return [node.name for products in base.products().values() for node in products]


@dataclass(frozen=True)
class _Search:
    """For the products that must stay in fp32.

    Attributes:
        base: the graph in fp32.
        work: where the graph that is quantized as a whole lies, for each calibration.
        path: where the result is written, and what is tried on the way.
    """

    base: Graph
    work: Path
    path: Path
    judge: Judge

    def best(self, names: Sequence[str]) -> tuple[str, dict[str, Judged]]:
        """Leave some products in fp32; give the best calibration, whose graph is written, and all of them."""
        judged = {method: self._without(method, names) for method in METHODS}
        method = min(judged, key=lambda name: judged[name].rank)
        _write_without(self._quantized(method), self.base, names, self.path)
        return method, judged

    def exclude(self, method: str, whole: Judged, progress: Silent) -> dict[str, Any]:
        """Leave products in fp32, those that cost the most first, until the tolerance is met.

        Returns:
            The notes of `quantize_static` that change; none where no product is to blame.
        """
        names = _names(self.base)
        limit = max(1, int(MOST_EXCLUDED * len(names)))
        alone: dict[str, float] = {}
        notes: dict[str, Any] = {"excluded": []}
        with progress.step("Find products that 8 bits hurt", total=len(names) + limit) as advance:
            for name in names:
                alone[name] = self._without(method, [name]).rank
                advance()
            order = sorted((name for name in names if alone[name] < whole.rank), key=alone.__getitem__)
            if not order:
                self.best([])  # writes the graph again that is quantized as a whole
            for count, name in enumerate(order[:limit], start=1):
                method, judged = self.best(order[:count])
                left = judged[method]
                share = 1 - alone[name] / whole.error
                notes["excluded"].append({"node": name, "share_of_error": share, "error_left": left.error})
                notes |= {"calibration": method, "failures": list(left.failures)}
                advance()
                if not left.failures:
                    break
        return notes

    def _without(self, method: str, names: Sequence[str]) -> Judged:
        _write_without(self._quantized(method), self.base, names, self.path)
        return self.judge(self.path)

    def _quantized(self, method: str) -> onnx.ModelProto:
        return onnx.load(self.work / f"{method}.onnx")


def _write_without(model: onnx.ModelProto, base: Graph, names: Sequence[str], path: Path) -> None:
    """A quantized graph with some products in fp32, as they are in the base."""
    graph = Graph(model)
    before = {node.name: node for node in base.model.graph.node}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.name in names:
            activation, weight = before[node.name].input
            node.input[:] = [activation, graph.constant(weight, base.constants[weight])]
    graph.save(path)
