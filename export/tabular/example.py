"""The estimator that Shoal ships as an example: a random forest that tells breast cancers apart.

It is trained when it is asked for, in a second, from the data set inside scikit-learn (Street, Wolberg and
Mangasarian 1993, Breast Cancer Wisconsin (Diagnostic)): so there is no file to trust.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline

from export.tabular.classes import classes_of
from export.tabular.columns import Rows
from export.tabular.estimator import Estimator, make
from export.tabular.original import Original
from export.tabular.source import EXAMPLE, EXAMPLES
from shoal.errors import UsageError


def find(source: str) -> Estimator:
    """Train an example; the same versions of scikit-learn and numpy train the same one.

    A quarter of the rows, 143, is held out.

    Raises:
        UsageError: there is no such example.
    """
    if source.removeprefix(EXAMPLE) not in EXAMPLES:
        known = ", ".join(EXAMPLE + name for name in EXAMPLES)
        raise UsageError(f"there is no example {source!r}", hint=f"known: {known}")
    data = load_breast_cancer(as_frame=False)
    names = data.target_names[data.target].astype(object)
    seen, unseen, labels, truth = train_test_split(data.data, names, random_state=0, stratify=names)
    model = make_pipeline(
        SimpleImputer(strategy="median"),
        RandomForestClassifier(n_estimators=100, random_state=0),
    )
    model.fit(seen, labels)
    hashes = {source.removeprefix(EXAMPLE): _fingerprint(model)}
    estimator = make(model, Original(model, classes_of(model)), source, "example", hashes)
    columns = {column.name: unseen[:, i] for i, column in enumerate(estimator.columns)}
    return replace(estimator, held_out=Rows(columns, "held-out", truth))


def _fingerprint(model: Pipeline) -> str:
    """SHA-256 of what training found: its pickle would hold addresses and padding."""
    digest = hashlib.sha256()
    for tree in (estimator.tree_ for estimator in model[-1].estimators_):
        for array in (tree.children_left, tree.feature, tree.threshold, tree.value):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
