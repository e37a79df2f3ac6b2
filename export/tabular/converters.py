"""Where skl2onnx and onnxmltools would answer differently from the original, their converters corrected.

- Scalers compute in float64, as scikit-learn does. In float32 a value lands beside a tree's threshold, or
  loses its digits where a column's mean is large against its spread.
- A missing value goes down a scikit-learn tree as the tree says; skl2onnx sends it to the right always.
- The trees of a forest vote with whole numbers and the sum is divided, as scikit-learn does. Summed as
  hundredths in float32, an even vote is no longer even, and depends on the order of the sum.

Thresholds of boosters stay rounded to the nearest float32, as the rows are on the wire: a value that lies
on a threshold, as decimals often do, then lies on it still (rounding is monotone). Rounding thresholds down
would be exact for values that are float32 by nature, and wrong for these.

Importing the module registers the converters for this process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightgbm
import numpy as np
import xgboost
from numpy.typing import NDArray
from onnx import TensorProto
from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm
from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost
from skl2onnx import update_registered_converter
from skl2onnx.common._registration import get_converter, register_converter
from skl2onnx.common.shape_calculator import (
    calculate_linear_classifier_output_shapes,
    calculate_linear_regressor_output_shapes,
)
from skl2onnx.operator_converters.common import concatenate_variables
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler

from export.tabular.loading import NativeLightGBMClassifier, NativeLightGBMRegressor

Converter = Callable[[Any, Any, Any], None]
_SCALERS = ("SklearnScaler", "SklearnRobustScaler", "SklearnMaxAbsScaler", "SklearnMinMaxScaler")
_FORESTS = (
    "DecisionTreeClassifier",
    "DecisionTreeRegressor",
    "ExtraTreesClassifier",
    "ExtraTreesRegressor",
    "RandomForestClassifier",
    "RandomForestRegressor",
)


class _Corrected:
    """A container of nodes that corrects the ensemble of scikit-learn's trees on its way in."""

    def __init__(self, scope: Any, container: Any, trees: list[Any]) -> None:
        self._scope, self._container, self._trees = scope, container, trees

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def add_node(self, op_type: str, inputs: Any, outputs: Any, **attributes: Any) -> None:
        left = np.concatenate([tree.missing_go_to_left for tree in self._trees]).astype(np.int64)
        ours = op_type.startswith("TreeEnsemble") and len(attributes["nodes_nodeids"]) == len(left)
        if ours:
            attributes["nodes_missing_value_tracks_true"] = left.tolist()
        if not (ours and op_type == "TreeEnsembleClassifier"):
            self._container.add_node(op_type, inputs, outputs, **attributes)
            return
        label, shares = outputs
        votes = self._scope.get_unique_variable_name("votes")
        _whole_votes(attributes, len(self._trees))
        self._container.add_node(op_type, inputs, [label, votes], **attributes)
        voters = self._scope.get_unique_variable_name("voters")
        self._container.add_initializer(voters, TensorProto.FLOAT, [1], [float(len(self._trees))])
        self._container.add_node("Div", [votes, voters], shares, op_version=13)


def _whole_votes(attributes: dict[str, Any], count: int) -> None:
    """Leaf weights of `count` trees, divided by it -> not divided; of two classes, one for each."""
    weights = np.asarray(attributes["class_weights"], dtype=np.float64) * count
    rounded = np.round(weights)
    # What was divided in float32 does not come back whole by itself.
    weights = np.where(np.abs(weights - rounded) < 1e-6, rounded, weights)
    if not any(attributes["class_ids"]):  # of two classes only the second has a weight
        for key in ("class_treeids", "class_nodeids"):
            attributes[key] = np.repeat(attributes[key], 2).tolist()
        attributes["class_ids"] = [0, 1] * len(weights)
        weights = np.column_stack([1 - weights, weights]).ravel()
    attributes["class_weights"] = weights.tolist()


def _scaler(scope: Any, operator: Any, container: Any) -> None:
    """(x - offset) / scale, or x * scale + offset, in float64; one step of rounding at the end."""
    model = operator.raw_operator
    steps: list[tuple[str, NDArray | float | None]] = []
    if isinstance(model, StandardScaler):
        steps = [("Sub", model.mean_ if model.with_mean else None), ("Div", model.scale_)]
    elif isinstance(model, RobustScaler):
        steps = [("Sub", model.center_), ("Div", model.scale_)]
    elif isinstance(model, MaxAbsScaler):
        steps = [("Div", model.scale_)]
    elif isinstance(model, MinMaxScaler):
        steps = [("Mul", model.scale_), ("Add", model.min_)]
        if model.clip:
            steps += [("Max", model.feature_range[0]), ("Min", model.feature_range[1])]
    value = concatenate_variables(scope, operator.inputs, container)
    value = _node(scope, container, "Cast", [value], to=TensorProto.DOUBLE)
    for op, constant in steps:
        if constant is None:
            continue
        numbers = np.atleast_1d(np.asarray(constant, dtype=np.float64))
        name = scope.get_unique_variable_name("scaler")
        container.add_initializer(name, TensorProto.DOUBLE, list(numbers.shape), numbers.tolist())
        value = _node(scope, container, op, [value, name])
    container.add_node("Cast", [value], operator.outputs[0].full_name, to=TensorProto.FLOAT, op_version=13)


def _node(scope: Any, container: Any, op: str, inputs: list[str], **attributes: Any) -> str:
    output = str(scope.get_unique_variable_name(op.lower()))
    container.add_node(op, inputs, output, op_version=13, **attributes)
    return output


def _trees(original: Any) -> Converter:
    def convert(scope: Any, operator: Any, container: Any) -> None:
        model = operator.raw_operator
        trees = [tree.tree_ for tree in np.ravel(getattr(model, "estimators_", [model]))]
        original(scope, operator, _Corrected(scope, container, trees))

    return convert


def _lightgbm(scope: Any, operator: Any, container: Any) -> None:
    convert_lightgbm(scope, operator, container)


def _xgboost(scope: Any, operator: Any, container: Any) -> None:
    convert_xgboost(scope, operator, container)


def _register() -> None:
    for name in _SCALERS:
        options = get_converter(name).get_allowed_options()
        register_converter(name, _scaler, overwrite=True, options=options)
    for name in _FORESTS:
        known = get_converter(f"Sklearn{name}")
        options = known.get_allowed_options()
        register_converter(f"Sklearn{name}", _trees(known), overwrite=True, options=options)
    choices = {"nocl": [True, False], "zipmap": [True, False, "columns"]}
    boosters: list[tuple[type, Converter, bool]] = [
        (xgboost.XGBClassifier, _xgboost, True),
        (xgboost.XGBRegressor, _xgboost, False),
        (lightgbm.LGBMClassifier, _lightgbm, True),
        (lightgbm.LGBMRegressor, _lightgbm, False),
        (NativeLightGBMClassifier, _lightgbm, True),
        (NativeLightGBMRegressor, _lightgbm, False),
    ]
    for kind, convert, classifies in boosters:
        update_registered_converter(
            kind,
            f"Shoal{kind.__name__}",
            calculate_linear_classifier_output_shapes
            if classifies
            else calculate_linear_regressor_output_shapes,
            convert,
            options=choices if classifies else None,
        )


_register()
