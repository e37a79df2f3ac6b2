"""Bags of words over the texts that hurt: what is counted before the graph is what scikit-learn counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import (
    CountVectorizer,
    HashingVectorizer,
    TfidfTransformer,
    TfidfVectorizer,
)
from sklearn.feature_selection import SelectKBest, chi2
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import MaxAbsScaler, OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils import murmurhash3_32

from export.tabular.convert import fallback
from export.tabular.convert.graph import Document, Graph
from export.tabular.convert.registry import Context
from export.tabular.values import DOCUMENTS
from serving.models.terms import Terms, murmur3
from shoal.errors import ExportError
from tests.export.tabular.support import answers, estimator_of, frame, proof

CHANCE = np.random.default_rng(0)
WORDS = ["good", "bad", "fish", "swim", "the", "Café", "naïve", "don't", "42", "straße", "e\u0301t\u00e9"]
TEXTS = [" ".join(CHANCE.choice(WORDS, CHANCE.integers(2, 8))) for _ in range(200)]
TARGET = np.array(["pos" if "good" in text else "neg" for text in TEXTS])
HARD = [
    *TEXTS[:40],
    *DOCUMENTS,
    *(word.upper() for word in WORDS),
    "good " * 70,
    "NAÏVE\u00a0Cafe\u0301 GOOD",
]

VECTORIZERS: dict[str, Any] = {
    "tfidf": TfidfVectorizer(),
    "counts": CountVectorizer(),
    "hashes": HashingVectorizer(),
    "few-hashes": HashingVectorizer(n_features=16, binary=True, norm=None),
    "plain-hashes": HashingVectorizer(n_features=64, alternate_sign=False, norm="l1"),
    "pairs": TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, norm="l1"),
    "pairs-alone": CountVectorizer(ngram_range=(2, 3)),
    "characters": TfidfVectorizer(analyzer="char", ngram_range=(1, 3)),
    "inside-words": TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5)),
    "no-accents": TfidfVectorizer(strip_accents="unicode"),
    "ascii": TfidfVectorizer(strip_accents="ascii"),
    "capitals": TfidfVectorizer(lowercase=False, token_pattern=r"(?u)\b\w+\b"),
    "group": TfidfVectorizer(token_pattern=r"(?u)(\w)\w+"),
    "stop-words": CountVectorizer(stop_words="english", binary=True),
    "few": TfidfVectorizer(max_features=5, use_idf=False),
    "given": CountVectorizer(vocabulary=["fish", "café", "good"]),
}


@pytest.mark.parametrize("name", VECTORIZERS)
def test_vectorizers(name: str, tmp_path: Path) -> None:
    model = make_pipeline(VECTORIZERS[name], LogisticRegression()).fit(TEXTS, TARGET)
    label, got = answers(model, HARD, tmp_path)
    np.testing.assert_allclose(got, model.predict_proba(HARD), atol=1e-6)
    assert label.tolist() == model.predict(HARD).tolist()


def terms_of(vectorizer: Any) -> Terms:
    context = Context(Graph(), lambda: fallback)
    context.transform(vectorizer, (Document("text"),))
    return context.texts[0]


@pytest.mark.parametrize("name", VECTORIZERS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_has_the_terms_that_scikit_learn_finds(name: str, text: str) -> None:
    vectorizer = VECTORIZERS[name].fit(TEXTS)
    if isinstance(vectorizer, TfidfVectorizer):  # its counts alone
        made = CountVectorizer.transform(vectorizer, [text])
    elif isinstance(vectorizer, HashingVectorizer):
        made = HashingVectorizer(**vectorizer.get_params() | {"norm": None}).transform([text])
    else:
        made = vectorizer.transform([text])
    row = made.tocsr()
    row.sort_indices()
    expected = dict(zip(row.indices.tolist(), row.data.tolist(), strict=True))
    assert terms_of(vectorizer).count(text, 10_000)[0] == expected


@given(data=st.binary(max_size=40))
def test_the_hash(data: bytes) -> None:
    assert murmur3(data) == murmurhash3_32(data, seed=0)


def test_terms_survive_json() -> None:
    terms = terms_of(TfidfVectorizer(stop_words="english", ngram_range=(1, 2)).fit(TEXTS))
    assert Terms.from_dict(terms.to_dict()) == terms


PIPELINES: dict[str, Any] = {
    "searched": GridSearchCV(
        make_pipeline(TfidfVectorizer(), LogisticRegression()), {"tfidfvectorizer__min_df": [1, 2]}, cv=2
    ),
    "union": make_pipeline(
        FeatureUnion([("w", TfidfVectorizer()), ("c", CountVectorizer(analyzer="char"))]),
        LogisticRegression(),
    ),
    "components": make_pipeline(TfidfVectorizer(), TruncatedSVD(3, random_state=0), LogisticRegression()),
    "chosen": make_pipeline(CountVectorizer(), SelectKBest(chi2, k=3), TfidfTransformer(), MultinomialNB()),
    "trees": make_pipeline(TfidfVectorizer(), RandomForestClassifier(3, random_state=0)),
    "calibrated": make_pipeline(TfidfVectorizer(), CalibratedClassifierCV(LinearSVC(), cv=2)),
    "scaled": make_pipeline(
        CountVectorizer(), MaxAbsScaler(), StandardScaler(with_mean=False), LogisticRegression()
    ),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_over_texts(name: str, tmp_path: Path) -> None:
    model = PIPELINES[name].fit(TEXTS, TARGET)
    _, got = answers(model, HARD, tmp_path)
    np.testing.assert_allclose(got, model.predict_proba(HARD), atol=1e-6)
    assert [column.input for column in estimator_of(model).columns] == ["text"]


def test_a_number_for_a_text(tmp_path: Path) -> None:
    model = make_pipeline(TfidfVectorizer(), Ridge()).fit(TEXTS, CHANCE.normal(size=len(TEXTS)))
    _, got = answers(model, HARD, tmp_path)
    np.testing.assert_allclose(got[:, 0], model.predict(HARD), rtol=1e-5, atol=1e-6)


def test_texts_beside_other_columns(tmp_path: Path) -> None:
    table = frame(
        {"review": TEXTS, "age": CHANCE.integers(18, 80, 200), "city": CHANCE.choice(["Oslo", "Rome"], 200)}
    )
    columns = [
        ("t", TfidfVectorizer(), "review"),
        ("n", StandardScaler(), ["age"]),
        ("c", OneHotEncoder(handle_unknown="ignore"), ["city"]),
        ("u", HashingVectorizer(n_features=8), "review"),
    ]
    model = make_pipeline(ColumnTransformer(columns), LogisticRegression()).fit(table, TARGET)
    other = table.assign(review=np.resize(HARD, 200), city=np.resize(["Oslo", "Nowhere"], 200))
    _, got = answers(model, other, tmp_path)
    np.testing.assert_allclose(got, model.predict_proba(other), atol=1e-6)
    found = proof(model, tmp_path)
    assert found.evidence.failures == []
    names = [spec.name for spec in found.served.exported.inputs]
    assert names == ["age", "city", "counts:0", "terms:0", "counts:1", "terms:1"]


def test_characters_of_one_column_and_words_of_another(tmp_path: Path) -> None:
    table = frame({"title": [text[:12] for text in TEXTS], "body": [f"{text} {text}" for text in TEXTS]})
    characters = CountVectorizer(analyzer="char_wb", ngram_range=(2, 3), binary=True)
    columns = [
        ("t", characters, "title"),
        ("b", CountVectorizer(), "body"),
        ("h", TfidfVectorizer(), "title"),
    ]
    model = make_pipeline(ColumnTransformer(columns), LogisticRegression())
    model.fit(table, TARGET)
    _, got = answers(model, table, tmp_path)
    np.testing.assert_allclose(got, model.predict_proba(table), atol=1e-6)
    assert proof(model, tmp_path).evidence.failures == []


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            make_pipeline(TfidfVectorizer(tokenizer=str.split), LogisticRegression()),
            "tokenizer=split.*token_pattern",
        ),
        (make_pipeline(HashingVectorizer(), RandomForestClassifier(2)), "1048576 columns.*n_features"),
    ],
)
def test_refused_with_a_way_out(model: Any, said: str, tmp_path: Path) -> None:
    model.fit(TEXTS[:40], TARGET[:40])
    with pytest.raises(ExportError, match=said):
        answers(model, HARD, tmp_path)


def test_ways_out_of_what_is_refused(tmp_path: Path) -> None:
    split = TfidfVectorizer(token_pattern=r"\S+")
    fewer = HashingVectorizer(n_features=2**10)
    for model in (
        make_pipeline(split, LogisticRegression()),
        make_pipeline(fewer, RandomForestClassifier(2)),
    ):
        model.fit(TEXTS, TARGET)
        _, got = answers(model, HARD, tmp_path)
        np.testing.assert_allclose(got, model.predict_proba(HARD), atol=1e-6)
