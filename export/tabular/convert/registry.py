"""Which function converts which part of an estimator: found by its class, that of a parent, or skl2onnx's.

Each function gets the fitted part and the table it reads, and adds nodes to the graph of the context.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from export.tabular.convert.graph import Graph, Table
from serving.models.terms import Terms

Transform = Callable[["Context", Any, Table], Table]
Predict = Callable[["Context", Any, Table], str]
Delegate = Callable[["Context", Any, Table], tuple[Any, Table]]
Function = TypeVar("Function", bound=Callable[..., Any])

_TRANSFORMERS: dict[type, Transform] = {}
_CLASSIFIERS: dict[type, Predict] = {}
_REGRESSORS: dict[type, Predict] = {}
_DECISIONS: dict[type, Predict] = {}
_DELEGATES: dict[type, Delegate] = {}
# A class of somebody else's that overrides one of these is not what its parent is.
_METHODS = ("transform", "predict", "predict_proba", "decision_function")


class Fallback(Protocol):
    """Converts parts of any class; see `export.tabular.convert.fallback`."""

    transformed: Transform
    predicted: Predict
    decided: Predict


@dataclass
class Context:
    """One conversion.

    Attributes:
        texts: what is made of columns of texts before the graph, in the order of its inputs; see
            `serving.models.terms`.
        doubts: where the original itself decides by chance, in words, for those whose export is not proven.
        single: whether a part is computed in float32, because ONNX has no other for it.
        fallback: gives what converts parts that no function here converts; called when there is one.
    """

    graph: Graph
    fallback: Callable[[], Fallback]
    texts: list[Terms] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    single: bool = False

    def transform(self, part: Any, table: Table) -> Table:
        """What a fitted transformer makes of a table."""
        part = unwrapped(part)
        known: Transform | None = _find(_TRANSFORMERS, part)
        if known is None:
            known = self.fallback().transformed
        return known(self, part, table)

    def scores(self, model: Any, table: Table) -> str:
        """Probabilities [batch, classes] of a classifier."""
        return self._answer(_CLASSIFIERS, model, table)

    def values(self, model: Any, table: Table) -> str:
        """Predictions [batch, outputs] of a regressor."""
        return self._answer(_REGRESSORS, model, table)

    def decision(self, model: Any, table: Table) -> str:
        """`decision_function` of a classifier, [batch, classes], of two classes [batch, 1]."""
        return self._answer(_DECISIONS, model, table)

    def _answer(self, known: dict[type, Predict], model: Any, table: Table) -> str:
        model = unwrapped(model)
        convert, delegate = _find(known, model), _find(_DELEGATES, model)
        if convert is None and delegate is not None:
            return self._answer(known, *delegate(self, model, table))
        if convert is None:
            other = self.fallback()
            convert = other.decided if known is _DECISIONS else other.predicted
        return convert(self, model, table)


def unwrapped(model: Any) -> Any:
    """What a search for parameters or a wrapper that only holds an estimator answers with."""
    while (inner := getattr(model, "best_estimator_", None)) is not None or (
        inner := model.estimator if type(model).__name__ == "FrozenEstimator" else None
    ) is not None:
        model = inner
    return model


def transformer(*kinds: type) -> Callable[[Function], Function]:
    """The function below converts transformers of these classes: table -> table."""
    return _registered(_TRANSFORMERS, kinds)


def classifier(*kinds: type) -> Callable[[Function], Function]:
    """The function below converts classifiers of these classes: table -> probabilities."""
    return _registered(_CLASSIFIERS, kinds)


def regressor(*kinds: type) -> Callable[[Function], Function]:
    """The function below converts regressors of these classes: table -> predictions."""
    return _registered(_REGRESSORS, kinds)


def decides(*kinds: type) -> Callable[[Function], Function]:
    """The function below converts `decision_function` of classifiers of these classes."""
    return _registered(_DECISIONS, kinds)


def delegates(*kinds: type) -> Callable[[Function], Function]:
    """The function below finds the estimator that answers for these classes, and the table that it reads."""
    return _registered(_DELEGATES, kinds)


def _registered(known: dict[type, Any], kinds: tuple[type, ...]) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        known.update(dict.fromkeys(kinds, function))
        return function

    return register


def _find(known: dict[type, Any], part: Any) -> Any:
    """Find the entry of a class, or of its nearest parent."""
    for kind in type(part).__mro__:
        if kind in known:
            return known[kind]
        own = not kind.__module__.startswith(("sklearn.", "lightgbm.", "xgboost."))
        if own and any(name in vars(kind) for name in _METHODS):
            return None
    return None
