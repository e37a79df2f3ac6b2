"""XGBoost decides what is served as it decides itself, whatever was trained and however it was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from export.tabular.classes import classes_of
from export.tabular.find import find_estimator
from shoal.errors import ExportError
from tests.export.tabular.support import answers, frame, hard, proof

CHANCE = np.random.default_rng(0)
COUNT = 300
NUMBERS = CHANCE.normal(size=(COUNT, 2)).round(2)
NUMBERS[:, 1][CHANCE.random(COUNT) < 0.2] = np.nan
CODES = CHANCE.integers(0, 12, COUNT)
TABLE = np.column_stack([CODES, NUMBERS])
BINARY = (np.isin(CODES, [1, 3, 6]) ^ (NUMBERS[:, 0] > 0.3)).astype(int)
THREE = np.where(np.isin(CODES, [2, 9]), 2, BINARY)
VALUE = BINARY + 0.3 * NUMBERS[:, 0]
BOTH = np.column_stack([VALUE, 1 - 2 * VALUE])
FRAME = pd.DataFrame(
    {"kind": pd.Categorical.from_codes(CODES, list("abcdefghijkl")), "x": NUMBERS[:, 0], "y": NUMBERS[:, 1]}
)
SMALL: dict[str, Any] = {"n_estimators": 5, "max_depth": 3, "n_jobs": 1}
CLASSIFIER, REGRESSOR = xgboost.XGBClassifier, xgboost.XGBRegressor
VECTORS = {"multi_strategy": "multi_output_tree", "tree_method": "hist"}


def check(model: Any, rows: Any, folder: Path) -> None:
    """XGBoost itself rounds to float32, so the wire may."""
    classifies = hasattr(model, "classes_")
    expected = model.predict_proba(rows) if classifies else model.predict(rows)
    label, got = answers(model, rows, folder, numbers="FLOAT")
    np.testing.assert_allclose(np.squeeze(got), expected, rtol=2e-6, atol=2e-7)
    if classifies:
        assert label.tolist() == model.predict(rows).astype(str).tolist()


@pytest.mark.parametrize("target", [BINARY, THREE], ids=["two", "three"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"base_score": 0.2},
        {"num_parallel_tree": 3},
        {"booster": "dart", "rate_drop": 0.5},
        {"booster": "gblinear", "max_depth": None},
        {"tree_method": "exact", "gamma": 3.0, "max_depth": 6},  # leaves nodes behind that nobody reaches
        {"missing": -2.0},
        VECTORS,
    ],
    ids="-".join,
)
def test_classifiers(settings: dict[str, Any], target: NDArray, tmp_path: Path) -> None:
    check(CLASSIFIER(**{**SMALL, **settings}).fit(TABLE, target), hard(TABLE), tmp_path)


@pytest.mark.parametrize("target", [BINARY, THREE], ids=["two", "three"])
def test_forests(target: NDArray, tmp_path: Path) -> None:
    check(xgboost.XGBRFClassifier(**SMALL).fit(TABLE, target), hard(TABLE), tmp_path)


@pytest.mark.parametrize(
    "objective",
    [
        "reg:squarederror",
        "reg:squaredlogerror",
        "reg:logistic",
        "reg:pseudohubererror",
        "reg:absoluteerror",
        "reg:gamma",
        "reg:tweedie",
        "count:poisson",
        "survival:cox",
    ],
)
def test_objectives(objective: str, tmp_path: Path) -> None:
    target = (np.abs(VALUE) + 0.01) / 5
    check(REGRESSOR(objective=objective, **SMALL).fit(TABLE, target), hard(TABLE), tmp_path)


def test_several_quantiles(tmp_path: Path) -> None:
    settings = {"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.5, 0.9]}
    check(REGRESSOR(**settings, **SMALL).fit(TABLE, VALUE), hard(TABLE), tmp_path)


@pytest.mark.parametrize("settings", [{}, VECTORS, {"booster": "gblinear", "max_depth": None}])
def test_several_outputs(settings: dict[str, Any], tmp_path: Path) -> None:
    check(REGRESSOR(**{**SMALL, **settings}).fit(TABLE, BOTH), hard(TABLE), tmp_path)


@pytest.mark.parametrize("objective", ["rank:ndcg", "rank:pairwise", "rank:map"])
def test_rankers(objective: str, tmp_path: Path) -> None:
    groups = np.sort(CHANCE.integers(0, 9, COUNT))
    check(
        xgboost.XGBRanker(objective=objective, **SMALL).fit(TABLE, BINARY, qid=groups), hard(TABLE), tmp_path
    )


@pytest.mark.parametrize("one_hot", [1, 100], ids=["partitions", "one-hot"])
@pytest.mark.parametrize("target", [BINARY, THREE], ids=["two", "three"])
def test_categories(one_hot: int, target: NDArray, tmp_path: Path) -> None:
    """The frame gets the same answers, and so do codes that no frame holds."""
    model = CLASSIFIER(enable_categorical=True, max_cat_to_onehot=one_hot, **SMALL).fit(FRAME, target)
    check(model, FRAME, tmp_path)
    rows = TABLE[:60].copy()
    rows[:, 0] = np.resize([-1, -0.5, 0, 0.5, 1.9, 11, 12, 31, 32, 1e7, 2e7, 1e10, np.nan], 60)
    check(model, rows, tmp_path)


def test_early_stopping_is_what_the_estimator_answers_with_and_the_booster_does_not(tmp_path: Path) -> None:
    noise = CHANCE.permutation(BINARY[200:])
    model = CLASSIFIER(n_estimators=60, learning_rate=0.9, early_stopping_rounds=3, n_jobs=1)
    model.fit(TABLE[:200], BINARY[:200], eval_set=[(TABLE[200:], noise)], verbose=False)
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    check(model, hard(TABLE), tmp_path)
    expected = model.predict_proba(TABLE)
    for name, save in (("estimator.ubj", model.save_model), ("booster.ubj", model.get_booster().save_model)):
        save(tmp_path / name)
        loaded = find_estimator(str(tmp_path / name)).original
        got = loaded.answers(TABLE).scores
        booster = model.get_booster().predict(xgboost.DMatrix(TABLE))
        wanted = expected[:, 1] if isinstance(loaded.model, CLASSIFIER) else booster
        np.testing.assert_allclose(got[:, 1], wanted, atol=1e-7)
        _, served = answers(loaded.model, TABLE, tmp_path, numbers="FLOAT")
        np.testing.assert_allclose(served[:, 1], wanted, atol=1e-6)
    assert not np.allclose(expected[:, 1], booster, atol=0.01)


@pytest.mark.parametrize("suffix", [".ubj", ".json"])
@pytest.mark.parametrize("objective", ["multi:softmax", "binary:logitraw", "binary:hinge", "survival:aft"])
def test_boosters_alone(objective: str, suffix: str, tmp_path: Path) -> None:
    data = xgboost.DMatrix(TABLE, THREE if "multi" in objective else BINARY)
    if objective == "survival:aft":
        data.set_float_info("label_lower_bound", np.abs(VALUE) + 0.1)
        data.set_float_info("label_upper_bound", np.abs(VALUE) + 0.5)
    classes = {"num_class": 3} if "multi" in objective else {}
    booster = xgboost.train({"objective": objective, "max_depth": 3, **classes}, data, 4)
    path = tmp_path / f"model{suffix}"
    booster.save_model(path)
    model = xgboost.Booster(model_file=path)
    rows = hard(TABLE)
    expected = model.predict(xgboost.DMatrix(rows))
    label, got = answers(model, rows, tmp_path, numbers="FLOAT")
    if classes_of(model):  # of multi:softmax, XGBoost gives classes alone
        assert label.astype(float).tolist() == expected.tolist()
    else:
        np.testing.assert_allclose(got[:, 0], expected, rtol=2e-6)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            CLASSIFIER(**SMALL).fit(TABLE, np.column_stack([BINARY, 1 - BINARY])),
            "several labels to a row.*an estimator for",
        ),
        (CLASSIFIER(**VECTORS, **SMALL).fit(TABLE, np.column_stack([BINARY, 1 - BINARY])), "several labels"),
        (
            CLASSIFIER(objective="binary:logitraw", **SMALL).fit(TABLE, BINARY),
            "no probabilities.*binary:logistic",
        ),
    ],
)
def test_refused_by_name(model: Any, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        classes_of(model)


def test_the_way_out_of_several_labels(tmp_path: Path) -> None:
    for label in (BINARY, 1 - BINARY):
        check(CLASSIFIER(**SMALL).fit(TABLE, label), TABLE, tmp_path)


def test_what_a_sparse_matrix_lacks_is_missing(tmp_path: Path) -> None:
    """Zeros of a sparse matrix are missing values to XGBoost, those of an array are not."""
    table = frame({"kind": np.array(list("abc"))[CODES % 3]})
    for encoder in (OneHotEncoder(), OneHotEncoder(sparse_output=False)):
        check(make_pipeline(encoder, CLASSIFIER(**SMALL)).fit(table, BINARY), table, tmp_path)
    texts = [" ".join(CHANCE.choice(["good", "bad", "fish"], 3)) for _ in range(COUNT)]
    target = np.array(["good" in text for text in texts]).astype(int)
    check(
        make_pipeline(TfidfVectorizer(), CLASSIFIER(**SMALL)).fit(texts, target),
        [*texts, "", "other"],
        tmp_path,
    )


def test_codes_are_what_the_wire_carries_and_float32_is_enough(tmp_path: Path) -> None:
    model = CLASSIFIER(enable_categorical=True, **SMALL).fit(FRAME, BINARY)
    model.save_model(tmp_path / "model.ubj")
    found = proof(find_estimator(str(tmp_path / "model.ubj")), tmp_path)
    assert found.evidence.failures == []
    assert (found.evidence.numbers, found.evidence.rounding_diff) == ("FLOAT", 0.0)
    assert [spec.name for spec in found.served.exported.inputs] == ["features"]


def test_scaled_numbers_are_told_apart_by_float64(tmp_path: Path) -> None:
    model = make_pipeline(StandardScaler(), CLASSIFIER(**SMALL)).fit(TABLE, BINARY)
    found = proof(model, tmp_path)
    assert (found.evidence.failures, found.evidence.numbers) == ([], "DOUBLE")
