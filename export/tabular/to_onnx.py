"""An estimator as one ONNX graph: preprocess, predict, format.

A classifier answers `label`, STRING [batch, k], and `score`, FLOAT [batch, k]: its k likeliest classes, the
likeliest first; of equal ones the first in the estimator's order, as scikit-learn's argmax has it. A
regressor answers `prediction`, FLOAT [batch, outputs].
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder

from export.exported import MAX_IR_VERSION, Exported
from export.tabular import converters  # noqa: F401 - registers them
from export.tabular.columns import FEATURES, everything
from export.tabular.source import Estimator
from shoal.errors import ExportError

OPSET = 21
ML_OPSET = 3
TOP_K = 5
_HEAD_OPSET = 13  # the least that has TopK, Gather and Reshape as they are used here


def to_onnx(estimator: Estimator, path: Path, *, top_k: int = TOP_K) -> Exported:
    """Write the graph.

    Args:
        path: where to; its folder exists.
        top_k: most classes in an answer, at least 1.

    Raises:
        ExportError: a part of the estimator has no converter, or the result is not valid ONNX.
    """
    model = _prepared(estimator.model)
    kinds = {"FLOAT": FloatTensorType, "STRING": StringTensorType}
    if estimator.named:
        inputs = [(column.name, kinds[column.dtype]([None, 1])) for column in estimator.columns]
    else:
        inputs = [(FEATURES, FloatTensorType([None, len(estimator.columns)]))]
    try:
        made = convert_sklearn(
            model,
            initial_types=inputs,
            target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
            options={id(model): {"zipmap": False}} if estimator.classes else None,
        )
        _rename_inputs(made, {column.name: column.input for column in estimator.columns})
        if estimator.classes:
            _add_labels(made, estimator.classes, min(top_k, len(estimator.classes)))
        else:
            _add_prediction(made)
        _normalize(made)
        onnx.checker.check_model(made, full_check=True)
    except Exception as error:  # converters raise what they like, often from deep inside
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ExportError(f"{estimator.id} cannot be turned into ONNX: {reason[:300]}") from error
    onnx.save(made, path)
    return Exported.read(path)


def _prepared(model: Any) -> Any:
    """A copy that the converters read as the original behaves.

    A string tensor holds no NaN: the empty string stands for what is missing.
    """
    model = copy.deepcopy(model)
    for part in everything(model):
        if isinstance(part, SimpleImputer) and part.statistics_.dtype.kind in "OUS":
            part.missing_values = ""
        if isinstance(part, OneHotEncoder):
            part.categories_ = [_without_missing(values) for values in part.categories_]
        if hasattr(part, "get_booster"):
            part.get_booster().feature_names = None  # the converter knows columns by their number only
    return model


def _without_missing(values: NDArray) -> NDArray:
    if values.dtype.kind != "O":
        return values
    return np.array(["" if value is None or value != value else value for value in values], dtype=object)  # noqa: PLR0124


def _rename_inputs(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """From columns' names to the names on the wire."""
    inner = {entry.name for entry in model.graph.initializer} | {
        name for node in model.graph.node for name in node.output
    }
    for value in model.graph.input:
        wanted = names.get(value.name, value.name)
        if wanted in inner:  # a column may be called what a converter calls one of its values
            _rename(model, wanted, f"{wanted}__inner")
        _rename(model, value.name, wanted)
        value.name = wanted


def _rename(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == old:
                    names[position] = new
    for entry in [*model.graph.initializer, *model.graph.output]:
        if entry.name == old:
            entry.name = new


def _add_labels(model: onnx.ModelProto, classes: tuple[str, ...], k: int) -> None:
    """Probabilities [batch, classes] -> the k best with their names."""
    graph = model.graph
    probabilities = graph.output[1].name
    for name in ("label", "score"):
        _rename(model, name, f"{name}__converter")
    probabilities = graph.output[1].name if probabilities in ("label", "score") else probabilities
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([k], dtype=np.int64), "shoal_k"),
            helper.make_tensor(
                "shoal_classes", TensorProto.STRING, [len(classes)], [name.encode() for name in classes]
            ),
        ]
    )
    graph.node.extend(
        [
            helper.make_node("Cast", [probabilities], ["shoal_scores"], to=TensorProto.FLOAT),
            helper.make_node(
                "TopK", ["shoal_scores", "shoal_k"], ["score", "shoal_best"], axis=1, largest=1, sorted=1
            ),
            helper.make_node("Gather", ["shoal_classes", "shoal_best"], ["label"], axis=0),
        ]
    )
    _set_outputs(graph, [("label", TensorProto.STRING, k), ("score", TensorProto.FLOAT, k)])


def _add_prediction(model: onnx.ModelProto) -> None:
    """Predictions [batch] or [batch, outputs] -> float32 [batch, outputs]."""
    graph = model.graph
    width = _width(graph.output[0])
    _rename(model, "prediction", "prediction__converter")
    graph.initializer.append(numpy_helper.from_array(np.array([-1, width], dtype=np.int64), "shoal_shape"))
    graph.node.extend(
        [
            helper.make_node("Cast", [graph.output[0].name], ["shoal_prediction"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["shoal_prediction", "shoal_shape"], ["prediction"]),
        ]
    )
    _set_outputs(graph, [("prediction", TensorProto.FLOAT, width)])


def _width(output: onnx.ValueInfoProto) -> int:
    dims = output.type.tensor_type.shape.dim
    return dims[1].dim_value if len(dims) == 2 and dims[1].dim_value else 1


def _set_outputs(graph: onnx.GraphProto, outputs: list[tuple[str, int, int]]) -> None:
    del graph.output[:]
    graph.output.extend(
        helper.make_tensor_value_info(name, kind, ["batch", width]) for name, kind, width in outputs
    )


def _normalize(model: onnx.ModelProto) -> None:
    """One opset a domain, and no nodes that nobody reads, such as the converters' own labels."""
    versions: dict[str, int] = {"": _HEAD_OPSET}
    for entry in model.opset_import:
        versions[entry.domain] = max(entry.version, versions.get(entry.domain, 1))
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, number) for domain, number in versions.items())
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    wanted = {value.name for value in model.graph.output}
    alive: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output):
            alive.insert(0, node)
            wanted.update(node.input)
    del model.graph.node[:]
    model.graph.node.extend(alive)
    weights = [entry for entry in model.graph.initializer if entry.name in wanted]
    del model.graph.initializer[:]
    model.graph.initializer.extend(weights)
