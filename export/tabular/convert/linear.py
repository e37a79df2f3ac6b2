"""Estimators that are a sum of weighted columns, or a few of them behind one another."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.linear_model._base import LinearClassifierMixin, LinearModel
from sklearn.linear_model._glm.glm import _GeneralizedLinearRegressor
from sklearn.naive_bayes import BernoulliNB, ComplementNB, GaussianNB, MultinomialNB
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.svm import LinearSVR

from export.tabular.convert.graph import Dense, Graph, Table, Unsupported, matrix
from export.tabular.convert.registry import Context, classifier, decides, regressor


@regressor(LinearModel, LinearSVR)
def _linear(context: Context, model: Any, table: Table) -> str:
    weights = np.atleast_2d(model.coef_)
    return context.graph.linear(table, weights.T, np.broadcast_to(model.intercept_, len(weights)))


@regressor(_GeneralizedLinearRegressor)
def _generalized(context: Context, model: Any, table: Table) -> str:
    raw = _linear(context, model, table)
    link = type(model._base_loss.link).__name__
    if link == "IdentityLink":
        return raw
    if link != "LogLink":
        raise Unsupported(f"{type(model).__name__} with the {link} is not known here", hint="use link='log'")
    return context.graph.op("Exp", raw)


@decides(LinearClassifierMixin)
def _decision(context: Context, model: Any, table: Table) -> str:
    return context.graph.linear(table, np.atleast_2d(model.coef_).T, model.intercept_)


@classifier(LogisticRegression)
def _logistic(context: Context, model: LogisticRegression, table: Table) -> str:
    graph, raw, classes = context.graph, _decision(context, model, table), len(model.classes_)
    each = getattr(model, "multi_class", "auto")  # gone since scikit-learn 1.8
    if classes > 2 and (each == "ovr" or model.solver == "liblinear"):
        return shares(graph, graph.op("Sigmoid", raw))
    if classes == 2 and each == "multinomial":
        raw = graph.op("Mul", raw, 2.0)
    return graph.probabilities(raw, classes)


def shares(graph: Graph, each: str, *, of_none: float = 1.0) -> str:
    """Numbers [batch, classes] divided by their sum; where that is 0, each counts as `of_none` first."""
    zero = graph.op("Equal", graph.total(each), 0.0)
    each = graph.where(zero, of_none, each)
    total = graph.where(zero, 1.0, graph.total(each)) if of_none == 0.0 else graph.total(each)
    return graph.op("Div", each, total)


@classifier(SGDClassifier)
def _descended(context: Context, model: SGDClassifier, table: Table) -> str:
    graph, raw, two = context.graph, _decision(context, model, table), len(model.classes_) == 2
    if model.loss == "log_loss":
        return graph.probabilities(raw, 2) if two else shares(graph, graph.op("Sigmoid", raw))
    clipped = graph.op("Clip", raw, -1.0, 1.0)  # modified_huber
    share = graph.op("Div", graph.op("Add", clipped, 1.0), 2.0)
    return graph.both(share) if two else shares(graph, share)


@classifier(LinearDiscriminantAnalysis)
def _discriminant(context: Context, model: LinearDiscriminantAnalysis, table: Table) -> str:
    return context.graph.probabilities(_decision(context, model, table), len(model.classes_))


@classifier(MultinomialNB)
def _multinomial(context: Context, model: MultinomialNB, table: Table) -> str:
    raw = context.graph.linear(table, model.feature_log_prob_.T, model.class_log_prior_)
    return context.graph.op("Softmax", raw, axis=1)


@classifier(ComplementNB)
def _complement(context: Context, model: ComplementNB, table: Table) -> str:
    zeros = np.zeros(len(model.classes_))
    return context.graph.op("Softmax", context.graph.linear(table, model.feature_log_prob_.T, zeros), axis=1)


@classifier(BernoulliNB)
def _bernoulli(context: Context, model: BernoulliNB, table: Table) -> str:
    graph = context.graph
    absent = np.log1p(-np.exp(model.feature_log_prob_))
    rows = matrix(graph, table)
    if model.binarize is not None:
        above = graph.op("Greater", rows, float(model.binarize))
        rows = graph.cast(above, TensorProto.DOUBLE)
    weighted = graph.op("MatMul", rows, (model.feature_log_prob_ - absent).T)
    raw = graph.op("Add", weighted, model.class_log_prior_ + absent.sum(axis=1))
    return graph.op("Softmax", raw, axis=1)


@classifier(GaussianNB)
def _gaussian(context: Context, model: GaussianNB, table: Table) -> str:
    graph, made = context.graph, []
    rows = matrix(graph, table)
    for mean, variance, prior in zip(model.theta_, model.var_, model.class_prior_, strict=True):
        apart = graph.op("Sub", rows, mean[None])
        squares = graph.op("Div", graph.op("Mul", apart, apart), variance[None])
        start = np.log(prior) - 0.5 * np.log(2.0 * np.pi * variance).sum()
        half = graph.op("Mul", graph.total(squares), -0.5)
        made.append(graph.op("Add", half, start))
    return graph.op("Softmax", graph.op("Concat", *made, axis=1), axis=1)


_ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh", "logistic": "Sigmoid"}


@regressor(MLPRegressor)
def _perceptron(context: Context, model: Any, table: Table) -> str:
    graph, value = context.graph, ""
    last = len(model.coefs_) - 1
    for index, (weights, bias) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        value = graph.linear(table, weights, bias)
        kind = model.out_activation_ if index == last else model.activation
        if kind == "softmax":
            value = graph.op("Softmax", value, axis=1)
        elif kind != "identity":
            value = graph.op(_ACTIVATIONS[kind], value)
        table = (Dense(value, len(bias)),)
    return value


@classifier(MLPClassifier)
def _perceptron_classifier(context: Context, model: MLPClassifier, table: Table) -> str:
    made = _perceptron(context, model, table)
    return made if model.n_outputs_ > 1 else context.graph.both(made)


@classifier(DummyClassifier)
def _constant_classifier(context: Context, model: DummyClassifier, table: Table) -> str:
    if model.strategy not in ("prior", "most_frequent", "constant"):
        raise Unsupported(
            f"DummyClassifier(strategy={model.strategy!r}) answers by chance", hint="use 'prior'"
        )
    return _constant(context.graph, table, model.predict_proba(np.zeros((1, 1)))[0])


@regressor(DummyRegressor)
def _constant_regressor(context: Context, model: DummyRegressor, table: Table) -> str:
    return _constant(context.graph, table, np.ravel(model.constant_))


def _constant(graph: Graph, table: Table, answer: Any) -> str:
    rows = graph.op("Shape", next(block.name for block in table if hasattr(block, "name")), end=1)
    shape = graph.op("Concat", rows, graph.constant([len(answer)], np.int64), axis=0)
    return graph.op("Expand", answer, shape)
