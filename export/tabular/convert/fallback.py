"""Parts that have no conversion here, by skl2onnx: in float64 where its converter can, else in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
from sklearn.base import is_classifier
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.svm import SVC, NuSVC

from export.tabular.convert.graph import OPSETS, Dense, Table, Unsupported, matrix, width
from export.tabular.convert.registry import Context
from serving.onnxruntime.sessions import measured_session

_DOUBTS = (
    (
        (SVC, NuSVC),
        "SVC chooses its label by its decision function, which is not always its likeliest class;"
        " CalibratedClassifierCV(SVC(), ensemble=False) chooses that",
    ),
    (
        (KNeighborsClassifier, KNeighborsRegressor),
        "which of several equally near rows count as the nearest is left to chance; a forest does without",
    ),
)
_KINDS = ((DoubleTensorType, TensorProto.DOUBLE), (FloatTensorType, TensorProto.FLOAT))


def transformed(context: Context, part: Any, table: Table) -> Table:
    """A transformer."""
    made = _inlined(context, part, table, {}, 1)[0]
    if hasattr(part, "get_feature_names_out"):
        return (Dense(made, len(part.get_feature_names_out())),)
    return (Dense(made, np.asarray(part.transform(np.zeros((1, width(table))))).shape[1]),)


def predicted(context: Context, model: Any, table: Table) -> str:
    """A classifier's probabilities, or a regressor's predictions [batch, outputs]."""
    graph = context.graph
    weights = getattr(model, "weights", "uniform")
    if isinstance(model, KNeighborsClassifier | KNeighborsRegressor) and weights != "uniform":
        named = getattr(weights, "__name__", weights)
        raise Unsupported(
            f"{type(model).__name__}(weights={named!r}) has no conversion that weighs neighbours alike",
            hint="weights='uniform', or a forest, which has no neighbours",
        )
    context.doubts += [text for kinds, text in _DOUBTS if isinstance(model, kinds)]
    if is_classifier(model):
        return _inlined(context, model, table, {"zipmap": False}, 2)[1]
    made = _inlined(context, model, table, {}, 1)[0]
    outputs = np.size(model.predict(np.zeros((1, model.n_features_in_))))
    return graph.op("Reshape", made, graph.constant([-1, outputs], np.int64))


def decided(context: Context, model: Any, table: Table) -> str:
    """A classifier's decision function."""
    made = _inlined(context, model, table, {"zipmap": False, "raw_scores": True}, 2)[1]
    return context.graph.pick(made, [1]) if len(model.classes_) == 2 else made


def _inlined(context: Context, part: Any, table: Table, options: dict[str, Any], count: int) -> list[str]:
    """The first outputs of a converted part, in float64."""
    context.single = True  # skl2onnx's converters do not tell
    graph = context.graph
    rows = matrix(graph, table)
    converted, kind = _converted(part, width(table), options)
    inner = converted.graph
    names = {inner.input[0].name: graph.cast(rows, kind)}
    for entry in inner.initializer:
        kept = onnx.TensorProto()
        kept.CopyFrom(entry)
        kept.name = names[entry.name] = graph.name()
        graph.initializers.append(kept)
    for node in inner.node:
        kept_node = onnx.NodeProto()
        kept_node.CopyFrom(node)
        del kept_node.input[:], kept_node.output[:]
        kept_node.name = ""  # which is another's, where two parts are of one kind
        kept_node.input.extend(names[name] if name else "" for name in node.input)
        for name in node.output:
            names[name] = graph.name() if name else ""
        kept_node.output.extend(names[name] for name in node.output)
        graph.nodes.append(kept_node)
    for entry in converted.opset_import:
        if entry.domain not in OPSETS:
            graph.versions[entry.domain] = entry.version
    return [graph.cast(names[value.name], TensorProto.DOUBLE) for value in inner.output[:count]]


def _converted(part: Any, columns: int, options: dict[str, Any]) -> tuple[onnx.ModelProto, int]:
    """A part as skl2onnx converts it, and the type of number that it reads."""
    for tensor, kind in _KINDS:
        try:
            made = convert_sklearn(
                part,
                initial_types=[("X", tensor([None, columns]))],
                target_opset=OPSETS,
                options={id(part): options} if options else None,
            )
            session = measured_session(made.SerializeToString())
            session.run(None, {"X": np.zeros((2, columns), np.float64 if kind == 11 else np.float32)})
        except Exception:  # noqa: BLE001, S112 - converters raise what they like, often from deep inside
            continue
        return made, kind
    if hasattr(part, "predict"):
        hint = "fit another estimator: docs/tasks.md lists those that are converted"
    else:
        hint = f"apply {type(part).__name__} to the table before, fit the rest on that and save the rest"
    raise Unsupported(f"{type(part).__name__} has no conversion to ONNX", hint=hint)
