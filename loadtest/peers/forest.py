"""The forest of `example:forest`, trained as its exporter does, for peers that serve the estimator itself."""

from __future__ import annotations

from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline


def trained() -> Pipeline:
    """The estimator; the same versions of scikit-learn and numpy train the same one."""
    data = load_breast_cancer(as_frame=False)
    names = data.target_names[data.target].astype(object)
    seen, _, labels, _ = train_test_split(data.data, names, random_state=0, stratify=names)
    model = make_pipeline(
        SimpleImputer(strategy="median"), RandomForestClassifier(n_estimators=100, random_state=0)
    )
    return model.fit(seen, labels)
