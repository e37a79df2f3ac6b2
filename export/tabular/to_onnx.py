"""An estimator as one ONNX graph: preprocess, predict, format.

A classifier answers `label`, STRING [batch, k], and `score`, FLOAT [batch, k]: its k likeliest classes, the
likeliest first; of equal ones the first in the estimator's order, as scikit-learn's argmax has it. A
regressor answers `prediction`, FLOAT [batch, outputs].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.exported import MAX_IR_VERSION, Exported
from export.tabular import convert  # noqa: F401 - registers the conversions
from export.tabular.columns import CATEGORY, DOCUMENT, Column, Rows
from export.tabular.convert.graph import ML, Block, Dense, Document, Graph, Table
from export.tabular.convert.registry import Context
from export.tabular.estimator import Estimator
from serving.models.terms import Terms
from serving.onnxruntime.sessions import measured_session
from shoal.errors import ExportError
from shoal.wire import FEATURES

TOP_K = 5
# Types of numbers on the wire.
FLOAT, DOUBLE = "FLOAT", "DOUBLE"
# A float64 has 52 bits behind the first, a float32 has 23: a few of the last are left to chance.
_LAST_BITS, _LAST_SINGLE_BITS = 2.0**-50, 2.0**-18


@dataclass(frozen=True)
class Network:
    """A graph and what stands before it.

    Attributes:
        texts: what is counted in columns of texts before the graph, in the order of its inputs.
        doubts: where the original itself decides by chance, in words.
        blur: share of a number by which its last bits, where something is decided by them, may not be the
            original's; 0: they are.
    """

    exported: Exported
    texts: tuple[Terms, ...] = ()
    doubts: tuple[str, ...] = ()
    blur: float = 0.0


def to_onnx(estimator: Estimator, path: Path, *, top_k: int = TOP_K, numbers: str = FLOAT) -> Network:
    """Write the graph.

    Args:
        path: where to; its folder exists.
        top_k: most classes in an answer, at least 1.
        numbers: `FLOAT` or `DOUBLE`: as what the wire carries numbers.

    Raises:
        ExportError: a part of the estimator has no conversion, or the result is not valid ONNX.
    """
    context = Context(Graph(), _fallback)
    table = _table(context.graph, estimator, numbers)
    try:
        predict = context.scores if estimator.classes else context.values
        found = predict(estimator.model, table)
        blurred = context.graph.blurred()
        made = context.graph.model(_answered(context.graph, found, estimator.classes, top_k))
        made.ir_version = min(made.ir_version, MAX_IR_VERSION)
        onnx.checker.check_model(made)
        onnx.save(made, path)
        _settle_width(made, path)
    except ExportError as error:
        raise ExportError(
            f"{estimator.id} cannot be turned into ONNX: {error.message}", hint=error.hint
        ) from error
    except Exception as error:  # private parts of libraries, which differ between their versions
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ExportError(
            f"{estimator.id} cannot be turned into ONNX: {type(error).__name__}: {reason[:200]}",
            hint="docs/tasks.md lists the parts that are converted",
        ) from error
    doubts = tuple(dict.fromkeys(context.doubts))
    blur = _LAST_SINGLE_BITS if context.single else _LAST_BITS if blurred else 0.0
    return Network(Exported.read(path), tuple(context.texts), doubts, blur)


def _fallback() -> Any:
    from export.tabular.convert import fallback  # noqa: PLC0415 - skl2onnx loads slowly

    return fallback


def _settle_width(model: onnx.ModelProto, path: Path) -> None:
    """Write how many numbers a prediction has, which a row of nothing tells."""
    nothing: dict[str, NDArray] = {}
    for entry in model.graph.input:
        tensor = entry.type.tensor_type
        kind = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        empty = "" if tensor.elem_type == TensorProto.STRING else 0
        shape = [size.dim_value or 1 for size in tensor.shape.dim]
        nothing[entry.name] = np.full(shape, empty, kind)
    for value, found in zip(model.graph.output, measured_session(path).run(None, nothing), strict=True):
        value.type.tensor_type.shape.dim[1].dim_value = found.shape[1]
    onnx.save(model, path)


def on_the_wire(columns: Sequence[Column], named: bool, rows: Rows, numbers: str) -> dict[str, NDArray]:
    """Rows as a client sends them: float32 or float64 and UTF-8 bytes, [rows, columns] or [rows, 1] each."""
    kind = np.float32 if numbers == FLOAT else np.float64
    with np.errstate(over="ignore"):  # a number beyond float32 arrives as infinity
        if not named:
            made = np.column_stack([rows.values[column.name] for column in columns])
            return {FEATURES: made.astype(kind)}
        return {
            column.input: (
                rows.values[column.name].astype(kind)
                if column.kind not in (CATEGORY, DOCUMENT)
                else np.array([(text or "").encode() for text in rows.values[column.name]], dtype=object)
            )[:, None]
            for column in columns
        }


def _table(graph: Graph, estimator: Estimator, numbers: str) -> Table:
    """The estimator's table, in float64, from the graph's inputs."""
    kind = TensorProto.FLOAT if numbers == FLOAT else TensorProto.DOUBLE
    if not estimator.named:
        given = graph.input(FEATURES, kind, len(estimator.table))
        return (Dense(graph.cast(given, TensorProto.DOUBLE), len(estimator.table)),)
    blocks: list[Block] = []
    for column in estimator.table:
        if column.kind == DOCUMENT:
            blocks.append(Document(column.input))
        elif not column.input:
            blocks.append(Dense("", 1))  # which nobody reads
        elif column.kind == CATEGORY:
            given = graph.input(column.input, TensorProto.STRING, 1)
            blocks.append(Dense(_coded(graph, given, column.texts), 1, (column.texts,)))
        else:
            given = graph.input(column.input, kind, 1)
            blocks.append(Dense(graph.cast(given, TensorProto.DOUBLE), 1))
    return tuple(blocks)


def _coded(graph: Graph, given: str, texts: Sequence[str]) -> str:
    """Texts as numbers: their place among those that something is known of; -1 for others, NaN where missing.

    A missing text is the empty one on the wire.
    """
    code = graph.op(
        "LabelEncoder",
        given,
        domain=ML,
        keys_strings=[*texts, *([] if "" in texts else [""])],
        values_floats=[*map(float, range(len(texts))), *([] if "" in texts else [float("nan")])],
        default_float=-1.0,
    )
    return graph.cast(code, TensorProto.DOUBLE)


def _answered(graph: Graph, found: str, classes: tuple[str, ...], top_k: int) -> list[onnx.ValueInfoProto]:
    """Probabilities [batch, classes] -> the best with their names; predictions -> float32."""
    rounded = graph.cast(found, TensorProto.FLOAT)
    if not classes:
        return [_output(graph, rounded, "prediction", TensorProto.FLOAT, "outputs")]
    k = min(top_k, len(classes))
    best = graph.ops("TopK", rounded, graph.constant([k], np.int64), count=2, axis=1, largest=1, sorted=1)
    names = graph.op("Gather", graph.constant(np.array(classes, dtype=object), object), best[1], axis=0)
    return [
        _output(graph, names, "label", TensorProto.STRING, k),
        _output(graph, best[0], "score", TensorProto.FLOAT, k),
    ]


def _output(graph: Graph, value: str, name: str, kind: int, width: int | str) -> onnx.ValueInfoProto:
    graph.nodes.append(helper.make_node("Identity", [value], [name]))
    return helper.make_tensor_value_info(name, kind, ["batch", width])
